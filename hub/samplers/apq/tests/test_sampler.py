"""Optuna's contract for samplers, and the heat sink of the example."""

from __future__ import annotations

import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import optunahub
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

HERE = Path(__file__).resolve()
MODULE = optunahub.load_local_module("samplers/apq", registry_root=str(HERE.parents[3]))
EXAMPLE = runpy.run_path(str(HERE.parents[1] / "example.py"))


class Contract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """All three parts of the kit."""


class TestWithoutArguments(Contract):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return MODULE.APQSampler


class TestAfterOneTrial(Contract):
    """The kit's studies are short: here the model decides from their second trial on."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: MODULE.APQSampler(n_startup_trials=1, seed=0)


def heat_sink(n_trials: int = 15, **options: Any) -> optuna.Study:
    sampler = MODULE.APQSampler(known={0: EXAMPLE["mass_kg"]}, seed=0, **options)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(EXAMPLE["measure"], n_trials=n_trials)
    return study


def test_the_module_offers_the_sampler_alone() -> None:
    assert MODULE.__all__ == ["APQSampler"]


def test_a_seed_gives_the_same_study() -> None:
    first, second = heat_sink(), heat_sink()
    assert [t.params for t in first.trials] == [t.params for t in second.trials]


def test_no_proposal_breaks_a_budget() -> None:
    study = heat_sink(budgets={0: 0.3})
    assert all(trial.values[0] <= 0.3 for trial in study.trials[1:])  # the first is any


def test_the_known_mass_helps() -> None:
    """No worse than as many at random, in the temperature of what is lighter than 0.3 kg."""
    random = optuna.create_study(
        directions=["minimize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    random.optimize(EXAMPLE["measure"], n_trials=40)
    coolest = [
        min(trial.values[1] for trial in study.trials if trial.values[0] <= 0.3)
        for study in (heat_sink(40), random)
    ]
    assert coolest[0] < coolest[1]


def test_a_sampler_can_be_pickled() -> None:
    sampler = pickle.loads(pickle.dumps(MODULE.APQSampler(seed=0)))
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=12)
    assert len(study.trials) == 12
