"""A small model learns a few verifiable tasks, from nothing, and proves it; then a teacher tells it what to prefer.

The second half is there where `alignment` is: without it the flow ends with the fine-tuned models.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from data.artifact import Artifact
from flows.origin import TeacherParameters, begin
from flows.student import Lesson, student
from infra.flow import Built, flow
from infra.stage import Parameters
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.respond import RespondParameters
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.compare import CompareParameters, compare
from tasks.evaluate.compare_arms import Arm, CompareArmsParameters, compare_arms
from tasks.evaluate.evaluate import EvaluateParameters, evaluate
from tasks.evaluate.report import ReportParameters, report
from tasks.train.adpa import AdpaParameters
from tasks.train.dpo import DpoParameters, dpo
from tasks.train.scratch import ScratchParameters, scratch
from tasks.train.sft import SftParameters, sft
from tasks.train.teacher_cache import TeacherCacheParameters


class AlignmentParameters(Parameters):
    """Parameters of the second half: a teacher learns what is preferred, and the first model from the teacher."""

    pairs: LoadParameters = Field(title="Pairs", description="Preferences.")
    teacher: TeacherParameters = Field(title="Teacher")
    dpo: DpoParameters = Field(DpoParameters(), title="DPO (teacher)")
    respond: RespondParameters = Field(RespondParameters(), title="Respond")
    teacher_cache: TeacherCacheParameters = Field(TeacherCacheParameters(), title="Teacher cache")
    adpa: AdpaParameters = Field(AdpaParameters(), title="ADPA (student)")
    compare: CompareArmsParameters = Field(
        CompareArmsParameters(metric="exact_match", base="SFT", reference="SFT"), title="Compare (preferred answers)"
    )


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
    alignment: AlignmentParameters | None = Field(None, title="Alignment", description="None: no second half.")
    report: ReportParameters = Field(ReportParameters(), title="Report")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        self.compare.check(trained=len(self.seeds) + 1, alike=len(self.seeds))
        return self


@flow
def quickstart(parameters: QuickstartParameters) -> Built:
    """Rows -> clean -> unique -> train | test; base -> a model per seed, a control -> compared; aligned -> report."""
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
    compared = [compare(parameters.compare, before, after)]
    made = [rows, cleaned, unique, parts, shuffled, base, *models, control]
    if parameters.alignment:
        steps, preferred = aligned(parameters, parameters.alignment, parts, models[0])
        made, compared = [*made, *steps], [*compared, preferred]
    page = report(parameters.report, parts, made, [], [before, *after], compared)
    return Built(dataset=parts, model=made[-1] if parameters.alignment else models[0], report=page)


def aligned(
    parameters: QuickstartParameters, alignment: AlignmentParameters, parts: Artifact, start: Artifact
) -> tuple[list[Artifact], Artifact]:
    """Pairs -> train | test; a larger teacher -> DPO; the start -> ADPA from that teacher -> compared with the start.

    Returns:
        The artifacts in the order of their making, the student last; and the comparison.
    """
    loaded = load(alignment.pairs)
    cleaned = clean(parameters.clean, loaded)
    pairs = split(parameters.split, cleaned)
    reference = begin(alignment.teacher, parts["train"])
    teacher = dpo(alignment.dpo, pairs["train"], reference)
    lesson = Lesson(pairs["train"], teacher, reference, alignment.respond, alignment.teacher_cache)
    learner = student(alignment.adpa, lesson, start)
    before, after = (evaluate(parameters.evaluate, pairs["test"], model) for model in (start, learner))
    arms = alignment.compare.model_copy(update={"arms": (Arm(name="ADPA"),)})
    return [loaded, cleaned, pairs, reference, teacher, learner], compare_arms(arms, before, [after])
