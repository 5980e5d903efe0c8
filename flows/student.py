"""One student, by the method that the parameters name: all begin with the same SFT model and learn from the same pairs."""

from typing import Annotated, Literal, TypeVar

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


class SftStudent(SftParameters):
    """Fine-tune on the chosen answers: the baseline that every other method has to beat."""

    method: Literal["sft"] = Field("sft", description="Name of the method.")


class DpoStudent(DpoParameters):
    """Prefer chosen answers to rejected ones."""

    method: Literal["dpo"] = Field("dpo", description="Name of the method.")


class OrpoStudent(OrpoParameters):
    """Fine-tune on chosen answers and prefer them, by odds."""

    method: Literal["orpo"] = Field("orpo", description="Name of the method.")


class DckdStudent(DckdParameters):
    """Distil the teacher on both sides of the pairs."""

    method: Literal["dckd"] = Field("dckd", description="Name of the method.")


class AdpaStudent(AdpaParameters):
    """Distil the teacher's advantages on the student's own responses."""

    method: Literal["adpa"] = Field("adpa", description="Name of the method.")


class AdpaPlusStudent(Parameters):
    """DCKD, and then ADPA from there, on the distilled student's responses (ADPA+)."""

    method: Literal["adpa_plus"] = Field("adpa_plus", description="Name of the method.")
    dckd: DckdParameters = Field(DckdParameters(), title="DCKD")
    adpa: AdpaParameters = Field(AdpaParameters(), title="ADPA")


StudentParameters = Annotated[
    SftStudent | DpoStudent | OrpoStudent | DckdStudent | AdpaStudent | AdpaPlusStudent, Field(discriminator="method")
]
