"""Optimal transport from a pool of rows to a target: its dual potentials, by the semi-dual.

Entropic transport between pool rows x_i of weight 1/n and target rows y_j of weight 1/m, at temperature ε:

    max over g of   mean_i f(x_i) + mean_j g_j,     f(x) = -ε log( (1/m) sum_j exp((g_j - C(x, y_j)) / ε) )      (1)

(1) is the semi-dual (Genevay et al., NeurIPS 2016). f is the c-transform of g: the target's potentials are all that
has to be kept, and any row, also one that was not there when they were found, gets its own by one pass (2). Its
gradient in g_j is 1/m minus the mass that the pool sends to y_j, so the error of the target's marginal is at hand.

The cost is the squared Euclidean distance of vectors, plus, where rows have labels, the cost between the labels'
own clouds (Alvarez-Melis & Fusi 2020; LAVA, Just et al. 2023).

Nothing of size n x m is held where that is large: blocks of a constant number of rows go through one matrix product,
so that a row's potential has the same bits in whatever shard it stands.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from infra.devices import torch_device

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

BLOCK = 256  # rows in one matrix product
DENSE = 1 << 26  # pairs whose costs are held in memory while potentials are found: 256 MiB
STREAMED = 1 << 17  # pool rows that potentials of a larger problem are found from
TOLERANCE = 1e-3  # L1 error of the target's marginal at which potentials count as found
EVALUATIONS = 500  # passes over the pool at the most, if they do not


class Points(NamedTuple):
    """Rows as transport sees them: vectors (n, d) and, where the cost knows labels, their classes (n,)."""

    vectors: Vectors
    labels: Labels | None = None

    def take(self, places: npt.NDArray[np.integer]) -> "Points":
        """Take the rows at some places."""
        return Points(self.vectors[places], None if self.labels is None else self.labels[places])


class Target(NamedTuple):
    """A target with what its cost needs: (m,) rows, the temperature, and costs between labels."""

    points: Points
    epsilon: float
    label_costs: Floats | None = None  # (pool classes, target classes)

    def part(self, places: npt.NDArray[np.integer]) -> "Target":
        """Keep some of the target's rows."""
        return self._replace(points=self.points.take(places))


class Transformed(NamedTuple):
    """What one pass tells of pool rows (n,): the potential, and the target rows that pull hardest and lie nearest."""

    potentials: Floats  # (n, 1 + parts): by the whole target, then by each part
    pulled: npt.NDArray[np.int64]  # argmin of C - g
    nearest: npt.NDArray[np.int64]  # argmin of C
    costs: Floats  # C of the nearest
    mass: Floats  # (m,) sent to each target row, summed over the pool rows


def temperature(pool: Vectors, target: Vectors, relative: float) -> float:
    """Set the temperature relative to the median cost of all pairs, to six digits."""
    median = float(np.median(squared_distances(pool, target)))
    # all rows equal: any temperature gives the same potentials
    return float(f"{relative * median:.6g}") if median > 0 else relative


def squared_distances(left: Vectors, right: Vectors) -> Vectors:
    """Compute squared Euclidean distances: (n, d), (m, d) -> (n, m), not below 0."""
    squares = (left.astype(np.float64) ** 2).sum(1)[:, None] + (right.astype(np.float64) ** 2).sum(1)
    distances: Vectors = np.maximum(squares - 2 * (left @ right.T), 0).astype(np.float32)
    return distances


class Kernel:
    """The exponents (g_j - C_ij) / ε of blocks of pool rows, up to what depends on the pool row alone."""

    def __init__(self, target: Target) -> None:
        import torch

        device = torch_device()
        self.epsilon = target.epsilon
        vectors = torch.tensor(target.points.vectors).to(device)
        self.slopes = (vectors * (2 / target.epsilon)).T.contiguous()  # (d, m)
        self.squares = (vectors.double() ** 2).sum(1)  # (m,)
        self.label_costs: torch.Tensor | None = None
        if target.label_costs is not None and target.points.labels is not None:
            table = torch.tensor(target.label_costs[:, target.points.labels] / target.epsilon)
            self.label_costs = table.float().to(device)  # (pool classes, m)

    def exponents(self, block: Points) -> "torch.Tensor":
        """Compute -C / ε of a block of BLOCK rows without their own squares: (BLOCK, m), float32."""
        import torch

        product = torch.tensor(block.vectors).to(self.slopes.device) @ self.slopes
        if self.label_costs is not None and block.labels is not None:
            product -= self.label_costs[torch.tensor(block.labels).to(product.device)]
        return product

    def bias(self, g: "torch.Tensor", part: slice = slice(None)) -> "torch.Tensor":
        """What to add to the exponents of (a part of) the target for its potentials, to make them those of (1)."""
        return ((g - self.squares[part]) / self.epsilon - math.log(len(g))).float()


