"""Make caches of a teacher, alone and with its reference, in each form: bytes a response token, heads apart."""

import json
import sys

from infra.store import current_store
from tasks.train.teacher_cache import TeacherCacheParameters, teacher_cache

rows, teacher, reference = map(current_store().resolve, sys.argv[1:])
sizes = {}
for form, precision in (("exact", "fp32"), ("exact", "bf16"), ("compact", "bf16")):
    parameters = TeacherCacheParameters(form=form, precision=precision, batch_size=1)
    made = [teacher_cache(parameters, rows, teacher, each) for each in ([], [reference])]
    sizes[f"{form}, {precision}"] = [each.record["measures"]["bytes_per_position"] for each in made]
print(json.dumps(sizes))
