"""What a sampler believes about an objective: a mean and a spread for every genotype.

Notation:
    n, q        rows observed; rows asked about
    y           values of the objective, `(n,)`
    t           trend: what is expected before the study's first trial
    f           y - t, which a Gaussian process learns

The trend is 0 where nothing is known. With fp32 pairs it is the fp32 predictor's accuracy less a
first guess of what quantization costs, and the process sees, beside the decisions, the fp32
accuracy and the quantization noise of the policy (`Coordinates.noise`), and no main effects.
With quantized pairs, which are calibrated and not finetuned, a process of their own says what they
expect of a network, and that is part of the trend and a column, too (`trends.calibrated_trend`).
Earlier studies are learned by processes of their own, and their means make the trend of an
informed process (`trends`). Once there are trials to judge it by, it is averaged with one that
does without, half and half, or less the worse it explains them: what holds of most of the space
need not hold of the best, and evidence tells that late.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from apq_optuna.networks import Genotypes
from apq_optuna.predictor import averaged
from apq_optuna.sampler.process import Process
from apq_optuna.sampler.trends import (
    Earlier,
    LearnedTrend,
    Score,
    Trend,
    calibrated_trend,
    fp32_trend,
    normal_scores,
    remembered,
)
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]

MAX_ROWS = 224
"""A process keeps at most this many rows: half the latest, half the best."""

TREND_UNIT = 0.03
"""Deviation from the fp32 trend before any trial is seen."""

FEWEST_TO_JUDGE = 6
"""Own trials before a source is judged by them; until then it is believed."""

LEAST_TRUST = 0.01
"""A source trusted less is not asked."""

LARGEST = 1e120
"""Beyond it the square of a value, or a volume of several, is more than a float holds."""


class Surrogate:
    """The model of one objective, taught by a study's trials.

    Args:
        space: The search space.
        fp32: An fp32 predictor of genotypes' accuracies `(n,)`, where quantized ones start from.
        calibrated: Quantized pairs, calibrated and not finetuned; used beside an fp32 predictor.
        earlier: What earlier studies tell of it.
        maximise: Which side of the values is the good one; outliers on the other are drawn in.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        fp32: Score | None = None,
        calibrated: Earlier | None = None,
        earlier: Sequence[Earlier] = (),
        maximise: bool = False,
    ) -> None:
        self.space, self.sign = space, 1.0 if maximise else -1.0
        start = _Start(space, fp32, calibrated)
        self.alone = start.process()
        self.informed: Process | None = None
        if earlier:
            self.informed = _over_earlier(space, start, earlier, self.sign)
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


class _Start:
    """What is known beside earlier studies: fp32 pairs, and with them quantized ones."""

    def __init__(self, space: SearchSpace, fp32: Score | None, calibrated: Earlier | None) -> None:
        self.space, self.fp32 = space, fp32
        self.calibrated: Trend | None = None
        if fp32 is not None and calibrated is not None:
            process = _in_standard_units(calibrated, 1.0)
            self.calibrated = remembered(lambda genotypes, _: process.mean(genotypes))
            self._accuracies = calibrated.values

    def trend(self) -> Trend | None:
        """A trend of its own for every process: one of quantized pairs learns."""
        first = None if self.fp32 is None else fp32_trend(self.space, self.fp32)
        if first is None or self.calibrated is None:
            return first
        return calibrated_trend(first, self.calibrated, self._accuracies, unit=TREND_UNIT)

    def process(self) -> Process:
        """A process over that trend."""
        unit = None if self.fp32 is None else TREND_UNIT
        return self.over(self.trend(), unit=unit)

    def over(self, trend: Trend | None, *, unit: float | None, level: bool = True) -> Process:
        """A process over another trend with the same columns."""
        return Process(
            self.space, trend, fp32=self.fp32, calibrated=self.calibrated, unit=unit, level=level
        )


def _over_earlier(
    space: SearchSpace, start: _Start, earlier: Sequence[Earlier], sign: float
) -> Process:
    """A process whose trend is what earlier studies taught."""
    first, unit = start.trend(), None
    alike = [each for each in earlier if each.comparable]
    alike = [each for each in alike if each.space is alike[0].space]
    if alike:  # measured as here: their values are this study's, had it made the trials
        theirs = alike[0].space
        genotypes = np.concatenate([each.genotypes for each in alike])
        y = clipped(np.concatenate([each.values for each in alike]))
        kept = most_telling(y * sign)
        genotypes, y = genotypes[kept], drawn_in(y[kept], sign)
        measured = (start.process() if theirs is space else Process(theirs)).fit(genotypes, y)
        first = _asked(space, theirs, measured)
        unit = max(float(np.std(y - measured.mean(genotypes))), 0.2 * float(np.std(y)), 1e-6)
    others = [each for each in earlier if not any(each is one for one in alike)]
    if not others:
        return start.over(first, unit=unit, level=False)
    spread = float(np.median([np.std(clipped(each.values)) for each in others]))
    learned = LearnedTrend(
        [_opinion(space, each, sign) for each in others],
        [len(each.space.decisions) / len(space.decisions) for each in others],
        unit=max(spread, 1e-6),
        first=first,
    )
    return start.over(learned, unit=None, level=False)


def _opinion(space: SearchSpace, earlier: Earlier, sign: float) -> Trend:
    """What an earlier study expects, in standard units."""
    return _asked(space, earlier.space, _in_standard_units(earlier, sign))


def _in_standard_units(earlier: Earlier, sign: float) -> Process:
    z = normal_scores(earlier.values)
    kept = most_telling(z * sign)
    return Process(earlier.space).fit(earlier.genotypes[kept], z[kept])


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
