"""What to try next in one study: genotypes ranked by expected improvement, within hard limits.

Notation:
    n       candidates
    M       objectives of the study; some known, the others predicted
    v       oriented values: everything is minimised (`signs` flips what the study maximises)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.hardware.tables.compiled import CompiledCosts
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.constraints import Constraints
from apq_optuna.sampler.filling import farthest, space_filling
from apq_optuna.sampler.history import History, RowSet, Snapshot, spread_factor
from apq_optuna.sampler.known import KnownObjectives
from apq_optuna.sampler.limits import Limits
from apq_optuna.sampler.nearness import Nearness
from apq_optuna.sampler.parallel import each
from apq_optuna.sampler.surrogate import Surrogate, clipped
from apq_optuna.search import (
    EvolutionOptions,
    KnownCostEHVI,
    SampledEHVI,
    evolve,
    nondominated,
)
from apq_optuna.search.ehvi import NO_GAIN
from apq_optuna.search.evolution import Variation
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]
Score = Callable[[Genotypes], Floats]
Gain = Callable[[Genotypes, Floats | None], Floats]
"""Of rows, and of positions inside their cells where not the middles are meant."""

Taken = Callable[[Genotypes], NDArray[np.bool_]]

STARTUP = 4
"""Space-filling trials at first where nothing is known."""

EVERY, UNTIL = 4, 24
"""And then every fourth of the first 24: as many all at once would be most of what a short study
has, none would leave a long one with what its first guesses led to."""

STARTUP_INFORMED = 2
"""And where a source tells what to expect or costs are known, but ranges are still to be seen."""

STARTUP_CANDIDATES = 256
SEARCH = EvolutionOptions(population=100, generations=20)
"""In a family's space, where what belongs together mutates as one."""

PLAIN_SEARCH = replace(SEARCH, mutation_probability=0.2)
"""In a plain space, where most mutations are small steps."""

BEYOND_FRONT = 0.3
"""The reference lies this share of an objective's range beyond the worst of the front: the front's
own range would never let a collapsed one grow again, all trials' would reward extremes."""

RANGE_ROWS = 128
"""Random rows whose known and predicted values tell an objective's range beside the trials':
those of a search that began with promising ones alone have seen little of it."""

LEAST = 8
"""While no trial meets the constraints, the search starts at this many that break them least."""

INFEASIBLE = -1e9


