"""Cost tables checked, compared, corrected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware import (
    CostTable,
    Device,
    Measurement,
    bitfusion,
    bitserial,
    check_table,
    correct,
    fit_correction,
    random_networks,
)
from apq_optuna.hardware.devices.device import Report
from apq_optuna.hardware.tables.calibrate import calibration_networks
from apq_optuna.hardware.tables.compare import compare_tables, layer_costs
from apq_optuna.networks import ConvLayer, Subnet

SPACE = apq.SearchSpace.preset("digits")


# ---------------------------------------------------------------------- check


def test_the_tables_of_our_devices_pass(digits_costs: CostTable) -> None:
    for table in (digits_costs, bitserial().table(SPACE)):
        check = check_table(table, SPACE)
        assert check.usable and not check.errors
        assert check.covered == check.needed > 0


def test_what_a_space_lacks_is_counted_and_named(digits_costs: CostTable) -> None:
    layer = ConvLayer(16, 24, 8, 1, 1, 0, 1)
    without = {k: v for k, v in digits_costs.entries.items() if k[0] != layer}
    assert len(without) < len(digits_costs.entries)
    check = check_table(CostTable(without, device="d"), SPACE)
    assert not check.usable
    assert "searched layers are in no entry: convolution 16->24" in str(check)
    assert "cannot be searched" in str(check)
    stem = {k: v for k, v in digits_costs.entries.items() if k[0].in_channels != 1}
    assert "fixed layers are in no entry: stem" in str(check_table(CostTable(stem, device="d"),
                                                                  SPACE))  # fmt: skip
    wrong = check_table(digits_costs, apq.SearchSpace.preset("cifar10"))
    assert not wrong.usable and "entries are of layers that the space does not have" in str(wrong)


def changed(table: CostTable, factor: Callable[[ConvLayer, int, int], float]) -> CostTable:
    entries = {key: (ms * factor(*key), None) for key, (ms, _) in table.entries.items()}
    return CostTable(entries, device="d")


def test_oddities_are_found(digits_costs: CostTable) -> None:
    width = sorted({k.in_channels for k, _, _ in digits_costs.entries if k.depthwise})[2]

    def slip(layer: ConvLayer, w: int, a: int) -> float:
        hit = layer.depthwise and layer.in_channels == width and (w, a) == (8, 8)
        return 100.0 if hit else 1.0

    text = str(check_table(changed(digits_costs, slip), SPACE))
    assert "entries are far from both their neighbours in channels: " in text
    assert (
        f"depthwise {width}->{width} kernel 3 stride 1 groups {width} at input 8, W8A8 (x7" in text
    )
    assert "more channels cost less in" in text
    widest = max(k.in_channels for k, _, _ in digits_costs.entries if k.depthwise)
    text = str(check_table(changed(digits_costs, lambda k, w, a: 1e3 if (
        k.depthwise and k.in_channels == widest) else 1.0), SPACE))  # fmt: skip
    assert f"neighbours in channels: depthwise {widest}->{widest}" in text
    text = str(check_table(changed(digits_costs, lambda k, w, a: 1e3 if k.linear else 1.0), SPACE))
    assert "latency_ms of the fixed layer classifier (linear 64->10" in text
    text = str(check_table(changed(digits_costs, lambda *_: 1e-6), SPACE))
    assert "is the unit ms?" in text
    text = str(check_table(changed(digits_costs, lambda _, w, a: 0.0 if w == 2 else 1.0), SPACE))
    assert "latency_ms is 0 in" in text
    text = str(check_table(changed(digits_costs, lambda _, w, a: 10.0 / w / a), SPACE))
    assert "more bits cost less in" in text
    same = {k: (digits_costs.entries[k[0], 8, 8][0], None) for k in digits_costs.entries}
    assert "2 bits cost what 4 do (median x1.00)" in str(
        check_table(CostTable(same, device="d"), SPACE)
    )


# ---------------------------------------------------------------------- free bits


def test_bits_that_cost_nothing_are_widened(digits_costs: CostTable) -> None:
    coarse = {
        (layer, w, a): digits_costs.entries[layer, 8 if w > 4 else 4, 8 if a > 4 else 4]
        for layer, w, a in digits_costs.entries
    }
    compiled = CostTable(coarse, device="d").compile(SPACE)
    rows = SPACE.sample(500, np.random.default_rng(0))
    wide = SPACE.canonical(compiled.widen(rows))
    np.testing.assert_array_equal(compiled(wide), compiled(rows))
    columns = [c for c, d in enumerate(SPACE.decisions) if d.quantization]
    active = SPACE.active(rows)[:, columns]
    bits = np.array([2, 4, 6, 8])
    before, after = bits[rows[:, columns]], bits[wide[:, columns]]
    np.testing.assert_array_equal(np.where(before > 4, 8, 4)[active], after[active])
    others = [c for c, d in enumerate(SPACE.decisions) if not d.quantization]
    np.testing.assert_array_equal(rows[:, others], wide[:, others])
    assert not digits_costs.compile(SPACE).has_free_bits
    gaps = {k: v for k, v in digits_costs.entries.items() if k[1:] != (2, 2)}
    with_gaps = CostTable(gaps, device="d").compile(SPACE)
    assert with_gaps.has_gaps and not with_gaps.has_free_bits


# ---------------------------------------------------------------------- correction


def test_the_overhead_counts_once_a_network(digits_costs: CostTable) -> None:
    table = replace_overhead(digits_costs, (0.25, 0.5))
    rows = SPACE.sample(20, np.random.default_rng(0))
    plain, more = digits_costs.compile(SPACE), table.compile(SPACE)
    np.testing.assert_allclose(more(rows), plain(rows) + np.array([0.25, 0.5]))
    np.testing.assert_allclose(more.minima, plain.minima + np.array([0.25, 0.5]))
    subnet = SPACE.decode(rows[0])
    assert table.network_cost(subnet.layers()) == pytest.approx(more(rows[:1])[0])
    assert table.digest != digits_costs.digest


def replace_overhead(table: CostTable, overhead: tuple[float, float]) -> CostTable:
    return CostTable(table.entries, device=table.device, overhead=overhead)


def test_the_correction_finds_scale_and_overhead() -> None:
    x = np.linspace(0.2, 2.0, 10)
    found = fit_correction(x, 1.2 * x + 0.05)
    assert found.scale == pytest.approx(1.2, abs=0.02)
    assert found.overhead_ms == pytest.approx(0.05, abs=0.02)
    assert found.error < 0.01 and found.networks == 10
    np.testing.assert_allclose(found(x), 1.2 * x + 0.05, rtol=0.02)


def test_a_large_overhead_is_found_and_a_negative_one_is_none() -> None:
    x = np.linspace(0.2, 2.0, 5)
    found = fit_correction(x, x + 2 * x.mean())
    np.testing.assert_allclose(found(x), x + 2 * x.mean(), rtol=0.03)
    assert fit_correction(x, 1.1 * x - 0.1).overhead_ms == 0
    assert fit_correction([200.0, 0.04], [0.03, 0.05]).scale > 0  # one layer met a slow moment


def test_a_device_whose_networks_take_more_than_their_layers(digits_costs: CostTable) -> None:
    """A made-up board: half as much again, and a start of 0.05 ms."""

    class Slow(Device):
        name = "slow"
        runs_networks = True

        def measure(
            self, subnets: Sequence[Subnet], *, report: Report | None = None
        ) -> list[Measurement]:
            sums = [digits_costs.network_cost(s.layers())[0] for s in subnets]
            return [Measurement.of([1.5 * ms + 0.05]) for ms in sums]

    chosen = calibration_networks(digits_costs, SPACE, 5)
    corrected = correct(digits_costs, Slow(), chosen)
    others = random_networks(SPACE, 20)
    truth = [m.latency_ms for m in Slow().measure(others)]
    plain, better = (
        np.array([table.network_cost(s.layers())[0] for s in others])
        for table in (digits_costs, corrected)
    )
    assert np.abs(better / truth - 1).mean() < 0.02 < 0.3 < np.abs(plain / truth - 1).mean()
    assert corrected.provenance["correction"]["error"] < 0.05


def test_three_alike_networks_do_not_make_the_overhead_wild() -> None:
    """Alone, least squares would say -3 x + 4.3 here."""
    found = fit_correction([1.0, 1.01, 1.02], [1.30, 1.24, 1.27])
    assert 0 <= found.overhead_ms < 0.5 and 0.8 < found.scale < 1.3
    assert found(np.array([1.01])) == pytest.approx([1.27], rel=0.02)


def test_a_corrected_table_predicts_the_measured(digits_costs: CostTable) -> None:
    found = fit_correction([1.0, 2.0], [2.1, 4.1])
    table = digits_costs.corrected(found)
    rows = SPACE.sample(5, np.random.default_rng(0))
    plain, now = digits_costs.compile(SPACE)(rows), table.compile(SPACE)(rows)
    np.testing.assert_allclose(now[:, 0], found(plain[:, 0]))
    np.testing.assert_allclose(now[:, 1], plain[:, 1])
    assert table.provenance["correction"]["networks"] == 2


@pytest.mark.parametrize(
    ("summed", "measured"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [np.nan])]
)
def test_corrections_need_latencies(summed: list[float], measured: list[float]) -> None:
    with pytest.raises(InvalidArgumentError):
        fit_correction(summed, measured)


# ---------------------------------------------------------------------- compare and show


def test_a_device_agrees_with_itself(digits_costs: CostTable) -> None:
    found = compare_tables((digits_costs, digits_costs), SPACE, 50)
    assert found.rank_correlation == pytest.approx(1.0)
    np.testing.assert_array_equal(found.latencies[0], found.latencies[1])
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0)
    assert "rank correlation of 50 random networks: 1.000" in str(found)


def test_two_devices_differ_and_say_in_what(digits_costs: CostTable) -> None:
    serial = bitserial().table(SPACE)
    found = compare_tables((digits_costs, serial), SPACE, 300)
    assert 0 < found.rank_correlation < 1
    assert found.bits == (2, 8)
    assert found.bit_gain[1, 1] < 0.5  # linear in every bit
    only_8 = {k: v for k, v in serial.entries.items() if k[1:] == (8, 8)}
    both = compare_tables((digits_costs, CostTable(only_8, device="o")), SPACE, 100)
    assert both.latencies.shape == (2, 100) and (both.mean_bits == 8).all()


def test_a_layer_is_priced_over_channels_and_bits(digits_costs: CostTable) -> None:
    name = "stage2.block2.depthwise"
    table = layer_costs(digits_costs, SPACE, name)
    finer = layer_costs(bitfusion(), SPACE, name, kernel=3)
    assert table.channels.tolist() == [24, 32, 40, 48, 56, 64, 72]
    assert finer.channels.tolist() == list(range(24, 73))
    assert table.costs.shape == (4, 4, 7, 2) and np.isfinite(table.costs).all()
    layer = ConvLayer(40, 40, 4, 5, 1, 2, 40)
    assert table.costs[1, 3, 2] == pytest.approx(digits_costs.entries[layer, 4, 8])
    layer = replace(layer, kernel_size=3, padding=1)
    assert finer.costs[1, 3, 16] == pytest.approx(bitfusion().cost(layer, 4, 8))
    serial = layer_costs(bitserial(), SPACE, "stage1.block1.project")
    assert serial.metric_names == ("latency_ms",) and serial.costs.shape[-1] == 1
    with pytest.raises(
        InvalidArgumentError, match=r"layer='stem': choose from stage1\.block1\.ex"
    ):
        layer_costs(digits_costs, SPACE, "stem")
    with pytest.raises(InvalidArgumentError, match=r"kernel=7: .* has \[3, 5\]"):
        layer_costs(digits_costs, SPACE, name, kernel=7)
