"""SMAC3 as an Optuna sampler, for the race alone: its ask and tell behind Optuna's.

SMAC knows all parameters from the start, so that conditional ones are ordinary parameters to it,
there or not. Every objective is minimised. It has no constraints: a trial that breaks one is told
as the problem's reference point, the worst that still counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ConfigSpace import Categorical, ConfigurationSpace, Float, Integer
from joblib import parallel_config
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from race_base import Problem
from race_problems import space_of
from smac import HyperparameterOptimizationFacade, Scenario
from smac.multi_objective.parego import ParEGO
from smac.runhistory import StatusType, TrialInfo, TrialValue


def _steps(distribution: FloatDistribution | IntDistribution) -> int:
    """Number of steps from lowest to highest of a parameter that has a step."""
    assert distribution.step is not None
    return round((distribution.high - distribution.low) / distribution.step)


def hyperparameter(name: str, distribution: BaseDistribution) -> Any:
    """SMAC's parameter for one of Optuna's: a choice or a step is told by its number."""
    if isinstance(distribution, CategoricalDistribution):
        return Categorical(name, [str(i) for i in range(len(distribution.choices))])
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log or distribution.step is None:
        kind = Integer if isinstance(distribution, IntDistribution) else Float
        return kind(name, (distribution.low, distribution.high), log=distribution.log)
    return Integer(name, (0, _steps(distribution)))


def value_of(distribution: BaseDistribution, told: Any) -> Any:
    """Optuna's value for what SMAC says of `hyperparameter`."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(told)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    value = told
    if not distribution.log and distribution.step is not None:
        value = distribution.low + int(told) * distribution.step
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


class SMACSampler(BaseSampler):
    """SMAC3's hyperparameter facade: a random forest, and ParEGO for several objectives.

    As in SMAC's defaults a quarter of the trials at most is a Sobol design; unlike there, the
    forest is trained after every trial instead of every eighth, since trials are what is counted.

    Args:
        problem: What is raced on.
        seed: Of everything random.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._space = {k: v for k, v in space_of(problem).items() if not v.single()}
        self._signs = np.array([1.0 if d == "minimize" else -1.0 for d in problem.directions])
        self._worst = (self._signs * problem.reference).tolist()
        self._independent = RandomSampler(seed=seed)
        self._asked: dict[int, TrialInfo] = {}
        self._folder = tempfile.TemporaryDirectory()
        configurations = ConfigurationSpace(seed=seed)
        configurations.add([hyperparameter(k, v) for k, v in self._space.items()])
        several = len(self._signs) > 1
        scenario = Scenario(
            configurations,
            objectives=[f"f{i}" for i in range(len(self._signs))] if several else "f0",
            deterministic=True, n_trials=problem.trials, seed=seed,
            output_directory=Path(self._folder.name),
        )  # fmt: skip
        facade = HyperparameterOptimizationFacade
        self._smac = facade(
            scenario,
            multi_objective_algorithm=ParEGO(scenario) if several else None,
            config_selector=facade.get_config_selector(scenario, retrain_after=1),
            logging_level=False, overwrite=True,
        )  # fmt: skip

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        try:
            with parallel_config(backend="sequential"):  # one thread, as for everyone
                info = self._smac.ask()
        except StopIteration:  # it has seen all there is: the rest is drawn at random
            return {}
        self._asked[trial.number] = info
        told = dict(info.config)
        return {name: value_of(search_space[name], told[name]) for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, name, distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        info = self._asked.pop(trial.number, None)
        if info is None:
            return
        signs = [1 if d == StudyDirection.MINIMIZE else -1 for d in study.directions]
        kept = all(value <= 0 for value in trial.constraints.values())
        cost = self._worst
        if state == TrialState.COMPLETE and values is not None and kept:
            cost = [sign * value for sign, value in zip(signs, values, strict=True)]
        crashed = state != TrialState.COMPLETE
        status = StatusType.CRASHED if crashed else StatusType.SUCCESS
        self._smac.tell(
            info, TrialValue(cost if len(cost) > 1 else cost[0], status=status), save=False
        )

    def reseed_rng(self) -> None:
        self._independent.reseed_rng()
