"""Select the rows that a target asks for most, by the gradient of the transport cost from the pool to the target.

LAVA (Just et al., ICLR 2023) values a row by its calibrated dual potential, which is how much the transport cost grows
when mass moves to it from all others: high values are noise. GOT-D (Kang et al., ICLR 2024) selects for fine-tuning the
rows with the lowest: those that the pool has too few of for this target.

    f_i - mean over j≠i of f_j       -> calibrated          (LAVA's calibrated gradient; GOT-D's gradient)
    the budget-many lowest           -> choose              (GOT-D)
    a target to stay away from       -> mode: contrast      (GOT-D, detoxification)

Done differently, and why (docs/stages/select_ot.md): potentials come from the entropic semi-dual (transport.py) and not
from a full Sinkhorn plan, which a million rows have no room for. A cap keeps one row of the target from taking many
near-copies. Each value has a standard deviation, over parts of the target that are solved apart. And the potentials are
kept: rows that arrive later are scored by them, with nothing solved again.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from data.fingerprint import seed_for
from data.ids import lots
from infra.stage import Measures, Reference, References, Rows, stage
from infra.work import Work
from tasks.curate.potentials import Solution, as_table, from_table, score, solve
from tasks.curate.selection import Floats, Places, Pool, SelectParameters, caps, choose, publish, read_pool, rounded


class SelectOtParameters(SelectParameters):
    """What the target is for, and how sharply to look."""

    method: Literal["ot"] = Field("ot", description="Selection by optimal transport.")
    mode: Literal["target", "contrast", "control"] = Field(
        "target",
        description="Select what the target asks for; what it asks for least; or, as a control, by values dealt out to "
        "the rows at random.",
    )
    epsilon: float = Field(0.03, gt=0, le=1, description="Temperature of the transport, as a share of the median cost.")
    per_target: float | None = Field(
        4.0,
        gt=0,
        title="Per target",
        description="Most of the budget for the rows that are nearest to one target row, as a multiple of its fair "
        "share (budget / target rows); none: no cap.",
    )
    parts: int = Field(
        4, ge=0, description="Parts of the target that are solved apart for a row's standard deviation; 0 or 1: none."
    )
    label_weight: float = Field(
        1.0, ge=0, description="Weight of the cost between labels, where pool and target have labels; 0: ignore them."
    )
    seed: int = Field(0, ge=0, description="Seed of the samples that potentials are found from.")


@stage("float")
def select_ot(
    work: Work,
    parameters: SelectOtParameters,
    rows: Rows,
    embeddings: Reference,
    target: Reference,
    target_embeddings: Reference,
    potentials: References,
) -> Measures:
    """Find the target's potentials, score every row by one pass, and take the best that the cap allows.

    With the `potentials` of an earlier selection (none, or one) nothing is solved, and the target is theirs.

    Outputs: `rows`; `scores`, with potential, deviation, and the target rows that pull and lie nearest; `potentials`.

    Raises:
        BadInput: a side is empty, or vectors are missing, not finite, or not of one length.
    """
    pool = read_pool(rows, parameters)
    if potentials:
        solution = from_table(potentials[0])
    else:
        solution = solve(
            work, pool, embeddings, target, target_embeddings,
            epsilon=parameters.epsilon, parts=parameters.parts, label_weight=parameters.label_weight,
            seed=seed_for("select_ot", parameters.seed),
        )  # fmt: skip
    passed = score(work, solution, pool, embeddings)
    if solution.means is None:
        solution = solution._replace(means=passed.potentials.mean(0))
    values, deviations = valued(passed.potentials, solution)
    if parameters.mode == "contrast":
        values = -values
    elif parameters.mode == "control":
        values = dealt(values, pool, parameters.seed)
    levels = capped(pool, values, passed.nearest, solution, parameters)
    chosen = choose(pool, values, parameters.budget, levels)
    reasons, partners = crowded(pool, values, passed.nearest, chosen.selected)
    columns = {
        "potential": pa.array(rounded(passed.potentials[:, 0])),
        "deviation": pa.array(deviations),
        "pulled_by": solution.ids.take(pa.array(passed.pulled)),
        "nearest": solution.ids.take(pa.array(passed.nearest)),
        "nearest_cost": pa.array(rounded(passed.costs)),
    }
    work.write_single(as_table(solution), "potentials")
    measures = publish(work, pool, values, chosen, columns, "others are wanted more", reasons, partners)
    return measures | {"epsilon": solution.target.epsilon, "marginal_error": passed.error}


def valued(potentials: Floats, solution: Solution) -> tuple[Floats, Floats]:
    """Turn potentials (n, 1 + parts) into values and their standard deviations over the parts: (n,), (n,), rounded.

    Means are those of the pool that the potentials were found from, so that rows which come later leave the values of
    all others as they are. Without parts the deviations are NaN.
    """
    n = len(potentials)
    values = calibrated(potentials, solution.means)
    if potentials.shape[1] < 3:
        return rounded(values[:, 0]), np.full(n, np.nan)
    return rounded(values[:, 0]), rounded(values[:, 1:].std(axis=1, ddof=1))


def calibrated(f: Floats, means: Floats | None = None) -> Floats:
    """Compute f_i less the mean of all others: (n, k), LAVA's calibrated gradient; 0 for one row alone.

    Args:
        f: (n, k) potentials.
        means: (k,) means to take off, if not those of f.
    """
    n = len(f)
    values: Floats = (f - (f.mean(0) if means is None else means)) * n / max(n - 1, 1)
    return values


def dealt(values: Floats, pool: Pool, seed: int) -> Floats:
    """Deal the values out to the rows at random: (n,). What is left of a selection is what budget and cap alone do."""
    control = np.empty(len(values))
    control[np.argsort(lots(pool.ids, seed_for("select_ot control", seed)), kind="stable")] = np.sort(values)
    return control


def capped(
    pool: Pool, values: Floats, nearest: Places, solution: Solution, parameters: SelectOtParameters
) -> Places | None:
    """Put rows on levels by the cap for one row of the target; None without a cap."""
    if parameters.per_target is None:
        return None
    share = min(parameters.budget, int(pool.sizes.sum())) / len(solution.ids)
    return caps(pool, values, nearest, parameters.per_target * share)


def crowded(pool: Pool, values: Floats, nearest: Places, selected: npt.NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
    """Find the rows that only the cap kept out: a reason, and the best selected row of the same target; else nulls."""
    places = np.flatnonzero(selected)
    best = np.full(int(nearest.max()) + 1, -1)
    for place in places[np.argsort(-values[places], kind="stable")]:
        best[nearest[place]] = place
    partner = best[nearest]
    out = ~selected & (values < values[places].max()) & (partner >= 0)
    reasons = pa.array(["its target has enough" if each else None for each in out.tolist()], pa.string())
    return reasons, pool.ids.take(pa.array(partner, pa.int64(), mask=~out))
