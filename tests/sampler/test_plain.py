"""The sampler on plain spaces and in other people's studies."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna._optuna import constraints_of
from apq_optuna.hardware import CostTable
from apq_optuna.space import SearchSpace

from .helpers import SPACE


def test_a_small_space_is_exhausted_without_repeats() -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_int("a", 0, 3) + trial.suggest_categorical("b", [0, 1, 2])

    study = optuna.create_study(sampler=apq.APQSampler(seed=0, n_startup_trials=3))
    study.optimize(objective, n_trials=14)
    found = [(t.params["a"], t.params["b"]) for t in study.trials]
    assert len(set(found)) == 12  # the first trial is sampled independently, then none twice


def test_a_plain_space_with_a_known_objective() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return (x - 0.3) ** 2 + y, x

    sampler = apq.APQSampler(known={1: lambda params: params["x"]}, seed=0, n_startup_trials=8)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=25)
    assert min(t.values[0] for t in study.trials) < 0.1


def test_in_other_peoples_studies_it_is_just_a_sampler(digits_costs: CostTable) -> None:
    study = optuna.create_study(sampler=apq.APQSampler(SPACE, costs=digits_costs, seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", -5, 5) ** 2, n_trials=30)
    assert study.best_value < 0.5
    assert FloatDistribution(-5, 5) == study.trials[0].distributions["x"]


def test_one_sampler_serves_two_studies_of_one_name() -> None:
    sampler = apq.APQSampler(seed=0, n_startup_trials=2)
    for _ in range(2):
        study = optuna.create_study(study_name="a", sampler=sampler)
        study.optimize(lambda trial: trial.suggest_int("x", 0, 7), n_trials=8)
        assert len({trial.params["x"] for trial in study.trials[1:]}) >= 6


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_draws_the_same_whatever_its_hash_seed(hash_seed: str) -> None:
    script = """
import optuna, apq_optuna as apq
optuna.logging.set_verbosity(optuna.logging.ERROR)
space = apq.SearchSpace.preset("digits")
costs = apq.hardware.bitfusion_small().table(space)
sampler = apq.APQSampler(space, costs=costs, seed=5, n_startup_trials=3)
study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
def measure(trial):
    subnet = space.suggest(trial)
    return (subnet.macs % 97 / 97, *costs.network_cost(subnet.layers()))
study.optimize(measure, n_trials=7)
print([space.from_params(t.params).tolist() for t in study.trials])
plain = optuna.create_study(sampler=apq.APQSampler(seed=5, n_startup_trials=3))
plain.optimize(lambda t: t.suggest_float("x", 0, 1) + t.suggest_categorical("c", (0, 1)), 8)
print([t.params["x"] for t in plain.trials])
"""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    found = {
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
            check=True,
        ).stdout
        for environment in (environment, environment | {"PYTHONHASHSEED": "42"})
    }  # fmt: skip
    assert len(found) == 1


def test_conditional_parameters_are_searched_jointly() -> None:
    """The optimum is in the branch: a sampler that draws it independently would not get near."""

    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return 1.0 + trial.suggest_float("p", 0, 1)
        return (trial.suggest_float("q", 0, 1) - 0.37) ** 2 + (
            trial.suggest_float("r", 1e-5, 1e-1, log=True) - 1e-3
        ) ** 2

    study = optuna.create_study(sampler=apq.APQSampler(seed=0))
    study.optimize(objective, n_trials=50)
    assert study.best_value < 1e-3
    late = [trial.params["kind"] for trial in study.trials[25:]]
    assert late.count("b") > 15


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_any_number_of_predicted_objectives(objectives: int) -> None:
    centres = np.linspace(0.2, 0.8, objectives)

    def objective(trial: optuna.Trial) -> list[float]:
        x = trial.suggest_float("x", 0, 1)
        n = trial.suggest_int("n", 1, 1000, log=True)
        kind = trial.suggest_categorical("kind", ["good", "bad"])
        return [(x - c) ** 2 + abs(np.log10(n) - 1) + (kind == "bad") for c in centres]

    study = optuna.create_study(
        directions=["minimize"] * objectives, sampler=apq.APQSampler(seed=0)
    )
    study.optimize(objective, n_trials=35)
    late = study.trials[20:]
    assert sum(trial.params["kind"] == "good" for trial in late) > 10
    assert min(sum(trial.values) for trial in late) < 0.5 * objectives


def check_constrained(study: optuna.Study) -> None:
    """x + y >= 1 is known only from trials; the best feasible value is 1."""
    late = [t.params["x"] + t.params["y"] for t in study.trials[20:]]
    assert sum(value >= 0.995 for value in late) >= 10  # the best lie on the limit itself
    assert sum(value >= 1.0 for value in late) >= 3
    assert min(value for value in late if value >= 1.0) < 1.05
    assert study.best_value >= 1.0  # Optuna knows them, too


@pytest.mark.skipif(not hasattr(optuna.Trial, "set_constraint"), reason="new in Optuna 5")
def test_constraints_set_by_the_trial_are_respected() -> None:
    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.set_constraint("sum", 1.0 - x - y)
        return x + y

    study = optuna.create_study(sampler=apq.APQSampler(seed=0))
    study.optimize(objective, n_trials=40)
    check_constrained(study)


@pytest.mark.parametrize("stored", [False, True])
def test_constraints_of_a_function_are_respected(stored: bool, url: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.set_user_attr("lacking", 1.0 - x - y)
        return x + y

    sampler = apq.APQSampler(seed=0, constraints_func=lambda t: (t.user_attrs["lacking"], -1.0))
    study = optuna.create_study(storage=apq.open_storage(url) if stored else None, sampler=sampler)
    study.optimize(objective, n_trials=40)
    check_constrained(study)


def test_constraints_of_either_version_are_read() -> None:
    """A study's database may have been written by Optuna 4 or 5."""
    attributes = {"constraints": [1.0, -1.0], "constraints:sum": 0.5, "constraints_of_mine": 3}
    trial = optuna.trial.create_trial(value=0.0, system_attrs=attributes)
    assert constraints_of(trial) == {"0": 1.0, "1": -1.0, "sum": 0.5}
    failed = optuna.trial.create_trial(value=0.0, system_attrs={"constraints": None})
    assert constraints_of(failed) == {}


