"""Run the command line, then say which heavy libraries it imported."""

import sys

from flows.__main__ import main

code = main(sys.argv[1:])
heavy = sorted({"prefect", "ray", "torch", "transformers", "trl", "duckdb", "pandas"} & set(sys.modules))
sys.stdout.write("\n" + " ".join(["imported:", *heavy]) + "\n")
sys.exit(code)
