"""A joint Gaussian process averaged with one that has main effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad

from apq_optuna.predictor import AveragedProcess, GaussianProcess

D = 8
GROUPS = np.repeat(np.arange(D), 2)


def features(x: np.ndarray) -> np.ndarray:
    """A linear and a quadratic one of each column, `(n, 2 D)`."""
    centred = 2.0 * x - 1.0
    both = np.stack([centred * 3**0.5, (centred**2 - 1 / 3) * 45**0.5 / 2], axis=2)
    return both.reshape(len(x), 2 * x.shape[1]) / (2 * D) ** 0.5


def fitted(x: np.ndarray, y: np.ndarray, groups: np.ndarray = GROUPS) -> AveragedProcess:
    return AveragedProcess(GaussianProcess([np.arange(D)]), groups).fit(x, features(x), y)


def test_the_gradient_is_the_slope() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((15, D))
    y = x @ rng.normal(size=D) + np.sin(5 * x[:, 0] * x[:, 1])
    model = fitted(x, y)
    kernel, u = model.joint.kernel(x, x), (y - y.mean()) / y.std()
    for _ in range(3):
        at = model.scales + rng.normal(0, 0.5, len(model.scales))
        apart = check_grad(
            lambda s: model._loss(s, kernel, u)[0], lambda s: model._loss(s, kernel, u)[1], at
        )
        assert apart < 1e-4


def test_a_sum_of_effects_is_learned_from_few_rows() -> None:
    """Where decisions act by themselves, the average errs less than the joint process alone."""
    ratios = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        weights = rng.uniform(0.5, 1.0, D)
        x, new = rng.random((24, D)), rng.random((200, D))
        model = fitted(x, (2.0 * x - 1.0) ** 2 @ weights)
        truth = (2.0 * new - 1.0) ** 2 @ weights
        both, _ = model.predict(new, features(new))
        alone, _ = model.joint.predict(new)
        ratios.append(np.square(both - truth).mean() / np.square(alone - truth).mean())
    assert np.median(ratios) < 0.8


def test_where_the_two_differ_the_spread_is_larger() -> None:
    rng = np.random.default_rng(3)
    x, new = rng.random((20, D)), rng.random((50, D))
    model = fitted(x, np.prod(x[:, :3] + 0.2, axis=1))
    mean, std = model.predict(new, features(new))
    joint_mean, joint_std = model.joint.predict(new)
    other = 2.0 * mean - joint_mean
    assert (std**2 >= 0.5 * joint_std**2 + 0.25 * (other - joint_mean) ** 2 - 1e-9).all()


def test_rows_that_were_seen_are_met() -> None:
    rng = np.random.default_rng(4)
    x = rng.random((30, D))
    y = x.sum(axis=1)
    mean, std = fitted(x, y).predict(x, features(x))
    np.testing.assert_allclose(mean, y, atol=0.1 * y.std())
    assert (std < 0.3 * y.std()).all()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_next_to_no_rows(n: int) -> None:
    x = np.random.default_rng(5).random((n, D))
    mean, std = fitted(x, np.arange(n, dtype=float)).predict(
        np.full((3, D), 0.5), features(np.full((3, D), 0.5))
    )
    assert np.isfinite(mean).all() and (std > 0).all()


def test_without_features_it_is_the_joint_process() -> None:
    rng = np.random.default_rng(6)
    x, new = rng.random((12, D)), rng.random((5, D))
    model = AveragedProcess(GaussianProcess([np.arange(D)]), GROUPS[:0])
    model.fit(x, np.zeros((12, 0)), x[:, 0])
    for found, own in zip(
        model.predict(new, np.zeros((5, 0))), model.joint.predict(new), strict=True
    ):
        np.testing.assert_array_equal(found, own)
    assert model.evidence == model.joint.evidence and model.noise == model.joint.noise


def test_evidence_is_in_the_targets_own_units() -> None:
    rng = np.random.default_rng(7)
    x = rng.random((20, D))
    y = x @ rng.normal(size=D)
    apart = fitted(x, y).evidence - fitted(x, 10.0 * y).evidence
    assert apart == pytest.approx(20 * np.log(10.0), rel=1e-3)
