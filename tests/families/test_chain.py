"""The family protocol, proven by a family that the package does not know."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import CostTableError, MissingCostError, SpaceError
from apq_optuna.hardware import CostTable, check_table
from apq_optuna.hardware.entries import needed_entries
from apq_optuna.hardware.tables import terms as terms_module
from apq_optuna.hardware.tables.compare import compare_tables, layer_costs, telling_layer
from apq_optuna.networks import Decision, Site, Width
from apq_optuna.report import network_plots, stored_space, study_figures, summarise, write_html
from apq_optuna.search.evolution import Variation
from apq_optuna.space import Coordinates, SearchSpace
from tests.conftest import FAST

from .chain import Chain, ChainSupernet

SPACE = SearchSpace.from_family(Chain())
ROWS = SPACE.sample(200, np.random.default_rng(0))


@pytest.fixture(scope="module")
def costs() -> CostTable:
    return apq.hardware.bitfusion_small().table(SPACE)


@pytest.fixture(scope="module")
def supernet(digits: ImageData) -> ChainSupernet:
    torch.manual_seed(0)
    net = ChainSupernet(SPACE)
    generator = torch.Generator().manual_seed(0)
    images, labels = next(iter(digits.training_batches(512, generator, augment=False)))
    net.train_on(images, labels, 40)
    net.data_info = {"split_hash": digits.split_hash}
    return net.eval()


def test_sites_have_the_shapes_of_the_decoded_layers() -> None:
    sites = {site.name: site for site in SPACE.family.sites()}
    for row in ROWS[:50]:
        for placed in SPACE.decode(row).layers():
            site = sites[placed.name]
            sizes = site.sizes(row[None])[0]
            assert site.layer_of(sizes) == placed.layer
            assert sizes.tolist() in site.distinct().tolist()


def test_sums_over_decisions_are_listed_by_distinct_sizes() -> None:
    classifier = SPACE.family.sites()[-1]
    assert classifier.distinct()[:, 0].tolist() == [24, 32, 40, 48, 56, 64, 72]  # not 27 of them


@pytest.mark.parametrize("largest_product", [1 << 14, 16, 1])
def test_compiled_costs_equal_the_sum_of_layers(
    costs: CostTable, monkeypatch: pytest.MonkeyPatch, largest_product: int
) -> None:
    # with a small limit terms are not fused, and sizes are looked up instead of multiplied out
    monkeypatch.setattr(terms_module, "LARGEST_PRODUCT", largest_product)
    compiled = costs.compile(SPACE)
    expected = [costs.network_cost(SPACE.decode(row).layers()) for row in ROWS]
    np.testing.assert_allclose(compiled(ROWS), expected, rtol=1e-12)
    assert (compiled(ROWS) <= compiled.maxima * (1 + 1e-12)).all()
    assert (compiled(ROWS) >= compiled.minima * (1 - 1e-12)).all()


@pytest.mark.parametrize("largest_product", [1 << 14, 16, 1])
def test_what_a_device_cannot_run_is_mended(
    costs: CostTable, monkeypatch: pytest.MonkeyPatch, largest_product: int
) -> None:
    """Layers share widths: mending one must not break the next."""
    monkeypatch.setattr(terms_module, "LARGEST_PRODUCT", largest_product)
    entries = {
        key: cost for key, cost in costs.entries.items()
        if key[0].linear or (key[1] == 8) == (key[0].out_channels == 16)
    }  # fmt: skip
    partial = CostTable(entries, device="odd").compile(SPACE)
    assert partial.has_gaps and not np.isfinite(partial(ROWS)).all()
    mended = partial.repair(ROWS, np.random.default_rng(0))
    assert np.isfinite(partial(mended)).all()
    fine = np.isfinite(partial(ROWS)).all(axis=1)
    assert (mended[fine] == ROWS[fine]).all()


def test_widths_that_cost_nothing_are_widened() -> None:
    flat = dict.fromkeys(_keys(), (1.0, None))
    compiled = CostTable(flat, device="flat").compile(SPACE)
    wide = compiled.widen(ROWS)
    bits = [d.quantization for d in SPACE.decisions]
    assert (wide[:, bits] == 1).all()
    assert (wide[:, ~np.array(bits)] == ROWS[:, ~np.array(bits)]).all()


def _keys() -> list[tuple[object, int, int]]:
    return [(layer, w, a) for layer, pairs in needed_entries(SPACE).items() for w, a in pairs]


def test_a_layer_that_is_always_at_8_bits_is_asked_for_at_8_bits_only() -> None:
    pairs = needed_entries(SPACE, bits=(4,))
    assert {tuple(p) for layer, p in pairs.items() if layer.linear} == {((8, 8),)}
    assert {tuple(p) for layer, p in pairs.items() if not layer.linear} == {((4, 4),)}


def test_a_table_that_lacks_a_layer_names_it(costs: CostTable) -> None:
    entries = {
        k: c for k, c in costs.entries.items() if not (k[0].linear and k[0].in_channels == 40)
    }
    with pytest.raises(CostTableError, match="lacks linear 40->10"):
        CostTable(entries, device="holed").compile(SPACE)


def test_tables_are_checked_compared_and_drawn(costs: CostTable, tmp_path: Path) -> None:
    found = check_table(costs, SPACE)
    assert found.usable and found.covered == found.needed == len(costs.entries)
    again = CostTable.load(costs.save(tmp_path / "chain.csv"))
    assert again.digest == costs.digest
    comparison = compare_tables((costs, apq.hardware.bitserial().table(SPACE)), SPACE, 100)
    assert comparison.kinds == ("convolution", "linear")
    np.testing.assert_allclose(comparison.shares.sum(axis=1), 1.0)
    assert telling_layer(SPACE) == "classifier"
    lines = layer_costs(apq.hardware.bitfusion_small(), SPACE, "conv1")
    assert lines.channels.tolist() == list(range(8, 25)) and lines.kernel == 3


def test_noise_features_and_mutation_follow_the_family() -> None:
    coordinates = Coordinates(SPACE)
    assert coordinates.kinds == 2  # weights and inputs: nothing is depthwise
    low = SPACE.extreme(largest=True, bits=4)
    np.testing.assert_allclose(coordinates.noise(low), [[1.0, 1.0]])
    variation = Variation(SPACE)
    assert variation.num_groups == 3
    children = variation.mutate(ROWS, 0.0, np.random.default_rng(0))
    changed = (children != ROWS).reshape(len(ROWS), 3, 3).any(axis=2).sum(axis=1)
    assert (changed <= 1).all() and changed.any()
    assert SPACE.features(ROWS).shape == (200, 3 * (3 + 2 + 2))


def test_it_comes_back_from_json() -> None:
    again = SearchSpace.from_dict(SPACE.to_dict())
    assert again == SPACE and again.family == SPACE.family
    other = SearchSpace.from_family(Chain(bits=(2, 4, 8)))
    assert other.architecture_hash == SPACE.architecture_hash and other.hash != SPACE.hash
    with pytest.raises(SpaceError, match="family='snake' is unknown"):
        SearchSpace.from_dict({"family": "snake"})


def test_a_device_runs_its_whole_networks() -> None:
    subnet = SPACE.decode(ROWS[0])
    (measured,) = apq.hardware.cpu(rounds=1, repeats=2).measure([subnet])
    assert measured.latency_ms > 0


def test_the_whole_job_runs_on_it(
    supernet: ChainSupernet, digits: ImageData, costs: CostTable, url: str, tmp_path: Path
) -> None:
    store = apq.PairStore(url, supernet=supernet)
    assert apq.collect_pairs(supernet, digits, store, 14, images=100) == 14
    objective = apq.Objective(supernet, digits, costs, finetune=FAST, images=100)
    budgets = {"latency_ms": float(np.median(costs.compile(SPACE)(ROWS)[:, 0]))}
    sampler = apq.APQSampler(SPACE, costs=costs, source=store, budgets=budgets, seed=0)
    study = optuna.create_study(
        storage=apq.open_storage(url), directions=objective.directions, sampler=sampler
    )
    study.set_metric_names(objective.metric_names)
    study.optimize(objective, n_trials=6)
    rows = np.stack([SPACE.from_params(trial.params) for trial in study.trials])
    assert len(np.unique(rows, axis=0)) == 6
    assert all(trial.values[1] <= budgets["latency_ms"] for trial in study.trials)
    assert stored_space(study) == SPACE
    figures = study_figures(study)
    assert {"pareto-front", "front-networks", "network"} <= figures.keys()
    assert list(figures["front-networks"].data[0].x) == ["c0", "c1", "c2"]
    page = tmp_path / "report.html"
    write_html(study, figures, page)
    assert "mean bits" in page.read_text()
    apq.ParetoReport(page).write(study)  # and into the dashboard
    keys = study._storage.get_study_system_attrs(study._study_id)
    assert any("apq-front-networks" in key for key in keys)
    best = int(summarise(study).front[0])
    networks = network_plots.networks_figure(SPACE, [("best", rows[best])])
    assert len(networks.data[0].y) == 3
    without = dataclasses.replace(summarise(study), space=None)
    assert np.isnan(without.mean_bits(0)) and summarise(study).mean_bits(0) > 0
    front = apq.predicted_front(study, SPACE, costs, source=store, size=10, generations=3)
    assert len(front) and "layers" in front.table()
    network, stored = apq.finish(
        supernet, digits, SPACE.decode(rows[best]), tmp_path / "done", epochs=0.2, costs=costs
    )
    again = apq.load_network(tmp_path / "done")
    images, _ = next(iter(digits.evaluation_batches(digits.test, 16)))
    assert torch.equal(network(images), again(images))
    assert stored["costs"] == again.about["costs"]


@dataclasses.dataclass(frozen=True)
class Mixed(Chain):
    """A chain whose second convolution has widths of its own."""

    def decisions(self) -> tuple[Decision, ...]:
        return tuple(
            dataclasses.replace(d, choices=(2, 4)) if d.quantization and d.group == "conv1" else d
            for d in super().decisions()
        )

    def sites(self) -> tuple[Site, ...]:
        first, second, *others = super().sites()
        w, a = (Width((2, 4), width.column) for width in (second.w_bits, second.a_bits))
        return (first, dataclasses.replace(second, w_bits=w, a_bits=a), *others)


def test_layers_may_have_widths_of_their_own() -> None:
    space = SearchSpace.from_family(Mixed())
    assert space.bits == (2, 4, 8)
    table = apq.hardware.bitfusion_small().table(space)
    pairs = needed_entries(space)
    assert {p for layer, each in pairs.items() if layer.in_channels == 1 for p in each} == {
        (4, 4), (4, 8), (8, 4), (8, 8),
    }  # fmt: skip
    rows = space.sample(50, np.random.default_rng(0))
    expected = [table.network_cost(space.decode(row).layers()) for row in rows]
    np.testing.assert_allclose(table.compile(space)(rows), expected, rtol=1e-12)
    assert layer_costs(table, space, "conv1").bits == (2, 4)

    class Eight(apq.hardware.Device):
        name, bits = "eight", (8,)

    with pytest.raises(MissingCostError, match=r"none of the \[2, 4\] that conv1 may have"):
        Eight().table(space)
