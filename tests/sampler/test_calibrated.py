"""What the sampler makes of quantized pairs that are calibrated and not finetuned."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import apq_optuna as apq
from apq_optuna.hardware import CostTable
from apq_optuna.pairs import PairStore
from apq_optuna.predictor import pairwise_accuracy
from apq_optuna.sampler.sources import FEWEST_QUANTIZED, surrogate_of
from apq_optuna.sampler.surrogate import Surrogate
from apq_optuna.sampler.trends import Earlier, remembered
from apq_optuna.space import Coordinates
from apq_optuna.supernet import OnceForAllNet

from .helpers import SPACE, Measured, new_study, rows

COORDINATES = Coordinates(SPACE)
BITS = np.array([SPACE.decisions[group].quantization for group in COORDINATES.groups])
WEIGHT = np.random.default_rng(5).exponential(1.0, BITS.sum()) ** 2
HELD = SPACE.sample(200, np.random.default_rng(9))


def bits_cost(genotypes: np.ndarray) -> np.ndarray:
    """What bits cost a made-up network, `(n,)` in [0, 1]: in some layers far more than in others,
    which the mean noise of a policy does not tell."""
    cost = COORDINATES(genotypes)[:, BITS] @ WEIGHT
    return np.asarray(1.0 - np.exp(-cost / WEIGHT.sum() * 2.0))


def finetuned(genotypes: np.ndarray) -> np.ndarray:
    return 0.95 - 0.1 * bits_cost(genotypes)


def calibrated(n: int) -> Earlier:
    genotypes = SPACE.sample(n, np.random.default_rng(1))
    return Earlier(SPACE, genotypes, 0.95 - 0.8 * bits_cost(genotypes))


def fp32(genotypes: np.ndarray) -> np.ndarray:
    return np.full(len(genotypes), 0.95)


def filled(url: str, supernet: OnceForAllNet, quantized: int) -> PairStore:
    store = PairStore(url, supernet=supernet)
    genotypes = SPACE.sample(60, np.random.default_rng(0))
    store.add(genotypes, np.random.default_rng(1).uniform(0.94, 0.96, 60))
    if quantized:
        rows = calibrated(quantized)
        store.quantized().add(rows.genotypes, rows.values)
    return store


def orders(model: Surrogate) -> float:
    return pairwise_accuracy(finetuned(HELD), model.predict(HELD)[0])


def test_too_few_are_as_none(url: str, supernet: OnceForAllNet) -> None:
    found = []
    for more in (0, FEWEST_QUANTIZED - 1):
        store = filled(url, supernet, more)
        model = surrogate_of(SPACE, [store], name="accuracy", index=0, maximise=True)
        seen = HELD[:30]
        found.append(model.refresh(seen, finetuned(seen)).predict(HELD))
    np.testing.assert_array_equal(*found)
    enough = filled(url, supernet, FEWEST_QUANTIZED)
    model = surrogate_of(SPACE, [enough], name="accuracy", index=0, maximise=True)
    assert (model.predict(HELD)[0] != found[0][0]).any()


def test_without_an_fp32_predictor_they_are_not_used() -> None:
    seen = HELD[:20]
    plain = Surrogate(SPACE, maximise=True).refresh(seen, finetuned(seen))
    other = Surrogate(SPACE, calibrated=calibrated(60), maximise=True)
    other.refresh(seen, finetuned(seen))
    np.testing.assert_array_equal(plain.predict(HELD), other.predict(HELD))


@pytest.mark.parametrize("trials", [0, 5, 20])
def test_they_order_what_no_trial_has_told_of(trials: int) -> None:
    seen = SPACE.sample(trials, np.random.default_rng(2))
    plain = Surrogate(SPACE, fp32=fp32, maximise=True)
    told = Surrogate(SPACE, fp32=fp32, calibrated=calibrated(150), maximise=True)
    for model in (plain, told):
        model.refresh(seen, finetuned(seen))
    assert orders(told) > max(orders(plain) + 0.05, 0.75)
    mean, std = told.predict(HELD)
    assert abs(mean.mean() - finetuned(HELD).mean()) < 0.05 and (std > 0).all()


def test_trials_overrule_pairs_that_mislead() -> None:
    pairs = calibrated(150)
    shuffled = np.random.default_rng(0).permutation(pairs.values)
    misled = Surrogate(
        SPACE, fp32=fp32, calibrated=Earlier(SPACE, pairs.genotypes, shuffled), maximise=True
    )
    plain = Surrogate(SPACE, fp32=fp32, maximise=True)
    seen = SPACE.sample(100, np.random.default_rng(2))
    for model in (misled, plain):
        model.refresh(seen, finetuned(seen))
    assert orders(misled) > orders(plain) - 0.05


def test_beside_an_earlier_study_and_believing() -> None:
    earlier = SPACE.sample(40, np.random.default_rng(3))
    study = Earlier(SPACE, earlier, finetuned(earlier) - 0.3)
    model = Surrogate(SPACE, fp32=fp32, calibrated=calibrated(100), earlier=[study], maximise=True)
    seen = SPACE.sample(10, np.random.default_rng(2))
    model.refresh(seen, finetuned(seen))
    assert orders(model) > 0.75
    before = model.predict(HELD)
    believing = model.believing(HELD[:3])
    assert (believing.predict(HELD[:3])[1] < before[1][:3]).all()
    np.testing.assert_array_equal(model.predict(HELD), before)  # the first is as it was


def test_a_remembered_trend_is_asked_once_and_not_for_other_rows() -> None:
    asked = []

    def noise(genotypes: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        asked.append(len(genotypes))
        return COORDINATES.noise(genotypes).sum(1)

    trend = remembered(noise)
    for part in (HELD, HELD, HELD[:5], HELD):
        np.testing.assert_array_equal(trend(part, None), COORDINATES.noise(part).sum(1))
    assert asked == [200, 5, 200]


def test_a_sampler_learns_from_them(
    digits_costs: CostTable, supernet: OnceForAllNet, url: str
) -> None:
    store = filled(url, supernet, 60)
    sampler = apq.APQSampler(SPACE, costs=digits_costs, source=store, seed=0)
    study = new_study(pickle.loads(pickle.dumps(sampler)), url)
    study.optimize(Measured(digits_costs), n_trials=8)
    assert len(set(rows(study))) == 8
    predicted = [trial.system_attrs.get("apq:predicted") for trial in study.trials]
    assert all(mean > 0 and std > 0 for mean, std in predicted)
