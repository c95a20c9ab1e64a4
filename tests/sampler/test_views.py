"""Pruners, views of a study, and ranges that follow from other parameters: every trial runs."""

from __future__ import annotations

import logging
import math

import optuna
import pytest
from optuna import pruners
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.space import SearchSpace

PRUNERS = {
    "hyperband": lambda: pruners.HyperbandPruner(min_resource=1, max_resource=9),
    "median": lambda: pruners.MedianPruner(n_startup_trials=3),
    "nop": pruners.NopPruner,
    "patient": lambda: pruners.PatientPruner(pruners.MedianPruner(3), patience=1),
    "percentile": lambda: pruners.PercentilePruner(30.0, n_startup_trials=3),
    "successive halving": pruners.SuccessiveHalvingPruner,
    "threshold": lambda: pruners.ThresholdPruner(upper=30.0),
    "wilcoxon": pruners.WilcoxonPruner,
}
DECLARED = {"x": FloatDistribution(-5.0, 5.0), "k": IntDistribution(1, 9)}


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_of_optuna(pruner: str, declared: bool) -> None:
    space = SearchSpace.from_distributions(DECLARED) if declared else None
    study = optuna.create_study(
        sampler=apq.APQSampler(space, seed=0, n_startup_trials=4), pruner=PRUNERS[pruner]()
    )

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", -5, 5) ** 2 + trial.suggest_int("k", 1, 9)
        for step in range(9):
            trial.report(value - 0.1 * step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=24)
    states = [trial.state for trial in study.trials]
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    if states.count(TrialState.COMPLETE) >= 12:  # some of these pruners let four finish
        assert study.best_value < 2.0


def test_a_bracket_of_hyperband_learns_from_the_others() -> None:
    """Its trials are few; those of the whole study are what the sampler knows."""
    pruner = pruners.HyperbandPruner(min_resource=1, max_resource=81)
    sampler = apq.APQSampler(SearchSpace.from_distributions(DECLARED), n_startup_trials=5, seed=0)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.optimize(
        lambda t: (t.suggest_float("x", -5, 5) - 2) ** 2 + t.suggest_int("k", 1, 9), n_trials=16
    )
    late = [trial.params["x"] for trial in study.trials[8:]]
    assert sum(abs(x - 2) < 1 for x in late) >= 5


def follows(trial: optuna.Trial) -> float:
    a = trial.suggest_int("a", 1, 10)
    b = trial.suggest_int("b", 1, a)
    x = trial.suggest_float("x", 0.0, b / 10 + 0.1)
    return float((a - 7) ** 2 + (b - 5) ** 2 + (x - 0.3) ** 2)


RANGES: dict[str, dict[str, BaseDistribution] | None] = {
    "undeclared": None,
    "the widest": {
        "a": IntDistribution(1, 10), "b": IntDistribution(1, 10), "x": FloatDistribution(0, 2),
    },
    "another": {
        "a": IntDistribution(1, 10), "b": IntDistribution(2, 5), "x": FloatDistribution(0.05, 0.3),
    },
}  # fmt: skip


@pytest.mark.parametrize("declared", RANGES)
def test_a_range_that_follows_another_parameter(
    declared: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("apq_optuna"), "propagate", True)
    distributions = RANGES[declared]
    space = SearchSpace.from_distributions(distributions) if distributions else None
    study = optuna.create_study(sampler=apq.APQSampler(space, seed=0))
    with caplog.at_level(logging.WARNING):
        study.optimize(follows, n_trials=40)
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        assert trial.params["b"] <= trial.params["a"]
        assert trial.params["x"] <= trial.params["b"] / 10 + 0.1
    told = [r.args[1] for r in caplog.records if "not jointly" in r.msg and r.args]  # type: ignore[index]
    assert len(set(told)) == len(told)  # one warning a parameter
    assert "b" in told
    assert study.best_value < 2.0


EXTREME: dict[str, BaseDistribution] = {
    "a logarithm of 400 decades": FloatDistribution(1e-200, 1e200, log=True),
    "the least float": FloatDistribution(5e-324, 1.0, log=True),
    "an infinite range": FloatDistribution(-8e307, 8e307),
    "integers no float holds": IntDistribution(-(2**62), 2**62),
    "a logarithm of integers": IntDistribution(1, 10**18, log=True),
    "next to nothing": FloatDistribution(1.0, 1.0 + 1e-15),
    "the least range": FloatDistribution(0.0, 5e-324),
}


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("case", EXTREME)
def test_extreme_ranges(case: str, declared: bool) -> None:
    d = EXTREME[case]
    space = {"v": d, "y": FloatDistribution(0.0, 1.0)}
    sampler = apq.APQSampler(
        SearchSpace.from_distributions(space) if declared else None, seed=0, n_startup_trials=4
    )
    study = optuna.create_study(sampler=sampler)
    for _ in range(10):
        trial = study.ask(space)
        study.tell(trial, math.log10(abs(trial.params["v"]) + 1e-320) + trial.params["y"])
    values = [trial.params["v"] for trial in study.trials]
    assert all(d.low <= value <= d.high for value in values)  # type: ignore[attr-defined]
    assert len(set(values)) >= (2 if case in ("next to nothing", "the least range") else 5)
    assert {type(value) for value in values} == {int if isinstance(d, IntDistribution) else float}


@pytest.mark.parametrize(
    "worst", [math.inf, -math.inf, 1e308, 0.0, 1e-300], ids=["inf", "-inf", "1e308", "0", "1e-300"]
)
def test_extreme_values(worst: float) -> None:
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=apq.APQSampler(seed=0, n_startup_trials=4)
    )

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", -5, 5)
        return worst if x > 2 or abs(worst) < 1 else x, x

    study.optimize(objective, n_trials=12)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (IntDistribution(10, 100, step=10), IntDistribution(20, 60, step=10),
         IntDistribution(10, 100, step=10)),
        (IntDistribution(0, 8, step=4), IntDistribution(2, 14, step=6),
         IntDistribution(0, 14, step=2)),
        (IntDistribution(1, 3), IntDistribution(1, 9), IntDistribution(1, 9)),
        (FloatDistribution(0, 1, step=0.25), FloatDistribution(0.5, 2, step=0.25),
         FloatDistribution(0, 2, step=0.25)),
        (FloatDistribution(0, 1, step=0.25), FloatDistribution(0.1, 0.6, step=0.25),
         FloatDistribution(0, 1)),
        (FloatDistribution(1, 2, log=True), FloatDistribution(1, 9), None),
        (FloatDistribution(1, 2), IntDistribution(1, 2), None),
    ],
)  # fmt: skip
def test_the_widest_range_keeps_the_steps_of_both(
    one: BaseDistribution, other: BaseDistribution, both: BaseDistribution | None
) -> None:
    from apq_optuna.sampler.history import widest

    assert widest(one, other) == widest(other, one) == both
