"""A quick study over the digits space, for the tests of the sampler."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.samplers import BaseSampler

import apq_optuna as apq
from apq_optuna.hardware import CostTable
from apq_optuna.space import SearchSpace

SPACE = SearchSpace.preset("digits")
NAMES = ["accuracy", "latency_ms", "energy_mj"]
DIRECTIONS = ["maximize", "minimize", "minimize"]


class Measured:
    """A quick stand-in for training: accuracy made up from the genotype, costs from the table."""

    def __init__(self, costs: CostTable) -> None:
        self.costs = costs
        self.weight = np.random.default_rng(0).normal(0.01, 0.02, SPACE.num_features)

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        subnet = SPACE.suggest(trial)
        features = SPACE.features(SPACE.from_params(trial.params)[None])[0]
        accuracy = float(1 / (1 + np.exp(-3 * features @ self.weight)))
        return (accuracy, *self.costs.network_cost(subnet.layers()))


def new_study(sampler: BaseSampler, url: str | None = None, **options: object) -> optuna.Study:
    storage = apq.open_storage(url) if url else None
    study = optuna.create_study(
        study_name="s", storage=storage, directions=DIRECTIONS, sampler=sampler,
        load_if_exists=True, **options,
    )  # fmt: skip
    study.set_metric_names(NAMES)
    return study


def rows(study: optuna.Study) -> list[bytes]:
    return [SPACE.from_params(t.params).tobytes() for t in study.trials]


def hypervolume_of(study: optuna.Study, costs: CostTable) -> float:
    from apq_optuna.search import hypervolume

    values = np.array([t.values for t in study.trials]) * [-1, 1, 1]
    return hypervolume(values, np.array([-0.1, *costs.compile(SPACE).maxima]))
