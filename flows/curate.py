"""From sources to a dataset for a target: what is kept, what is dropped, and why, row by row."""

from pydantic import Field

from flows.select import SelectorParameters, SelectOtForTargetParameters, select
from infra.flow import Built, flow
from infra.stage import Parameters
from tasks.curate.clean import CleanParameters, clean
from tasks.curate.decontaminate import DecontaminateParameters, decontaminate
from tasks.curate.deduplicate import DeduplicateParameters, NearParameters, deduplicate
from tasks.curate.deduplicate_semantic import DeduplicateSemanticParameters, deduplicate_semantic
from tasks.curate.embed import EmbedParameters, embed
from tasks.curate.filter import FilterParameters, filter
from tasks.curate.load import LoadParameters, load
from tasks.curate.select_nearest import SelectNearestParameters
from tasks.curate.select_random import SelectRandomParameters
from tasks.curate.split import SplitParameters, split
from tasks.evaluate.report import ReportParameters, report


class CurateParameters(Parameters):
    """Parameters of the flow, stage by stage."""

    load: LoadParameters = Field(title="Sources")
    target: LoadParameters = Field(title="Target", description="Examples of what the dataset is for.")
    evaluations: tuple[LoadParameters, ...] = Field(
        (), title="Evaluation sets", description="What must not be in the dataset; one entry for each contract."
    )
    clean: CleanParameters = Field(CleanParameters(), title="Clean")
    filter: FilterParameters = Field(FilterParameters(), title="Filter")
    deduplicate: DeduplicateParameters = Field(DeduplicateParameters(near=NearParameters()), title="Deduplicate")
    decontaminate: DecontaminateParameters = Field(DecontaminateParameters(), title="Decontaminate")
    embed: EmbedParameters = Field(EmbedParameters(), title="Embed")
    deduplicate_semantic: DeduplicateSemanticParameters = Field(
        DeduplicateSemanticParameters(), title="Deduplicate by meaning"
    )
    select: SelectorParameters = Field(
        SelectOtForTargetParameters(), title="Select", description="How to select, and how much."
    )
    baselines: tuple[SelectorParameters, ...] = Field(
        (SelectNearestParameters(), SelectRandomParameters()),
        title="Baselines",
        description="Other selectors that the report sets beside it.",
    )
    split: SplitParameters = Field(SplitParameters(), title="Split")
    report: ReportParameters = Field(ReportParameters(), title="Report")
    tag: str = Field("", description="Name to tag the dataset with, each time with the next version; default: none.")


@flow
def curate(parameters: CurateParameters) -> Built:
    """Sources -> clean -> filtered -> unique -> clear -> apart; target -> chosen of these -> train | test -> report."""
    rows = load(parameters.load)
    cleaned = clean(parameters.clean, rows)
    filtered = filter(parameters.filter, cleaned)
    unique = deduplicate(parameters.deduplicate, filtered)
    evaluations = [load(each) for each in parameters.evaluations]
    clear = decontaminate(parameters.decontaminate, unique, evaluations)

    vectors = embed(parameters.embed, clear)
    apart = deduplicate_semantic(parameters.deduplicate_semantic, clear, vectors)
    target = clean(parameters.clean, load(parameters.target))
    target_vectors = embed(parameters.embed, target)

    chosen = select(parameters.select, apart, vectors, target, target_vectors)
    others = [select(each, apart, vectors, target, target_vectors) for each in parameters.baselines]
    parts = split(parameters.split, chosen)
    made = [rows, cleaned, filtered, unique, clear, vectors, apart, target_vectors, chosen, parts]
    page = report(parameters.report, parts, made, others, [], [])
    return Built(dataset=parts, report=page, tag=parameters.tag)
