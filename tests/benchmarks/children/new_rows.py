"""Embed and select from a source, or from the same with more rows by the potentials of before; say what each cost.

new_rows.py FILE TARGET ENCODER [POTENTIALS]
"""

import json
import sys
import time

import torch  # noqa: F401 - imported before the clock starts
import transformers  # noqa: F401

from infra.store import current_store
from tasks.curate.embed import EmbedParameters, embed
from tasks.curate.load import LoadParameters, Source, load
from tasks.curate.select_ot import SelectOtParameters, select_ot
from tasks.curate.split import SplitParameters, split

file, target, encoder, *potentials = sys.argv[1:]
BUDGET = 5_000


def source(path: str, name: str) -> LoadParameters:
    return LoadParameters(sources=(Source(path=path, name=name, licence="CC0-1.0", layout="prompt-completion"),))


how = EmbedParameters(encoder=encoder, precision="bf16", part="prompt")
rows, wanted = load(source(file, "pool")), load(source(target, "target"))
target_vectors = embed(how, wanted)
began = time.process_time()
vectors = embed(how, rows)
embedded = time.process_time()
earlier = [current_store().resolve(each)["potentials"] for each in potentials]
chosen = select_ot(
    SelectOtParameters(budget=BUDGET),
    rows, vectors, wanted, target_vectors, earlier,
)  # fmt: skip
selected = time.process_time()
parts = split(SplitParameters(), chosen)
print(json.dumps({
    "rows": rows.rows, "embed": embedded - began, "select": selected - embedded, "chosen": chosen.fingerprint,
    "dataset": f"split/{parts.fingerprint}",
}))  # fmt: skip
