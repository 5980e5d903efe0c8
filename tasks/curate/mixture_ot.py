"""Choose how much of each source to take, so that the mixture comes as near to the target as its sources can.

For the shares p of the sources, with OT the transport cost of a mixture to the target (projektor, Kang et al., NeurIPS
2023, whose gradients come from the dual potentials too):

    min over p of  OT(sum_k p_k source_k, target)         -> mix          (convex in p)
    dOT / dp_k = F_k, the mean potential of source k      -> SemiDual     (transport.py)
    p_k <- p_k exp(-F_k / damping) / sum                  -> one step     (mirror descent)
    sum_k p_k F_k - min_k F_k                             -> gap          (Frank-Wolfe: bounds what is left to gain)

Done differently, and why (docs/stages/mixture_ot.md): steps are implicit. F is the gradient at the shares after the
step, which costs no more, because shares and potentials are found together as one concave problem (transport.py, 2);
so there is no step size to tune, and a handful of steps do. The gap is a certificate, which the published code has not.
Nothing is fitted to trained models: this is projektor's transport term alone.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from data.artifact import Artifact
from data.fingerprint import seed_for
from data.ids import lots, sortable
from infra.devices import torch_device
from infra.shards import Tables, read_shard
from infra.stage import Measures, Reference, Rows, stage
from infra.work import Work
from tasks.curate.selection import Floats, Places, Pool, SelectParameters, choose, publish, read_pool, rounded
from tasks.curate.transport import DENSE, Points, SemiDual, Target, temperature
from tasks.curate.vectors import Vectors, check_widths, vectors_of

PROBE = 2048  # rows of each side whose costs set the temperature
FIXED = 1e6  # damping, in temperatures, that holds the shares where they are


class MixtureOtParameters(SelectParameters):
    """How closely to look at each source."""

    method: Literal["mixture"] = Field("mixture", description="Shares of the sources by optimal transport.")
    pilot: int = Field(1000, ge=1, description="Rows of each source that its share is found from.")
    target_rows: int = Field(2000, ge=1, description="Rows of the target that shares are found from.")
    epsilon: float = Field(0.03, gt=0, le=1, description="Temperature of the transport, as a share of the median cost.")
    gap: float = Field(
        0.01, gt=0, description="Frank-Wolfe gap at which the shares are good enough, as a share of the temperature."
    )
    steps: int = Field(50, ge=1, description="Steps of mirror descent at the most.")
    seed: int = Field(0, ge=0, description="Seed of the samples, and of the rows that are drawn from each source.")


class Pilot(NamedTuple):
    """What the shares are found from."""

    vectors: Vectors  # (n, d) of all sources
    sources: npt.NDArray[np.int64]  # (n,)
    target: Vectors  # (m, d)
    pool_shares: Floats  # (k,) shares of the sources in the pool


@stage("float")
def mixture_ot(
    work: Work, parameters: MixtureOtParameters, rows: Rows, embeddings: Reference, target_embeddings: Reference
) -> Measures:
    """Find the shares, then draw rows of each source by them.

    A source that runs out of rows leaves the rest of its share to the others. Outputs: `rows`; `scores`, where a row's
    value is its turn; `mixture`, one line for each source; `steps`.

    Raises:
        BadInput: a side is empty, or vectors are missing, not finite, or not of one length.
    """
    torch_device()
    pool = read_pool(rows, parameters)
    names, codes = coded_sources(rows)
    pilot = read_pilot(parameters, pool, codes, embeddings, target_embeddings)
    [shard] = work.map(find, [(parameters, pilot)], "shares")
    shares, steps = (read_shard(shard, name) for name in ("shares", "steps"))
    share = shares["share"].to_numpy()
    values = turns(pool, codes, share, seed_for("mixture_ot draw", parameters.seed))
    chosen = choose(pool, values, parameters.budget, eligible=np.isfinite(values))
    taken = np.bincount(codes, weights=pool.sizes * chosen.selected, minlength=len(names))
    mixture = {
        "source": pa.array(names),
        "rows": pa.array(np.bincount(codes, minlength=len(names))),
        "pool_share": pa.array(pilot.pool_shares),
        "share": shares["share"],
        "gradient": shares["gradient"],
        "selected_units": pa.array(taken),
    }
    work.write_single(pa.table(mixture), "mixture")
    work.write_single(steps, "steps")
    measures = publish(work, pool, values, chosen, {}, "beyond the share of its source")
    costs = {name: float(steps[name][-1].as_py()) for name in ("cost", "gap")}
    return measures | costs | {"pool_cost": float(shares["pool_cost"][0].as_py()), "steps": float(len(steps))}


def coded_sources(rows: Artifact) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Name the sources, sorted, and number them for each row: (k,), (n,)."""
    sources = rows.read(["source"])["source"].to_numpy(zero_copy_only=False)
    names, codes = np.unique(sources.astype(str), return_inverse=True)
    return names.tolist(), codes.astype(np.int64)


