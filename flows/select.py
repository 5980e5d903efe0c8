"""One of the selectors, by the method that the parameters name: all select from the same pool for the same target."""

from typing import Annotated, TypeVar

from pydantic import Field

from data.artifact import Artifact
from infra.flow import stored
from infra.stage import Parameters
from tasks.curate.mixture_ot import MixtureOtParameters, mixture_ot
from tasks.curate.select_dsir import SelectDsirParameters, select_dsir
from tasks.curate.select_ifd import SelectIfdParameters, select_ifd
from tasks.curate.select_kcentre import SelectKcentreParameters, select_kcentre
from tasks.curate.select_nearest import SelectNearestParameters, select_nearest
from tasks.curate.select_ot import SelectOtParameters, select_ot
from tasks.curate.select_random import SelectRandomParameters, select_random
from tasks.train.pretrained import PretrainedParameters, pretrained


class SelectOtForTargetParameters(SelectOtParameters):
    """What the target is for, how sharply to look, and whose potentials to use."""

    potentials: str = Field(
        "",
        description="Earlier selection (tag, path or fingerprint) whose potentials score the rows; none: solve.",
    )


class SelectIfdWithModelParameters(SelectIfdParameters):
    """How many rows to score, and with which model."""

    model: PretrainedParameters = Field(title="Model", description="Model whose losses are compared.")


SelectorParameters = Annotated[
    SelectOtForTargetParameters
    | MixtureOtParameters
    | SelectNearestParameters
    | SelectKcentreParameters
    | SelectDsirParameters
    | SelectIfdWithModelParameters
    | SelectRandomParameters,
    Field(discriminator="method"),
]
AnySelector = TypeVar("AnySelector", bound=Parameters)


def select(
    parameters: SelectorParameters,
    rows: Artifact,
    embeddings: Artifact,
    target: Artifact,
    target_embeddings: Artifact,
) -> Artifact:
    """Select rows by the method that the parameters name; each reads only what it needs."""
    match parameters:
        case SelectOtForTargetParameters():
            earlier = [stored(parameters.potentials)["potentials"]] if parameters.potentials else []
            solving = SelectOtParameters.model_validate(parameters.model_dump(exclude={"potentials"}))
            return select_ot(solving, rows, embeddings, target, target_embeddings, earlier)
        case MixtureOtParameters():
            return mixture_ot(parameters, rows, embeddings, target_embeddings)
        case SelectNearestParameters():
            return select_nearest(parameters, rows, embeddings, target_embeddings)
        case SelectKcentreParameters():
            return select_kcentre(parameters, rows, embeddings)
        case SelectDsirParameters():
            return select_dsir(parameters, rows, target)
        case SelectIfdWithModelParameters():
            scoring = SelectIfdParameters.model_validate(parameters.model_dump(exclude={"model"}))
            return select_ifd(scoring, rows, pretrained(parameters.model))
        case SelectRandomParameters():
            return select_random(parameters, rows)


def with_seed(parameters: AnySelector, seed: int) -> AnySelector:
    """Return the same parameters with another seed, where the method draws at all."""
    return parameters.model_copy(update={"seed": seed}) if "seed" in type(parameters).model_fields else parameters
