"""Run the stage on a loaded artifact (its folder), and name the rows that it kept."""

import json
import sys
from pathlib import Path

from data.artifact import Artifact
from tasks.curate.deduplicate import DeduplicateParameters, NearParameters, deduplicate

folder, shingle, permutations, threshold = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
near = NearParameters(shingle=shingle, permutations=permutations, threshold=threshold)
made = deduplicate(DeduplicateParameters(near=near), Artifact("load", folder.name, folder))
print(json.dumps({"rows": made.rows, "path": str(made.path)}))
