"""A pretrained model is fine-tuned on a dataset that the store holds, and compared with what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from data.artifact import Artifact
from data.graph import ancestors
from infra.flow import Built, flow, stored
from infra.stage import Parameters
from tasks.evaluate.compare import CompareParameters, compare
from tasks.evaluate.evaluate import EvaluateParameters, evaluate
from tasks.evaluate.report import ReportParameters, report
from tasks.train.pretrained import PretrainedParameters, pretrained
from tasks.train.sft import SftParameters, sft

if TYPE_CHECKING:
    from flows.finetune import FinetuneParameters


class TrainParameters(Parameters):
    """Parameters of the flow: a dataset, and the rest stage by stage."""

    dataset: str = Field(description="Tag of a dataset with the tables train and test: NAME@vK; NAME for the newest.")
    pretrained: PretrainedParameters = Field(title="Pretrained model")
    sft: SftParameters = Field(SftParameters(), title="Supervised fine-tuning")
    evaluate: EvaluateParameters = Field(EvaluateParameters(), title="Evaluate")
    compare: CompareParameters = Field(CompareParameters(), title="Compare")
    report: ReportParameters = Field(ReportParameters(), title="Report")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        self.compare.check(trained=1, alike=1)
        return self


@flow
def train(parameters: TrainParameters) -> Built:
    """A stored train | test; base -> model -> compared -> report."""
    parts = stored(parameters.dataset, "train", "test")
    return tuned(parameters, parts, ancestors(parts, ["rows"]).there)


def tuned(parameters: TrainParameters | FinetuneParameters, parts: Artifact, made: list[Artifact]) -> Built:
    """Train | test; base -> model -> compared -> report: what comes after a dataset, however it was `made`."""
    base = pretrained(parameters.pretrained)

    model = sft(parameters.sft, parts["train"], base)

    before = evaluate(parameters.evaluate, parts["test"], base)
    after = evaluate(parameters.evaluate, parts["test"], model)
    compared = compare(parameters.compare, before, [after])
    page = report(parameters.report, parts, [*made, base, model], [], [before, after], [compared])
    return Built(dataset=parts, model=model, report=page)
