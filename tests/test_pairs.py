"""Pairs: a table beside Optuna's, collected without training and resumed after a stop."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy

import apq_optuna as apq
from apq_optuna.collect import architectures
from apq_optuna.data import ImageData
from apq_optuna.errors import InvalidArgumentError, PairError
from apq_optuna.pairs import PairStore
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet


@pytest.fixture
def store(url: str, supernet: OnceForAllNet) -> PairStore:
    return PairStore(url, supernet=supernet)


def rows_of(store: PairStore, n: int) -> np.ndarray:
    return store.space.sample(n, np.random.default_rng(0))


@pytest.mark.parametrize("database", ["url", "postgresql"])
def test_pairs_come_back(
    database: str, supernet: OnceForAllNet, request: pytest.FixtureRequest
) -> None:
    store = PairStore(request.getfixturevalue(database), supernet=supernet)
    rows = store.space.extreme(largest=True)
    store.add(rows, np.array([0.5]))
    store.add(np.concatenate([rows, store.space.extreme(largest=False)]), np.array([0.9, 0.25]))
    pairs = store.load()
    assert sorted(pairs.accuracies) == [0.25, 0.5]  # what is there stays
    columns = [not d.quantization for d in store.space.decisions]
    assert (pairs.genotypes[pairs.accuracies == 0.5][:, columns] == rows[:, columns]).all()
    assert len(store) == 2
    assert list(store.missing(rows)) == [False]


def test_bits_are_not_part_of_a_pair(store: PairStore) -> None:
    store.add(store.space.extreme(largest=True, bits=8), np.array([0.5]))
    assert not store.missing(store.space.extreme(largest=True, bits=2)).any()
    features = store.features(store.space, store.load())
    assert not features[:, store.space.architecture_features :].any()


def test_pairs_serve_a_space_of_other_bits(store: PairStore) -> None:
    store.add(rows_of(store, 30), np.random.default_rng(1).random(30))
    other = SearchSpace.preset("digits", bits=(4, 8))
    assert store.features(other, store.load()).shape[1] == other.num_features


def test_they_share_a_database_with_a_study(url: str, store: PairStore) -> None:
    study = optuna.create_study(storage=apq.open_storage(url))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    store.add(rows_of(store, 3), np.full(3, 0.5))
    assert len(store) == 3
    assert len(optuna.load_study(study_name=study.study_name, storage=url).trials) == 2


def test_the_predictor_is_fitted_once(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(rows_of(store, 40), np.random.default_rng(1).random(40))
    pairs = store.load()
    first = store.fp32_predictor(store.space, pairs, epochs=2)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("fitted twice")

    monkeypatch.setattr(apq.AccuracyPredictor, "fit", refuse)
    features = store.features(store.space, pairs)
    again = store.fp32_predictor(store.space, pairs, epochs=2)
    np.testing.assert_array_equal(first.predict(features), again.predict(features))


def test_a_cached_predictor_gives_way_to_one_of_more_pairs(store: PairStore, url: str) -> None:
    store.add(rows_of(store, 40), np.random.default_rng(1).random(40))
    predictor = store.fp32_predictor(store.space, store.load(), epochs=1)
    store.add(rows_of(store, 60)[40:], np.random.default_rng(1).random(20))
    store.fp32_predictor(store.space, store.load(), epochs=1)
    with sqlalchemy.create_engine(url).connect() as connection:
        kept = connection.execute(sqlalchemy.text("select pairs, packed from apq_predictors"))
        ((pairs, packed),) = kept.all()
    assert pairs == len(store)
    assert len(packed) < 0.51 * len(predictor.to_bytes())


def test_export_and_import(store: PairStore, supernet: OnceForAllNet, tmp_path: Path) -> None:
    store.add(rows_of(store, 20), np.linspace(0, 1, 20))
    path = store.export_npz(tmp_path / "pairs.npz")
    other = PairStore(f"sqlite:///{tmp_path}/other.db", supernet=supernet)
    count = other.import_npz(path)
    assert count == len(store)
    np.testing.assert_array_equal(other.load().genotypes, store.load().genotypes)
    np.testing.assert_array_equal(other.load().accuracies, store.load().accuracies)


def test_pairs_of_another_supernet_are_refused(
    store: PairStore, run_folder: Path, tmp_path: Path, url: str
) -> None:
    store.add(rows_of(store, 5), np.full(5, 0.5))
    path = store.export_npz(tmp_path / "pairs.npz")
    other = OnceForAllNet.load(run_folder)
    other.classifier.bias.data += 1.0
    elsewhere = PairStore(url, supernet=other)
    with pytest.raises(PairError, match=f"holds pairs of supernet {store.supernet}, not of"):
        elsewhere.import_npz(path)
    assert len(elsewhere) == 0
    assert len(store) == 5
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PairError, match="is not a file of pairs"):
        store.import_npz(path)
    np.savez(tmp_path / "pickled.npz", format=np.array([object()], dtype=object))
    with pytest.raises(PairError, match="is not a file of pairs"):
        store.import_npz(tmp_path / "pickled.npz")
    with pytest.raises(PairError, match="over another search space"):
        apq.APQSampler(SearchSpace.preset("cifar10"), source=store)


def test_bad_accuracies_are_refused(store: PairStore) -> None:
    with pytest.raises(PairError, match=r"must lie in \[0, 1\]"):
        store.add(rows_of(store, 1), np.array([1.5]))
    with pytest.raises(PairError, match="genotypes have shape"):
        store.add(rows_of(store, 2), np.array([0.5]))
    assert len(store) == 0


def test_a_store_survives_pickling(store: PairStore) -> None:
    store.add(rows_of(store, 2), np.full(2, 0.5))
    assert len(pickle.loads(pickle.dumps(store))) == 2


@pytest.mark.parametrize(
    ("name", "pairs", "range_of"),
    [
        ("cifar10", 1103, (0.82, 0.93)),
        ("cifar10-4", 2000, (0.78, 0.9)),
        ("cifar10-3", 2000, (0.75, 0.87)),
        ("cifar10-2", 969, (0.7, 0.85)),
        ("cifar10-1", 1050, (0.6, 0.8)),
    ],
)
def test_the_packages_supernets_and_pairs_belong_together(
    url: str, name: str, pairs: int, range_of: tuple[float, float]
) -> None:
    from apq_optuna.supernet.checkpoint import PRETRAINED

    supernet = OnceForAllNet.load(name)
    assert supernet.space == SearchSpace.preset("cifar10")
    store = PairStore(url, supernet=supernet)
    assert store.import_npz(PRETRAINED / name / "pairs.npz") == len(store) == pairs
    accuracies = store.load().accuracies
    assert range_of[0] < accuracies.min() < accuracies.max() < range_of[1]
    size = sum(path.stat().st_size for path in (PRETRAINED / name).iterdir())
    assert size < 8e6


# ---------------------------------------------------------------------- collecting


def test_a_longer_sequence_begins_with_the_shorter_one(supernet: OnceForAllNet) -> None:
    few, many = (architectures(supernet, n, seed=3) for n in (10, 25))
    np.testing.assert_array_equal(many[:10], few)
    assert len(np.unique(many, axis=0)) == 25
    space = supernet.space
    assert space.decode(few[0]).depths == (2, 2, 2)
    assert space.decode(few[1]).depths == (1, 1, 1)


def test_a_stopped_collection_goes_on(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore
) -> None:
    def stop(done: int, value: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apq.collect_pairs(supernet, digits, store, 6, images=64, report=stop)
    assert len(store) == 3  # what was measured is kept
    assert apq.collect_pairs(supernet, digits, store, 6, images=64) == 3
    assert apq.collect_pairs(supernet, digits, store, 6, images=64) == 0
    assert len(store) == 6


def test_processes_measure_what_one_does(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore, tmp_path: Path
) -> None:
    other = PairStore(f"sqlite:///{tmp_path}/other.db", supernet=supernet)
    apq.collect_pairs(supernet, digits, store, 6)
    apq.collect_pairs(supernet, digits, other, 6, workers=2)
    np.testing.assert_array_equal(store.load().genotypes, other.load().genotypes)
    np.testing.assert_allclose(store.load().accuracies, other.load().accuracies, atol=0.01)


def test_pairs_of_different_numbers_of_images_are_not_mixed(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore
) -> None:
    apq.collect_pairs(supernet, digits, store, 2, images=64)
    with pytest.raises(PairError, match=r"measured with 64 images, 512 .* not with all images"):
        apq.collect_pairs(supernet, digits, store, 4)
    assert len(store) == 2


def test_workers_end_with_their_parent(run_folder: Path, tmp_path: Path) -> None:
    code = textwrap.dedent(f"""
        import apq_optuna as apq, multiprocessing, os, signal
        if __name__ == "__main__":
            net = apq.OnceForAllNet.load({str(run_folder)!r})
            store = apq.PairStore("sqlite:///{tmp_path}/p.db", supernet=net)
            def kill(done, value):
                print(*[p.pid for p in multiprocessing.active_children()], flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            apq.collect_pairs(net, apq.load_data("digits"), store, 40, workers=2, report=kill)
    """)
    script = tmp_path / "collect.py"
    script.write_text(code)
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    pids = [int(word) for word in result.stdout.split()]
    assert len(pids) == 2
    for _ in range(100):
        alive = [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists()
                 and b"spawn" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"workers {alive} outlive their parent")


def test_bad_counts_are_named(
    supernet: OnceForAllNet, digits: ImageData, store: PairStore
) -> None:
    with pytest.raises(InvalidArgumentError, match="n=0, workers=1: both must be at least 1"):
        apq.collect_pairs(supernet, digits, store, 0)
