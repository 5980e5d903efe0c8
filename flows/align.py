"""Which preference training helps a small model? A teacher is aligned first, and students learn by several methods.

As in "Advantage-Guided Distillation for Preference Alignment in Small Language Models" (Gao et al. 2025), figure 2:

    rows  -> teacher SFT (the reference) -> DPO on all pairs -> the teacher, if it is no worse than the reference
    rows  -> student SFT -> by each method, on the students' pairs -> asked the held-out pairs -> compared
"""

from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field, model_validator

from flows.origin import LearnerParameters, TeacherParameters, begin
from flows.student import Lesson, StudentParameters, student, with_seed
from infra.flow import Built, flow
from infra.stage import Parameters
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.respond import RespondParameters, respond
from tasks.curate.select_random import SelectRandomParameters, select_random
from tasks.curate.shuffle import ShuffleParameters, shuffle
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.compare_arms import Arm, CompareArmsParameters, compare_arms
from tasks.evaluate.evaluate import EvaluateParameters, evaluate
from tasks.evaluate.evaluate_pairs import EvaluatePairsParameters, evaluate_pairs
from tasks.evaluate.evaluate_responses import EvaluateResponsesParameters, evaluate_responses
from tasks.evaluate.report import ReportParameters, report
from tasks.evaluate.teacher_check import TeacherCheckParameters, teacher_check
from tasks.train.dpo import DpoParameters, dpo
from tasks.train.preflight import PreflightParameters, preflight
from tasks.train.teacher_cache import TeacherCacheParameters

Seeds = tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...]


class StudentArm(Parameters):
    """One way of training a student, and the seeds that it is tried with."""

    name: str = Field(min_length=1, description="Name of the arm.")
    train: StudentParameters = Field(title="Training", description="The method and how it trains.")
    shuffled: bool = Field(False, description="Learn from pairs whose sides were changed by lot: the control.")
    seeds: Seeds = Field((0,), min_length=1, description="Seeds of the training; one model for each.")


class AlignParameters(Parameters):
    """Parameters of the flow, stage by stage."""

    rows: LoadParameters = Field(title="Rows", description="What teacher and student are fine-tuned on.")
    pairs: LoadParameters = Field(title="Pairs", description="Preferences.")
    clean: CleanParameters = Field(CleanParameters(), title="Clean")
    deduplicate: DeduplicateParameters = Field(DeduplicateParameters(), title="Deduplicate")
    split: SplitParameters = Field(SplitParameters(), title="Split (pairs)")
    teacher: TeacherParameters = Field(title="Teacher")
    student: LearnerParameters = Field(title="Student")
    preflight: PreflightParameters = Field(PreflightParameters(), title="Preflight")
    dpo: DpoParameters = Field(DpoParameters(), title="DPO (teacher)")
    teacher_check: TeacherCheckParameters = Field(TeacherCheckParameters(), title="Teacher check")
    students_pairs: SelectRandomParameters | None = Field(
        None, title="Students' pairs", description="How many of the teacher's pairs students learn from; none: all."
    )
    shuffle: ShuffleParameters = Field(ShuffleParameters(), title="Shuffle (control)")
    respond: RespondParameters = Field(RespondParameters(), title="Respond")
    teacher_cache: TeacherCacheParameters = Field(TeacherCacheParameters(), title="Teacher cache")
    arms: tuple[StudentArm, ...] = Field(min_length=1, description="The trainings to compare.")
    evaluate: EvaluateParameters = Field(EvaluateParameters(), title="Evaluate")
    evaluate_pairs: EvaluatePairsParameters = Field(EvaluatePairsParameters(), title="Evaluate pairs")
    evaluate_responses: EvaluateResponsesParameters = Field(EvaluateResponsesParameters(), title="Evaluate responses")
    compare: CompareArmsParameters = Field(CompareArmsParameters(base="SFT", reference="SFT"), title="Compare")
    compare_rewards: CompareArmsParameters = Field(
        CompareArmsParameters(base="SFT", reference="SFT", metric="reward_accuracy"), title="Compare rewards"
    )
    report: ReportParameters = Field(ReportParameters(), title="Report")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        self.with_arms(self.compare)
        self.with_arms(self.compare_rewards)
        return self

    def with_arms(self, compare: CompareArmsParameters) -> CompareArmsParameters:
        """Fill the arms into a comparison, in the order of their trainings."""
        arms = tuple(Arm(name=each.name, seeds=len(each.seeds)) for each in self.arms)
        return CompareArmsParameters(**compare.model_dump(exclude={"arms"}), arms=arms)


@flow
def align(parameters: AlignParameters) -> Built:
    """Rows, pairs -> a teacher and its reference, checked -> a student for each arm and seed -> compared -> report.

    The model that the flow is said to have built is the first of the last arm.
    """
    loaded, loaded_pairs = load(parameters.rows), load(parameters.pairs)
    rows, pairs = clean(parameters.clean, loaded), clean(parameters.clean, loaded_pairs)
    unique = deduplicate(parameters.deduplicate, pairs)
    parts = split(parameters.split, unique)

    reference = begin(parameters.teacher, rows)
    start = begin(parameters.student, rows, reference)
    preflight(parameters.preflight, parts["train"], start, reference, [])
    teacher = dpo(parameters.dpo, parts["train"], reference)
    before, after = (evaluate(parameters.evaluate, parts["test"], model) for model in (reference, teacher))
    rewards = evaluate_pairs(parameters.evaluate_pairs, parts["test"], teacher, reference)
    checked = teacher_check(parameters.teacher_check, before, after, rewards)

    own = select_random(parameters.students_pairs, parts["train"]) if parameters.students_pairs else parts["train"]
    lesson = Lesson(own, teacher, reference, parameters.respond, parameters.teacher_cache)
    cells = [(arm, seed) for arm in parameters.arms for seed in arm.seeds]
    models = [student(with_seed(arm.train, seed), taught(parameters, arm, lesson), start) for arm, seed in cells]

    asked = [start, *models]
    scores = [evaluate(parameters.evaluate, parts["test"], model) for model in asked]
    margins = [evaluate_pairs(parameters.evaluate_pairs, parts["test"], model, start) for model in asked]
    answers = [respond(parameters.respond, parts["test"], model) for model in asked]
    heard = [
        evaluate_responses(parameters.evaluate_responses, said, model, start, [teacher, reference])
        for said, model in zip(answers, asked, strict=True)
    ]
    compared = compare_arms(parameters.with_arms(parameters.compare), scores[0], scores[1:])
    preferred = compare_arms(parameters.with_arms(parameters.compare_rewards), margins[0], margins[1:])
    firsts = [model for model, (arm, seed) in zip(models, cells, strict=True) if seed == arm.seeds[0]]
    page = report(
        parameters.report,
        parts,
        [loaded, loaded_pairs, rows, pairs, unique, parts, reference, start, teacher, own, *firsts],
        [],
        [scores[0], *(score for score, model in zip(scores[1:], models, strict=True) if model in firsts)],
        [compared, preferred, checked, rewards, *margins, *heard],
    )
    return Built(dataset=parts, model=firsts[-1], report=page)


def taught(parameters: AlignParameters, arm: StudentArm, lesson: Lesson) -> Lesson:
    """Give an arm its lesson: the same for all, but for the control."""
    return replace(lesson, pairs=shuffle(parameters.shuffle, lesson.pairs)) if arm.shuffled else lesson
