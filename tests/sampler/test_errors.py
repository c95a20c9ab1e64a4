"""What the sampler refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.errors import (
    InfeasibleBudgetError,
    InvalidArgumentError,
    StudyMismatchError,
)
from apq_optuna.hardware import CostTable
from apq_optuna.space import SearchSpace

from .helpers import DIRECTIONS, NAMES, SPACE, Measured, new_study


def test_a_budget_nothing_meets_is_an_error(digits_costs: CostTable) -> None:
    with pytest.raises(
        InfeasibleBudgetError, match=r"budgets\['latency_ms'\]=0.001: the cheapest .* takes 0\.01"
    ):
        apq.APQSampler(SPACE, costs=digits_costs, budgets={"latency_ms": 0.001})
    with pytest.raises(InvalidArgumentError, match="'ram' is not a known objective; known are"):
        apq.APQSampler(SPACE, costs=digits_costs, budgets={"ram": 1.0})


def test_budgets_that_exclude_each_other_are_an_error(measure: Measured) -> None:
    """Each can be met alone: small is quick, but here only large networks are called green."""
    size = {"green": lambda params: -params["stage2.block1.channels"].astype(float)}
    compiled = measure.costs.compile(SPACE)
    budgets = {"latency_ms": float(compiled.minima[0]) * 1.001, "green": -24.0}
    sampler = apq.APQSampler(SPACE, costs=measure.costs, known=size, budgets=budgets, seed=0)
    study = optuna.create_study(directions=[*DIRECTIONS, "minimize"], sampler=sampler)
    study.set_metric_names([*NAMES, "green"])
    with pytest.raises(InfeasibleBudgetError, match="no configuration that meets all was found"):
        study.optimize(lambda trial: (*measure(trial), 0.0), n_trials=1)
    assert study.trials[0].state == TrialState.FAIL


@pytest.mark.parametrize(
    ("directions", "names", "message"),
    [
        (["maximize", "minimize"], None, "the study has 2 objectives, the costs make it 3"),
        (["maximize", "maximize", "minimize"], None, r"objective 1 \(latency_ms\) .* maximised"),
        (DIRECTIONS, ["accuracy", "latency_ms", "size"], "without 'energy_mj' of the cost table"),
    ],
)
def test_a_study_of_other_objectives_is_refused(
    measure: Measured, directions: list[str], names: list[str] | None, message: str
) -> None:
    study = optuna.create_study(
        directions=directions, sampler=apq.APQSampler(SPACE, costs=measure.costs, seed=0)
    )
    if names:
        study.set_metric_names(names)
    with pytest.raises(StudyMismatchError, match=message):
        study.optimize(lambda trial: measure(trial)[: len(directions)], n_trials=3)
    assert study.trials[0].state == TrialState.COMPLETE  # what was stored before stays
    assert study.trials[-1].state != TrialState.COMPLETE


def test_a_study_of_another_space_is_refused(measure: Measured, url: str) -> None:
    other = SearchSpace.preset("digits", bits=(4, 8))

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        return (0.5, *measure.costs.network_cost(other.suggest(trial).layers()))

    study = new_study(apq.APQSampler(other, costs=measure.costs, seed=0), url)
    study.optimize(objective, n_trials=3)
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0), url)
    with pytest.raises(StudyMismatchError, match=r"trial 0 has .*_bits as .* another study_name"):
        study.optimize(measure, n_trials=1)
    assert [t.state for t in study.trials[:3]] == [TrialState.COMPLETE] * 3


def test_known_objectives_must_return_one_finite_value_a_row() -> None:
    def run(function: Callable[..., object]) -> None:
        sampler = apq.APQSampler(known={0: function}, seed=0, n_startup_trials=2)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.params["x"]), n_trials=5)

    with pytest.raises(InvalidArgumentError, match=r"known\['0'\] returned shape \(1, 2\) for"):
        run(lambda params: np.zeros((1, 2)))
    with pytest.raises(InvalidArgumentError, match="returned NaN"):
        run(lambda params: params["x"] * np.nan)


def test_arguments_that_do_not_fit_are_named(digits_costs: CostTable, url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="costs: a cost table needs the search space"):
        apq.APQSampler(costs=digits_costs)
    with pytest.raises(InvalidArgumentError, match="n_startup_trials=0: at least 1"):
        apq.APQSampler(n_startup_trials=0)
    with pytest.raises(InvalidArgumentError, match="source=3: give a PairStore, an Optuna study"):
        apq.APQSampler(source=3)  # type: ignore[arg-type]
    earlier = optuna.create_study()
    for several in ([earlier], (earlier,), {earlier}, iter([earlier])):
        apq.APQSampler(source=several)  # type: ignore[arg-type]


def test_known_names_matter_only_where_the_space_is_used(digits_costs: CostTable) -> None:
    known = {"size": lambda params: params["stage2.block1.channels"].astype(float)}
    sampler = apq.APQSampler(SPACE, costs=digits_costs, known=known, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    with pytest.raises(StudyMismatchError, match="known: the study has no objective 'size'"):
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: SPACE.suggest(trial).macs, n_trials=3)


def test_a_known_function_that_raises_is_named() -> None:
    def broken(params: dict[str, np.ndarray]) -> np.ndarray:
        return params["no such parameter"]

    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=apq.APQSampler(known={1: broken}, n_startup_trials=1)
    )
    with pytest.raises(InvalidArgumentError, match=r"known\['1'\] raised KeyError"):
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), 0.0), n_trials=4)


def test_an_infinite_known_value_meets_no_budget() -> None:
    known = {"size": lambda params: np.where(params["w"] > 8, np.inf, params["w"])}
    space = apq.SearchSpace.from_distributions(
        {"w": optuna.distributions.IntDistribution(1, 16),
         "x": optuna.distributions.FloatDistribution(0, 1)}
    )  # fmt: skip
    study = optuna.create_study(
        directions=["minimize"] * 3,
        sampler=apq.APQSampler(space, known=known, budgets={"size": 8}, seed=1),
    )
    study.set_metric_names(["a", "b", "size"])

    def measure(trial: optuna.Trial) -> tuple[float, float, float]:
        w, x = trial.suggest_int("w", 1, 16), trial.suggest_float("x", 0, 1)
        return -w * x, w * x * x, w

    study.optimize(measure, n_trials=12)
    assert max(trial.params["w"] for trial in study.trials) <= 8


def test_enqueued_values_beyond_a_budget_are_tried_with_a_warning() -> None:
    space = {
        "w": optuna.distributions.IntDistribution(1, 16),
        "x": optuna.distributions.FloatDistribution(0, 1),
    }
    study = optuna.create_study(
        directions=["minimize"] * 2,
        sampler=apq.APQSampler(
            apq.SearchSpace.from_distributions(space),
            known={"size": lambda params: params["w"]}, budgets={"size": 8}, seed=0,
        ),
    )  # fmt: skip
    study.set_metric_names(["loss", "size"])

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        w = trial.suggest_int("w", 1, 16)
        return trial.suggest_float("x", 0, 1) / w, w

    study.optimize(measure, n_trials=3)
    study.enqueue_trial({"w": 16})
    with pytest.warns(UserWarning, match="the parameters that this trial fixes"):
        study.optimize(measure, n_trials=1)
    assert study.trials[-1].params["w"] == 16
    study.optimize(measure, n_trials=3)
    assert max(trial.params["w"] for trial in study.trials[4:]) <= 8
