"""Quantized pairs: a table of their own, collected without finetuning and resumed after a stop."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy

import apq_optuna as apq
from apq_optuna.collect import quantized_networks
from apq_optuna.data import ImageData
from apq_optuna.errors import InvalidArgumentError, PairError
from apq_optuna.pairs import PairStore
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet


@pytest.fixture
def store(url: str, supernet: OnceForAllNet) -> PairStore:
    return PairStore(url, supernet=supernet)


@pytest.mark.parametrize("database", ["url", "postgresql"])
def test_quantized_pairs_come_back(
    database: str, supernet: OnceForAllNet, request: pytest.FixtureRequest
) -> None:
    store = PairStore(request.getfixturevalue(database), supernet=supernet)
    fp32 = len(store)
    wide, narrow = (store.space.extreme(largest=True, bits=bits) for bits in (8, 2))
    pairs = store.quantized()
    pairs.add(wide, np.array([0.5]))
    pairs.add(np.concatenate([wide, narrow]), np.array([0.9, 0.25]))
    found = store.quantized().load()
    assert sorted(found.accuracies) == [0.25, 0.5]  # what is there stays
    np.testing.assert_array_equal(found.genotypes[found.accuracies == 0.5], wide)
    np.testing.assert_array_equal(found.genotypes[found.accuracies == 0.25], narrow)
    assert len(pairs) == 2
    middle = store.space.extreme(largest=True, bits=4)
    assert list(pairs.missing(np.concatenate([wide, middle]))) == [False, True]
    assert len(store) == fp32


def test_a_database_without_them_is_left_as_it_is(store: PairStore, url: str) -> None:
    pairs = store.quantized()
    assert len(pairs) == 0 and pairs.protocol is None
    assert pairs.load().genotypes.shape == (0, len(store.space.decisions))
    assert pairs.missing(store.space.extreme(largest=True)).all()
    tables = sqlalchemy.inspect(sqlalchemy.create_engine(url)).get_table_names()
    assert not [name for name in tables if "quantized" in name]
    other = store.quantized()
    other.add(store.space.extreme(largest=True), np.array([0.5]))
    assert len(pairs) == 1  # one that found no table looks again


def test_spaces_of_other_bits_have_their_own(store: PairStore) -> None:
    store.quantized().add(store.space.extreme(largest=True), np.array([0.5]))
    other = SearchSpace.preset("digits", bits=(4, 8))
    assert len(store.quantized(other)) == 0
    store.quantized(other).add(other.extreme(largest=True), np.array([0.25]))
    assert store.quantized().load().accuracies.tolist() == [0.5]
    with pytest.raises(PairError, match="over another search space"):
        store.quantized(SearchSpace.preset("cifar10"))


def test_they_survive_pickling(store: PairStore) -> None:
    pairs = store.quantized()
    pairs.add(store.space.extreme(largest=True), np.array([0.5]))
    assert len(pickle.loads(pickle.dumps(pairs))) == 1


# ---------------------------------------------------------------------- collecting


def test_uniform_widths_come_first(supernet: OnceForAllNet) -> None:
    space = supernet.space
    few, many = (quantized_networks(space, n, seed=3) for n in (12, 40))
    np.testing.assert_array_equal(many[:12], few)
    assert len(np.unique(many, axis=0)) == 40
    for place, bits in enumerate((8, 6, 4, 2)):
        np.testing.assert_array_equal(few[2 * place], space.extreme(largest=True, bits=bits)[0])
        smallest = space.extreme(largest=False, bits=bits)[0]
        np.testing.assert_array_equal(few[2 * place + 1], smallest)
    other = quantized_networks(space, 40, seed=4)
    np.testing.assert_array_equal(other[:8], many[:8])
    assert (other[8:] != many[8:]).any()


def test_at_8_bits_calibration_loses_next_to_nothing(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore
) -> None:
    apq.collect_pairs(supernet, digits, store, 2)
    assert apq.collect_quantized_pairs(supernet, digits, store, 8) == 8
    space, fp32, pairs = store.space, store.load(), store.quantized().load()
    assert len(pairs) == 8 and len(store) == 2

    def accuracy(bits: int) -> float:
        row = space.extreme(largest=True, bits=bits)
        return float(pairs.accuracies[(pairs.genotypes == row).all(axis=1)][0])

    plain = space.extreme(largest=True, bits=2)
    largest = float(fp32.accuracies[(fp32.genotypes == plain).all(axis=1)][0])
    assert accuracy(8) == pytest.approx(largest, abs=0.02)
    assert accuracy(2) < accuracy(8) - 0.2


def test_a_stopped_collection_goes_on(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore
) -> None:
    def stop(done: int, value: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apq.collect_quantized_pairs(supernet, digits, store, 6, images=64, report=stop)
    assert len(store.quantized()) == 3  # what was measured is kept
    assert apq.collect_quantized_pairs(supernet, digits, store, 6, images=64) == 3
    assert apq.collect_quantized_pairs(supernet, digits, store, 6, images=64) == 0
    assert len(store.quantized()) == 6
    assert len(store) == 0
    with pytest.raises(PairError, match=r"measured with 64 images, 512 .* not with all images"):
        apq.collect_quantized_pairs(supernet, digits, store, 7)
    assert apq.collect_pairs(supernet, digits, store, 1) == 1  # fp32 pairs agree for themselves


def test_processes_measure_what_one_does(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore, tmp_path: Path
) -> None:
    other = PairStore(f"sqlite:///{tmp_path}/other.db", supernet=supernet)
    apq.collect_quantized_pairs(supernet, digits, store, 6)
    apq.collect_quantized_pairs(supernet, digits, other, 6, workers=2)
    one, two = store.quantized().load(), other.quantized().load()
    np.testing.assert_array_equal(one.genotypes, two.genotypes)
    np.testing.assert_allclose(one.accuracies, two.accuracies, atol=0.05)


def test_a_network_that_calibration_breaks_is_not_stored(
    supernet: OnceForAllNet, digits: ImageData, url: str
) -> None:
    supernet.classifier.weight.data[0] = float("nan")
    store = PairStore(url, supernet=supernet)
    told = []
    count = apq.collect_quantized_pairs(
        supernet, digits, store, 2, images=64, report=lambda done, value: told.append(value)
    )
    assert count == 2 and np.isnan(told).all()
    assert len(store.quantized()) == 0


def test_bad_counts_are_named(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore
) -> None:
    with pytest.raises(InvalidArgumentError, match="n=0, workers=1: both must be at least 1"):
        apq.collect_quantized_pairs(supernet, digits, store, 0)
