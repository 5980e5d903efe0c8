"""One student, by the method that the parameters name: all begin with the same model and learn from the same pairs.

ADPA+ is two stages, `dckd` and then `adpa` from the distilled student, on what that student answers. It is written out
here, as the other methods are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from data.artifact import Artifact
from infra.stage import Parameters
from tasks.curate.respond import RespondParameters, respond
from tasks.train.adpa import AdpaParameters, adpa
from tasks.train.dckd import DckdParameters, dckd
from tasks.train.dpo import DpoParameters, dpo
from tasks.train.orpo import OrpoParameters, orpo
from tasks.train.sft import SftParameters, sft
from tasks.train.teacher_cache import TeacherCacheParameters, teacher_cache


class AdpaPlusParameters(Parameters):
    """Say how to distil twice: first both sides of the pairs, then advantages on the distilled student's responses."""

    method: Literal["adpa_plus"] = Field("adpa_plus", description="DCKD, and then ADPA from there (ADPA+).")
    dckd: DckdParameters = Field(DckdParameters(), title="DCKD")
    adpa: AdpaParameters = Field(AdpaParameters(), title="ADPA")


StudentParameters = Annotated[
    SftParameters | DpoParameters | OrpoParameters | DckdParameters | AdpaParameters | AdpaPlusParameters,
    Field(discriminator="method"),
]


@dataclass(frozen=True)
class Lesson:
    """What all students learn from: pairs, a teacher and what it began as, and how responses and caches are made."""

    pairs: Artifact
    teacher: Artifact
    reference: Artifact
    respond: RespondParameters
    cache: TeacherCacheParameters


def student(parameters: StudentParameters, lesson: Lesson, start: Artifact) -> Artifact:
    """Train a student from `start` by the method that the parameters name."""
    match parameters:
        case SftParameters():
            return sft(parameters, lesson.pairs, start)
        case DpoParameters():
            return dpo(parameters, lesson.pairs, start)
        case OrpoParameters():
            return orpo(parameters, lesson.pairs, start)
        case DckdParameters():
            cache = teacher_cache(lesson.cache, lesson.pairs, lesson.teacher, [])
            return dckd(parameters, lesson.pairs, start, [cache])
        case AdpaParameters():
            responses = respond(lesson.respond, lesson.pairs, start)
            before = [] if parameters.without_reference else [lesson.reference]
            cache = teacher_cache(lesson.cache, responses, lesson.teacher, before)
            return adpa(parameters, lesson.pairs, responses, start, [cache])
        case AdpaPlusParameters():
            distilled = student(parameters.dckd, lesson, start)
            return student(parameters.adpa, lesson, distilled)


def with_seed(parameters: StudentParameters, seed: int) -> StudentParameters:
    """Return the same parameters with another seed of training."""
    if isinstance(parameters, AdpaPlusParameters):
        both = {"dckd": parameters.dckd.with_seed(seed), "adpa": parameters.adpa.with_seed(seed)}
        return parameters.model_copy(update=both)
    return parameters.with_seed(seed)
