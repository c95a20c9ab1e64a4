"""Budgets and known objectives: what is proposed is what is priced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError, StudyMismatchError
from apq_optuna.space import SearchSpace

UNIT = FloatDistribution(0.0, 1.0)
Params = Mapping[str, np.ndarray]

CASES: dict[str, tuple[dict[str, BaseDistribution], Callable[[Params], np.ndarray], float]] = {
    "a wide integer": ({"n": IntDistribution(1, 1_000_000)}, lambda p: p["n"], 1500),
    "less than one cell": ({"n": IntDistribution(1, 1_000_000)}, lambda p: p["n"], 300),
    "one value of a cell": ({"n": IntDistribution(1, 1_000_000)}, lambda p: p["n"], 1),
    "steps": ({"n": IntDistribution(0, 70_000, step=7)}, lambda p: p["n"], 100),
    "a logarithmic integer": (
        {"n": IntDistribution(1, 10**9, log=True)}, lambda p: p["n"] ** 2, 5e5,
    ),
    "a float": ({"y": FloatDistribution(-3.0, 5.0)}, lambda p: p["y"] + 3, 1e-4),
    "a stepped float": ({"y": FloatDistribution(0.0, 900.0, step=0.25)}, lambda p: p["y"], 0.6),
    "a logarithmic float": (
        {"y": FloatDistribution(1e-200, 1e200, log=True)}, lambda p: np.log10(p["y"]), -199.9,
    ),
    "falling": ({"y": FloatDistribution(0.0, 9.0)}, lambda p: -p["y"], -8.9999),
    "a product": (
        {"h": IntDistribution(1, 10**6), "w": IntDistribution(1, 10**6)},
        lambda p: p["w"] * p["h"], 5000,
    ),
    "a ratio": (
        {"h": FloatDistribution(1, 1e4), "w": FloatDistribution(1, 1e4)},
        lambda p: p["h"] / p["w"], 2e-4,
    ),
    "in the middle of a cell": (
        {"y": FloatDistribution(0.0, 1.0), "z": FloatDistribution(1e-5, 1e2, log=True)},
        lambda p: abs(p["y"] - 0.123456789) + abs(p["z"] - 1.0), 1e-6,
    ),
    "beside a category": (
        {"c": CategoricalDistribution(("a", "b")), "n": IntDistribution(1, 1_000_000)},
        lambda p: p["n"] * np.where(p["c"] == "a", 1.0, 1000.0), 2e5,
    ),
}  # fmt: skip


def suggest(trial: optuna.Trial, name: str, d: BaseDistribution) -> Any:
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(name, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)


def sizes(
    study: optuna.Study, space: dict[str, BaseDistribution], size: Callable[[Params], np.ndarray]
) -> list[float]:
    """Runs 14 trials; the sizes of those whose worker knew the space."""

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = {name: np.array([suggest(trial, name, d)]) for name, d in space.items()}
        return trial.params["x"], float(size(params)[0])

    study.optimize(objective, n_trials=14)
    return [trial.values[1] for trial in study.trials]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", [1, -1])
def test_no_proposal_is_over(case: str, order: int) -> None:
    parameters, size, limit = CASES[case]
    space = dict(list(({"x": UNIT} | parameters).items())[::order])
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space), known={1: size}, budgets={1: limit},
        n_startup_trials=5, seed=0,
    )  # fmt: skip
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    assert max(sizes(study, space, size)) <= limit


def test_without_a_space_all_but_the_first_are_within() -> None:
    space: dict[str, BaseDistribution] = {"n": IntDistribution(1, 1_000_000), "x": UNIT}
    sampler = apq.APQSampler(known={1: lambda p: p["n"]}, budgets={1: 1500}, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    assert max(sizes(study, space, lambda p: p["n"])[1:]) <= 1500


@pytest.mark.parametrize("names", [None, ["loss", "size"]])
@pytest.mark.parametrize("known", ["index", "numpy index", "name"])
@pytest.mark.parametrize("budget", ["index", "numpy index", "name"])
def test_an_objective_is_meant_by_its_name_or_index(
    names: list[str] | None, known: str, budget: str
) -> None:
    keys: dict[str, Any] = {
        "index": 1, "numpy index": np.int64(1), "name": "size" if names else "1",
    }  # fmt: skip
    space: dict[str, BaseDistribution] = {"n": IntDistribution(1, 1_000_000), "x": UNIT}
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space), known={keys[known]: lambda p: p["n"]},
        budgets={keys[budget]: 1500}, seed=0, n_startup_trials=5,
    )  # fmt: skip
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    if names:
        study.set_metric_names(names)
    assert max(sizes(study, space, lambda p: p["n"])) <= 1500


def test_the_tighter_of_two_budgets_on_one_objective_holds() -> None:
    space: dict[str, BaseDistribution] = {"n": IntDistribution(1, 1_000_000), "x": UNIT}
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space), known={1: lambda p: p["n"]},
        budgets={1: 9000, "size": 1500}, seed=0,
    )  # fmt: skip
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    study.set_metric_names(["loss", "size"])
    assert max(sizes(study, space, lambda p: p["n"])) <= 1500


def test_budgets_on_a_tables_costs_by_index(measure: Any, digits_costs: Any) -> None:
    from .helpers import SPACE, new_study

    sampler = apq.APQSampler(SPACE, costs=digits_costs, budgets={1: 0.05}, seed=0)
    study = new_study(sampler)
    study.optimize(measure, n_trials=4)
    assert max(trial.values[1] for trial in study.trials) <= 0.05


def size_of(params: Params) -> np.ndarray:
    return params["n"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"known": {"size": size_of}, "budgets": {"1": 3}}, InvalidArgumentError,
         r"budgets: '1' is not a known objective; known are \['size'\]"),
        ({"known": {1: size_of}, "budgets": {"size": 3}}, StudyMismatchError,
         r"budgets: 'size' is not a known objective of this study; known are \[1\]"),
        ({"known": {1: size_of}, "budgets": {7: 3}}, StudyMismatchError, "budgets: 7 is not"),
        ({"known": {1: size_of}, "budgets": {0: 3}}, StudyMismatchError, "budgets: 0 is not"),
        ({"known": {7: size_of}}, StudyMismatchError, r"no objective 7, but \[0, 1\]"),
        ({"known": {1: size_of}, "budgets": {1: "much"}}, InvalidArgumentError, "finite number"),
        ({"known": {1: size_of}, "budgets": {1: np.inf}}, InvalidArgumentError, "finite number"),
        ({"known": {2.5: size_of}}, InvalidArgumentError, "2.5 is neither the name of a metric"),
        ({"reference": {"loss": 3}}, StudyMismatchError, "reference: the study has no objective"),
    ],
)  # fmt: skip
def test_what_cannot_be_obeyed_is_an_error(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    space: dict[str, BaseDistribution] = {"n": IntDistribution(1, 9), "x": UNIT}
    with pytest.raises(error, match=message):
        sampler = apq.APQSampler(SearchSpace.from_distributions(space), seed=0, **arguments)
        study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        sizes(study, space, lambda p: p["n"])


def test_a_prescribed_value_is_priced_itself_not_its_cell() -> None:
    space = {"h": IntDistribution(1, 10**6), "w": IntDistribution(1, 10**6)}
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space), known={1: lambda p: p["w"] * p["h"]},
        budgets={1: 5e6}, seed=0,
    )  # fmt: skip
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for width in (100, 777, 2000, 4999, 1_000_000):
        study.enqueue_trial({"w": width})

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        h, w = trial.suggest_int("h", 1, 10**6), trial.suggest_int("w", 1, 10**6)
        return -h - w, h * w

    study.optimize(objective, n_trials=5)
    assert [trial.params["w"] for trial in study.trials] == [100, 777, 2000, 4999, 1_000_000]
    assert max(trial.values[1] for trial in study.trials) <= 5e6


def test_a_partially_fixed_sampler_tells_known_functions_what_it_fixes() -> None:
    inner = apq.APQSampler(
        known={1: lambda p: p["w"] * p["h"]}, budgets={1: 5e6}, seed=0, n_startup_trials=3
    )
    study = optuna.create_study(
        directions=["minimize"] * 2,
        sampler=optuna.samplers.PartialFixedSampler({"w": 1234}, inner),
    )

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        h, w = trial.suggest_int("h", 1, 10**6), trial.suggest_int("w", 1, 10**6)
        return -h - w, h * w

    study.optimize(objective, n_trials=8)
    assert {trial.params["w"] for trial in study.trials} == {1234}
    assert max(trial.values[1] for trial in study.trials[1:]) <= 5e6


def test_within_less_than_a_cell_the_objective_still_counts() -> None:
    space: dict[str, BaseDistribution] = {"x": UNIT, "y": UNIT}
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space), known={1: lambda p: abs(p["x"] - 0.1234567)},
        budgets={1: 1e-5}, n_startup_trials=6, seed=0,
    )  # fmt: skip
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return (y - 0.3) ** 2, abs(x - 0.1234567)

    study.optimize(objective, n_trials=18)
    assert max(trial.values[1] for trial in study.trials) <= 1e-5
    assert np.median([abs(trial.params["y"] - 0.3) for trial in study.trials[10:]]) < 0.12


@pytest.mark.parametrize(
    "size",
    [
        lambda p: p["x"] * np.log(p["x"]),
        lambda p: np.sin(p["x"]) / p["x"] - 1.4,
        lambda p: np.array([1 / x - 1e9 for x in p["x"].tolist()]),
    ],
    ids=["an entropy", "a quotient", "an error"],
)
def test_a_function_that_is_no_number_at_the_end_of_a_range(
    size: Callable[[Params], np.ndarray],
) -> None:
    space: dict[str, BaseDistribution] = {"x": UNIT, "y": UNIT}
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space), known={1: size}, budgets={1: -0.3},
        n_startup_trials=4, seed=0,
    )  # fmt: skip
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return y, float(size({"x": np.array([x])})[0])

    study.optimize(objective, n_trials=8)
    assert max(trial.values[1] for trial in study.trials) <= -0.3


def test_an_enqueued_integer_is_a_float_to_known_functions() -> None:
    space = {"x": FloatDistribution(1.0, 4.0), "y": UNIT}
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space), known={1: lambda p: p["x"] ** -1}, seed=0
    )
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    study.enqueue_trial({"x": 2})
    study.optimize(
        lambda t: (t.suggest_float("y", 0, 1), 1 / t.suggest_float("x", 1.0, 4.0)), n_trials=2
    )
    assert study.trials[0].params["x"] == 2.0