def blocks(points: Points, size: int = BLOCK) -> list[Points]:
    """Cut rows into blocks of a constant size, the last one filled up with its last row."""
    cut = []
    for start in range(0, len(points.vectors), size):
        places = np.minimum(np.arange(start, start + size), len(points.vectors) - 1)
        cut.append(points.take(places))
    return cut


def potentials(pool: Points, target: Target) -> Floats:
    """Find the target's potentials g by (1), mean 0: (m,).

    The whole pool is used where its costs fit into memory (quasi-Newton steps until the marginal's error is below
    TOLERANCE); of a larger one a stream of its first STREAMED rows (stochastic steps, averaged). So its rows should
    come in random order.
    """
    if len(pool.vectors) * len(target.points.vectors) <= DENSE:
        return SemiDual(pool, target).maximise()[0]
    return streamed(pool.take(np.arange(min(len(pool.vectors), STREAMED))), target)


class SemiDual:
    """The problem (1) with all costs in memory, for a pool of one source or of several whose shares are free."""

    def __init__(self, pool: Points, target: Target, sources: npt.NDArray[np.int64] | None = None) -> None:
        import torch

        self.kernel = Kernel(target)
        self.columns = len(target.points.vectors)
        self.squares = (pool.vectors.astype(np.float64) ** 2).sum(1)
        self.exponents = [self.kernel.exponents(block) for block in blocks(pool)]
        codes = np.zeros(len(pool.vectors), np.int64) if sources is None else sources
        self.means = (codes[:, None] == np.arange(codes.max() + 1)) / np.bincount(codes)  # (n, sources), sums 1
        self._weights = torch.tensor(self.means, dtype=torch.float32, device=self.kernel.slopes.device)

    def evaluate(self, g: Floats) -> tuple[Floats, Floats]:
        """Compute each source's mean potential for g (m,), and what it sends to each target row: (k,), (k, m)."""
        import torch

        bias = self.kernel.bias(torch.tensor(g, device=self.kernel.slopes.device))
        mass = torch.zeros((self.columns, self.means.shape[1]), dtype=torch.float64, device=bias.device)
        sums = []
        for block, weights in zip(self.exponents, torch.split(self._weights, BLOCK), strict=True):
            found, masses = _log_sums(block + bias, weights)
            sums.append(found[: len(weights)])
            mass += masses
        potentials = self.squares - self.kernel.epsilon * torch.cat(sums).cpu().numpy()
        return potentials @ self.means, mass.T.cpu().numpy()

    def maximise(
        self,
        start: Floats | None = None,
        shares: Floats | None = None,
        damping: float = 1.0,
        tolerance: float = TOLERANCE,
    ) -> tuple[Floats, Floats]:
        """Find g by L-BFGS (Nocedal 1980), mean 0, with the sources' shares that go with it: (m,), (k,).

        With several sources the cost is minimised over their shares p as well, held near to the given ones q by
        `damping` times KL(p || q). By duality that is one concave problem in g,

            mean_j g_j - damping log sum_k q_k exp(-F_k(g) / damping),     p_k = q_k exp(-F_k / damping) / sum    (2)

        with F_k the mean potential of source k.

        Args:
            start: (m,) where to begin.
            shares: (k,) the shares q, sum 1; none: all the same.
            damping: in units of the cost, above 0.
            tolerance: L1 error of the target's marginal at which to stop.
        """
        from scipy.optimize import minimize
        from scipy.special import logsumexp

        prior = np.log(np.full(self.means.shape[1], 1 / self.means.shape[1]) if shares is None else shares)
        error, found = [np.inf], [np.exp(prior)]

        def negative(g: Floats) -> tuple[float, Floats]:
            g = g - g.mean()
            means, mass = self.evaluate(g)
            logits = prior - means / damping
            found[0] = np.exp(logits - logsumexp(logits))
            gradient = 1 / self.columns - found[0] @ mass
            error[0] = float(np.abs(gradient).sum())
            gradient -= gradient.mean()  # the sum is zero but for rounding, which would let g drift
            return self.columns * damping * float(logsumexp(logits)), -self.columns * gradient

        def enough(_: Floats) -> None:
            if error[0] < tolerance:
                raise StopIteration

        options = {"maxiter": EVALUATIONS, "maxfun": EVALUATIONS, "maxcor": 20, "ftol": 0.0, "gtol": 0.0}
        begin = np.zeros(self.columns) if start is None else start
        result = minimize(negative, begin, jac=True, method="L-BFGS-B", callback=enough, options=options)
        g: Floats = result.x - result.x.mean()
        return g, found[0]


