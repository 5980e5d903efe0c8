"""Load a JSONL file of prompts and completions, and count its rows."""

import json
import sys

from tasks.curate.load import LoadParameters, Source, load

source = Source(path=sys.argv[1], name="benchmark", licence="CC0-1.0", layout="prompt-completion")
loaded = load(LoadParameters(sources=(source,)))
print(json.dumps({"rows": loaded.rows, "path": str(loaded.path)}))
