"""Hardware: the published table exactly, tables of our own, and layers of any model."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from apq_optuna.errors import CostTableError, MissingCostError
from apq_optuna.hardware import BitFusion, CostTable, Device, bitfusion, bitfusion_small, bitserial
from apq_optuna.networks import ConvLayer, as_pair
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


# ---------------------------------------------------------------------- dilation, large kernels


def test_a_dilated_tile_is_the_rows_it_touches() -> None:
    """Every second row of every second input row is a plain convolution of half the size."""
    for channels in (1, 64):
        groups = 64 if channels == 64 else 1
        dilated = ConvLayer(64, 64, 29, 3, 2, 2, groups, 2)  # rows 0, 2, ... 32 of 33
        plain = ConvLayer(64, 64, 17, 3, 1, 0, groups)
        assert dilated.output_size == plain.output_size == (15, 15)
        for bits in ((8, 8), (4, 8), (2, 2)):
            assert bitfusion().cost(dilated, *bits) == bitfusion().cost(plain, *bits)


def test_one_output_row_touches_as_many_rows_as_the_kernel_has() -> None:
    """One output: the dilation moves what is read, and reads no more."""
    plain = ConvLayer(32, 16, 3, 3, 1, 0, 1)
    for dilation in (2, 16, 100, (1, 40)):
        dilated = ConvLayer(32, 16, 201, 3, 999, 0, 1, dilation)
        assert dilated.output_size == (1, 1)
        assert bitfusion().cost(dilated, 8, 8) == bitfusion().cost(plain, 8, 8)


def plain_cycles(layer: ConvLayer, w: int, a: int) -> int:
    """Cycles of the published array by its equations, one tile after another; no im2col."""
    rows, columns = 16 * (8 // a) * (8 // w), 32
    ic, oc, blocks = layer.in_channels, layer.out_channels, layer.groups
    if layer.depthwise:
        ic = oc = rows // 2
        blocks = math.ceil(layer.in_channels / ic)
    (kh, kw), (sh, sw), (dh, dw) = (
        as_pair(value) for value in (layer.kernel_size, layer.stride, layer.dilation)
    )
    (height, width), taps = layer.output_size, kh * kw
    usable = {"A": 131_072, "W": 262_144, "O": 65_536}

    def sizes(start: int, full: int) -> list[int]:
        return [start * 2**n for n in range(99) if start * 2**n < full] + [full]

    def touched(o: int, k: int, s: int, d: int) -> int:
        if d == 1:
            return (o - 1) * s + k
        return len({s * row + d * tap for row in range(o) for tap in range(k)})

    found: list[tuple[bool, int]] = []
    for o, i, c in product(sizes(1, max(height, width)), sizes(1, ic), sizes(columns, oc)):
        oh, ow = min(o, height), min(o, width)
        n = {"X": math.ceil(height / oh), "Y": math.ceil(width / ow),
             "I": math.ceil(ic / i), "C": math.ceil(oc / c)}  # fmt: skip
        side = touched(oh, kh, sh, dh) * touched(ow, kw, sw, dw)
        wide = math.ceil(c / columns)
        bits = {"A": side * i * a, "W": taps * i * c * w, "O": oh * ow * c * 32}
        padded = {
            "A": side * math.ceil(i / rows) * rows * (8 // (8 // a)),
            "W": math.ceil(taps * i / rows) * rows * wide * columns * (8 // (8 // w)),
            "O": oh * ow * wide * columns * 32,
        }
        compute = math.prod(n.values()) * oh * ow * taps * math.ceil(i / rows) * wide
        fits = all(padded[operand] <= usable[operand] for operand in "AWO")
        for order in ("ICYX", "YXCI"):
            total, held = {}, {}
            for operand, depends in (("A", "XYI"), ("W", "IC"), ("O", "XYC")):
                moved = kept = bits[operand]
                size, alive = padded[operand], padded[operand] <= usable[operand]
                for loop in order:
                    if loop in depends:
                        moved *= n[loop]
                        size *= n[loop] if alive else 1
                        alive = alive and size <= usable[operand]
                        kept = moved if alive else kept
                    elif not alive:
                        moved *= n[loop]
                total[operand], held[operand] = moved, kept
            fill = math.ceil(sum(held.values()) / 192) + math.ceil(held["O"] / 192)
            traffic = math.ceil(sum(total.values()) / 192) + math.ceil(total["O"] / 192)
            found.append((fits, max(compute + fill, traffic)))
    # what fits, else the smallest tile, which comes first
    return blocks * min([cycles for fits, cycles in found if fits] or [c for _, c in found[:2]])


@pytest.mark.parametrize(
    "layer",
    [
        ConvLayer(64, 64, 14, 3, 1, 1, 64),
        ConvLayer(256, 48, 14, 3, 1, 1, 1),
        ConvLayer(64, 64, 14, 3, 1, 2, 64, 2),
        ConvLayer(256, 48, 14, 3, 1, 16, 1, 16),
        ConvLayer(64, 64, 14, 3, 1, 20, 64, 20),
        ConvLayer(64, 64, 14, 5, 2, 6, 64, 3),
        ConvLayer(256, 48, (14, 9), (3, 1), (1, 2), (2, 0), 1, (2, 9)),
        ConvLayer(64, 64, (9, 14), (1, 5), 1, (0, 4), 64, (1, 2)),
        ConvLayer(64, 64, 14, 33, 1, 16, 64),
        ConvLayer(256, 48, 7, 33, 1, 16, 1),
        ConvLayer(64, 64, 14, 51, 2, 25, 64),
        ConvLayer(64, 64, 14, (51, 5), 1, (25, 2), 64),
        ConvLayer(64, 64, 14, 35, 1, 34, 64, 2),
    ],
    ids=["plain-depthwise", "plain-dense", "dilated", "dilated-dense", "beyond-the-input",
         "with-a-stride", "one-axis", "other-axis", "33x33", "33x33-dense", "51x51-with-a-stride",
         "51x5", "35x35-dilated"],
)  # fmt: skip
@pytest.mark.parametrize(("w", "a"), [(8, 8), (4, 8), (4, 4), (2, 2)])
def test_a_second_plain_computation_agrees(layer: ConvLayer, w: int, a: int) -> None:
    assert bitfusion().cycles(layer, w, a) == plain_cycles(layer, w, a)


def test_a_1x1_convolution_has_nothing_to_dilate() -> None:
    plain, dilated = (ConvLayer(64, 64, 14, 1, 2, 0, 1, dilation) for dilation in (1, 5))
    assert bitfusion().cost(dilated, 8, 8) == bitfusion().cost(plain, 8, 8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 4, 64], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("device", [bitfusion(), bitfusion_small(), bitserial()], ids=str)
def test_no_kernel_is_too_large_and_a_larger_one_takes_longer(
    device: Device, groups: int, bits: int
) -> None:
    latencies = [
        device.cost(ConvLayer(64, 64, 14, kernel, 1, kernel // 2, groups), bits, bits)[0]
        for kernel in range(3, 53, 2)
    ]
    assert latencies == sorted(latencies)
    # 289 times the taps; bit-serial words and im2col tiles are filled better by the larger
    assert latencies[-1] > 60 * latencies[0]


def test_a_buffer_without_room_for_one_tap_is_named() -> None:
    layer = ConvLayer(16, 16, 8, 3, 1, 1, 1)
    with pytest.raises(CostTableError, match="activation_kib holds 40 bits, and one tap takes 12"):
        BitFusion(activation_kib=0.01).cost(layer, 8, 8)
    with pytest.raises(CostTableError, match="output_kib holds 409 bits, and one tap takes 1024"):
        BitFusion(output_kib=0.1).cost(layer, 8, 8)
