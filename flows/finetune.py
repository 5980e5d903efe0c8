"""A pretrained model is fine-tuned on curated rows, and compared with what it was."""

from typing import Self

from pydantic import Field, model_validator

from flows.train import tuned
from infra.flow import Built, flow
from infra.stage import Parameters
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.load import LoadParameters, load
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.compare import CompareParameters
from tasks.evaluate.evaluate import EvaluateParameters
from tasks.evaluate.report import ReportParameters
from tasks.train.pretrained import PretrainedParameters
from tasks.train.sft import SftParameters


class FinetuneParameters(Parameters):
    """Parameters of the flow, stage by stage."""

    load: LoadParameters = Field(title="Load")
    clean: CleanParameters = Field(CleanParameters(), title="Clean")
    deduplicate: DeduplicateParameters = Field(DeduplicateParameters(), title="Deduplicate")
    split: SplitParameters = Field(SplitParameters(), title="Split")
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
def finetune(parameters: FinetuneParameters) -> Built:
    """Rows -> clean -> unique -> train | test, then as flows/train.py."""
    rows = load(parameters.load)
    cleaned = clean(parameters.clean, rows)
    unique = deduplicate(parameters.deduplicate, cleaned)
    parts = split(parameters.split, unique)
    return tuned(parameters, parts, [rows, cleaned, unique, parts])
