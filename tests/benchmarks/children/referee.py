"""Compare the potentials of a selection with POT's converged Sinkhorn at the same temperature."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import ot
from scipy.stats import spearmanr

from data.artifact import Artifact
from infra.store import current_store
from tasks.curate.transport import squared_distances
from tasks.curate.vectors import as_matrix

selection, pool, target = Artifact("", "", Path(sys.argv[1])), *map(current_store().resolve, sys.argv[2:])
epsilon = selection.record["measures"]["epsilon"]
x, y = (as_matrix(each["embeddings"].read(["vector"])["vector"]) for each in (pool, target))
n, m = len(x), len(y)
costs = squared_distances(x, y).astype(np.float64)
began = time.process_time()
weights = [np.full(size, 1 / size) for size in (n, m)]
plan, log = ot.sinkhorn(*weights, costs, epsilon, numItermax=100_000, stopThr=1e-10, log=True)
error = float(np.abs(plan.sum(0) - 1 / m).sum() + np.abs(plan.sum(1) - 1 / n).sum())
theirs = epsilon * np.log(log["u"])
ours = selection["scores"].read(["potential"])["potential"].to_numpy()
top = [set(np.argsort(each, kind="stable")[: n // 10].tolist()) for each in (theirs, ours)]
print(json.dumps({
    "rho": float(spearmanr(theirs, ours)[0]), "top": len(top[0] & top[1]) / len(top[0]),
    "seconds": time.process_time() - began, "iterations": int(log["niter"]), "error": error,
}))  # fmt: skip