def read_pilot(
    parameters: MixtureOtParameters,
    pool: Pool,
    codes: npt.NDArray[np.int64],
    embeddings: Artifact,
    target_embeddings: Artifact,
) -> Pilot:
    """Draw a sample of each source and of the target; with very many sources, as much as fits into memory."""
    seed = seed_for("mixture_ot", parameters.seed)
    ids = target_embeddings["embeddings"].read(["row_id"])["row_id"].combine_chunks()
    target = pa.array(np.argsort(lots(ids, seed), kind="stable")[: parameters.target_rows])
    shares = np.bincount(codes) / len(codes)
    fits = max(DENSE // max(len(target) * len(shares), 1), 1)
    order = np.lexsort((lots(pool.ids, seed), codes))
    rank = np.arange(len(order)) - np.searchsorted(codes[order], codes[order])
    sample = order[rank < min(parameters.pilot, fits)]
    vectors = vectors_of(embeddings, pool.ids.take(pa.array(sample)))
    wanted = vectors_of(target_embeddings, ids.take(target)) if len(ids) else np.empty((0, 1), np.float32)
    check_widths(vectors, wanted)
    return Pilot(vectors, codes[sample], wanted, shares)


def find(problem: tuple[MixtureOtParameters, Pilot]) -> Tables:
    """Find the shares of one pilot: a line for each source, and one for each step."""
    parameters, pilot = problem
    shuffled = np.random.default_rng(0).permutation(len(pilot.vectors))[:PROBE]
    epsilon = temperature(pilot.vectors[shuffled], pilot.target[:PROBE], parameters.epsilon)
    problem_of = SemiDual(Points(pilot.vectors), Target(Points(pilot.target), epsilon), pilot.sources)
    _, means, lines = mix(problem_of, epsilon, parameters.gap, parameters.steps)
    share = np.array(lines[-1]["shares"])
    g, fixed = problem_of.maximise(shares=pilot.pool_shares, damping=FIXED * epsilon)
    pool_cost = float(fixed @ problem_of.evaluate(g)[0])
    shares = {
        "share": pa.array(rounded(share)),
        "gradient": pa.array(rounded(means - float(share @ means))),
        "pool_cost": pa.repeat(pool_cost, len(share)),
    }
    return {"shares": pa.table(shares), "steps": pa.Table.from_pylist(lines)}


def mix(problem: SemiDual, epsilon: float, gap: float, steps: int) -> tuple[Floats, Floats, list[dict[str, object]]]:
    """Descend from equal shares until the Frank-Wolfe gap is below `gap` temperatures: shares and gradient (k,), steps.

    The cost is OT at temperature ε of the mixture, and at most `gap` temperatures above the least that any shares reach
    (it is convex in the shares).
    """
    g: Floats | None = None
    shares: Floats | None = None
    lines: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        g, shares = problem.maximise(g, shares, epsilon, tolerance=gap / 100)
        means, _ = problem.evaluate(g)
        left = float(shares @ means - means.min())
        lines.append({"step": step, "cost": float(shares @ means), "gap": left, "shares": shares.tolist()})
        if left < gap * epsilon:
            break
    assert shares is not None  # noqa: S101 - there is a first step
    return shares, means, lines


def turns(pool: Pool, codes: Places, shares: Floats, seed: int) -> Floats:
    """Give rows their turns, so that sources taken in turn keep to their shares: (n,); infinite where a share is 0.

    In each source rows come in the order of their lots; a row's turn is what its source has given up to it, over the
    source's share.
    """
    order = np.lexsort((sortable(pool.ids), lots(pool.ids, seed), codes))
    given = np.cumsum(pool.sizes[order])
    first = np.searchsorted(codes[order], np.arange(len(shares)))
    given -= (given[first] - pool.sizes[order][first])[codes[order]]
    turn = np.empty(len(order))
    with np.errstate(divide="ignore"):
        turn[order] = given / np.where(shares >= 1e-6, shares, 0)[codes[order]]
    return rounded(turn)
