"""What to try next in one study: genotypes ranked by expected improvement, within hard limits.

Notation:
    n       candidates
    M       objectives of the study; some known, the others predicted
    v       oriented values: everything is minimised (`signs` flips what the study maximises)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from apq_optuna.errors import InfeasibleBudgetError
from apq_optuna.hardware.tables.compiled import CompiledCosts
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.filling import farthest, space_filling
from apq_optuna.sampler.history import History, RowSet, Snapshot, spread_factor
from apq_optuna.sampler.known import KnownObjectives
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

STARTUP = 10
"""Space-filling trials where nothing is known."""

STARTUP_INFORMED = 2
"""And where a source tells what to expect, but the objectives' ranges are still to be seen."""

STARTUP_CANDIDATES = 256
SEARCH = EvolutionOptions(population=100, generations=20)
"""In a family's space, where what belongs together mutates as one."""

PLAIN_SEARCH = replace(SEARCH, mutation_probability=0.2)
"""In a plain space, where most mutations are small steps."""

BEYOND_FRONT = 0.3
"""The reference lies this share of an objective's range beyond the worst of the front: the front's
own range would never let a collapsed one grow again, all trials' would reward extremes."""

INFEASIBLE = -1e9
UNKNOWN_COST = 1e6


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
        budgets: Upper limits by metric name.
        reference: Reference values by metric name, where the user gave some.
        n_startup_trials: Completed trials before the surrogates decide; None decides by what they
            know already.
        rng: Randomness; the sampler replaces it when it is reseeded.
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
        reference: Mapping[str, float],
        n_startup_trials: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.space, self.joint, self.known, self.predicted = space, joint, known, predicted
        self.signs, self.surrogates, self.priced = signs, surrogates, priced
        self.budgets, self.reference = budgets, reference
        self.rng = rng
        self.history = History(space, strict=joint)
        self.n_startup = self._needed_before() if n_startup_trials is None else n_startup_trials
        self.search = SEARCH if space.family is not None else PLAIN_SEARCH
        self.population: Genotypes | None = None
        self._constraints: dict[str, Surrogate] = {}

    def _needed_before(self) -> int:
        """Space-filling trials needed: none where even the reference point is known."""
        if not any(surrogate.knows for surrogate in self.surrogates):
            return STARTUP
        bounded = isinstance(self.known.table, CompiledCosts) and len(self.predicted) == 1
        return 0 if self.space.family is not None and bounded else STARTUP_INFORMED

    def rank(
        self,
        snapshot: Snapshot,
        constrain: Callable[[Genotypes], Genotypes],
    ) -> tuple[Genotypes, Callable[[Genotypes], tuple[Floats, Floats]] | None]:
        """Untried feasible genotypes, most promising first, and what predicts mean and spread."""
        tried = (
            RowSet(snapshot.tried) if len(snapshot.tried) and not continuous(self.space) else None
        )
        if len(snapshot.genotypes) < self.n_startup:
            rows = self.fill(snapshot, constrain, tried)
            return rows, None
        score, predict = self._acquisition(snapshot, tried)
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
            return self.fill(snapshot, constrain, tried), predict
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
        tried: RowSet | None,
    ) -> Genotypes:
        """Space-filling genotypes within the budgets, farthest from what was tried first."""
        space, constrain = self.space, self._runnable(constrain)
        candidates = space.canonical(constrain(space_filling(space, STARTUP_CANDIDATES, self.rng)))
        allowed = self._violation(candidates) == 0
        if tried is not None:
            allowed &= ~tried.contains(candidates)
        if not allowed.any():
            candidates = self._search_feasible(constrain, tried)
            allowed = np.ones(len(candidates), bool)
        candidates = np.unique(candidates[allowed], axis=0)
        candidates = candidates[self.rng.permutation(len(candidates))]
        return candidates[farthest(space, candidates, snapshot.tried)]

    def _search_feasible(
        self,
        constrain: Callable[[Genotypes], Genotypes],
        tried: RowSet | None,
    ) -> Genotypes:
        """Genotypes within the budgets, found by minimising their violation.

        Raises:
            InfeasibleBudgetError: None was found.
        """
        space = self.space

        def score(rows: Genotypes) -> Floats:
            again = tried.contains(rows) * 0.5 if tried is not None else 0.0
            return -self._violation(rows) - again

        if np.prod(space.sizes.astype(float)) <= 1 << 16:  # a small space is looked at whole
            grid = (
                np.indices(tuple(space.sizes.tolist()))
                .reshape(len(space.sizes), -1)
                .T.astype(np.int32)
            )
            rows = np.unique(space.canonical(constrain(grid)), axis=0)
            scores = score(rows)
        else:
            options = EvolutionOptions(generations=60)
            result = evolve(space, score, rng=self.rng, options=options, constrain=constrain)
            rows, scores = result.genotypes, result.scores
        if (scores == 0).any():
            return np.asarray(rows[scores == 0])
        inside = self._violation(rows) == 0
        if inside.any():  # everything feasible was tried: once more is all that is left
            return np.asarray(rows[inside])
        probe = np.stack([np.zeros_like(space.sizes), space.sizes - 1]).astype(np.int32)
        held = (constrain(probe) != probe).any()
        if held and scores.max() > -UNKNOWN_COST:  # the trial's own parameters break the budget
            warnings.warn(
                f"budgets={dict(self.budgets)}: the parameters that this trial fixes allow no "
                "configuration that meets them; it is the nearest",
                stacklevel=2,
            )
            return np.asarray(rows[np.argsort(-scores, kind="stable")[:1]])
        raise InfeasibleBudgetError(
            f"budgets={dict(self.budgets)}: no configuration that meets all was found; raise one"
            if self.budgets
            else "the device runs no configuration with the parameters that this trial fixes"
        )

    def _violation(self, rows: Genotypes) -> Floats:
        """By how much candidates break the budgets or lack a cost, `(n,)`; 0 is feasible."""
        total = np.zeros(len(rows))
        columns: dict[str, Floats] = {}
        if self.joint and self.priced is not None:
            costs = self.priced(rows)
            columns = dict(zip(self.priced.metric_names, costs.T, strict=True))
            total += UNKNOWN_COST * ~np.isfinite(costs).all(axis=1)
        if self.known.functions:
            values = self.known(rows)
            columns |= {self.known.names[i]: values[:, c] for c, i in enumerate(self.known.index)}
        for metric, limit in self.budgets.items():
            if metric in columns:
                unbounded = np.isposinf(columns[metric])
                value = np.where(unbounded, limit, columns[metric])
                total += np.maximum(value - limit, 0.0) / max(abs(limit), 1e-12)
                total += UNKNOWN_COST * unbounded
        return total

    def _start_population(self, snapshot: Snapshot) -> Genotypes:
        """Children of the measured front, and what the last search ended with."""
        if not len(snapshot.genotypes):
            return space_filling(self.space, self.search.population, self.rng)
        values = np.column_stack([clipped(c) for c in snapshot.values.T]) * self.signs
        kept = snapshot.feasible if snapshot.feasible.any() else np.ones(len(values), bool)
        front = snapshot.genotypes[kept][nondominated(values[kept])]
        parents = front[self.rng.integers(len(front), size=self.search.population // 2)]
        children = Variation(self.space).mutate(
            parents, self.search.mutation_probability, self.rng
        )
        if self.population is None:
            return children
        return np.concatenate([children, self.population[: self.search.population // 4]])

    def _acquisition(
        self, snapshot: Snapshot, tried: RowSet | None
    ) -> tuple[Callable[[Genotypes], Floats], Callable[[Genotypes], tuple[Floats, Floats]]]:
        """The score to maximise, and mean and spread of the first predicted objective."""
        surrogates = [
            surrogate.refresh(snapshot.genotypes, clipped(snapshot.values[:, i]))
            for surrogate, i in zip(self.surrogates, self.predicted, strict=True)
        ]
        known = self.known
        factor = self.spread_factor(snapshot)

        def predict(rows: Genotypes) -> tuple[Floats, Floats]:
            """(n, p) means and spreads."""
            if not surrogates:
                return np.zeros((len(rows), 0)), np.zeros((len(rows), 0))
            pairs = [surrogate.predict(rows) for surrogate in surrogates]
            spread = np.column_stack([s for _, s in pairs]) * factor
            return np.column_stack([m for m, _ in pairs]), spread

        measured = np.column_stack([clipped(c) for c in snapshot.values.T])
        rows = np.concatenate([snapshot.genotypes, snapshot.running])
        believed = np.zeros((len(rows), len(self.signs)))
        believed[: len(measured)] = measured
        if len(snapshot.running):
            believed[len(measured) :, self.predicted] = predict(snapshot.running)[0]
        if known.index:
            believed[:, known.index] = known(rows)
        usable = np.isfinite(believed).all(axis=1)
        usable = usable & np.concatenate([snapshot.feasible, np.ones(len(snapshot.running), bool)])
        improvement = self._improvement(believed[usable], predict) if usable.any() else None
        probability = self._feasibility(snapshot)

        def score(candidates: Genotypes) -> Floats:
            if improvement is None:  # first of all something that breaks no constraint
                result = probability(candidates)
            else:
                result = improvement(candidates)
                if snapshot.constraints:
                    result = np.where(result > NO_GAIN, result * probability(candidates), result)
            violation = self._violation(candidates)
            result = np.where(violation > 0, INFEASIBLE - violation, result)
            if tried is not None:
                result = np.where(tried.contains(candidates), 2 * INFEASIBLE, result)
            return result

        def first(candidates: Genotypes) -> tuple[Floats, Floats]:
            mean, std = predict(candidates)
            return mean[:, 0], std[:, 0]

        return score, first

    def _feasibility(self, snapshot: Snapshot) -> Callable[[Genotypes], Floats]:
        """Probability that a candidate meets every constraint the trials have set, `(n,)`."""
        models = []
        for name, values in snapshot.constraints.items():
            told = np.isfinite(values)
            if told.any():
                model = self._constraints.setdefault(name, Surrogate(self.space))
                models.append(model.refresh(snapshot.genotypes[told], values[told]))

        def probability(rows: Genotypes) -> Floats:
            result = np.ones(len(rows))
            for model in models:
                mean, std = model.predict(rows)
                result *= ndtr(-mean / np.maximum(std, 1e-12))
            return result

        return probability

    def spread_factor(self, snapshot: Snapshot) -> float:
        """`spread_factor` of the predicted objective; 1 where there are several."""
        return spread_factor(snapshot, self.predicted[0]) if len(self.predicted) == 1 else 1.0

    def _improvement(
        self,
        believed: Floats,
        predict: Callable[[Genotypes], tuple[Floats, Floats]],
    ) -> Callable[[Genotypes], Floats]:
        """Expected hypervolume improvement: exact with one predicted objective, else sampled."""
        known, signs, index = self.known, self.signs, self.known.index
        reference = self._reference_point(believed)  # oriented
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

            def closed(rows: Genotypes) -> Floats:
                mean, std = predict(rows)
                good = -signs[target] * mean[:, 0]
                gain = exact(good, std[:, 0], known(rows) * signs[index]) / scale
                if index:
                    return gain
                # expected improvement underflows far from the best; the search must still see
                lack = np.minimum(good + 2.0 * std[:, 0] + float(values[:, target].min()), 0.0)
                return np.where(gain > NO_GAIN, gain, NO_GAIN * lack / (1.0 + np.abs(lack)))

            return closed
        spread = np.maximum(reference - values.min(axis=0), 1e-12)
        sampled = SampledEHVI(values / spread, reference / spread, self.rng)

        def estimate(rows: Genotypes) -> Floats:
            mean = np.zeros((len(rows), len(signs)))
            std = np.zeros_like(mean)
            mean[:, self.predicted], std[:, self.predicted] = predict(rows)
            if not index:
                return sampled(mean * signs / spread, std / spread)
            costs = known(rows)
            finite = np.isfinite(costs)
            mean[:, index] = np.where(finite, costs, 0.0)
            # what costs infinitely much gains nothing, and less than whatever lacks a little
            return np.where(finite.all(axis=1), sampled(mean * signs / spread, std / spread), -1.0)

        return estimate

    def _reference_point(self, believed: Floats) -> Floats:
        """Reference in minimised orientation: the user's, else chance and the largest costs."""
        values = believed * self.signs
        reference = np.ones(len(self.signs))
        if len(values):
            worst = values.max(axis=0)
            extent = np.maximum(worst - values.min(axis=0), 1e-12)
            nadir = values[nondominated(values)].max(axis=0)
            reference = np.minimum(worst + 0.1 * extent, nadir + BEYOND_FRONT * extent)
        family = self.space.family
        if family is not None and len(self.predicted) == 1:
            target = self.predicted[0]
            if self.signs[target] < 0:
                reference[target] = -1.0 / family.num_classes
        table = self.known.table
        if isinstance(table, CompiledCosts):
            reference[self.known.index[: len(table.maxima)]] = table.maxima
        for metric, value in self.reference.items():
            if metric in self.known.names:
                i = list(self.known.names).index(metric)
                reference[i] = value * self.signs[i]
        return np.asarray(reference)


def continuous(space: SearchSpace) -> bool:
    """Whether some decision is a cell of a range, so that equal rows need not be equal values."""
    return any(decision.grid for decision in space.decisions)
