"""Constraints that only trials can tell."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

import apq_optuna as apq

CENTRE = np.linspace(-2.0, 3.0, 5)


def constraints(x: np.ndarray, kind: str) -> list[float]:
    if kind == "a ball":
        return [float(((x - CENTRE) ** 2).sum() - 0.5)]
    if kind == "none can be met":
        return [float(((x - CENTRE) ** 2).sum() + 1.0)]
    if kind == "several":
        return [float(abs(a - b) - 0.3) for a, b in zip(x, CENTRE, strict=True)]
    return [float(1e4 * (abs(x - CENTRE).max() - 0.7)), float(1e-3 * (x.sum() - 20.0))]


@pytest.mark.parametrize("kind", ["a ball", "several", "of other units", "none can be met"])
def test_with_nothing_feasible_violations_fall(kind: str) -> None:
    """At random the least of 40 is about 10 for the ball."""

    def told(trial: optuna.trial.FrozenTrial) -> list[float]:
        return list(trial.user_attrs["c"])

    study = optuna.create_study(sampler=apq.APQSampler(seed=0, constraints_func=told))

    def objective(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(f"x{i}", -5, 5) for i in range(5)])
        trial.set_user_attr("c", constraints(x, kind))
        return float((x**2).sum())

    study.optimize(objective, n_trials=40)
    violation = np.array([np.maximum(trial.user_attrs["c"], 0).sum() for trial in study.trials])
    first, last = violation[:10].min(), violation[20:].min()
    if kind == "none can be met":
        assert last < 1.0 + 0.2 * (first - 1.0)
        assert np.median(violation[20:]) < 0.5 * np.median(violation[:10])
    else:
        assert first > 0  # ten random trials met nothing
        assert last < 0.1 * first


def test_a_trial_without_constraints_is_not_the_feasible_one() -> None:
    """Optuna takes such a trial for infeasible; it must not end the search for a feasible one."""
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    study = optuna.create_study(
        sampler=apq.APQSampler(seed=0, constraints_func=lambda t: t.user_attrs["c"])
    )
    names = [f"x{i}" for i in range(5)]
    study.add_trial(
        create_trial(
            params=dict.fromkeys(names, 0.0),
            distributions=dict.fromkeys(names, FloatDistribution(-5, 5)), value=-99.0,
        )
    )  # fmt: skip

    def objective(trial: optuna.Trial) -> float:
        x = np.array([trial.suggest_float(name, -5, 5) for name in names])
        trial.set_user_attr("c", constraints(x, "several"))
        return float((x**2).sum())

    study.optimize(objective, n_trials=30)
    violation = [np.maximum(trial.user_attrs["c"], 0).sum() for trial in study.trials[1:]]
    assert min(violation[15:]) < 0.1 * min(violation[:4])
