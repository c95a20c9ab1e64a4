"""What was stored before opens after: a small run made by version 0.1.0 before its rooms moved.

`fixtures/run-0.1.0.zip` is the run's folder: supernet, study, pairs, tables, a finished network.
`figures.json` and `figures.npz` are what that version computed, the latter for 1,000 genotypes of
each preset, drawn by `space.sample(1000, default_rng(7))`.
Bit-serial costs are of a later version, which counts a depthwise kernel's taps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray

import apq_optuna as apq
from apq_optuna.cli import main
from apq_optuna.data import ImageData
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.objective import genotype_seed
from apq_optuna.predictor import AccuracyPredictor, transferred
from apq_optuna.report import stored_baselines, stored_space, study_figures
from apq_optuna.sampler.surrogate import Surrogate
from apq_optuna.space import Coordinates, SearchSpace

FIXTURES = Path(__file__).parent / "fixtures"
FIGURES: dict[str, Any] = json.loads((FIXTURES / "figures.json").read_text())
ARRAYS: dict[str, NDArray[Any]] = dict(np.load(FIXTURES / "figures.npz"))


def digest(values: NDArray[Any] | str) -> str:
    data = values.encode() if isinstance(values, str) else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


# ---------------------------------------------------------------------- 1,000 genotypes a preset


@pytest.fixture(scope="module", params=["digits", "cifar10", "imagenet"])
def preset(request: pytest.FixtureRequest) -> tuple[str, SearchSpace, Genotypes]:
    space = SearchSpace.preset(request.param)
    return request.param, space, space.sample(1000, np.random.default_rng(7))


Preset = tuple[str, SearchSpace, Genotypes]


def test_hashes_names_and_features_are_the_same(preset: Preset) -> None:
    name, space, rows = preset
    expected = FIGURES["presets"][name]
    params = json.dumps([space.to_params(row) for row in rows[:50]], default=str)
    assert space.hash == expected["hash"]
    assert space.architecture_hash == expected["architecture_hash"]
    assert SearchSpace.preset(name, bits=(2, 8)).hash == expected["hash_of_bits_2_8"]
    assert digest("\n".join(space.distributions())) == expected["names"]
    assert digest(repr(space.distributions())) == expected["distributions"]
    assert digest(rows.astype(np.int32)) == expected["rows"]
    assert digest(space.features(rows)) == expected["features"]
    assert digest(params) == expected["params"]
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_networks_are_the_same(preset: Preset) -> None:
    name, space, rows = preset
    subnets = [space.decode(row) for row in rows]
    expected = FIGURES["presets"][name]
    layers = [
        f"{p.name} {p.layer} {p.w_bits} {p.a_bits}" for s in subnets[:200] for p in s.layers()
    ]
    assert digest("\n".join(layers)) == expected["layers"]
    assert [genotype_seed(subnet) for subnet in subnets[:3]] == expected["seeds"]
    for measure in ("macs", "bitops", "weight_bytes"):
        found = [getattr(subnet, measure) for subnet in subnets]
        np.testing.assert_array_equal(found, ARRAYS[f"{name}_{measure}"])


def test_prices_are_the_same(preset: Preset) -> None:
    name, space, rows = preset
    hardware = apq.hardware
    small = hardware.bitfusion_small() if name == "digits" else hardware.bitfusion()
    tables = [small.table(space), hardware.bitserial().table(space)]
    expected = FIGURES["presets"][name]
    assert [x for t in tables for x in (len(t.entries), t.digest)] == expected["table"]
    compiled = [table.compile(space) for table in tables]
    costs = np.column_stack([each(rows) for each in compiled])
    np.testing.assert_allclose(costs, ARRAYS[f"{name}_costs"], rtol=1e-12)
    for bound in ("minima", "maxima"):
        found = np.concatenate([getattr(each, bound) for each in compiled])
        np.testing.assert_allclose(found, expected[bound], rtol=1e-12)


def test_predictions_are_the_same(preset: Preset) -> None:
    name, space, rows = preset
    coordinates = Coordinates(space)
    points = coordinates(rows)
    np.testing.assert_allclose(coordinates.noise(rows), ARRAYS[f"{name}_noise"], atol=1e-7)
    found = [points.sum(), (points**2).sum()]
    np.testing.assert_allclose(found, ARRAYS[f"{name}_coordinates"], rtol=1e-9)
    predictor = AccuracyPredictor(space.num_features, space.architecture_features, seed=3)
    predicted = predictor.predict(space.features(rows))[0]
    np.testing.assert_allclose(predicted, ARRAYS[f"{name}_predicted"], rtol=1e-4, atol=1e-5)
    values = np.random.default_rng(1).random(30) * 0.2 + 0.5
    process = []
    for fp32 in (None, transferred(predictor).scorer(space)):
        surrogate = Surrogate(space, fp32=fp32, maximise=True).refresh(rows[:30], values)
        # the joint process, which was all there was; with main effects it is averaged now
        model = surrogate.alone
        accuracies = model._fp32(rows)
        mean, std = model.gp.joint.predict(model._columns(rows, accuracies)[0])
        process += [mean if model.trend is None else mean + model.trend(rows, accuracies), std]
    # scales are found by a search, which another processor's rounding may end a little elsewhere
    np.testing.assert_allclose(np.column_stack(process), ARRAYS[f"{name}_process"], atol=2e-3)


# ---------------------------------------------------------------------- the run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.unpack_archive(FIXTURES / "run-0.1.0.zip", tmp_path / "old")
    return tmp_path / "old"


OLD = FIGURES["run"]


def test_the_supernet_and_its_pairs_open(run: Path, digits: ImageData) -> None:
    net = apq.OnceForAllNet.load(run)
    assert net.weights_hash == OLD["weights_hash"] and digits.split_hash == OLD["split_hash"]
    store = apq.PairStore(f"sqlite:///{run}/apq.db", supernet=net)
    pairs = store.load()
    assert store.protocol == OLD["protocol"]
    assert digest(pairs.genotypes) == OLD["pairs_digest"]
    assert pairs.accuracies.tolist() == OLD["accuracies"]
    # and a longer collection goes on with them: the first are found to be there
    assert apq.collect_pairs(net, digits, store, OLD["pairs"]) == 0


def test_the_study_opens_and_goes_on(run: Path, digits: ImageData) -> None:
    url = f"sqlite:///{run}/apq.db"
    study = optuna.load_study(study_name="search", storage=apq.open_storage(url))
    found = [
        {
            "number": t.number,
            "values": t.values,
            "user_attrs": t.user_attrs,
            "params": len(t.params),
        }
        for t in study.get_trials()
    ]
    assert found == OLD["trials"]
    net = apq.OnceForAllNet.load(run)
    assert stored_space(study) == net.space
    assert [b["name"] for b in stored_baselines(study)] == ["W8A8", "W6A6", "W4A4"]
    assert {"pareto-front", "front-networks", "network"} <= study_figures(study).keys()
    costs = CostTable.load(run / "small.json")
    options = apq.FinetuneOptions(steps=3)
    objective = apq.Objective(net, digits, costs, finetune=options)
    objective.check_study(study)  # the same conditions
    first = study.trials[1]
    value, _ = objective.measure(net.space.decode(net.space.from_params(first.params)))
    assert value == pytest.approx(first.values[0], abs=0.02)  # seeded by the network
    store = apq.PairStore(url, supernet=net)
    study.sampler = apq.APQSampler(net.space, costs=costs, source=store, seed=0)
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].number == len(OLD["trials"]) and study.trials[-1].values is not None


def test_tables_of_both_kinds_open(run: Path) -> None:
    assert CostTable.load(run / "small.json").digest == OLD["json_table"]
    assert CostTable.load(run / "serial.csv").digest == OLD["csv_table"]


def test_the_finished_network_opens(run: Path, digits: ImageData) -> None:
    network = apq.load_network(run / "finished-1")
    images, _ = next(iter(digits.evaluation_batches(digits.test, 8)))
    np.testing.assert_allclose(network(images).detach().numpy(), OLD["logits"], atol=1e-3)
    assert network.about["accuracy"] == OLD["finished_accuracy"]
    assert network.about["costs"] == OLD["finished_costs"]


def test_the_front_on_another_device_is_the_same(run: Path) -> None:
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{run}/apq.db")
    space = apq.OnceForAllNet.load(run).space
    table = CostTable.load(run / "serial.csv")
    front = apq.predicted_front(study, space, table, size=20, generations=5)
    accuracy, costs = OLD["front"]
    assert front.accuracy.max() == pytest.approx(max(accuracy), abs=0.02)
    assert front.costs.min() == pytest.approx(np.min(costs), rel=0.05)


def test_the_command_line_goes_on_with_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["report", "--run", "old"]) == 0
    assert main(["search", "--run", "old", "--predict-only", "--hardware", "old/serial.csv"]) == 0
    assert "predicted front on bitserial" in capsys.readouterr().out
