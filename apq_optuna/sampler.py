"""`APQSampler`: proposes the trial with the largest expected hypervolume improvement."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.logging import get_logger
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from apq_optuna._optuna import (
    fixed_parameters,
    set_trial_attribute,
    study_attribute,
    study_key,
    trial_attribute,
    trials_of,
)
from apq_optuna.errors import (
    InfeasibleBudgetError,
    InvalidArgumentError,
    PairError,
    SpaceError,
    StudyMismatchError,
)
from apq_optuna.hardware import CompiledCosts, CostTable
from apq_optuna.history import History, RowSet, Snapshot
from apq_optuna.pairs import PairStore
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
    KnownFunction,
    KnownObjectives,
    Surrogate,
    clipped,
    farthest,
    space_filling,
)

Source = PairStore | Study

_logger = get_logger("apq_optuna.sampler")

STARTUP_CANDIDATES = 256
SEARCH = EvolutionOptions(population=100, generations=20)
INFEASIBLE = -1e9
UNKNOWN_COST = 1e6
CLAIM_TRIES = 100


@dataclass
class _Problem:
    """One study seen through one space."""

    space: SearchSpace
    joint: bool
    history: History
    known: KnownObjectives
    predicted: list[int]
    signs: Floats
    surrogates: list[Surrogate] = field(default_factory=list)
    population: Genotypes | None = None


class APQSampler(BaseSampler):
    """Joint architecture, pruning and quantization search as an Optuna sampler.

    Objectives are known (computed from the parameters: latency, energy) or predicted (accuracy).
    An ensemble predictor, transferred from fp32 pairs where there are any, gives mean and spread
    of the predicted ones; an evolutionary search maximises the expected hypervolume improvement,
    which for one predicted objective beside known ones is exact.

    Without arguments it is a plain surrogate sampler on any space. All it knows is rebuilt from
    the study's trials and its sources, so a resumed or second worker needs nothing but the same
    arguments.

    Args:
        space: The joint space. Parameters outside it go to the independent sampler.
        costs: Cost table of the target device; its metrics are known objectives, by metric name.
        known: Further known objectives: metric name or objective index to a vectorised function
            from a dict of parameter arrays to values `(n,)`.
        budgets: Upper limits on known metrics (`{"latency_ms": 2.0}`); no proposal breaks them.
        source: fp32 pairs of the supernet, earlier studies over the same space, or a list of both.
        n_startup_trials: Space-filling trials before the predictor decides.
        reference: Reference point by metric name; by default chance accuracy and the largest
            costs.
        independent_sampler: For parameters outside the space; random by default.
        seed: Makes a sequential study reproducible.
        warn_independent_sampling: Warn when a parameter of the joint space was sampled
            independently.

    Raises:
        InvalidArgumentError: Arguments that do not fit together.
        InfeasibleBudgetError: No configuration meets a budget.
        PairError: A source of another supernet's space.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        costs: CostTable | None = None,
        known: Mapping[str | int, KnownFunction] | None = None,
        budgets: Mapping[str, float] | None = None,
        source: Source | Sequence[Source] | None = None,
        n_startup_trials: int = 16,
        reference: Mapping[str, float] | None = None,
        independent_sampler: BaseSampler | None = None,
        seed: int | None = None,
        warn_independent_sampling: bool = True,
    ) -> None:
        if costs is not None and space is None:
            raise InvalidArgumentError("costs: a cost table needs the search space it prices")
        if n_startup_trials < 1:
            raise InvalidArgumentError(f"n_startup_trials={n_startup_trials}: at least 1")
        self.space = space
        self._known = dict(known or {})
        self._budgets = dict(budgets or {})
        self._reference = dict(reference or {})
        sources = (
            [] if source is None else [source] if isinstance(source, Source) else list(source)
        )
        self._sources: list[Source] = sources
        self._n_startup_trials = n_startup_trials
        self._independent = independent_sampler or RandomSampler(seed=seed)
        self._warn_independent_sampling = warn_independent_sampling
        self._rng = np.random.default_rng(seed)
        self._model_seed = 0 if seed is None else seed
        self._compiled: CompiledCosts | None = None
        if costs is not None and space is not None:
            self._compiled = costs.compile(space)
        self._check_budgets()
        for store in self._sources:
            if isinstance(store, PairStore):
                if space is None:
                    raise InvalidArgumentError(
                        "source: fp32 pairs need the search space they are of"
                    )
                store.check_space(space)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._problems: dict[Any, _Problem] = {}
        self._intersections: dict[Any, IntersectionSearchSpace] = {}

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_lock", "_problems", "_intersections")
        return {k: v for k, v in self.__dict__.items() if k not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _check_budgets(self) -> None:
        names = self._compiled.metric_names if self._compiled else ()
        for metric, limit in self._budgets.items():
            if metric not in names and metric not in self._known:
                allowed = [*names, *map(str, self._known)]
                raise InvalidArgumentError(
                    f"budgets: {metric!r} is not a known objective; known are {allowed}"
                )
            if not np.isfinite(limit):
                raise InvalidArgumentError(f"budgets[{metric!r}]={limit}: must be finite")
            if self._compiled is not None and metric in names:
                least = float(self._compiled.minima[names.index(metric)])
                if limit < least:
                    raise InfeasibleBudgetError(
                        f"budgets[{metric!r}]={limit}: the cheapest configuration of the space "
                        f"takes {least:.6g}; allow at least that"
                    )

    # ------------------------------------------------------------------ Optuna's interface

    def reseed_rng(self) -> None:
        """New randomness, also for the independent sampler."""
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._independent.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._independent.after_trial(study, trial, state, values)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        with self._lock:
            if self._warn_independent_sampling and self._should_know(study, trial, param_name):
                _logger.warning(
                    "trial %d: %s was sampled by %s, not jointly: its distribution differs from "
                    "the search space's; set warn_independent_sampling=False to silence this",
                    trial.number,
                    param_name,
                    type(self._independent).__name__,
                )
            return self._independent.sample_independent(
                study, trial, param_name, param_distribution
            )

    def _should_know(self, study: Study, trial: FrozenTrial, name: str) -> bool:
        """Whether a parameter sampled on its own was part of this trial's joint proposal."""
        return (
            self.space is not None
            and name in self.space.column
            and trial_attribute(trial, "claim") is not None
        )

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        with self._lock:
            if self.space is not None and self._uses_space(study):
                return self.space.distributions()
            shared = self._intersections.setdefault(study_key(study), IntersectionSearchSpace())
            found = shared.calculate(study)
            return {name: d for name, d in sorted(found.items()) if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        with self._lock:
            problem = self._problem(study, search_space)
            snapshot = problem.history.read(study, but=trial.number)
            fixed = self._fixed(problem.space, study, trial)
            ranked, predict = self._rank(problem, snapshot, _holder(fixed))
            row = self._claim(study, trial, problem, ranked, _holder(fixed))
            if predict is not None and len(problem.predicted) == 1:
                mean, std = (float(v[0]) for v in predict(row[None]))
                raw = std / self._spread_factor(problem, snapshot)
                set_trial_attribute(study, trial, "predicted", [mean, std])
                set_trial_attribute(study, trial, "raw_prediction", [mean, raw])
            params = problem.space.to_params(row, self._rng)
        return {name: value for name, value in params.items() if name in search_space}

    # ------------------------------------------------------------------ the problem

    def _uses_space(self, study: Study) -> bool:
        """Whether a study's trials have parameters of the joint space; a new study might."""
        assert self.space is not None
        names = self.space.column.keys()
        seen = False
        for trial in trials_of(study):
            if trial.params:
                if names & trial.params.keys():
                    return True
                seen = True
        return not seen

    def _problem(self, study: Study, search_space: dict[str, BaseDistribution]) -> _Problem:
        joint = self.space is not None and search_space.keys() <= self.space.column.keys()
        key: tuple[Any, ...] = (
            study_key(study),
            joint,
            None if joint else tuple(sorted(search_space.items(), key=str)),
        )
        try:
            return self._problems[key]
        except KeyError:
            pass
        except TypeError:  # a distribution with unhashable choices
            key = (study_key(study), joint, repr(search_space))
            if key in self._problems:
                return self._problems[key]
        space = (
            self.space if joint and self.space else SearchSpace.from_distributions(search_space)
        )
        names = study.metric_names or [str(i) for i in range(len(study.directions))]
        table_index: list[int] = []
        table: CompiledCosts | None = None
        if joint and self._compiled is not None:
            table_index = self._match_costs(study, names)
            table = self._compiled if table_index else None
        known_here = joint or self.space is None
        functions = self._match_known(study, names) if known_here else {}
        known = KnownObjectives(space, table, table_index, functions, names)
        signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
        predicted = [i for i in range(len(study.directions)) if i not in known.index]
        problem = _Problem(space, joint, History(space, strict=joint), known, predicted, signs)
        problem.surrogates = [self._surrogate(problem, study, names, i) for i in predicted]
        if not joint or self._joined(
            study
        ):  # until then nothing says that the study is of this space
            others = {k: p for k, p in self._problems.items() if k[0] != key[0]}
            self._problems = others | {key: problem}
        return problem

    def _joined(self, study: Study) -> bool:
        """Whether some trial of the study has parameters of the joint space."""
        assert self.space is not None
        return any(self.space.column.keys() & trial.params.keys() for trial in trials_of(study))

    def _match_costs(self, study: Study, names: Sequence[str]) -> list[int]:
        """Objective index of each cost; none where the study has accuracy alone.

        Raises:
            StudyMismatchError: Trials of the study use the joint space, but its objectives are not
                accuracy and the costs to minimise.
        """
        assert self._compiled is not None
        metrics = list(self._compiled.metric_names)
        if len(study.directions) == 1:
            return []
        reason = ""
        if study.metric_names is not None:
            lacking = [metric for metric in metrics if metric not in names]
            index = [list(names).index(metric) for metric in metrics if metric in names]
            if lacking:
                reason = (
                    f"the study's metrics are {list(names)}, without {lacking[0]!r} of the cost "
                    "table; use study.set_metric_names(objective.metric_names)"
                )
        else:
            index = list(range(1, 1 + len(metrics)))
            if len(study.directions) != 1 + len(metrics):
                reason = (
                    f"the study has {len(study.directions)} objectives, the costs make it "
                    f"{1 + len(metrics)} (accuracy, {', '.join(metrics)}): use "
                    "directions=objective.directions"
                )
        for i in index if not reason else ():
            if study.directions[i] != StudyDirection.MINIMIZE:
                metric = metrics[index.index(i)]
                reason = (
                    f"objective {i} ({metric}) of the study is maximised, but a cost is to be "
                    "minimised: use directions=objective.directions"
                )
        if not reason:
            return index
        if self._joined(study):
            raise StudyMismatchError(reason)
        return []

    def _match_known(self, study: Study, names: Sequence[str]) -> dict[int, KnownFunction]:
        """The known functions by objective index.

        Raises:
            StudyMismatchError: The study has no such objective, and its trials use the joint
                space.
        """
        functions = {}
        for metric, function in self._known.items():
            index = metric if isinstance(metric, int) else -1
            if isinstance(metric, str) and metric in names:
                index = list(names).index(metric)
            if 0 <= index < len(names):
                functions[index] = function
            elif self.space is None or self._joined(study):
                raise StudyMismatchError(
                    f"known: the study has no objective {metric!r}, but {list(names)}; "
                    "use study.set_metric_names"
                )
        return functions

    def _surrogate(
        self, problem: _Problem, study: Study, names: Sequence[str], index: int
    ) -> Surrogate:
        space, base, replay = problem.space, None, None
        extra: list[tuple[Floats, Floats]] = []
        supernets = {s.supernet for s in self._sources if isinstance(s, PairStore)}
        for source in self._sources if problem.joint else ():
            if isinstance(source, PairStore):
                pairs = source.load()
                if len(pairs) >= 10:
                    base = source.fp32_predictor(space, pairs)
                    replay = (source.features(space, pairs), pairs.accuracies)
            else:
                theirs = (study_attribute(source, "objective") or {}).get("supernet")
                if theirs and supernets and theirs not in supernets:
                    raise PairError(
                        f"source: study {source.study_name!r} measured supernet {theirs}, the "
                        f"pairs are of {', '.join(supernets)}; its accuracies do not apply"
                    )
                extra += self._from_study(space, source, names[index], index)
        joined = (
            (np.concatenate([x for x, _ in extra]), np.concatenate([y for _, y in extra]))
            if extra
            else None
        )
        return Surrogate(space, base=base, replay=replay, extra=joined, seed=self._model_seed)

    @staticmethod
    def _from_study(
        space: SearchSpace, source: Study, name: str, index: int
    ) -> list[tuple[Floats, Floats]]:
        snapshot = History(space, strict=False).read(source)
        names = source.metric_names
        column = names.index(name) if names and name in names else index
        finished = [t for t in trials_of(source) if t.state == TrialState.COMPLETE]
        if not finished:
            return []
        if not len(snapshot.values) or column >= snapshot.values.shape[1]:
            raise StudyMismatchError(
                f"source: none of the {len(finished)} completed trials of study "
                f"{source.study_name!r} has the parameters of this search space and objective "
                f"{name!r}; leave it out"
            )
        return [(space.features(snapshot.genotypes), clipped(snapshot.values[:, column]))]

    @staticmethod
    def _fixed(space: SearchSpace, study: Study, trial: FrozenTrial) -> dict[int, int]:
        """Columns whose choice an enqueued trial or a partially fixed sampler prescribes."""
        prescribed = fixed_parameters(trial)
        prescribed |= getattr(study.sampler, "_fixed_params", {})
        fixed = {}
        for name, value in prescribed.items():
            if name in space.column:
                column = space.column[name]
                try:
                    fixed[column] = space.decisions[column].index_of(value)
                except (SpaceError, TypeError):
                    continue
        return fixed

    # ------------------------------------------------------------------ proposals

    def _rank(
        self,
        problem: _Problem,
        snapshot: Snapshot,
        constrain: Callable[[Genotypes], Genotypes],
    ) -> tuple[Genotypes, Callable[[Genotypes], tuple[Floats, Floats]] | None]:
        """Untried feasible genotypes, most promising first, and what predicts mean and spread."""
        tried = (
            RowSet(snapshot.tried)
            if len(snapshot.tried) and not _continuous(problem.space)
            else None
        )
        if len(snapshot.genotypes) < self._n_startup_trials:
            rows = self._fill(problem, snapshot, constrain, tried)
            return rows, None
        score, predict = self._acquisition(problem, snapshot, tried)
        initial = self._start_population(problem, snapshot)
        result = evolve(
            problem.space,
            score,
            rng=self._rng,
            options=SEARCH,
            initial=initial,
            constrain=constrain,
        )
        problem.population = result.genotypes
        good = result.scores > INFEASIBLE / 2
        if not good.any():
            rows = self._fill(problem, snapshot, constrain, tried)
        else:
            rows = result.genotypes[good]
        return rows, predict

    def _fill(
        self,
        problem: _Problem,
        snapshot: Snapshot,
        constrain: Callable[[Genotypes], Genotypes],
        tried: RowSet | None,
    ) -> Genotypes:
        """Space-filling genotypes within the budgets, farthest from what was tried first."""
        space = problem.space
        candidates = space.canonical(
            constrain(space_filling(space, STARTUP_CANDIDATES, self._rng))
        )
        allowed = self._violation(problem, candidates) == 0
        if tried is not None:
            allowed &= ~tried.contains(candidates)
        if not allowed.any():
            candidates = self._search_feasible(problem, constrain, tried)
            allowed = np.ones(len(candidates), bool)
        candidates = np.unique(candidates[allowed], axis=0)
        candidates = candidates[self._rng.permutation(len(candidates))]
        return candidates[farthest(space, candidates, snapshot.tried)]

    def _search_feasible(
        self,
        problem: _Problem,
        constrain: Callable[[Genotypes], Genotypes],
        tried: RowSet | None,
    ) -> Genotypes:
        """Genotypes within the budgets, found by minimising their violation.

        Raises:
            InfeasibleBudgetError: None was found.
        """
        space = problem.space

        def score(rows: Genotypes) -> Floats:
            again = tried.contains(rows) * 0.5 if tried is not None else 0.0
            return -self._violation(problem, rows) - again

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
            result = evolve(space, score, rng=self._rng, options=options, constrain=constrain)
            rows, scores = result.genotypes, result.scores
        if (scores == 0).any():
            return np.asarray(rows[scores == 0])
        inside = self._violation(problem, rows) == 0
        if inside.any():  # everything feasible was tried: once more is all that is left
            return np.asarray(rows[inside])
        raise InfeasibleBudgetError(
            f"budgets={self._budgets}: no configuration that meets all was found; raise one"
        )

    def _violation(self, problem: _Problem, rows: Genotypes) -> Floats:
        """By how much candidates break the budgets or lack a cost, `(n,)`; 0 is feasible."""
        total = np.zeros(len(rows))
        columns: dict[str, Floats] = {}
        if problem.joint and self._compiled is not None:
            costs = self._compiled(rows)
            columns = dict(zip(self._compiled.metric_names, costs.T, strict=True))
            total += UNKNOWN_COST * ~np.isfinite(costs).all(axis=1)
        if problem.known.functions:
            values = problem.known(rows)
            columns |= {
                problem.known.names[i]: values[:, c] for c, i in enumerate(problem.known.index)
            }
        for metric, limit in self._budgets.items():
            if metric in columns:
                value = np.where(np.isfinite(columns[metric]), columns[metric], limit)
                total += np.maximum(value - limit, 0.0) / max(abs(limit), 1e-12)
        return total

    def _start_population(self, problem: _Problem, snapshot: Snapshot) -> Genotypes:
        """Children of the measured front, and what the last search ended with."""
        values = np.column_stack([clipped(c) for c in snapshot.values.T]) * problem.signs
        front = snapshot.genotypes[nondominated(values)]
        parents = front[self._rng.integers(len(front), size=SEARCH.population // 2)]
        children = Variation(problem.space).mutate(parents, 0.1, self._rng)
        if problem.population is None:
            return children
        return np.concatenate([children, problem.population[: SEARCH.population // 4]])

    def _acquisition(
        self, problem: _Problem, snapshot: Snapshot, tried: RowSet | None
    ) -> tuple[Callable[[Genotypes], Floats], Callable[[Genotypes], tuple[Floats, Floats]]]:
        """The score to maximise, and mean and spread of the first predicted objective."""
        predictors = [
            surrogate.refresh(snapshot.genotypes, clipped(snapshot.values[:, i]))
            for surrogate, i in zip(problem.surrogates, problem.predicted, strict=True)
        ]
        space, known = problem.space, problem.known
        factor = self._spread_factor(problem, snapshot)

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
        believed = np.zeros((len(rows), len(problem.signs)))
        believed[: len(measured)] = measured
        if len(snapshot.running):
            believed[len(measured) :, problem.predicted] = predict(snapshot.running)[0]
        if known.index:
            believed[:, known.index] = known(rows)
        usable = np.isfinite(believed).all(axis=1)
        improvement = self._improvement(problem, believed[usable], predict)

        def score(candidates: Genotypes) -> Floats:
            result = improvement(candidates)
            violation = self._violation(problem, candidates)
            result = np.where(violation > 0, INFEASIBLE - violation, result)
            if tried is not None:
                result = np.where(tried.contains(candidates), 2 * INFEASIBLE, result)
            return result

        def first(candidates: Genotypes) -> tuple[Floats, Floats]:
            mean, std = predict(candidates)
            return mean[:, 0], std[:, 0]

        return score, first

    @staticmethod
    def _spread_factor(problem: _Problem, snapshot: Snapshot) -> float:
        """By how much proposals were further off than the predictor's spread said.

        Proposals are chosen for being predicted well, so their errors are larger than those of
        held-out rows. Root mean square of the latest standardised errors, with five that fit.
        """
        if len(problem.predicted) != 1:
            return 1.0
        mean, std = snapshot.predicted.T
        error = snapshot.values[:, problem.predicted[0]] - mean
        known = np.flatnonzero(np.isfinite(error) & np.isfinite(std))[-30:]
        squared = np.minimum((error[known] / np.maximum(std[known], 1e-9)) ** 2, 16.0)
        return float(np.sqrt((squared.sum() + 5.0) / (len(known) + 5.0)))

    def _improvement(
        self,
        problem: _Problem,
        believed: Floats,
        predict: Callable[[Genotypes], tuple[Floats, Floats]],
    ) -> Callable[[Genotypes], Floats]:
        """Expected hypervolume improvement: exact with one predicted objective, else sampled."""
        known, signs, index = problem.known, problem.signs, problem.known.index
        reference = self._reference_point(problem, believed)  # oriented
        values = believed * signs
        if len(problem.predicted) == 1 and len(index) <= 2:
            target = problem.predicted[0]
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
        sampled = SampledEHVI(values / spread, reference / spread, self._rng)

        def estimate(rows: Genotypes) -> Floats:
            mean = np.zeros((len(rows), len(signs)))
            std = np.zeros_like(mean)
            mean[:, problem.predicted], std[:, problem.predicted] = predict(rows)
            if index:
                mean[:, index] = np.where(np.isfinite(costs := known(rows)), costs, 0.0)
            return sampled(mean * signs / spread, std / spread)

        return estimate

    def _reference_point(self, problem: _Problem, believed: Floats) -> Floats:
        """Reference in minimised orientation: the user's, else chance and the largest costs."""
        values = believed * problem.signs
        worst = values.max(axis=0)
        reference = worst + 0.1 * np.maximum(worst - values.min(axis=0), 1e-12)
        network = problem.space.network
        if network is not None and len(problem.predicted) == 1:
            target = problem.predicted[0]
            if problem.signs[target] < 0:
                reference[target] = -1.0 / network.num_classes
        table = problem.known.table
        if isinstance(table, CompiledCosts):
            reference[problem.known.index[: len(table.maxima)]] = table.maxima
        for metric, value in self._reference.items():
            if metric in problem.known.names:
                i = list(problem.known.names).index(metric)
                reference[i] = value * problem.signs[i]
        return np.asarray(reference)

    def _claim(
        self,
        study: Study,
        trial: FrozenTrial,
        problem: _Problem,
        ranked: Genotypes,
        constrain: Callable[[Genotypes], Genotypes],
    ) -> Genotypes:
        """Claims the best genotype that no other worker holds.

        A running trial shows no parameters at first, so each proposal is written as an attribute,
        the running trials are read again, and whoever sees another claim of it moves on: at least
        the later of two does, and both if they wrote at the same time.
        """
        for row in ranked[:CLAIM_TRIES]:
            set_trial_attribute(study, trial, "claim", row.tolist())
            if _continuous(problem.space):
                return np.asarray(row)
            latest = problem.history.read(study, but=trial.number)
            if not len(latest.tried) or not RowSet(latest.tried).contains(row[None])[0]:
                return np.asarray(row)
        # every good one is taken by now: anything untried, or, if nothing is, the best again
        latest = problem.history.read(study, but=trial.number)
        rest = self._fill(problem, latest, constrain, RowSet(latest.tried))
        row = rest[0] if len(rest) else ranked[0]
        set_trial_attribute(study, trial, "claim", row.tolist())
        return np.asarray(row)


def _holder(fixed: dict[int, int]) -> Callable[[Genotypes], Genotypes]:
    """A function that sets prescribed columns in every genotype."""
    if not fixed:
        return lambda rows: rows
    columns, choices = list(fixed), list(fixed.values())

    def hold(rows: Genotypes) -> Genotypes:
        rows = rows.copy()
        rows[:, columns] = choices
        return rows

    return hold


def _continuous(space: SearchSpace) -> bool:
    """Whether some decision is a cell of a range, so that equal rows need not be equal values."""
    return any(decision.grid and decision.role == "float" for decision in space.decisions)
