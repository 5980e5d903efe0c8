"""Find near-duplicates with datasketch: the first row of each kind is kept. Runs with the peers' Python.

Its fast path by its own documentation: `MinHash.generator`, which is what `bulk` collects, the affine32 scheme (the
default), another hash than SHA-1, and no check for keys that were inserted before.
"""

import json
import sys
from pathlib import Path

import xxhash
from datasketch import MinHash, MinHashLSH

source, (shingle, permutations, threshold) = Path(sys.argv[1]), map(json.loads, sys.argv[2:])
with source.open("rb") as file:
    texts = [json.loads(line)["prompt"] for line in file]


def shingles(text: str) -> set[bytes]:
    words = text.split(" ")
    return {" ".join(words[at : at + shingle]).encode() for at in range(max(1, len(words) - shingle + 1))}


index = MinHashLSH(threshold=threshold, num_perm=permutations)
kept = []
signatures = MinHash.generator(map(shingles, texts), num_perm=permutations, hashfunc=xxhash.xxh32_intdigest)
for number, signature in enumerate(signatures):
    if not index.query(signature):
        index.insert(number, signature, check_duplication=False)
        kept.append(number)
print(json.dumps({"kept": kept, "bands": [index.b, index.r]}))
