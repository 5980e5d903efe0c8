"""Find near-duplicates among the texts of a JSONL file without a store, and say how long that took, reading apart."""

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.curate.leaders import choose_sharing
from tasks.curate.minhash import band_hashes, bands_for, jaccard, joined, shingle_sets, signatures

source, (shingle, permutations, threshold) = Path(sys.argv[1]), map(json.loads, sys.argv[2:])
with source.open("rb") as file:
    texts = [json.loads(line)["prompt"] for line in file]
began = time.process_time()
bands, rows = bands_for(threshold, permutations)
parts, keys = [], []
for start in range(0, len(texts), 10_000):
    parts.append(shingle_sets(pa.array(texts[start : start + 10_000]), shingle))
    keys.append(band_hashes(signatures(parts[-1], bands * rows), bands))
sets = joined(parts)
choice = choose_sharing(
    len(texts), np.concatenate(keys, 1), lambda those: partial(jaccard, sets.take(those)), threshold
)
seconds = time.process_time() - began
print(json.dumps({"seconds": seconds, "kept": np.flatnonzero(choice.leader < 0).tolist()}))
