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
