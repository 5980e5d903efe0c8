"""Run the command line, then say which heavy libraries it imported."""

import sys

from flows.__main__ import main

HEAVY = {"prefect", "ray", "torch", "transformers", "trl", "duckdb", "pandas"}

if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.write("\n" + " ".join(["imported:", *sorted(HEAVY & set(sys.modules))]) + "\n")
    sys.exit(code)
