"""Load a pool and evaluation items, decontaminate the pool, and say how many rows of each kind fell, and the cost."""

import json
import sys
import time
from collections import Counter

from tasks.curate.decontaminate import DecontaminateParameters, decontaminate
from tasks.curate.load import LoadParameters, Source, load

pool, items = (
    load(LoadParameters(sources=(Source(path=path, licence="CC0-1.0", layout="prompt-completion", keep=("kind",)),)))
    for path in sys.argv[1:3]
)
began = time.process_time()
kept = decontaminate(DecontaminateParameters(), pool, [items])
seconds = time.process_time() - began
before, after = (Counter(each.read(["kind"])["kind"].to_pylist()) for each in (pool, kept))
fallen = {kind: [count - after[kind], count] for kind, count in before.items()}
print(json.dumps({"seconds": seconds, "rows": pool.rows, "fallen": fallen, "measures": kept.record["measures"]}))
