"""What a sampler believes about an objective: a mean and a spread for every genotype.

Notation:
    n, q        rows observed; rows asked about
    y           values of the objective, `(n,)`
    t           trend: what is expected before the study's first trial
    f           y - t, which a Gaussian process learns

The trend is 0 where nothing is known. With fp32 pairs it is the fp32 predictor's accuracy less a
first guess of what quantization costs, and the process sees, beside the decisions, the fp32
accuracy and the quantization noise of the policy (`Coordinates.noise`), and no main effects.
Earlier studies are learned by processes of their own, and their means make the trend of an
informed process (`trends`). Once there are trials to judge it by, it is averaged with one that
does without, half and half, or less the worse it explains them: what holds of most of the space
need not hold of the best, and evidence tells that late.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from apq_optuna.networks import Genotypes
from apq_optuna.predictor import AveragedProcess, GaussianProcess, averaged
from apq_optuna.sampler.trends import (
    Earlier,
    LearnedTrend,
    Score,
    Trend,
    fp32_trend,
    normal_scores,
)
from apq_optuna.space import Coordinates, Effects, SearchSpace

Floats = NDArray[np.floating]

MAX_ROWS = 224
"""A process keeps at most this many rows: half the latest, half the best."""

GROWTH = 1.15
"""Scales are found anew once there are this many times the rows of the last time."""

EVERY_FIT = 100
"""Up to this many rows they are found anew at every row."""

TREND_UNIT, TREND_ROWS = 0.03, 4.0
"""Deviation from the fp32 trend before any trial is seen, and the rows that this is worth."""

FEWEST_TO_JUDGE = 6
"""Own trials before a source is judged by them; until then it is believed."""

LEAST_TRUST = 0.01
"""A source trusted less is not asked."""

LARGEST = 1e120
"""Beyond it the square of a value, or a volume of several, is more than a float holds."""

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
        unit: Deviation from the trend before any row is seen; a `LearnedTrend` has its own.
        level: Whether the trend's level holds, too; if not, only its shape is taken.
    """

    def __init__(
        self,
        space: SearchSpace,
        trend: Trend | None = None,
        *,
        fp32: Score | None = None,
        unit: float | None = None,
        level: bool = True,
    ) -> None:
        self.points = _points(space)
        self.coordinates = self.points.coordinates
        self.trend, self.fp32, self.unit = trend, fp32, unit
        parts = [np.arange(self.coordinates.kinds + (fp32 is not None))]
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


