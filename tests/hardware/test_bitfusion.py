"""Hardware: the published table exactly, tables of our own, and layers of any model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from apq_optuna.errors import (
    MissingCostError,
)
from apq_optuna.hardware import CostTable, Device, bitfusion, bitfusion_small
from apq_optuna.networks import ConvLayer
from apq_optuna.space import SearchSpace


def test_bitfusion_reproduces_the_published_table(published: Path) -> None:
    device, table = bitfusion(), CostTable.load(published)
    assert len(table.entries) == 6569
    for (layer, w, a), (ms, mj) in table.entries.items():
        assert device.cycles(layer, w, a) == round(ms * 5e5), (layer, w, a)
        assert device.cost(layer, w, a)[1] == pytest.approx(mj, rel=1e-12)


def test_published_table_misses_kernel_7_at_4_bit_activations(published: Path) -> None:
    space = SearchSpace.preset("imagenet")
    compiled = CostTable.load(published).compile(space)
    row = space.extreme(largest=True)
    assert np.isfinite(compiled(row)).all()
    row[0, space.column["stage1.block1.dw_a_bits"]] = 0
    assert np.isinf(compiled(row)).all()


def test_compiled_costs_equal_the_sum_of_layers(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    rows = space.sample(200, np.random.default_rng(0))
    priced = digits_costs.compile(space)(rows)
    summed = [digits_costs.network_cost(space.decode(row).layers()) for row in rows]
    np.testing.assert_allclose(priced, summed, rtol=1e-12)


def test_minima_and_maxima_bound_every_network(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    compiled = digits_costs.compile(space)
    costs = compiled(space.sample(5000, np.random.default_rng(1)))
    assert (costs >= compiled.minima - 1e-12).all()
    assert (costs <= compiled.maxima + 1e-12).all()


def test_low_bits_pay_on_the_small_array(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    for largest in (True, False):
        subnet = space.decode(space.extreme(largest=largest)[0])
        low, high = (digits_costs.network_cost(subnet.with_bits(b).layers()) for b in (4, 8))
        assert low[0] < high[0]
        assert low[1] < high[1]


def test_own_tables_count_the_whole_network() -> None:
    space = SearchSpace.preset("imagenet")
    device = bitfusion()
    subnet = space.decode(space.extreme(largest=True)[0])
    placed = list(subnet.layers())
    assert [p.name for p in placed[:3]] == ["stem", "first.depthwise", "first.project"]
    assert [p.name for p in placed[-2:]] == ["last", "classifier"]
    whole = device.network_cost([p.layer for p in placed], [p.w_bits for p in placed], 8)
    assert device.table(space).network_cost(placed) == pytest.approx(whole)


def test_6_bits_compute_like_8_but_move_less() -> None:
    device, layer = bitfusion(), ConvLayer(96, 96, 14, 3, 1, 1, 96)
    assert device.cost(layer, 6, 6)[0] <= device.cost(layer, 8, 8)[0]
    assert device.cost(layer, 4, 4)[0] < 0.6 * device.cost(layer, 8, 8)[0]


def test_grouped_convolutions_are_priced_group_by_group() -> None:
    device = bitfusion()
    group = device.cost(ConvLayer(16, 16, 14, 3, 1, 1, 1), 8, 8)
    whole = device.cost(ConvLayer(64, 64, 14, 3, 1, 1, 4), 8, 8)
    assert whole == pytest.approx([4 * value for value in group])


def test_widths_the_array_does_not_have_are_errors() -> None:
    with pytest.raises(MissingCostError, match=r"w_bits=32: device 'bitfusion' executes \[2, 3"):
        bitfusion().cost(ConvLayer(8, 8, 8, 1, 1, 0, 1), 32, 8)


def test_a_device_of_ones_own_takes_a_dozen_lines() -> None:
    class Board(Device):
        name = "board"
        bits = (8,)

        def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> tuple[float, None]:
            self.check_bits(w_bits, a_bits)
            return layer.macs * 1e-9, None

    space = SearchSpace.preset("digits")
    table = Board().table(space)
    compiled = table.compile(space)
    assert compiled.metric_names == ("latency_ms",)
    wide, narrow = space.extreme(largest=True), space.extreme(largest=True, bits=4)
    subnet = space.decode(wide[0])
    assert compiled(wide)[0, 0] == pytest.approx(subnet.macs * 1e-9)
    assert math.isinf(compiled(narrow)[0, 0])
    with pytest.raises(MissingCostError, match=r"cost table of 'board' has no .* W4A4"):
        table.network_cost(subnet.with_bits(4).layers())


def test_blocks_a_device_cannot_run_are_repaired(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    only_8 = {k: v for k, v in digits_costs.entries.items() if k[1:] == (8, 8)}
    compiled = CostTable(only_8, device="board").compile(space)
    rng = np.random.default_rng(0)
    rows = space.sample(300, rng)
    assert np.isinf(compiled(rows)).any()
    repaired = compiled.repair(rows, rng)
    assert np.isfinite(compiled(repaired)).all()
    feasible = np.isfinite(compiled(rows)).all(axis=1)
    np.testing.assert_array_equal(repaired[feasible], rows[feasible])


def test_small_array_differs_from_the_published_one() -> None:
    layer = ConvLayer(16, 16, 8, 1, 1, 0, 1)
    assert bitfusion_small().cost(layer, 8, 8)[0] > bitfusion().cost(layer, 8, 8)[0]
