"""A small model learns a few verifiable tasks, from nothing, and proves it."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from infra.flow import Built, flow
from infra.stage import Parameters
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.compare import CompareParameters, compare
from tasks.evaluate.evaluate import EvaluateParameters, evaluate
from tasks.evaluate.report import ReportParameters, report
from tasks.train.scratch import ScratchParameters, scratch
from tasks.train.sft import SftParameters, sft


class QuickstartParameters(Parameters):
    """Parameters of the flow, stage by stage."""

    load: LoadParameters = Field(title="Load")
    clean: CleanParameters = Field(CleanParameters(), title="Clean")
    deduplicate: DeduplicateParameters = Field(DeduplicateParameters(), title="Deduplicate")
    split: SplitParameters = Field(SplitParameters(), title="Split")
    shuffle: ShuffleParameters = Field(ShuffleParameters(), title="Shuffle (control)")
    scratch: ScratchParameters = Field(ScratchParameters(), title="Model from scratch")
    sft: SftParameters = Field(SftParameters(), title="Supervised fine-tuning")
    seeds: tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...] = Field(
        (0, 1, 2), min_length=1, description="Seeds of the training; one model for each."
    )
    evaluate: EvaluateParameters = Field(EvaluateParameters(), title="Evaluate")
    compare: CompareParameters = Field(CompareParameters(), title="Compare")
    report: ReportParameters = Field(ReportParameters(), title="Report")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        self.compare.check(trained=len(self.seeds) + 1, alike=len(self.seeds))
        return self


@flow
def quickstart(parameters: QuickstartParameters) -> Built:
    """Rows -> clean -> unique -> train | test; base -> a model per seed, and a control -> compared -> report."""
    rows = load(parameters.load)
    cleaned = clean(parameters.clean, rows)
    unique = deduplicate(parameters.deduplicate, cleaned)
    parts = split(parameters.split, unique)
    shuffled = shuffle(parameters.shuffle, parts["train"])
    base = scratch(parameters.scratch)

    models = [sft(parameters.sft.with_seed(seed), parts["train"], base) for seed in parameters.seeds]
    control = sft(parameters.sft, shuffled, base)

    before = evaluate(parameters.evaluate, parts["test"], base)
    after = [evaluate(parameters.evaluate, parts["test"], model) for model in [*models, control]]
    compared = compare(parameters.compare, before, after)
    page = report(
        parameters.report,
        parts,
        [rows, cleaned, unique, parts, shuffled, base, *models, control],
        [],
        [before, *after],
        [compared],
    )
    return Built(dataset=parts, model=models[0], report=page)