class Proposer:
    """Ranks what is worth trying in one study, seen through one space.

    Args:
        space: The search space.
        joint: Whether it is the sampler's own space rather than one inferred from the study.
        known: Objectives computed from genotypes.
        predicted: Indices of the other objectives.
        signs: `(M,)`: 1 for minimised objectives, -1 for maximised ones.
        surrogates: One for each predicted objective.
        priced: The compiled cost table of a joint space.
        budgets: Upper limits by the name of a cost or of a known objective.
        reference: Reference values by objective index, where the user gave some.
        n_startup_trials: Completed trials before the surrogates decide; None decides by what is
            known already.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        joint: bool,
        known: KnownObjectives,
        predicted: list[int],
        signs: Floats,
        surrogates: list[Surrogate],
        priced: CompiledCosts | None,
        budgets: Mapping[str, float],
        reference: Mapping[int, float],
        n_startup_trials: int | None,
    ) -> None:
        self.space, self.joint, self.known, self.predicted = space, joint, known, predicted
        self.signs, self.surrogates, self.priced = signs, surrogates, priced
        self.limits = Limits(space, known, priced, budgets)
        self.reference = reference
        self.nearness = Nearness(space)
        self.rng = np.random.default_rng()
        self._random = space.sample(RANGE_ROWS, np.random.default_rng(0))
        self.history = History(space, strict=joint)
        self.n_startup, self._scattered = (
            self._needed_before() if n_startup_trials is None else (n_startup_trials, False)
        )
        self.search = SEARCH if space.family is not None else PLAIN_SEARCH
        self.population: Genotypes | None = None
        self._constraints = Constraints(space)
        self._known = self._of_others = known

    def begin(self, rng: np.random.Generator, given: Mapping[str, object]) -> None:
        """Turns to another trial: its randomness, and what it prescribes by parameter name."""
        self.rng = rng
        self.known = self._known.given(given)
        self.limits.begin(self.known)
        # what a trial prescribes holds for it alone, unless it is no decision of the space
        others = {name: value for name, value in given.items() if name not in self.space.column}
        self._of_others = self._known.given(others)

    def params(self, row: Genotypes) -> dict[str, Any]:
        """A row `(D,)` as parameters, with values inside its cells that meet the budgets."""
        inner = self.limits.place(row, self.rng) if continuous(self.space) else None
        return self.space.to_params(row, inner=inner)

    def taken(self, snapshot: Snapshot) -> Taken:
        """Tells which of `(n, D)` rows are not to be proposed: `(n,) bool`.

        Those that a trial has had, and those so near a running one that it will tell.
        """
        tried = RowSet(snapshot.tried) if not continuous(self.space) else None
        running = snapshot.running if self.nearness.fine else snapshot.running[:0]

        def told(rows: Genotypes) -> NDArray[np.bool_]:
            known = np.zeros(len(rows), bool) if tried is None else tried.contains(rows)
            return known | self.nearness(rows, running) if len(running) else known

        return told

    def _needed_before(self) -> tuple[int, bool]:
        """Space-filling trials needed at first, and whether there are further ones between.

        None where even the reference point is known.
        """
        if not any(surrogate.knows for surrogate in self.surrogates):
            return STARTUP_INFORMED if self.known.index else STARTUP, True
        bounded = isinstance(self.known.table, CompiledCosts) and len(self.predicted) == 1
        return (0 if self.space.family is not None and bounded else STARTUP_INFORMED), False

    def _fills(self, snapshot: Snapshot) -> bool:
        """Whether the next trial fills the space."""
        done = len(snapshot.genotypes)
        number = done + len(snapshot.running)
        between = self._scattered and number < UNTIL and number % EVERY == 0
        return done < self.n_startup or between

    def rank(
        self,
        snapshot: Snapshot,
        constrain: Callable[[Genotypes], Genotypes],
    ) -> tuple[Genotypes, Callable[[Genotypes], tuple[Floats, Floats]] | None]:
        """Untried feasible genotypes, most promising first, and what predicts mean and spread."""
        taken = self.taken(snapshot)
        if self._fills(snapshot):
            return self.fill(snapshot, constrain, taken), None
        score, gain, predict = self._acquisition(snapshot, taken)
        initial = self._start_population(snapshot)
        result = evolve(
            self.space,
            score,
            rng=self.rng,
            options=self.search,
            initial=initial,
            constrain=self._runnable(constrain),
        )
        self.population = result.genotypes
        good = result.scores > INFEASIBLE / 2
        if not good.any():
            rows = self.fill(snapshot, constrain, taken)
            return rows[np.argsort(-gain(rows, self.limits.inner(rows)), kind="stable")], predict
        return result.genotypes[good], predict

    def _runnable(
        self, constrain: Callable[[Genotypes], Genotypes]
    ) -> Callable[[Genotypes], Genotypes]:
        """`constrain`, and before it what the device cannot run, or gives nothing for, mended."""
        priced = self.priced
        if priced is None or not (priced.has_gaps or priced.has_free_bits):
            return constrain
        return lambda rows: constrain(priced.settle(rows, self.rng))

    def fill(
        self,
        snapshot: Snapshot,
        constrain: Callable[[Genotypes], Genotypes],
        taken: Taken,
    ) -> Genotypes:
        """Space-filling genotypes within the budgets, farthest from what was tried first."""
        space, constrain = self.space, self._runnable(constrain)
        candidates = space.canonical(constrain(space_filling(space, STARTUP_CANDIDATES, self.rng)))
        allowed = (self.limits.violation(candidates) == 0) & ~taken(candidates)
        if not allowed.any():
            candidates = self.limits.search(constrain, taken, self.rng)
            allowed = np.ones(len(candidates), bool)
        candidates = np.unique(candidates[allowed], axis=0)
        candidates = candidates[self.rng.permutation(len(candidates))]
        return candidates[farthest(space, candidates, snapshot.tried)]

    def _start_population(self, snapshot: Snapshot) -> Genotypes:
        """Children of the measured front, and what the last search ended with."""
        if not len(snapshot.genotypes):
            return space_filling(self.space, self.search.population, self.rng)
        values = np.column_stack([clipped(c) for c in snapshot.values.T]) * self.signs
        kept = snapshot.feasible
        if kept.any():
            front = snapshot.genotypes[kept][nondominated(values[kept])]
        else:
            front = snapshot.genotypes[np.argsort(snapshot.violation, kind="stable")[:LEAST]]
        parents = front[self.rng.integers(len(front), size=self.search.population // 2)]
        children = Variation(self.space).mutate(
            parents, self.search.mutation_probability, self.rng
        )
        if self.population is None:
            return children
        return np.concatenate([children, self.population[: self.search.population // 4]])

    def _acquisition(
        self, snapshot: Snapshot, taken: Taken
    ) -> tuple[Score, Gain, Callable[[Genotypes], tuple[Floats, Floats]]]:
        """The score to maximise, what it is without limits, and what predicts mean and spread."""
        seen = len(snapshot.values)

        def refreshed(of: tuple[Surrogate, int]) -> Surrogate:
            surrogate, i = of
            measures = snapshot.measures if i == 0 else None
            return surrogate.refresh(snapshot.genotypes, clipped(snapshot.values[:, i]), measures)

        pairs_of = list(zip(self.surrogates, self.predicted, strict=True))
        surrogates = each(refreshed, pairs_of, seen)
        # one place is not tried twice at once, for all that is not known of it
        surrogates = [surrogate.believing(snapshot.running) for surrogate in surrogates]
        known = self.known
        factor = self.spread_factor(snapshot)

        def predict(rows: Genotypes) -> tuple[Floats, Floats]:
            """(n, p) means and spreads."""
            if not surrogates:
                return np.zeros((len(rows), 0)), np.zeros((len(rows), 0))
            pairs = each(lambda surrogate: surrogate.predict(rows), surrogates, seen)
            spread = np.column_stack([s for _, s in pairs]) * factor
            return np.column_stack([m for m, _ in pairs]), spread

        measured = np.column_stack([clipped(c) for c in snapshot.values.T])
        rows = np.concatenate([snapshot.genotypes, snapshot.running])
        believed = np.zeros((len(rows), len(self.signs)))
        believed[: len(measured)] = measured
        if len(snapshot.running):
            believed[len(measured) :, self.predicted] = predict(snapshot.running)[0]
        if known.index:
            # a network's trials are priced as candidates are, whatever was measured; in a plain
            # space a cell is not the value that was tried
            exact = slice(len(measured) if self.space.family is None else 0, None)
            believed[exact, known.index] = self._of_others(rows[exact])
        constraints = self._constraints.refresh(snapshot)
        feasible = np.concatenate([snapshot.feasible, constraints.believed_met(snapshot.running)])
        usable = np.isfinite(believed).all(axis=1) & feasible
        improvement = self._improvement(believed[usable], predict) if usable.any() else None
        lacking = not feasible.any() and len(snapshot.genotypes) > 0

        def gain(candidates: Genotypes, inner: Floats | None = None) -> Floats:
            if lacking or improvement is None:  # first of all what breaks no constraint
                return constraints.decrease(candidates)
            result = improvement(candidates, inner)
            if snapshot.constraints:
                chance = constraints.probability(candidates)
                result = np.where(result > NO_GAIN, result * chance, result)
            return result

        def score(candidates: Genotypes) -> Floats:
            violation = self.limits.violation(candidates)
            result = np.where(violation > 0, INFEASIBLE - violation, gain(candidates))
            return np.where(taken(candidates), 2 * INFEASIBLE, result)

        def first(candidates: Genotypes) -> tuple[Floats, Floats]:
            mean, std = predict(candidates)
            return mean[:, 0], std[:, 0]

        return score, gain, first

    def spread_factor(self, snapshot: Snapshot) -> float:
        """`spread_factor` of the predicted objective; 1 where there are several."""
        return spread_factor(snapshot, self.predicted[0]) if len(self.predicted) == 1 else 1.0

    def _improvement(
        self,
        believed: Floats,
        predict: Callable[[Genotypes], tuple[Floats, Floats]],
    ) -> Gain:
        """Expected hypervolume improvement: exact with one predicted objective, else sampled."""
        known, signs, index = self.known, self.signs, self.known.index
        reference = self._reference_point(believed, predict)  # oriented
        values = believed * signs
        if len(self.predicted) == 1 and len(index) <= 2:
            target = self.predicted[0]
            exact = KnownCostEHVI(
                -values[:, target],
                values[:, index],
                reference_accuracy=-float(reference[target]),
                reference_costs=reference[index],
            )
            scale = float(np.prod(np.abs(reference[index]))) or 1.0

            def closed(rows: Genotypes, inner: Floats | None = None) -> Floats:
                mean, std = predict(rows)
                good = -signs[target] * mean[:, 0]
                gain = exact(good, std[:, 0], known(rows, inner) * signs[index]) / scale
                if index:
                    return gain
                # expected improvement underflows far from the best; the search must still see
                lack = np.minimum(good + 2.0 * std[:, 0] + float(values[:, target].min()), 0.0)
                return np.where(gain > NO_GAIN, gain, NO_GAIN * lack / (1.0 + np.abs(lack)))

            return closed
        spread = np.maximum(reference - values.min(axis=0), 1e-12)
        sampled = SampledEHVI(values / spread, reference / spread, self.rng)

        def estimate(rows: Genotypes, inner: Floats | None = None) -> Floats:
            mean = np.zeros((len(rows), len(signs)))
            std = np.zeros_like(mean)
            mean[:, self.predicted], std[:, self.predicted] = predict(rows)
            if not index:
                return sampled(mean * signs / spread, std / spread)
            costs = known(rows, inner)
            finite = np.isfinite(costs)
            mean[:, index] = np.where(finite, costs, 0.0)
            # what costs infinitely much gains nothing, and less than whatever lacks a little
            return np.where(finite.all(axis=1), sampled(mean * signs / spread, std / spread), -1.0)

        return estimate

    def _reference_point(
        self, believed: Floats, predict: Callable[[Genotypes], tuple[Floats, Floats]]
    ) -> Floats:
        """Reference in minimised orientation: the user's, else chance and the largest costs."""
        given = np.full(len(self.signs), np.nan)
        family, table = self.space.family, self.known.table
        if family is not None and len(self.predicted) == 1:
            target = self.predicted[0]
            if self.signs[target] < 0:
                given[target] = -1.0 / family.num_classes
        if isinstance(table, CompiledCosts):
            given[self.known.index[: len(table.maxima)]] = table.maxima
        for i, value in self.reference.items():
            given[i] = value * self.signs[i]
        if not np.isnan(given).any():
            return given
        values = believed * self.signs
        low, high = self._range(predict)
        high = np.fmax(high, values.max(axis=0))
        extent = np.maximum(high - np.fmin(low, values.min(axis=0)), 1e-12)
        nadir = values[nondominated(values)].max(axis=0)
        reference = np.minimum(high + 0.1 * extent, nadir + BEYOND_FRONT * extent)
        return np.where(np.isnan(given), reference, given)

    def _range(
        self, predict: Callable[[Genotypes], tuple[Floats, Floats]]
    ) -> tuple[Floats, Floats]:
        """Least and greatest oriented values of random rows within the budgets, but for a
        hundredth of them; NaN where there are none, and of what is neither known nor expected."""
        low, high = np.full((2, len(self.signs)), np.nan)
        rows = self._random[self.limits.violation(self._random) == 0]
        if not len(rows):
            return low, high
        index = list(self.known.index)
        columns = [self._of_others(rows)] if index else []
        if self.predicted:
            index += self.predicted
            columns.append(predict(rows)[0])
        if index:
            found = np.column_stack([clipped(c) for c in np.concatenate(columns, axis=1).T])
            found *= self.signs[index]
            low[index], high[index] = np.quantile(found, [0.01, 0.99], axis=0)
        return low, high


def continuous(space: SearchSpace) -> bool:
    """Whether some decision is a cell of a range, so that equal rows need not be equal values."""
    return any(decision.grid for decision in space.decisions)
