"""A Gaussian process over a trend, and the columns it sees.

Notation:
    n, q        rows observed; rows asked about
    y           values of the objective, `(n,)`
    t           trend: what is expected before the study's first trial
    f           y - t, which the Gaussian process learns
"""

from __future__ import annotations

import copy
import weakref
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import Genotypes
from apq_optuna.predictor import AveragedProcess, GaussianProcess
from apq_optuna.sampler.trends import LearnedTrend, Score, Trend
from apq_optuna.space import Coordinates, Effects, SearchSpace

Floats = NDArray[np.floating]

GROWTH = 1.15
"""Scales are found anew once there are this many times the rows of the last time."""

EVERY_FIT = 100
"""Up to this many rows they are found anew at every row."""

TREND_ROWS = 4.0
"""Rows that the deviation from a trend is worth which is expected before any is seen."""

CALIBRATED_SCALE = 4.0
"""Standard units of quantized pairs that are one unit of a column."""

NETWORK_NOISE = (-3.0, 1.0)
"""Prior of the log noise variance where values are measured on images."""


class Points:
    """Genotypes as columns and as features of main effects, worked out once for all objectives."""

    def __init__(self, space: SearchSpace) -> None:
        self.coordinates, self.effects = Coordinates(space), Effects(space)
        self._last: tuple[weakref.ref[Genotypes], tuple[Floats, Floats]] | None = None

    def __call__(self, genotypes: Genotypes) -> tuple[Floats, Floats]:
        """`(n, C)` with the noise of each kind of bits first, and `(n, F)`."""
        last = self._last  # read once: other threads may be asking, too
        if last is not None and last[0]() is genotypes:
            return last[1]
        columns = self.coordinates(genotypes)
        if self.coordinates.kinds:
            columns = np.concatenate([self.coordinates.noise(genotypes), columns], axis=1)
        found = columns, self.effects(genotypes)
        self._last = weakref.ref(genotypes), found
        return found


_points = lru_cache(maxsize=16)(Points)


class Process:
    """A Gaussian process over a trend.

    Args:
        space: The search space.
        trend: t; None for none, values then tend to the mean of the rows.
        fp32: The fp32 predictor behind the trend, if there is one.
        calibrated: What quantized pairs tell, in standard units, if there are some besides.
        unit: Deviation from the trend before any row is seen; a `LearnedTrend` has its own.
        level: Whether the trend's level holds, too; if not, only its shape is taken.
    """

    def __init__(
        self,
        space: SearchSpace,
        trend: Trend | None = None,
        *,
        fp32: Score | None = None,
        calibrated: Trend | None = None,
        unit: float | None = None,
        level: bool = True,
    ) -> None:
        self.points = _points(space)
        self.coordinates = self.points.coordinates
        self.trend, self.fp32, self.calibrated, self.unit = trend, fp32, calibrated, unit
        told = (fp32 is not None) + (calibrated is not None)
        parts = [np.arange(self.coordinates.kinds + told)]
        network = space.family is not None
        joint = GaussianProcess(
            [part for part in (*parts, self.coordinates.groups) if len(part)],
            zero_mean=trend is not None and level,
            **({"noise": NETWORK_NOISE} if network else {}),
        )
        several = self.points.effects.groups
        # one decision's main effect is all there is; and what fp32 accuracy tells of each decision
        # the trend has already: on `digits` main effects of the rest only misled
        if len(space.decisions) < 2 or fp32 is not None:
            several = several[:0]
        self.gp = AveragedProcess(joint, several)
        self._fp32_scale = (0.0, 1.0)
        self._fitted = 0

    def _fp32(self, genotypes: Genotypes) -> Floats | None:
        return self.fp32(genotypes) if self.fp32 is not None else None

    def _columns(self, genotypes: Genotypes, fp32: Floats | None) -> tuple[Floats, Floats]:
        columns, effects = self.points(genotypes)
        if fp32 is not None:
            centre, scale = self._fp32_scale
            columns = np.insert(columns, self.coordinates.kinds, (fp32 - centre) / scale, axis=1)
        if self.calibrated is not None:
            found = self.calibrated(genotypes, fp32) / CALIBRATED_SCALE
            columns = np.insert(columns, self.coordinates.kinds, found, axis=1)
        return columns, effects

    def fit(
        self,
        genotypes: Genotypes,
        y: Floats,
        *,
        total: int | None = None,
        scales: bool = True,
        measures: Floats | None = None,
    ) -> Process:
        """Learns rows `(n, D)` with finite values `(n,)`, chosen from `total`.

        Args:
            genotypes, y: The rows.
            total: Of how many they were chosen.
            scales: Whether scales are found anew when that is due.
            measures: Of how many measurements each value is the mean, `(n,)`; by default 1.
        """
        n = len(y)
        total = n if total is None else total
        due = scales and (total <= EVERY_FIT or total >= GROWTH * self._fitted)
        fp32 = self._fp32(genotypes)
        if due:
            self._fitted = total
            if fp32 is not None and n:
                self._fp32_scale = float(fp32.mean()), 4.0 * max(float(fp32.std()), 1e-3)
        first_unit = self.unit
        if isinstance(self.trend, LearnedTrend):
            self.trend.learn(genotypes, fp32, y)
            first_unit = self.trend.residual
        f = y - self.trend(genotypes, fp32) if self.trend is not None else y
        unit = None
        if first_unit is not None:
            off = f if self.gp.joint.zero_mean or not n else f - f.mean()
            squares = float(off @ off) + TREND_ROWS * first_unit**2
            unit = (squares / (n + TREND_ROWS)) ** 0.5
        self.gp.fit(
            *self._columns(genotypes, fp32), f, iterations=40 if due else 0, unit=unit,
            measures=measures,
        )  # fmt: skip
        return self

    def beside(self, genotypes: Genotypes, y: Floats, measures: Floats) -> Process:
        """A copy that has learned other rows with the same scales and trend."""
        other = copy.copy(self)
        other.gp = copy.copy(self.gp)
        other.gp.joint = copy.copy(self.gp.joint)
        other.trend = copy.copy(self.trend)
        return other.fit(genotypes, y, scales=False, measures=measures)

    def predict(self, genotypes: Genotypes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of `(q, D)` genotypes, both `(q,)`."""
        return self._predict(genotypes, self._fp32(genotypes))

    def _predict(self, genotypes: Genotypes, fp32: Floats | None) -> tuple[Floats, Floats]:
        mean, std = self.gp.predict(*self._columns(genotypes, fp32))
        return (mean if self.trend is None else mean + self.trend(genotypes, fp32)), std

    def mean(self, genotypes: Genotypes, fp32: Floats | None = None) -> Floats:
        """The mean alone: the trend of another process with the same fp32 predictor."""
        known = self._fp32(genotypes) if fp32 is None else fp32
        return self._predict(genotypes, known)[0]
