"""A whole curation in small: two sources, a target and an evaluation set, every stage that drops, four selections."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data.artifact import Artifact
from infra.settings import use_settings
from infra.store import current_store
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.decontaminate import DecontaminateParameters, decontaminate
from tasks.curate.deduplicate import DeduplicateParameters, NearParameters, deduplicate
from tasks.curate.deduplicate_semantic import DeduplicateSemanticParameters, deduplicate_semantic
from tasks.curate.embed import EmbedParameters, embed
from tasks.curate.filter import FilterParameters, filter
from tasks.curate.load import LoadParameters, load
from tasks.curate.mixture_ot import MixtureOtParameters, mixture_ot
from tasks.curate.personal import PersonalParameters
from tasks.curate.rules import QualityParameters
from tasks.curate.select_nearest import SelectNearestParameters, select_nearest
from tasks.curate.select_ot import SelectOtParameters, select_ot
from tasks.curate.select_random import SelectRandomParameters, select_random
from tasks.curate.split import SplitParameters, split

ADDRESS = "ann.lee@openmail.net"
FRAME = "Once upon a time in a far away land there lived an old man who said"
WORDS = (
    "amber", "birch", "cedar", "dune", "elm", "fern", "grove", "heath", "iris", "jade",
    "kelp", "lily", "moss", "nettle", "oak", "pine", "quartz", "reed", "sage", "thyme",
)  # fmt: skip


class Curation(NamedTuple):
    """What the stages of the flow `curate` have published, by their names."""

    folder: Path
    loaded: Artifact
    cleaned: Artifact
    filtered: Artifact
    unique: Artifact
    evaluation: Artifact
    clear: Artifact
    vectors: Artifact
    apart: Artifact
    target: Artifact
    target_vectors: Artifact
    chosen: Artifact
    nearest: Artifact
    random: Artifact
    mixture: Artifact
    parts: Artifact

    @property
    def made(self) -> list[Artifact]:
        """What the flow hands to the report."""
        return [
            self.loaded, self.cleaned, self.filtered, self.unique, self.clear, self.vectors, self.apart,
            self.target_vectors, self.chosen, self.parts,
        ]  # fmt: skip

    @property
    def others(self) -> list[Artifact]:
        """The baselines."""
        return [self.nearest, self.random, self.mixture]


def sentence(start: int, length: int = 14) -> str:
    """Draw words by a number: another one, other words."""
    return " ".join(random.Random(start).choices(WORDS, k=length))


def source(folder: Path, name: str, records: list[dict[str, str]]) -> dict[str, Any]:
    """Write records into a file of this name, and say how to load it."""
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return {"path": str(path), "licence": "CC0-1.0", "layout": "prompt-completion"}


def row(prompt: str, completion: str) -> dict[str, str]:
    """Make a row."""
    return {"prompt": prompt, "completion": completion}


def curate(folder: Path) -> Curation:
    """Run the stages on rows of which some are short, alike, taken from the evaluation set, or name a person."""
    leaked = row("Which tree stands by the water in the old story of the miller and his heron, and why", "An alder")
    plain = [row(f"Say this: {sentence(n)}", sentence(n + 100)) for n in range(60)]
    near = row(plain[7]["prompt"], plain[7]["completion"] + " indeed")
    long = row(f"Say this at length: {sentence(800, 150)}", sentence(801))
    named = row(f"Write to {ADDRESS}: {sentence(300, 30)}", sentence(301))
    odd = [long, row("Hi", "Yes"), row("Ho", "No"), near, leaked, named]
    other = [row(f"Tell of <b>{n}</b> & “{sentence(n + 400)}”", f"{FRAME} {sentence(n + 500)}") for n in range(30)]
    wanted = [row(f"Tell of <b>{n}</b> & “{sentence(n + 600)}”", sentence(n + 400)) for n in range(12)]
    wanted += [row(f"Write to them: {sentence(300, 30)}", sentence(301))]

    def loaded(*sources: tuple[str, list[dict[str, str]]]) -> Artifact:
        listed = [source(folder, name, records) for name, records in sources]
        return load(LoadParameters.model_validate({"sources": listed}))

    rows = loaded(("plain", [*plain, *odd]), ("other", other))
    cleaned = clean(CleanParameters(), rows)
    rules = dict.fromkeys(QualityParameters.model_fields) | {"min_words": 4, "max_words": 200}
    quality = QualityParameters.model_validate(rules)
    filtered = filter(FilterParameters(quality=quality, personal=PersonalParameters()), cleaned)
    unique = deduplicate(DeduplicateParameters(near=NearParameters(threshold=0.6)), filtered)
    evaluation = loaded(("exam", [leaked, row(sentence(700), f"{FRAME} {sentence(701)}")]))
    clear = decontaminate(DecontaminateParameters(), unique, [evaluation])
    vectors = embed(EmbedParameters(dimensions=32), clear)
    apart = deduplicate_semantic(DeduplicateSemanticParameters(threshold=0.999), clear, vectors)
    target = clean(CleanParameters(), loaded(("wanted", wanted)))
    target_vectors = embed(EmbedParameters(dimensions=32), target)
    chosen = select_ot(SelectOtParameters(budget=20), apart, vectors, target, target_vectors, [])
    return Curation(
        folder=folder,
        loaded=rows,
        cleaned=cleaned,
        filtered=filtered,
        unique=unique,
        evaluation=evaluation,
        clear=clear,
        vectors=vectors,
        apart=apart,
        target=target,
        target_vectors=target_vectors,
        chosen=chosen,
        nearest=select_nearest(SelectNearestParameters(budget=20), apart, vectors, target_vectors),
        random=select_random(SelectRandomParameters(budget=20), apart),
        mixture=mixture_ot(MixtureOtParameters(budget=20), apart, vectors, target_vectors),
        parts=split(SplitParameters(test_share=0.3), chosen),
    )


@pytest.fixture(scope="session")
def run_curation() -> Callable[[Path], Curation]:
    """Make the curation in the store of a folder."""

    def run(folder: Path) -> Curation:
        with use_settings(store=folder / "store", workers=1):
            current_store().prepare()
            return curate(folder)

    return run


@pytest.fixture(scope="session")
def curation(run_curation: Callable[[Path], Curation], tmp_path_factory: pytest.TempPathFactory) -> Curation:
    """The curation, made once."""
    return run_curation(tmp_path_factory.mktemp("curation"))
