"""A model to begin with: made from nothing, made by somebody else, or cut out of another one; and fine-tuned."""

from typing import Annotated

from pydantic import Field

from data.artifact import Artifact
from infra.stage import Parameters
from tasks.train.cut import CutParameters, cut
from tasks.train.pretrained import PretrainedParameters, pretrained
from tasks.train.scratch import ScratchParameters, scratch
from tasks.train.sft import SftParameters, sft

Whole = ScratchParameters | PretrainedParameters
FINE_TUNING = Field(
    SftParameters(), title="Supervised fine-tuning", description="None: the model is fine-tuned already."
)


class TeacherParameters(Parameters):
    """Where a teacher comes from, and how it is fine-tuned before it is aligned."""

    origin: Annotated[Whole, Field(discriminator="origin")] = Field(title="Origin", description="What it is made of.")
    sft: SftParameters | None = FINE_TUNING


class LearnerParameters(Parameters):
    """Where a student comes from, which may be its teacher, and how it is fine-tuned before it is aligned."""

    origin: Annotated[Whole | CutParameters, Field(discriminator="origin")] = Field(
        title="Origin", description="What it is made of; cut: of its teacher."
    )
    sft: SftParameters | None = FINE_TUNING


def begin(parameters: TeacherParameters | LearnerParameters, rows: Artifact, whole: Artifact | None = None) -> Artifact:
    """Make a model, and fine-tune it on the rows; one that is cut is cut out of `whole`."""
    match parameters.origin:
        case ScratchParameters():
            made = scratch(parameters.origin)
        case PretrainedParameters():
            made = pretrained(parameters.origin)
        case CutParameters():
            assert whole is not None  # noqa: S101 - the parameters of the first model allow no cut
            made = cut(parameters.origin, rows, whole)
    return sft(parameters.sft, rows, made) if parameters.sft else made