def streamed(pool: Points, target: Target) -> Floats:
    """Maximise (1) by Adam over a stream of blocks, averaged over its second half (Polyak & Juditsky 1992): (m,).

    Steps of 0.6 ε, falling to 0: measured against `_whole` on 16,000 rows of clustered vectors with m = 10,000, rank
    correlations of the pool's potentials were .997 at 100,000 rows (6 CPU-seconds).
    """
    import torch

    kernel = Kernel(target)
    m, size = len(target.points.vectors), 2 * BLOCK
    steps = max(STREAMED // size, 1)
    stream = blocks(pool, size)
    g = torch.zeros(m, dtype=torch.float64, device=kernel.slopes.device)
    shares = torch.full((size, 1), 1 / size, device=g.device)
    momentum, power, mean = torch.zeros_like(g), torch.zeros_like(g), torch.zeros_like(g)
    for step in range(steps):
        _, mass = _log_sums(kernel.exponents(stream[step % len(stream)]) + kernel.bias(g), shares)
        gradient = 1 - m * mass[:, 0]
        momentum = 0.9 * momentum + 0.1 * gradient
        power = 0.999 * power + 0.001 * gradient**2
        scale = (power / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        g = g + 0.6 * kernel.epsilon * (1 - step / steps) * momentum / (1 - 0.9 ** (step + 1)) / scale
        if step >= steps // 2:
            mean += (g - mean) / (step - steps // 2 + 1)
    found: Floats = (mean - mean.mean()).cpu().numpy()
    return found


def _log_sums(exponents: "torch.Tensor", weights: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Take the log-sum-exp of each row, and weighted sums of the softmax of the first rows: (rows,), (m, k).

    The input is overwritten. Rows beyond the weights (count, k) are there to fill the block.
    """
    top = exponents.amax(1, keepdim=True)
    shares = exponents.sub_(top).exp_()
    sums = shares.sum(1, keepdim=True)
    count = len(weights)
    return (top + sums.log()).flatten().double(), (shares[:count].T @ (weights / sums[:count])).double()


def transform(pool: Points, target: Target, g: Floats, parts: list[tuple[slice, Floats]]) -> Transformed:
    """Give pool rows their potentials by one pass, the c-transform of g and of the potentials of each part.

    Args:
        pool: (n,) rows.
        target: (m,) rows.
        g: (m,) potentials of the whole target.
        parts: a part of the target, and the potentials that it has alone.
    """
    import torch

    kernel = Kernel(target)
    bias = kernel.bias(torch.tensor(g).to(kernel.slopes.device))
    alone = [(part, kernel.bias(torch.tensor(own).to(bias.device), part)) for part, own in parts]
    n = len(pool.vectors)
    squares = (pool.vectors.astype(np.float64) ** 2).sum(1)
    alike = kernel.bias(torch.zeros_like(kernel.squares))
    sums, pulled, nearest, tops = np.empty((n, 1 + len(parts))), np.empty(n, int), np.empty(n, int), np.empty(n)
    mass = torch.zeros(len(g), dtype=torch.float64, device=bias.device)
    for start, block in zip(range(0, n, BLOCK), blocks(pool), strict=True):
        rows = slice(start, min(start + BLOCK, n))
        count = rows.stop - rows.start
        ones = torch.ones((count, 1), device=bias.device)
        exponents = kernel.exponents(block)
        for number, (part, own_bias) in enumerate(alone, 1):
            sums[rows, number] = _log_sums(exponents[:, part] + own_bias, ones)[0][:count].cpu().numpy()
        top, place = (exponents + alike).max(1)
        tops[rows], nearest[rows] = top[:count].cpu().numpy(), place[:count].cpu().numpy()
        exponents += bias
        pulled[rows] = exponents.argmax(1)[:count].cpu().numpy()
        whole, masses = _log_sums(exponents, ones)
        sums[rows, 0] = whole[:count].cpu().numpy()
        mass += masses[:, 0]
    # for g = 0 the largest exponent is (|x_i|² - C_ij) / ε - log m
    costs = np.maximum(squares - target.epsilon * (tops + math.log(len(g))), 0)
    return Transformed(squares[:, None] - target.epsilon * sums, pulled, nearest, costs, mass.cpu().numpy())


def label_costs(pool: Points, target: Points, most: int = 500) -> Floats:
    """Compute the cost between each class of the pool and each of the target: (pool classes, target classes).

    It is the exact transport cost (POT's network simplex) between the vectors of the two classes, at most `most` of
    each, the first ones: rows should come in random order.
    """
    import ot

    assert pool.labels is not None and target.labels is not None  # noqa: S101 - asked for where both have labels
    costs = np.zeros((int(pool.labels.max()) + 1, int(target.labels.max()) + 1))
    for left in range(costs.shape[0]):
        for right in range(costs.shape[1]):
            own = pool.vectors[pool.labels == left][:most]
            other = target.vectors[target.labels == right][:most]
            if len(own) and len(other):
                costs[left, right] = ot.emd2([], [], squared_distances(own, other).astype(np.float64))
    return costs
