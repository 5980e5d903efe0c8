"""Load a file and clean it, and say what each part took, in CPU seconds of this process."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pyarrow as pa

from data.fingerprint import code_digests, package_versions
from infra.stage import Stage
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.load import LoadParameters, Source, load

seconds = {"start and imports": time.process_time()}


@contextmanager
def timed(part: str) -> Iterator[None]:
    began, inside = time.process_time(), sum(seconds.values())
    yield
    seconds[part] = time.process_time() - began - (sum(seconds.values()) - inside)


def watched(stage: Stage[Any]) -> Stage[Any]:
    """Time a stage's body apart from what stands around it."""
    body = stage.body

    @wraps(body)
    def timing(*arguments: Any) -> Any:
        with timed(f"{stage.name}: body"):
            return body(*arguments)

    stage.body = timing
    return stage


with timed("pandas, which pyarrow imports"):
    pa.array([0])
with timed("code digests"):
    for method in (load, clean):
        package_versions(tuple(code_digests(method.body.__module__)))
with timed("load: key and publish"):
    source = Source(path=sys.argv[1], name="benchmark", licence="CC0-1.0", layout="prompt-completion")
    rows = watched(load)(LoadParameters(sources=(source,)))
with timed("clean: key and publish"):
    cleaned = watched(clean)(CleanParameters(), rows)
print(json.dumps({"seconds": seconds, "path": str(cleaned.path)}))
