"""Turn a JSONL file into the Arrow data set that text-dedup reads, or list the rows of one: with the peers' Python."""

import json
import sys
from pathlib import Path

from datasets import Dataset, load_from_disk

if sys.argv[1] == "make":
    with Path(sys.argv[2]).open("rb") as file:
        texts = [json.loads(line)["prompt"] for line in file]
    Dataset.from_dict({"text": texts, "number": list(range(len(texts)))}).save_to_disk(sys.argv[3])
else:
    print(json.dumps({"kept": list(load_from_disk(sys.argv[2])["number"])}))
