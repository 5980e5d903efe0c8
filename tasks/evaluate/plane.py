"""Lay vectors out on a plane: their first two principal components, the same to the last bit on any machine.

A report is of the class `exact`, and a library's eigenvectors are not: their last bits, and with equal eigenvalues all
of them, depend on the processor. So vectors, covariance and axes are whole numbers here, small enough for float64 to
add their products without an error, and the axes are found by orthogonal iteration (Golub and Van Loan, Matrix
Computations, section 8.2.4) in a fixed number of rounds. What variance the two axes hold is counted on the plane
itself; where the second and third component are nearly alike it may fall short of the most that a plane could hold.
"""

from math import frexp, log2
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ROUNDS = 200  # a third component of 0.97 times the second's variance is left by 0.2 per cent
FINE = 14  # bits of a vector's number: with 2^8 to 2^13 vectors their products add up to less than 2^43


class Plane(NamedTuple):
    """Points on a plane, and how much of the variance it holds."""

    points: Floats  # (n, 2), the farthest from the middle 1 away from it, rounded to 3 digits
    share: float  # 0 to 1, rounded to 3 digits


def plane_of(vectors: npt.NDArray[np.floating], fitted: npt.NDArray[np.bool_]) -> Plane:
    """Put vectors on the plane of the two directions in which some of them vary most.

    Args:
        vectors: (n, d) finite, n at most 8,192.
        fitted: (n,) which of them say where the middle is and what the directions are.
    """
    steps = whole(vectors.astype(np.float64), FINE)
    steps -= np.rint(steps[fitted].sum(0) / max(int(fitted.sum()), 1))
    own = steps[fitted]
    axes = principal_axes(own.T @ own)
    lengths = np.sqrt((axes**2).sum(0))
    points = (steps @ axes) / np.where(lengths > 0, lengths, 1)
    held, total = float((points[fitted] ** 2).sum()), float((own**2).sum())
    farthest = float(np.abs(points).max(initial=0)) or 1.0
    placed: Floats = np.round(points / farthest, 3) + 0.0  # -0 becomes 0
    return Plane(placed, round(held / total, 3) if total else 0.0)


def principal_axes(spread: Floats) -> Floats:
    """Find the two directions of most variance: (d, 2) whole numbers, each with its largest entry positive.

    Args:
        spread: (d, d) covariance times any factor, whole numbers.
    """
    size = len(spread)
    bits = int((52 - log2(max(size, 2))) // 2)  # so that a row times an axis stays below 2^52
    spread = whole(spread, bits)
    axes = whole(np.random.default_rng(0).integers(-1000, 1001, (size, 2)).astype(np.float64), bits)
    for _ in range(ROUNDS):
        first, second = (whole(each, bits) for each in (spread @ axes).T)
        second = whole(second - first * ((first @ second) / max(float(first @ first), 1.0)), bits)
        axes = np.stack([first, second], 1)
    signs = np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    turned: Floats = axes * np.where(signs == 0, 1, signs)
    return turned


def whole(values: Floats, bits: int) -> Floats:
    """Scale values by a power of two, so that the largest has so many bits, and round them to whole numbers."""
    _, exponent = frexp(float(np.abs(values).max(initial=0)))
    scaled: Floats = np.rint(np.ldexp(values, bits - exponent))
    return scaled
