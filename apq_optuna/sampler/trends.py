"""What is expected of an objective before a study's own trials: from fp32, and earlier studies.

Notation:
    n, k        the study's own rows; earlier studies
    m           what each earlier study expects, `(n, k)`, in standard units of its own
    t           trend: a first part, where there is one, and m times slopes
    b           slopes, `(k,)`, in the objective's units
    c           accuracies right after calibration, of the pairs that there are

An earlier study's values were measured on other images or another task, so they do not compare:
their order does. They are replaced by normal scores of their ranks, and what one standard unit is
worth here, and in which direction, the study's own trials tell:

    b = argmin |f - m b|^2 + SHRINKAGE |b - b_0|^2,  f the deviations from the first part

b_0 is as much as would explain the spread of f, shared among the k (for one that knows part of the
parameters, that part of the variance); 0 beside a first part, which explains most of it.

Accuracies right after calibration are such an earlier study: what quantization costs before
finetuning is many times what is left of it after, and in the same order. b_0 is a share of their
deviation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from apq_optuna.networks import Genotypes
from apq_optuna.space import Coordinates, SearchSpace

Floats = NDArray[np.floating]
Score = Callable[[Genotypes], Floats]
Trend = Callable[[Genotypes, Floats | None], Floats]
"""Takes the genotypes' fp32 accuracies along, where an fp32 predictor is there: they are worked
out once for all that need them."""

LOSS = 0.03
"""Accuracy that 2 bits of one kind are first guessed to cost, everywhere."""

LEFT = 0.3
"""First guess of what finetuning leaves of a difference that calibration makes, as a share."""

SHRINKAGE = 4.0
"""Own trials that the first guess of a slope is worth."""

RESIDUAL = 0.5
"""First guess of the deviation from the trend, as a share of the values' own."""


@dataclass(frozen=True)
class Earlier:
    """What an earlier study tells of an objective.

    Attributes:
        space: The part of the search space that it shares.
        genotypes: Its trials there, `(n, D')`.
        values: Of the objective, `(n,)`, larger meaning what it means here; may be infinite.
        comparable: Whether the values were measured as this study's are, on the same supernet and
            images, and so may be taken as they are.
    """

    space: SearchSpace
    genotypes: Genotypes
    values: Floats
    comparable: bool = False


class LearnedTrend:
    """A trend whose slopes follow the study's own trials.

    Args:
        opinions: What each earlier study expects, in standard units, k of them.
        shares: Share of the parameters that each knows.
        unit: What a standard unit is first taken for, before two trials have been seen.
        first: A first part that holds as it is.
        guess: b_0, `(k,)`; by default as above.
    """

    def __init__(
        self,
        opinions: Sequence[Trend],
        shares: Sequence[float],
        *,
        unit: float,
        first: Trend | None = None,
        guess: Floats | None = None,
    ) -> None:
        self.opinions, self.unit, self.first = opinions, unit, first
        self._weights = np.sqrt(shares) / len(opinions) * (first is None)
        self._guess = guess
        self.slopes = unit * self._weights if guess is None else guess
        self.residual = RESIDUAL * unit
        """First guess of the deviation from the trend."""
        self.freedom = 0.0
        """How many parameters the slopes are worth: fewer than k, as they are shrunk."""

    def learn(self, genotypes: Genotypes, fp32: Floats | None, y: Floats) -> None:
        """Fits the slopes to the study's own rows `(n, D)`; fewer than two tell nothing."""
        if len(y) < 2:
            return
        f = y if self.first is None else y - self.first(genotypes, fp32)
        f = f - f.mean()
        m = self._opinions(genotypes, fp32)
        m = m - m.mean(axis=0)
        squares = float(f @ f)
        guess = self._guess
        if guess is None:
            guess = (squares / (float((m**2).mean(axis=1).sum()) + 1.0)) ** 0.5 * self._weights
        matrix = m.T @ m + SHRINKAGE * np.eye(m.shape[1])
        self.slopes = np.linalg.solve(matrix, m.T @ f + SHRINKAGE * guess)
        self.freedom = float(np.trace(np.linalg.solve(matrix, m.T @ m)))
        if squares > 0:
            self.residual = RESIDUAL * (squares / len(y)) ** 0.5

    def _opinions(self, genotypes: Genotypes, fp32: Floats | None) -> Floats:
        return np.column_stack([opinion(genotypes, fp32) for opinion in self.opinions])

    def __call__(self, genotypes: Genotypes, fp32: Floats | None) -> Floats:
        """t of `(q, D)` genotypes, `(q,)`."""
        own = self._opinions(genotypes, fp32) @ self.slopes
        return np.asarray(own if self.first is None else own + self.first(genotypes, fp32))


def fp32_trend(space: SearchSpace, fp32: Score) -> Trend:
    """What a quantized network is first expected to reach."""
    coordinates = Coordinates(space)

    def trend(genotypes: Genotypes, known: Floats | None) -> Floats:
        lost = LOSS * coordinates.least_step * coordinates.noise(genotypes).sum(1)
        return np.asarray((fp32(genotypes) if known is None else known) - lost)

    return trend


def calibrated_trend(
    first: Trend, opinion: Trend, accuracies: Floats, *, unit: float
) -> LearnedTrend:
    """A first part, and what accuracies right after calibration say beyond it.

    Args:
        first: What is expected without them.
        opinion: What they expect, in standard units.
        accuracies: c, `(n,)`.
        unit: Deviation from the trend before any trial is seen.
    """
    guess = np.array([LEFT * float(np.std(accuracies))])
    return LearnedTrend([opinion], [1.0], unit=unit / RESIDUAL, first=first, guess=guess)


def remembered(trend: Trend) -> Trend:
    """The same trend, worked out once for rows that several ask about one after the other."""
    last: tuple[weakref.ref[Genotypes], Floats] | None = None

    def found(genotypes: Genotypes, fp32: Floats | None) -> Floats:
        nonlocal last
        known = last  # read once: other threads may be asking, too
        if known is None or known[0]() is not genotypes:
            last = known = weakref.ref(genotypes), trend(genotypes, fp32)
        return known[1]

    return found


def normal_scores(values: Floats) -> Floats:
    """Standard normal quantiles of the ranks of `(n,)` values; equal values share theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - 0.5 * counts
    return np.asarray(ndtri(middle / len(values)))[inverse]
