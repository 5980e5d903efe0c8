"""Select by transport from a pool that points.py has published; say what came out."""

import json
import sys
import time

from infra.store import current_store
from tasks.curate.select_ot import SelectOtParameters, select_ot

budget, parts, *names = sys.argv[1:]
inputs = [current_store().resolve(name) for name in names]
began = time.process_time()
made = select_ot(SelectOtParameters(budget=int(budget), parts=int(parts)), *inputs, [])
facts = {"stage": time.process_time() - began, "path": str(made.path), "digest": made["scores"].digest}
print(json.dumps({**facts, **{name: made.record["measures"][name] for name in ("epsilon", "marginal_error")}}))
