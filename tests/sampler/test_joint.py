"""The sampler on a network's joint space."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.hardware import CostTable

from .helpers import SPACE, Measured, hypervolume_of, new_study, rows


def test_no_configuration_is_tried_twice(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0))
    study.optimize(measure, n_trials=40)
    assert len(set(rows(study))) == 40


def test_it_finds_more_than_random_search(measure: Measured) -> None:
    volumes = {}
    for name, make in {
        "ours": lambda seed: apq.APQSampler(SPACE, costs=measure.costs, seed=seed),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }.items():
        studies = [new_study(make(seed)) for seed in (0, 1)]
        for study in studies:
            study.optimize(measure, n_trials=40)
        volumes[name] = np.mean([hypervolume_of(study, measure.costs) for study in studies])
    assert volumes["ours"] > volumes["random"]


def test_the_same_seed_gives_the_same_trials(measure: Measured) -> None:
    found = []
    for seed in (3, 3, 4):
        study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=seed))
        study.optimize(measure, n_trials=20)
        found.append(rows(study))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_budget_is_never_broken(measure: Measured) -> None:
    limit = 0.04
    sampler = apq.APQSampler(SPACE, costs=measure.costs, budgets={"latency_ms": limit}, seed=0)
    study = new_study(sampler)
    study.optimize(measure, n_trials=25)
    assert max(t.values[1] for t in study.trials) <= limit


@pytest.mark.parametrize("seed", range(6))
def test_a_device_of_one_bit_width_is_searched(digits_costs: CostTable, seed: int) -> None:
    only_8 = {k: v for k, v in digits_costs.entries.items() if k[1:] == (8, 8)}
    costs = CostTable(only_8, device="board")
    sampler = apq.APQSampler(SPACE, costs=costs, seed=seed, n_startup_trials=3)
    study = new_study(sampler)
    study.optimize(Measured(costs), n_trials=6)
    assert len(set(rows(study))) == 6
    bits = {v for t in study.trials for k, v in t.params.items() if k.endswith("_bits")}
    assert bits == {8}


def test_startup_trials_see_every_bit_width(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=12))
    study.optimize(measure, n_trials=12)
    means = [np.mean([v for k, v in t.params.items() if "bits" in k]) for t in study.trials]
    assert max(means) - min(means) > 3


def test_extra_parameters_ride_along(measure: Measured) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return measure(trial)

    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=5))
    study.optimize(objective, n_trials=10)
    assert len({t.params["lr"] for t in study.trials}) == 10


def test_enqueued_trials_are_completed_around_what_they_fix(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=3))
    whole = SPACE.to_params(SPACE.extreme(largest=True)[0])
    study.enqueue_trial(whole)
    for _ in range(5):
        study.enqueue_trial({"stage2.depth": 2, "stage2.block2.pw_w_bits": 2})
    study.optimize(measure, n_trials=6)
    assert study.trials[0].params == whole
    assert all(t.params["stage2.block2.pw_w_bits"] == 2 for t in study.trials[1:])
    assert len(set(rows(study))) == 6


def test_partial_fixed_sampler(measure: Measured) -> None:
    inner = apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=3)
    sampler = optuna.samplers.PartialFixedSampler({"stage1.depth": 2}, inner)
    study = new_study(sampler)
    study.optimize(measure, n_trials=6)
    assert all(t.params["stage1.depth"] == 2 for t in study.trials)


def test_failed_pruned_and_infinite_trials_do_no_harm(measure: Measured) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        values = measure(trial)
        if trial.number % 4 == 1:
            return (float("nan"), *values[1:])
        if trial.number % 4 == 2:
            raise optuna.TrialPruned
        if trial.number == 3:
            return (float("inf"), *values[1:])
        return values

    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=4))
    study.optimize(objective, n_trials=24)
    states = {t.state for t in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED}
    assert len(set(rows(study))) == 24


def test_a_constant_objective_is_searched_without_repeats(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=3))
    study.optimize(lambda trial: (0.5, *measure(trial)[1:]), n_trials=10)
    assert len(set(rows(study))) == 10
    plain = optuna.create_study(sampler=apq.APQSampler(seed=0, n_startup_trials=3))
    plain.optimize(lambda trial: 0.0 * trial.suggest_float("x", 0, 1, log=False), n_trials=10)
    assert len({trial.params["x"] for trial in plain.trials}) == 10
