"""Where to look while nothing is known: spread over the space, far from what was tried."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace


def space_filling(space: SearchSpace, n: int, rng: np.random.Generator) -> Genotypes:
    """`(n, D)` genotypes that also reach the corners: all small, all large, all bits low or high.

    Uniform choices for many decisions all look alike on average. In a family's space each row
    leans towards the low or the high end, its architecture and its bit-widths separately. A plain
    space's are uniform: nothing says that its decisions go together.
    """
    if space.family is None:
        return space.sample(n, rng)
    quantization = np.array([decision.quantization for decision in space.decisions])
    lean = np.exp(rng.uniform(-2.0, 2.0, (n, 2)))
    exponent = np.where(quantization, lean[:, 1:], lean[:, :1])
    draws = rng.random((n, len(space.decisions))) ** exponent
    categorical = np.array([d.role == "categorical" for d in space.decisions], bool)
    draws[:, categorical] = rng.random((n, int(categorical.sum())))
    return space.canonical(space.from_unit(draws))


def farthest(space: SearchSpace, candidates: Genotypes, tried: Genotypes) -> NDArray[np.intp]:
    """Candidates in order of their distance to what was tried, farthest first.

    In a plain space in the order given: the farthest are its corners, and the middle matters, too.

    Distance is the mean over decisions of the difference of choice indices, scaled to [0, 1].
    """
    if not len(tried) or space.family is None:
        return np.arange(len(candidates))
    scale = np.maximum(space.sizes - 1, 1).astype(np.float32)
    a, b = candidates / scale, tried / scale
    nearest = np.full(len(a), np.inf)
    for start in range(0, len(b), 64):
        distance = np.abs(a[:, None] - b[None, start : start + 64]).mean(axis=2)
        nearest = np.minimum(nearest, distance.min(axis=1))
    return np.argsort(-nearest, kind="stable")
