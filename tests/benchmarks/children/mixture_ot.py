"""Find a mixture for sources that are drawn here: mixture_ot.py SOURCES PILOT; say how far it is from the planted."""

import json
import sys
import time

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.shards import one_thread
from tasks.curate.mixture_ot import MixtureOtParameters, Pilot, find

sources, pilot, target, dimensions = int(sys.argv[1]), int(sys.argv[2]), 2000, 64
draw = np.random.default_rng(0)
means = draw.normal(size=(sources, dimensions))
planted = np.array([0.3, 0.7]) if sources == 2 else draw.dirichlet(np.ones(sources))
which = np.repeat(np.arange(sources), np.round(planted * target).astype(int))


def around(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    points = means[labels] + draw.normal(size=(len(labels), dimensions))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


codes = np.repeat(np.arange(sources), pilot)
problem = Pilot(around(codes), codes, around(which), np.full(sources, 1 / sources))
import torch  # noqa: E402, F401 - loaded before its threads are held and the clock starts

began = time.process_time()
with one_thread():
    found = find((MixtureOtParameters(), problem))
seconds = time.process_time() - began
share: pa.ChunkedArray = found["shares"]["share"]
last = found["steps"].slice(len(found["steps"]) - 1).to_pylist()[0]
error = float(np.abs(share.to_numpy() - planted).max())
facts = {"seconds": seconds, "error": error, "steps": last["step"], "gap": last["gap"]}
print(json.dumps(facts))