def test_one_name_two_spaces_without_a_network_is_just_two_spaces(url: str) -> None:
    """In a plain study parameters may change their range; what still fits is learned from."""
    for high in (1.0, 2.0):
        study = optuna.create_study(
            study_name="s", storage=url, load_if_exists=True,
            sampler=apq.APQSampler(seed=0, n_startup_trials=2),
        )  # fmt: skip
        study.optimize(
            lambda t, high=high: t.suggest_float("x", 0, high) + t.suggest_int("n", 0, 9), 6
        )
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12


def test_choices_may_be_tuples_of_any_length() -> None:
    known = {1: lambda params: np.array([float(sum(h)) for h in params["hidden"]])}
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=apq.APQSampler(known=known, seed=0)
    )

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        hidden = trial.suggest_categorical("hidden", [(50,), (20, 50), (10, 20)])
        return abs(trial.suggest_float("x", 0, 1) - 0.5), float(sum(hidden))

    study.optimize(measure, n_trials=6)
    assert {trial.values[1] for trial in study.trials} <= {50.0, 70.0, 30.0}


def test_known_objectives_are_given_parameters_of_one_value_too() -> None:
    known = {1: lambda params: params["layers"] * params["width"]}
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=apq.APQSampler(known=known, seed=0)
    )

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        layers, width = trial.suggest_int("layers", 1, 9), trial.suggest_int("width", 8, 8)
        return 1 / layers, layers * width

    study.optimize(measure, n_trials=4)
    assert len(study.trials) == 4


def test_a_parameter_that_not_every_trial_has_may_be_in_the_space() -> None:
    space = SearchSpace.from_distributions(
        {
            "x": FloatDistribution(0, 1),
            "kind": CategoricalDistribution(["a", "b"]),
            "only_a": FloatDistribution(0, 1),
        }
    )

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        more = (
            trial.suggest_float("only_a", 0, 1)
            if trial.suggest_categorical("kind", ["a", "b"]) == "a"
            else 0.0
        )
        return (x - 0.3) ** 2 + more

    found = []
    for seed in range(3):
        study = optuna.create_study(sampler=apq.APQSampler(space, seed=seed))
        study.optimize(objective, n_trials=20)
        found.append(study.best_value)
        assert len({trial.params["x"] for trial in study.trials}) == 20
    assert np.median(found) < 0.001
