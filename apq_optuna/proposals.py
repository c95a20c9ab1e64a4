"""What to try next in one study: genotypes ranked by expected improvement, within hard limits.

Notation:
    n       candidates
    M       objectives of the study; some known, the others predicted
    v       oriented values: everything is minimised (`signs` flips what the study maximises)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from apq_optuna.errors import InfeasibleBudgetError
from apq_optuna.hardware import CompiledCosts
from apq_optuna.history import History, RowSet, Snapshot
from apq_optuna.search import (
    EvolutionOptions,
    KnownCostEHVI,
    SampledEHVI,
    evolve,
    nondominated,
)
from apq_optuna.search.evolution import Variation
from apq_optuna.space import SearchSpace
from apq_optuna.space.space import Genotypes
from apq_optuna.surrogate import (
    Floats,
    KnownObjectives,
    Surrogate,
    clipped,
    farthest,
    space_filling,
)

STARTUP_CANDIDATES = 256
SEARCH = EvolutionOptions(population=100, generations=20)
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
        n_startup_trials: Completed trials before the surrogates decide.
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
        n_startup_trials: int,
        rng: np.random.Generator,
    ) -> None:
        self.space, self.joint, self.known, self.predicted = space, joint, known, predicted
        self.signs, self.surrogates, self.priced = signs, surrogates, priced
        self.budgets, self.reference = budgets, reference
        self.n_startup_trials, self.rng = n_startup_trials, rng
        self.history = History(space, strict=joint)
        self.population: Genotypes | None = None

    def rank(
        self,
        snapshot: Snapshot,
        constrain: Callable[[Genotypes], Genotypes],
    ) -> tuple[Genotypes, Callable[[Genotypes], tuple[Floats, Floats]] | None]:
        """Untried feasible genotypes, most promising first, and what predicts mean and spread."""
        tried = (
            RowSet(snapshot.tried) if len(snapshot.tried) and not continuous(self.space) else None
        )
        if len(snapshot.genotypes) < self.n_startup_trials:
            rows = self.fill(snapshot, constrain, tried)
            return rows, None
        score, predict = self._acquisition(snapshot, tried)
        initial = self._start_population(snapshot)
        result = evolve(
            self.space,
            score,
            rng=self.rng,
            options=SEARCH,
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
        """`constrain`, and before it blocks the device cannot run replaced by ones it can."""
        priced = self.priced
        if priced is None or not priced.has_gaps:
            return constrain
        return lambda rows: constrain(priced.repair(rows, self.rng))

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
                value = np.where(np.isfinite(columns[metric]), columns[metric], limit)
                total += np.maximum(value - limit, 0.0) / max(abs(limit), 1e-12)
        return total

    def _start_population(self, snapshot: Snapshot) -> Genotypes:
        """Children of the measured front, and what the last search ended with."""
        values = np.column_stack([clipped(c) for c in snapshot.values.T]) * self.signs
        front = snapshot.genotypes[nondominated(values)]
        parents = front[self.rng.integers(len(front), size=SEARCH.population // 2)]
        children = Variation(self.space).mutate(parents, 0.1, self.rng)
        if self.population is None:
            return children
        return np.concatenate([children, self.population[: SEARCH.population // 4]])

    def _acquisition(
        self, snapshot: Snapshot, tried: RowSet | None
    ) -> tuple[Callable[[Genotypes], Floats], Callable[[Genotypes], tuple[Floats, Floats]]]:
        """The score to maximise, and mean and spread of the first predicted objective."""
        predictors = [
            surrogate.refresh(snapshot.genotypes, clipped(snapshot.values[:, i]))
            for surrogate, i in zip(self.surrogates, self.predicted, strict=True)
        ]
        space, known = self.space, self.known
        factor = self.spread_factor(snapshot)

        def predict(rows: Genotypes) -> tuple[Floats, Floats]:
            """(n, p) means and spreads."""
            if not predictors:
                return np.zeros((len(rows), 0)), np.zeros((len(rows), 0))
            features = space.features(rows)
            pairs = [predictor.predict(features) for predictor in predictors]
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
        improvement = self._improvement(believed[usable], predict)

        def score(candidates: Genotypes) -> Floats:
            result = improvement(candidates)
            violation = self._violation(candidates)
            result = np.where(violation > 0, INFEASIBLE - violation, result)
            if tried is not None:
                result = np.where(tried.contains(candidates), 2 * INFEASIBLE, result)
            return result

        def first(candidates: Genotypes) -> tuple[Floats, Floats]:
            mean, std = predict(candidates)
            return mean[:, 0], std[:, 0]

        return score, first

    def spread_factor(self, snapshot: Snapshot) -> float:
        """By how much proposals were further off than the predictor's spread said.

        Proposals are chosen for being predicted well, so their errors are larger than those of
        held-out rows. Root mean square of the latest standardised errors, with five that fit.
        """
        if len(self.predicted) != 1:
            return 1.0
        mean, std = snapshot.predicted.T
        error = snapshot.values[:, self.predicted[0]] - mean
        known = np.flatnonzero(np.isfinite(error) & np.isfinite(std))[-30:]
        squared = np.minimum((error[known] / np.maximum(std[known], 1e-9)) ** 2, 16.0)
        return float(np.sqrt((squared.sum() + 5.0) / (len(known) + 5.0)))

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
                gain = exact(-signs[target] * mean[:, 0], std[:, 0], known(rows) * signs[index])
                return gain / scale

            return closed
        spread = np.maximum(reference - values.min(axis=0), 1e-12)
        sampled = SampledEHVI(values / spread, reference / spread, self.rng)

        def estimate(rows: Genotypes) -> Floats:
            mean = np.zeros((len(rows), len(signs)))
            std = np.zeros_like(mean)
            mean[:, self.predicted], std[:, self.predicted] = predict(rows)
            if index:
                mean[:, index] = np.where(np.isfinite(costs := known(rows)), costs, 0.0)
            return sampled(mean * signs / spread, std / spread)

        return estimate

    def _reference_point(self, believed: Floats) -> Floats:
        """Reference in minimised orientation: the user's, else chance and the largest costs."""
        values = believed * self.signs
        worst = values.max(axis=0)
        reference = worst + 0.1 * np.maximum(worst - values.min(axis=0), 1e-12)
        network = self.space.network
        if network is not None and len(self.predicted) == 1:
            target = self.predicted[0]
            if self.signs[target] < 0:
                reference[target] = -1.0 / network.num_classes
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
    return any(decision.grid and decision.role == "float" for decision in space.decisions)
