"""Run every stage of curation on some thousand rows, and say what each cost this process in CPU seconds.

stages.py ROWS FOLDER: the folder has pool.jsonl with at least that many lines, target.jsonl and items.jsonl.
"""

import json
import sys
import time
from collections.abc import Callable

import torch  # noqa: F401 - imported before the clock starts

from data.artifact import Artifact
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.decontaminate import DecontaminateParameters, decontaminate
from tasks.curate.deduplicate import DeduplicateParameters, NearParameters, deduplicate
from tasks.curate.deduplicate_semantic import DeduplicateSemanticParameters, deduplicate_semantic
from tasks.curate.embed import EmbedParameters, embed
from tasks.curate.filter import FilterParameters, filter
from tasks.curate.load import LoadParameters, Source, load
from tasks.curate.mixture_ot import MixtureOtParameters, mixture_ot
from tasks.curate.personal import PersonalParameters
from tasks.curate.rules import QualityParameters
from tasks.curate.select_dsir import SelectDsirParameters, select_dsir
from tasks.curate.select_kcentre import SelectKcentreParameters, select_kcentre
from tasks.curate.select_nearest import SelectNearestParameters, select_nearest
from tasks.curate.select_ot import SelectOtParameters, select_ot
from tasks.curate.select_random import SelectRandomParameters, select_random
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split

rows, folder = int(sys.argv[1]), sys.argv[2]
BUDGET = 200  # the same at every size: what grows is the pool
seconds: dict[str, float] = {}


def timed(name: str, make: Callable[[], Artifact]) -> Artifact:
    began = time.process_time()
    made = make()
    seconds[name] = time.process_time() - began
    return made


def source(name: str) -> LoadParameters:
    path = f"{folder}/{name}.jsonl"
    one = Source(path=path, licence="CC0-1.0", layout="prompt-completion", limit=rows)
    return LoadParameters(sources=(one,))


QUALITY = QualityParameters(min_words=3, min_stop_words=None, min_terminal_lines=None)
target, items = load(source("target")), load(source("items"))
wanted = embed(EmbedParameters(), target)
loaded = timed("load", lambda: load(source("pool")))
cleaned = timed("clean", lambda: clean(CleanParameters(), loaded))
strict = FilterParameters(languages=("en",), language_confidence=0, quality=QUALITY, personal=PersonalParameters())
timed("filter", lambda: filter(strict, cleaned))
near = DeduplicateParameters(near=NearParameters())
unique = timed("deduplicate", lambda: deduplicate(near, cleaned))
timed("decontaminate", lambda: decontaminate(DecontaminateParameters(), unique, [items]))
vectors = timed("embed (hashing)", lambda: embed(EmbedParameters(), unique))
apart = DeduplicateSemanticParameters()
timed("deduplicate_semantic", lambda: deduplicate_semantic(apart, unique, vectors))
timed("select_ot", lambda: select_ot(SelectOtParameters(budget=BUDGET), unique, vectors, target, wanted, []))
timed("mixture_ot", lambda: mixture_ot(MixtureOtParameters(budget=BUDGET), unique, vectors, wanted))
timed("select_nearest", lambda: select_nearest(SelectNearestParameters(budget=BUDGET), unique, vectors, wanted))
timed("select_kcentre", lambda: select_kcentre(SelectKcentreParameters(budget=BUDGET), unique, vectors))
timed("select_dsir", lambda: select_dsir(SelectDsirParameters(budget=BUDGET), unique, target))
timed("select_random", lambda: select_random(SelectRandomParameters(budget=BUDGET), unique))
timed("shuffle", lambda: shuffle(ShuffleParameters(), unique))
timed("split", lambda: split(SplitParameters(), unique))
print(json.dumps({"rows": unique.rows, "seconds": seconds}))
