"""Run datatrove's n-gram filter over rows, and say how many of each kind it dropped, and the cost.

Its indexer cannot be made without lighteval, an evaluation harness; so its own tokenizer, normaliser and hash write
the index here, as that indexer does for a query and its answer.
"""

import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.text import simplify_text

N = 13


def read(path: str) -> list[dict[str, Any]]:
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


began = time.process_time()
folder = Path(sys.argv[3])
folder.mkdir()
config = NGramsDecontConfig(n_grams=N, find_query_ngrams=True)
peer = NGramsDecontFilter(str(folder), config)
hashes = set()
for item in read(sys.argv[2]):
    words = [
        word
        for part in (item["prompt"], item["completion"])
        for word in peer.tokenizer.word_tokenize(simplify_text(part, config.norm_config))
    ]
    hashes |= {peer.hash_func(" ".join(words[at : at + N])) for at in range(len(words) - N + 1)}
np.array(list(hashes), config.hash_config.np_descr).tofile(folder / "items.index.hashes")
indexed = time.process_time()
fallen: dict[str, Counter[bool]] = {}
rows = read(sys.argv[1])
for number, row in enumerate(rows):
    kept = peer.filter(Document(text=f"{row['prompt']}\n{row['completion']}", id=str(number))) is True
    fallen.setdefault(row["kind"], Counter())[not kept] += 1
cost = {"index": indexed - began, "seconds": time.process_time() - indexed, "rows": len(rows)}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(cost | {"peak": peak, "fallen": {kind: [each[True], each.total()] for kind, each in fallen.items()}}))
