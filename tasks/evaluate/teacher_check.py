"""Judge a DPO teacher before it teaches: did preference training cost it the task?

DPO lowers the likelihood of chosen answers together with that of rejected ones, so that a teacher's reward accuracy can
rise while its answers become wrong (Pal et al. 2024; Razin et al. 2024). A student would learn both from it.

The rule, one of two:

    with a verifier      worse: the whole interval of the difference in exact match, after less before, is below 0
    without a verifier   worse: the whole interval of its reward accuracy is below .5

There is a verifier where `evaluate` let the models answer and at least one answer of theirs was right: an exact match
of 0 has nowhere to fall. The loss on the references is reported and judges nothing: DPO raises it more often than not.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data.artifact import Artifact
from data.errors import BadInput
from infra.progress import say
from infra.stage import Measures, Reference, stage
from infra.work import Work
from tasks.evaluate.intervals import Floats, IntervalParameters, mean_intervals, reward_margins, wins

CHECK = pa.schema(
    [
        ("exact_match_before", pa.float64()), ("exact_match_after", pa.float64()), ("difference", pa.float64()),
        ("low", pa.float64()), ("high", pa.float64()), ("accuracy", pa.float64()), ("accuracy_low", pa.float64()),
        ("accuracy_high", pa.float64()), ("margin", pa.float64()), ("kl", pa.float64()), ("loss_before", pa.float64()),
        ("loss_after", pa.float64()), ("rows", pa.int64()), ("pairs", pa.int64()), ("verified", pa.bool_()),
        ("worse", pa.bool_()),
    ]
)  # fmt: skip


class TeacherCheckParameters(IntervalParameters):
    """How sure to be, and whether to go on all the same."""

    allow_worse: bool = Field(False, description="Let a teacher teach that got worse; the check still records it.")


@stage("float")
def teacher_check(
    work: Work, parameters: TeacherCheckParameters, before: Reference, after: Reference, pairs: Reference
) -> Measures:
    """Refuse a teacher that is worse at the task than its reference.

    `before` and `after` are what `evaluate` says of the reference and of the teacher on the same rows, `pairs` what
    `evaluate_pairs` says of the teacher over its reference. Output `check`: one line with all numbers.

    Raises:
        BadInput: the teacher got worse, and the parameters do not allow it; or evaluations that do not belong together.
    """
    check_inputs(before, after, pairs)
    line = task_facts(before, after, parameters) | reward_facts(pairs, parameters)
    line["verified"] = bool(line["exact_match_before"] or line["exact_match_after"])
    line["worse"] = line["high"] < 0 if line["verified"] else line["accuracy_high"] < 0.5
    found = in_words(line, parameters.level)
    if line["worse"] and not parameters.allow_worse:
        raise BadInput(
            found,
            "a teacher that is no worse than the model that its preference training began with",
            "train it with an SFT term (dpo sft_weight), a smaller learning rate or fewer steps; "
            "to let it teach all the same: teacher_check.allow_worse: true",
        )
    mark = "[bold yellow]warning:[/] " if line["worse"] else ""
    say(f"  teacher_check: {mark}{found}")
    work.write_single(pa.Table.from_pylist([line], schema=CHECK), "check")
    named = ("accuracy", "margin", "kl", "loss_before", "loss_after", "worse")
    answered = ("exact_match_before", "exact_match_after", "difference", "low", "high")
    return {name: float(line[name]) for name in (*answered, *named) if line[name] is not None}


def check_inputs(before: Artifact, after: Artifact, pairs: Artifact) -> None:
    """Refuse evaluations of other models than one teacher and one reference.

    Raises:
        BadInput: the pairs were asked of other models.
    """
    for role, of_pairs, scored in (("teacher", "model", after), ("reference", "base", before)):
        one, other = _digest(pairs, of_pairs), _digest(scored, "model")
        if one != other:
            raise BadInput(
                f"pairs asked of the {role} {one[:12]}, and rows of {other[:12]}",
                "evaluations of one teacher and of the reference that it began as",
                "give before the reference's, after the teacher's, and pairs those of the teacher over its reference",
            )


def _digest(evaluation: Artifact, name: str) -> str:
    return next(str(each["digest"]) for each in evaluation.record["inputs"] if each["name"] == name)


def task_facts(before: Artifact, after: Artifact, parameters: TeacherCheckParameters) -> dict[str, Any]:
    """Compare the reference's scores with the teacher's: losses (nats per token), and exact match where there is one.

    Raises:
        BadInput: they asked different rows.
    """
    tables = [pq.read_table(each.path / "scores.parquet") for each in (before, after)]
    if not tables[0]["row_id"].equals(tables[1]["row_id"]):
        raise BadInput("evaluations of different rows", "the same held-out rows for the teacher and its reference",
                       "evaluate both models with the same parameters on the same rows")  # fmt: skip
    losses = [float(np.average(_floats(each, "loss"), weights=_floats(each, "tokens"))) for each in tables]
    facts: dict[str, Any] = dict.fromkeys(CHECK.names)
    facts |= {"rows": len(tables[0]), "loss_before": losses[0], "loss_after": losses[1]}
    if any(each["correct"].null_count for each in tables):  # evaluate's max_new_tokens: 0
        return facts
    was, is_now = (_floats(each, "correct") for each in tables)
    found = mean_intervals({"difference": is_now - was}, parameters.level, parameters.draws, parameters.seed)
    return facts | {
        "exact_match_before": float(was.mean()),
        "exact_match_after": float(is_now.mean()),
        "difference": found["difference"],
        "low": found["difference_low"],
        "high": found["difference_high"],
    }


def reward_facts(pairs: Artifact, parameters: TeacherCheckParameters) -> dict[str, Any]:
    """Summarise the pairs: reward accuracy with its interval, margin (nats) and KL (nats per token)."""
    table = pq.read_table(pairs.path / "pairs.parquet")
    scores = {name: _floats(table, name) for name in table.column_names if name != "row_id"}
    margins = reward_margins(scores)
    found = mean_intervals({"accuracy": wins(margins)}, parameters.level, parameters.draws, parameters.seed)
    return found | {"margin": float(margins.mean()), "kl": float(scores["kl"].mean()), "pairs": len(table)}


def in_words(line: dict[str, Any], level: float) -> str:
    """Say what was found, the deciding number first."""
    sure = f"{100 * level:g} % interval"
    rewards = (
        f"reward accuracy {line['accuracy']:.3f} ({sure} {line['accuracy_low']:.3f} to {line['accuracy_high']:.3f}, "
        f"{line['pairs']} pairs)"
    )
    rest = (
        f"margin {line['margin']:+.2f} nats, KL from its reference {line['kl']:.3f} nats per token, "
        f"loss on the references {line['loss_before']:.3f} -> {line['loss_after']:.3f}"
    )
    verdict = "a teacher that got worse" if line["worse"] else "a teacher not shown to be worse"
    if not line["verified"]:
        return f"{verdict}, judged by {rewards}, since no answer was verified; {rest}"
    return (
        f"{verdict}: exact match {line['exact_match_before']:.3f} -> {line['exact_match_after']:.3f} "
        f"({line['difference']:+.3f}, {sure} {line['low']:+.3f} to {line['high']:+.3f}, {line['rows']} rows), "
        f"while it has {rewards}; {rest}"
    )


def _floats(table: pa.Table, column: str) -> Floats:
    values: Floats = table[column].cast(pa.float64()).to_numpy()
    return values
