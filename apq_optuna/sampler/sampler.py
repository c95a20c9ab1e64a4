"""`APQSampler`: proposes the trial with the largest expected hypervolume improvement."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.logging import get_logger
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from apq_optuna._optuna import (
    set_constraints,
    set_trial_attribute,
    study_attribute,
    study_key,
    whole_study,
)
from apq_optuna.hardware import CompiledCosts, CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.advice import Advice
from apq_optuna.sampler.arguments import (
    Numbers,
    check_budgets,
    check_kinds,
    check_sources,
    checked,
    functions,
    numbers,
)
from apq_optuna.sampler.history import ParameterUnion, Snapshot, claim_of, claimed_row, claims
from apq_optuna.sampler.known import KnownFunction, KnownObjectives
from apq_optuna.sampler.matching import (
    constants_of,
    fixed_columns,
    holder,
    joined,
    match_budgets,
    match_costs,
    match_known,
    match_reference,
    names_of,
    prescribed_by,
    uses_space,
)
from apq_optuna.sampler.proposals import Proposer
from apq_optuna.sampler.sources import Source, surrogate_of
from apq_optuna.space import SearchSpace

_logger = get_logger("apq_optuna.sampler")

CLAIM_TRIES = 100


class APQSampler(BaseSampler):
    """Bayesian optimisation of one or more objectives that uses what is known beforehand.

    In an Optuna script one line changes, `sampler=`. Floats, integers, categories and conditional
    parameters, minimised or maximised: nothing need be said, and every argument has a default.

    >>> import optuna
    >>> from optuna.distributions import FloatDistribution, IntDistribution
    >>> from apq_optuna import APQSampler, SearchSpace
    >>> def objective(trial):
    ...     width = trial.suggest_int("width", 8, 256, log=True)
    ...     rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    ...     return abs(rate - 0.01) + 1 / width, 40 * width  # an error, and a size
    >>> study = optuna.create_study(directions=["minimize"] * 2, sampler=APQSampler(seed=0))
    >>> study.optimize(objective, n_trials=12)

    Known costs. What follows from the parameters alone need not be learned: give its function, of
    a dict of arrays, one element a configuration. Only the error is then left to predict.

    >>> known = {1: lambda params: 40 * params["width"]}  # by objective index, or metric name

    Many configurations are priced at once, so what depends on a category or a bound is
    `np.where(params["kind"] == "a", ..., ...)` in place of `if`; of a parameter that not every
    trial has, the array holds some value for all.

    >>> sampler = APQSampler(known=known, seed=0)

    Budgets. What is known can be limited from above: no proposal is beyond. Parameters show in the
    first trial, which is drawn at random; given the space, that one is within its budgets, too.

    >>> space = SearchSpace.from_distributions({
    ...     "width": IntDistribution(8, 256, log=True),
    ...     "rate": FloatDistribution(1e-4, 1e-1, log=True),
    ... })
    >>> sampler = APQSampler(space, known=known, budgets={1: 4000}, seed=0)
    >>> small = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    >>> small.optimize(objective, n_trials=4)
    >>> max(trial.values[1] for trial in small.trials) <= 4000
    True

    Sources. Earlier studies of the same parameters, or of some, say where to start; what they are
    worth is judged by the study's own trials. `optuna.load_study` opens one that was stored. Where
    a range has changed, trials within this study's count. Objectives of one name are taken for the
    same; without names (`Study.set_metric_names`) those in one place.

    >>> sampler = APQSampler(source=study, seed=0)

    Constraints. What only a trial tells is set by `Trial.set_constraint` (Optuna 5), or returned
    by a function that reads it from the trial's attributes; above 0 is infeasible.
    `trial.set_constraint("seconds", seconds - 30)` in the objective does what this does:

    >>> def timed(trial):
    ...     trial.set_user_attr("seconds", 0.2 * trial.suggest_int("width", 8, 256, log=True))
    ...     return objective(trial)
    >>> sampler = APQSampler(constraints_func=lambda t: [t.user_attrs["seconds"] - 30], seed=0)
    >>> quick = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    >>> quick.optimize(timed, n_trials=4)

    Batches and workers. Trials that run at once differ, in one process (`n_jobs`) or in several
    with the same storage and the same arguments: all that is known is rebuilt from the study.

    >>> batch = [small.ask() for _ in range(4)]
    >>> for trial in batch:  # or each in a process of its own
    ...     _ = small.tell(trial, objective(trial))

    Networks for a device. With the joint space of a family of networks, a device's cost table and
    fp32 accuracies of its supernet it searches architecture, pruning and bit-widths together:
    `APQSampler(supernet.space, costs=device.table(supernet.space), source=PairStore(...))`.

    Args:
        space: A `SearchSpace`; its parameters are searched together, those that it has not are
            left to `independent_sampler`; those that some trials do not suggest are conditional.
            By default the parameters of the completed trials.
        costs: A `CostTable` of `space`; its metrics are known objectives. By default there is
            none.
        known: A dict of functions, by metric name (`Study.set_metric_names`) or objective index:
            from a dict of parameter arrays `(n,)` to values `(n,)`. By default all objectives
            are predicted, but for those of `costs`.
        budgets: A dict of upper limits of known objectives or costs, by name or objective index
            (`{"latency_ms": 2.0}`). By default nothing is limited.
        source: An Optuna study, a `PairStore` of fp32 pairs, or a list of such. By default a study
            starts from nothing.
        n_startup_trials: An int: completed trials before predictions decide. By default 4, with
            known costs 2, and further on every fourth of the first 24 fills the space, too; with
            a source just 2, or none where costs bound the objectives.
        reference: A dict of floats, by name or objective index: the worst that still counts, the
            corner from which hypervolume is measured. By default just beyond the front, in a
            family's space chance accuracy and the largest costs.
        constraints_func: A function from a trial that ends, with its parameters and attributes,
            to a sequence of floats, feasible where none is above 0. By default only what
            `Trial.set_constraint` was told counts.
        independent_sampler: An Optuna sampler, for parameters that are not searched together and
            for trials before any is known. By default `RandomSampler`.
        seed: An int. The same makes a sequential study the same; workers may share it, as each
            trial draws from it and its own number. By default every run differs.
        warn_independent_sampling: A bool, True by default: warn, once a parameter, where one that
            is searched together had to be sampled independently.

    An argument that does nothing in a study is told: as an error where it cannot be meant, else as
    a warning of the logger `apq_optuna.sampler`, once a study.

    Raises:
        InvalidArgumentError: Arguments that do not fit together.
        InfeasibleBudgetError: No configuration meets a budget.
        PairError: fp32 pairs of another supernet's space.
        StudyMismatchError: An earlier study that shares no parameter with the space; in a study's
            trial, an argument that names what the study has not.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        costs: CostTable | None = None,
        known: Mapping[str | int, KnownFunction] | None = None,
        budgets: Numbers | None = None,
        source: Source | Sequence[Source] | None = None,
        n_startup_trials: int | None = None,
        reference: Numbers | None = None,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
        independent_sampler: BaseSampler | None = None,
        seed: int | None = None,
        warn_independent_sampling: bool = True,
    ) -> None:
        check_kinds(space, costs, n_startup_trials, constraints_func, independent_sampler, seed)
        self.space = space
        self._known = functions("known", known)
        self._budgets = numbers("budgets", budgets)
        self._reference = numbers("reference", reference)
        several = isinstance(source, Iterable) and not isinstance(source, str)
        sources = [] if source is None else list(source) if several else [source]  # type: ignore
        self._sources: list[Source] = sources  # type: ignore[assignment]  # checked below
        self._n_startup_trials = n_startup_trials
        self._constraints_func = constraints_func
        self._own_independent = independent_sampler is None
        self._independent = independent_sampler or RandomSampler(seed=seed)
        self._warn_independent_sampling = warn_independent_sampling
        self._entropy = np.random.SeedSequence(seed).entropy
        self._compiled: CompiledCosts | None = None
        if costs is not None and space is not None:
            self._compiled = costs.compile(space)
        check_budgets(self._budgets, self._known, self._compiled)
        check_sources(self._sources, space)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._proposers: dict[Any, Proposer] = {}
        self._unions: dict[Any, ParameterUnion] = {}
        self._warned: set[tuple[str, str]] = set()
        self._advice = Advice(
            self.space, self._known, self._budgets, self._reference, self._sources
        )

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_lock", "_proposers", "_unions", "_warned", "_advice")
        return {k: v for k, v in self.__dict__.items() if k not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # what was pickled before there were such things has none
        self._constraints_func, self._own_independent = None, False
        former = state.pop("_rng", None)
        self._entropy = (
            np.random.SeedSequence().entropy if former is None else int(former.integers(1 << 62))
        )
        self.__dict__.update(state)
        self._reset()

    # ------------------------------------------------------------------ Optuna's interface

    def reseed_rng(self) -> None:
        """New randomness, also for the independent sampler."""
        self._entropy = np.random.SeedSequence().entropy
        self._independent.reseed_rng()

    def _randomness(self, trial: FrozenTrial, *more: int) -> np.random.SeedSequence:
        """A trial's own, the same in whichever worker."""
        return np.random.SeedSequence(self._entropy, spawn_key=(trial.number, *more))

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._independent.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        if self._constraints_func is not None:
            function = checked(self._constraints_func, self._advice.teller(study))
            set_constraints(study, trial, state, function)
        self._independent.after_trial(study, trial, state, values)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        with self._lock:
            if (
                self._warn_independent_sampling
                and (study.study_name, param_name) not in self._warned
                and self._should_know(whole_study(study), trial, param_name)
            ):
                self._warned.add((study.study_name, param_name))
                _logger.warning(
                    "trial %d: %s was sampled by %s, not jointly: its distribution there is not "
                    "the search space's (told once; warn_independent_sampling=False silences it)",
                    trial.number,
                    param_name,
                    type(self._independent).__name__,
                )
            sampler = self._independent
            if self._own_independent:
                own = self._randomness(trial, zlib.crc32(param_name.encode()))
                sampler = RandomSampler(seed=int(own.generate_state(1)[0]))
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _should_know(self, study: Study, trial: FrozenTrial, name: str) -> bool:
        """Whether a parameter sampled on its own was part of this trial's joint proposal."""
        if self.space is None:
            return claims(trial, name)
        if name not in self.space.column:
            return False
        row = claimed_row(trial, self.space)
        if row is None:
            return False
        # `study.ask(distributions)` suggests inactive decisions, too; their values do not matter
        return bool(self.space.active(row[None])[0, self.space.column[name]])

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        study = whole_study(study)
        with self._lock:
            if self.space is not None and uses_space(study, self.space):
                return self.space.distributions()
            found = self._parameters(study)
            return {name: d for name, d in sorted(found.items()) if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        study = whole_study(study)
        if not search_space:
            with self._lock:
                self._advice.unseen(study, trial)
            return {}
        # matrices are small: several threads, from several libraries, would wait for each other
        with self._lock, _blas().limit(limits=1, user_api="blas"):
            proposer = self._proposer(study, search_space)
            prescribed = prescribed_by(study, trial)
            proposer.begin(np.random.default_rng(self._randomness(trial)), prescribed)
            snapshot = proposer.history.read(study, but=trial.number)
            self._advice.seen(study, proposer, snapshot)
            constrain = holder(fixed_columns(proposer.space, prescribed))
            ranked, predict = proposer.rank(snapshot, constrain)
            row = self._claim(study, trial, proposer, ranked, constrain)
            if predict is not None and len(proposer.predicted) == 1:
                mean, std = (float(v[0]) for v in predict(row[None]))
                raw = std / proposer.spread_factor(snapshot)
                set_trial_attribute(study, trial, "predicted", [mean, std])
                set_trial_attribute(study, trial, "raw_prediction", [mean, raw])
            params = proposer.params(row)
        return {name: value for name, value in params.items() if name in search_space}

    # ------------------------------------------------------------------ the problem

    def _parameters(self, study: Study) -> dict[str, BaseDistribution]:
        """Every parameter that completed trials had."""
        return self._unions.setdefault(study_key(study), ParameterUnion()).read(study)

    def _proposer(self, study: Study, search_space: dict[str, BaseDistribution]) -> Proposer:
        """The proposer of a study, kept between trials."""
        joint = self.space is not None and search_space.keys() <= self.space.column.keys()
        key: tuple[Any, ...] = (
            study_key(study),
            joint,
            None if joint else tuple(sorted(search_space.items(), key=str)),
        )
        try:
            return self._proposers[key]
        except KeyError:
            pass
        except TypeError:  # a distribution with unhashable choices
            key = (study_key(study), joint, repr(search_space))
            if key in self._proposers:
                return self._proposers[key]
        space = (
            self.space if joint and self.space else SearchSpace.from_distributions(search_space)
        )
        names = names_of(study)
        tell = self._advice.teller(study)
        table_index: list[int] = []
        table: CompiledCosts | None = None
        if joint and self._compiled is not None:
            table_index = match_costs(study, names, self._compiled, space)
            table = self._compiled if table_index else None
        known_here = joint or self.space is None
        given = match_known(study, names, self._known, self.space) if known_here else {}
        constants = {} if joint else constants_of(self._parameters(study))
        known = KnownObjectives(space, table, table_index, given, names, constants)
        budgets: dict[str, float] = {}
        reference: dict[int, float] = {}
        if known_here:
            metrics = self._compiled.metric_names if joint and self._compiled else ()
            budgets = match_budgets(study, names, self._budgets, metrics, known, self.space, tell)
            reference = match_reference(study, names, self._reference, self.space)
        signs = np.array([1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions])
        predicted = [i for i in range(len(study.directions)) if i not in known.index]
        sources = self._sources if known_here else []
        surrogates = [
            surrogate_of(
                space,
                sources,
                name=names[i],
                index=i,
                maximise=bool(signs[i] < 0),
                measured=study_attribute(study, "objective"),
                tell=tell,
            )
            for i in predicted
        ]
        proposer = Proposer(
            space,
            joint=joint,
            known=known,
            predicted=predicted,
            signs=signs,
            surrogates=surrogates,
            priced=self._compiled if joint else None,
            budgets=budgets,
            reference=reference,
            n_startup_trials=self._n_startup_trials,
        )
        # until a trial has the space's parameters nothing says that the study is of this space
        if not joint or joined(study, space):
            others = {k: p for k, p in self._proposers.items() if k[0] != key[0]}
            self._proposers = others | {key: proposer}
        return proposer

    # ------------------------------------------------------------------ proposals

    def _claim(
        self,
        study: Study,
        trial: FrozenTrial,
        proposer: Proposer,
        ranked: Genotypes,
        constrain: Callable[[Genotypes], Genotypes],
    ) -> Genotypes:
        """Claims the best genotype that no other worker holds.

        A running trial shows no parameters at first, so each proposal is written as an attribute,
        the running trials are read again, and whoever sees another claim of it moves on: at least
        the later of two does, and both if they wrote at the same time.
        """
        for _ in range(CLAIM_TRIES):
            row = ranked[0]
            latest = self._take(study, trial, proposer, row)
            if latest is None:
                return np.asarray(row)
            # others were quicker: the best that none of them tells, or with what they try in mind
            ranked = ranked[~proposer.taken(latest)(ranked)]
            if not len(ranked):
                ranked, _ = proposer.rank(latest, constrain)
                if proposer.taken(latest)(ranked).all():
                    break  # nothing else is left: the same once more
                # workers that saw each other on every row start from different ones
                ranked = np.roll(ranked, -trial.number, axis=0)
        return np.asarray(row)

    @staticmethod
    def _take(
        study: Study, trial: FrozenTrial, proposer: Proposer, row: Genotypes
    ) -> Snapshot | None:
        """Claims a genotype; what the study knows by now if another trial has taken it."""
        set_trial_attribute(study, trial, "claim", claim_of(proposer.space, row))
        latest = proposer.history.read(study, but=trial.number)
        return latest if proposer.taken(latest)(row[None])[0] else None


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