class Surrogate:
    """The model of one objective, taught by a study's trials.

    Args:
        space: The search space.
        fp32: An fp32 predictor of genotypes' accuracies `(n,)`, where quantized ones start from.
        earlier: What earlier studies tell of it.
        maximise: Which side of the values is the good one; outliers on the other are drawn in.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        fp32: Score | None = None,
        earlier: Sequence[Earlier] = (),
        maximise: bool = False,
    ) -> None:
        self.space, self.sign = space, 1.0 if maximise else -1.0
        trend = None if fp32 is None else fp32_trend(space, fp32)
        unit = None if fp32 is None else TREND_UNIT
        self.alone = Process(space, trend, fp32=fp32, unit=unit)
        self.informed: Process | None = None
        if earlier:
            self.informed = _over_earlier(space, trend, fp32, earlier, self.sign)
        self.trust = float(self.informed is not None)
        """Share of the informed process in what is predicted."""
        self._rows = -1.0
        self.refresh(np.zeros((0, len(space.decisions)), np.int32), np.zeros(0))

    @property
    def knows(self) -> bool:
        """Whether anything is known before the study's first trial."""
        return self.alone.trend is not None or self.informed is not None

    def refresh(
        self, genotypes: Genotypes, y: Floats, measures: Floats | None = None
    ) -> Surrogate:
        """Takes in all rows `(n, D)` with finite values `(n,)`; n may be 0.

        Args:
            genotypes, y: The rows.
            measures: Of how many measurements each value is the mean, `(n,)`; by default 1.
        """
        counts = np.ones(len(y)) if measures is None else measures
        if (told := float(counts.sum())) == self._rows:
            return self
        self._rows = told
        kept = most_telling(y * self.sign)
        rows, values, counts = genotypes[kept], drawn_in(y[kept], self.sign), counts[kept]
        self._seen = rows, values, counts
        if self.informed is None:
            self.alone.fit(rows, values, total=len(y), measures=counts)
            return self
        self.informed.fit(rows, values, total=len(y), measures=counts)
        if len(values) >= FEWEST_TO_JUDGE:
            self.alone.fit(rows, values, total=len(y), measures=counts)
            ahead = self.informed.gp.evidence - self._fitted(len(values)) - self.alone.gp.evidence
            self.trust = float(expit(min(ahead, 0.0)))
        return self

    def believing(self, rows: Genotypes) -> Surrogate:
        """A copy that takes what it predicts of `(k, D)` rows for seen, and so is sure of them.

        What is asked for next is then elsewhere (the kriging believer of Ginsbourger, Le Riche
        and Carraro, 2010).
        """
        if not len(rows):
            return self
        seen = np.concatenate([self._seen[0], rows])
        values = np.concatenate([self._seen[1], self.predict(rows)[0]])
        counts = np.concatenate([self._seen[2], np.ones(len(rows))])
        other = copy.copy(self)
        other.alone = self.alone.beside(seen, values, counts)
        if self.informed is not None:
            other.informed = self.informed.beside(seen, values, counts)
        return other

    def _fitted(self, n: int) -> float:
        """What the evidence of n rows owes to slopes that were fitted to them (Schwarz, 1978)."""
        trend = self.informed.trend if self.informed is not None else None
        return 0.5 * trend.freedom * float(np.log(n)) if isinstance(trend, LearnedTrend) else 0.0

    def predict(self, genotypes: Genotypes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of `(q, D)` genotypes, both `(q,)`."""
        if self.informed is None or self.trust < LEAST_TRUST:
            return self.alone.predict(genotypes)
        informed = self.informed.predict(genotypes)
        if self.trust == 1.0:
            return informed
        return averaged(self.alone.predict(genotypes), informed, self.trust)


def _over_earlier(
    space: SearchSpace,
    trend: Trend | None,
    fp32: Score | None,
    earlier: Sequence[Earlier],
    sign: float,
) -> Process:
    """A process whose trend is what earlier studies taught."""
    first, unit = trend, None
    alike = [each for each in earlier if each.comparable]
    alike = [each for each in alike if each.space is alike[0].space]
    if alike:  # measured as here: their values are this study's, had it made the trials
        theirs = alike[0].space
        genotypes = np.concatenate([each.genotypes for each in alike])
        y = clipped(np.concatenate([each.values for each in alike]))
        kept = most_telling(y * sign)
        genotypes, y = genotypes[kept], drawn_in(y[kept], sign)
        measured = (
            Process(space, trend, fp32=fp32, unit=TREND_UNIT if trend is not None else None)
            if theirs is space
            else Process(theirs)
        ).fit(genotypes, y)
        first = _asked(space, theirs, measured)
        unit = max(float(np.std(y - measured.mean(genotypes))), 0.2 * float(np.std(y)), 1e-6)
    others = [each for each in earlier if not any(each is one for one in alike)]
    if not others:
        return Process(space, first, fp32=fp32, unit=unit, level=False)
    spread = float(np.median([np.std(clipped(each.values)) for each in others]))
    learned = LearnedTrend(
        [_opinion(space, each, sign) for each in others],
        [len(each.space.decisions) / len(space.decisions) for each in others],
        unit=max(spread, 1e-6),
        first=first,
    )
    return Process(space, learned, fp32=fp32, level=False)


def _opinion(space: SearchSpace, earlier: Earlier, sign: float) -> Trend:
    """What an earlier study expects, in standard units."""
    z = normal_scores(earlier.values)
    kept = most_telling(z * sign)
    process = Process(earlier.space).fit(earlier.genotypes[kept], z[kept])
    return _asked(space, earlier.space, process)


def _asked(space: SearchSpace, theirs: SearchSpace, process: Process) -> Trend:
    """The mean of a process over a part of a space, asked about rows of the whole."""
    if theirs is space and process.fp32 is not None:
        return process.mean
    columns = [space.column[decision.name] for decision in theirs.decisions]

    def mean(rows: Genotypes, fp32: Floats | None) -> Floats:
        return process.mean(theirs.canonical(rows[:, columns]))

    return mean


def most_telling(goodness: Floats) -> NDArray[np.intp]:
    """Rows a process learns from, in order: all, or half the latest and half the best others."""
    n = len(goodness)
    if n <= MAX_ROWS:
        return np.arange(n)
    latest = np.arange(n - MAX_ROWS // 2, n)
    others = np.argsort(-goodness[: latest[0]], kind="stable")[: MAX_ROWS - len(latest)]
    return np.sort(np.concatenate([others, latest]))


def drawn_in(y: Floats, sign: float) -> Floats:
    """Values with far outliers on the bad side brought nearer, as they tell nothing of the rest.

    Far is beyond the median by one and a half of the range of the middle eight tenths.
    """
    if len(y) < 10:
        return y
    low, middle, high = np.quantile(y, [0.1, 0.5, 0.9])
    if high <= low:
        return y
    limit = middle - sign * 1.5 * (high - low)
    return np.asarray(np.maximum(y, limit) if sign > 0 else np.minimum(y, limit))


def clipped(values: Floats) -> Floats:
    """Infinite values brought to just beyond the finite ones, and all to where squares are."""
    values = np.where(np.abs(values) < np.inf, np.clip(values, -LARGEST, LARGEST), values)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros_like(values)
    low, high = finite.min(), finite.max()
    margin = max(high - low, abs(high), 1e-6) * 0.1
    return np.clip(values, low - margin, high + margin)
