"""Which selector helps? The same model is trained on equal budgets that each selects, and asked for the same target."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from flows.select import SelectorParameters, select, with_seed
from infra.flow import Built, flow
from infra.stage import Parameters
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.decontaminate import DecontaminateParameters, decontaminate
from tasks.curate.deduplicate import DeduplicateParameters, deduplicate
from tasks.curate.embed import EmbedParameters, embed
from tasks.curate.load import LoadParameters, load
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.compare_arms import Arm, CompareArmsParameters, compare_arms
from tasks.evaluate.evaluate import EvaluateParameters, evaluate
from tasks.evaluate.report import ReportParameters, report
from tasks.train.count_tokens import CountTokensParameters, count_tokens
from tasks.train.pretrained import PretrainedParameters, pretrained
from tasks.train.sft import SftParameters, sft


class Contestant(Parameters):
    """One selector, and the seeds that it is tried with."""

    name: str = Field(min_length=1, description="Name of the arm.")
    select: SelectorParameters = Field(title="Selector", description="The selector and its budget.")
    seeds: tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...] = Field(
        (0,), min_length=1, description="Seeds of selection and training; one model for each."
    )


class SelectorsParameters(Parameters):
    """Parameters of the flow, stage by stage."""

    pool: LoadParameters = Field(title="Pool")
    target: LoadParameters = Field(title="Target")
    clean: CleanParameters = Field(CleanParameters(), title="Clean")
    deduplicate: DeduplicateParameters = Field(DeduplicateParameters(), title="Deduplicate")
    decontaminate: DecontaminateParameters = Field(DecontaminateParameters(), title="Decontaminate")
    halves: SplitParameters = Field(SplitParameters(test_share=0.5), title="Target: seen and held out")
    pretrained: PretrainedParameters = Field(title="Pretrained model")
    count_tokens: CountTokensParameters = Field(CountTokensParameters(), title="Count tokens")
    embed: EmbedParameters = Field(EmbedParameters(), title="Embed")
    selectors: tuple[Contestant, ...] = Field(min_length=2, description="The selectors to compare.")
    sft: SftParameters = Field(SftParameters(), title="Supervised fine-tuning")
    evaluate: EvaluateParameters = Field(EvaluateParameters(max_new_tokens=0), title="Evaluate")
    compare: CompareArmsParameters = Field(CompareArmsParameters(), title="Compare")
    report: ReportParameters = Field(ReportParameters(), title="Report")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        CompareArmsParameters(**self.compare.model_dump(exclude={"arms"}), arms=self.arms())
        return self

    def arms(self) -> tuple[Arm, ...]:
        """List the arms, in the order of their trainings."""
        return tuple(Arm(name=each.name, seeds=len(each.seeds)) for each in self.selectors)


@flow
def selectors(parameters: SelectorsParameters) -> Built:
    """Pool -> clean -> unique -> clear of the target -> a selection and a model for each cell -> compared -> report."""
    loaded = load(parameters.pool)
    rows = clean(parameters.clean, loaded)
    target = clean(parameters.clean, load(parameters.target))
    halves = split(parameters.halves, target)
    unique = deduplicate(parameters.deduplicate, rows)
    clear = decontaminate(parameters.decontaminate, unique, [target])

    base = pretrained(parameters.pretrained)
    pool = count_tokens(parameters.count_tokens, clear, base)
    vectors = embed(parameters.embed, pool)
    target_vectors = embed(parameters.embed, halves["train"])

    cells = [(each.select, seed) for each in parameters.selectors for seed in each.seeds]
    chosen = [select(with_seed(each, seed), pool, vectors, halves["train"], target_vectors) for each, seed in cells]
    models = [sft(parameters.sft.with_seed(seed), rows, base) for rows, (_, seed) in zip(chosen, cells, strict=True)]

    before = evaluate(parameters.evaluate, halves["test"], base)
    after = [evaluate(parameters.evaluate, halves["test"], model) for model in models]
    compared = compare_arms(parameters.compare.model_copy(update={"arms": parameters.arms()}), before, after)
    made = [loaded, rows, unique, clear, pool, vectors, target_vectors, base]
    page = report(parameters.report, pool, made, chosen, [], [compared])
    return Built(dataset=pool, report=page)
