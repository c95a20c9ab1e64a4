"""How much a source, and a narrow beginning, decide."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution

import apq_optuna as apq
from apq_optuna.sampler.surrogate import FEWEST_TO_JUDGE, Surrogate
from apq_optuna.sampler.trends import Earlier
from apq_optuna.space import SearchSpace

SPACE = SearchSpace.from_distributions({f"x{i}": FloatDistribution(0, 1) for i in range(4)})


def slope(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows[:, 0] / SPACE.sizes[0] * 3.0 + np.sin(rows[:, 1] / 9.0))


def wave(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.cos(rows[:, 2] / 5.0) * np.cos(rows[:, 3] / 4.0))


def informed_by(earlier: np.ndarray, rows: np.ndarray) -> Surrogate:
    return Surrogate(SPACE, earlier=[Earlier(SPACE, rows, earlier)])


def test_a_source_is_believed_then_averaged_and_one_that_misleads_is_dropped() -> None:
    rng = np.random.default_rng(0)
    theirs, mine, asked = (SPACE.sample(n, rng) for n in (80, 40, 50))
    related = informed_by(10.0 * slope(theirs), theirs)
    assert related.informed is not None and related.trust == 1.0
    first = related.refresh(mine[: FEWEST_TO_JUDGE - 1], slope(mine[: FEWEST_TO_JUDGE - 1]))
    assert first.trust == 1.0
    np.testing.assert_array_equal(first.predict(asked), related.informed.predict(asked))
    related.refresh(mine, slope(mine))
    assert related.trust == 0.5
    mean, std = related.predict(asked)
    (one, its), (other, other_its) = related.informed.predict(asked), related.alone.predict(asked)
    np.testing.assert_allclose(mean, (one + other) / 2)
    np.testing.assert_allclose(std**2, (its**2 + other_its**2) / 2 + (one - other) ** 2 / 4)
    misleading = informed_by(wave(theirs), theirs)
    assert misleading.refresh(mine, slope(mine)).trust < 0.5


@pytest.mark.parametrize("known", [True, False])
def test_a_study_that_began_in_a_corner_leaves_it(known: bool) -> None:
    """Its front spans little; what is known or expected of the rest says that there is more."""

    def costs(params: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(params["x"] + 0.1 * params["y"])

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = (trial.suggest_float(name, 0, 1) for name in "xy")
        return 1.0 - x + y**2, x + 0.1 * y

    source = None
    if not known:
        source = optuna.create_study(
            directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0)
        )
        source.optimize(objective, n_trials=60)
    sampler = apq.APQSampler(
        known={1: costs} if known else None, source=source, n_startup_trials=3, seed=0
    )
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    for i in range(3):
        study.enqueue_trial({"x": 0.01 * i, "y": 0.02 * i})
    study.optimize(objective, n_trials=14)
    assert max(trial.params["x"] for trial in study.trials[3:]) > 0.8


@pytest.mark.parametrize("known", [True, False])
def test_some_of_the_first_trials_fill_the_space_and_few_of_a_batch(known: bool) -> None:
    """What fills the space was not predicted; the very first is drawn, as nothing is known."""

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        x, y = (trial.suggest_float(name, 0, 1) for name in "xy")
        return ((x - y) ** 2, x) if known else ((x - y) ** 2,)

    def filled(study: optuna.Study) -> list[int]:
        return [t.number for t in study.trials if "apq:predicted" not in t.system_attrs]

    def fresh() -> optuna.Study:
        sampler = apq.APQSampler(known={1: lambda p: p["x"]} if known else None, seed=0)
        return optuna.create_study(directions=["minimize"] * (1 + known), sampler=sampler)

    study = fresh()
    study.optimize(objective, n_trials=30)
    assert filled(study) == ([0, 1] if known else [0, 1, 2, 3]) + [4, 8, 12, 16, 20]
    study = fresh()
    study.optimize(objective, n_trials=4)
    for _ in range(3):
        batch = [study.ask() for _ in range(8)]
        values = [objective(trial) for trial in batch]  # sampled one by one, told together
        for trial, value in zip(batch, values, strict=True):
            study.tell(trial, value)
    assert [n for n in filled(study) if n >= 4] == [4, 8, 12, 16, 20]


def test_what_is_running_is_believed_without_being_learned() -> None:
    rng = np.random.default_rng(0)
    theirs, mine, running = (SPACE.sample(n, rng) for n in (60, 30, 3))
    for model in (Surrogate(SPACE), informed_by(slope(theirs), theirs)):
        model.refresh(mine, slope(mine))
        before = model.predict(running)
        sure = model.believing(running)
        mean, std = sure.predict(running)
        np.testing.assert_allclose(mean, before[0], atol=0.05)
        assert (std < 0.5 * before[1]).all()
        np.testing.assert_array_equal(model.predict(running), before)
        assert model.believing(running[:0]) is model


def test_a_batch_with_nothing_feasible_yet_looks_in_several_places() -> None:
    """Nothing feasible is known, and the model is wrong of where it would be."""

    def told(trial: optuna.trial.FrozenTrial) -> list[float]:
        return [(trial.params["x"] - 0.8) ** 2 + (trial.params["y"] - 0.2) ** 2 - 0.01]

    spread = []
    for seed in range(3):
        sampler = apq.APQSampler(constraints_func=told, n_startup_trials=4, seed=seed)
        study = optuna.create_study(sampler=sampler)
        for x, y in [(0.1, 0.9), (0.2, 0.8), (0.15, 0.6), (0.3, 0.95), (0.05, 0.7)]:
            study.enqueue_trial({"x": x, "y": y})
        study.optimize(
            lambda t: t.suggest_float("x", 0, 1) + t.suggest_float("y", 0, 1), n_trials=5
        )
        batch = [study.ask() for _ in range(8)]
        points = np.array([[t.suggest_float(n, 0, 1) for n in "xy"] for t in batch])
        apart = np.abs(points[:, None] - points[None]).max(axis=2)
        spread.append(np.median(apart[np.triu_indices(8, 1)]))
    assert min(spread) > 0.3
