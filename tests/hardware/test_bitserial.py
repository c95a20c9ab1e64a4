"""The bit-serial array: worked examples of its equations, and what follows from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import apq_optuna as apq
from apq_optuna.errors import CostTableError, InvalidArgumentError, MissingCostError
from apq_optuna.hardware import bitserial
from apq_optuna.networks import ConvLayer

POINTWISE = ConvLayer(512, 32, 8, 1, 1, 0, 1)
widths = st.integers(1, 8)


@pytest.mark.parametrize(
    ("layer", "w", "a", "cycles"),
    [
        # one tile: compute 8 x 16 + 7, fetch 8 x 16 + 7
        (ConvLayer(256, 16, 4, 1, 1, 0, 1), 8, 8, 135),
        # kb 2; 64 pixels by 32 channels: compute 2 (128 + 96) + 3 = 451, fetch 8 x 64 + 56 = 568;
        # swapped: compute 2 (256 + 64) + 3 = 643, fetch 8 x 32 + 120 = 376
        (POINTWISE, 4, 4, 568),
        # 40 channels are 3 groups of M = 64, N = 16, kb = 1; W2A3: T 4, e 2, first 32:
        # compute 32 + 3 x 3 x 2 + 2 = 52, fetch 3 (48 + 16) + 1 = 193;
        # swapped (M 16, N 64, a 2, w 3): compute 3 (48 + 16) + 1 = 193, fetch 2 x 16 + 2 x 11 = 54
        (ConvLayer(40, 40, 8, 3, 1, 1, 40), 2, 3, 3 * 193),
        # 1,000 classes: M 16, N 1000, kb 5, W8A8; nt 63, e 504, last N 8:
        # compute 5 x 8 (992 + 8) + 7 = 40,007, fetch 40 x 504 + 40 x 503 = 40,280;
        # swapped (M 1000, N 16): T 63, nch 3, first 128: compute 5 (3 x 128 + 60 x 64) + 21 =
        # 21,141, fetch 40 (62 x 16 + 8) + 3 x 7 = 40,021
        (ConvLayer(1280, 1000, 1, 1, 1, 0, 1, linear=True), 8, 8, 40_021),
    ],
    ids=["one-tile", "pointwise", "depthwise", "linear"],
)
def test_worked_examples(layer: ConvLayer, w: int, a: int, cycles: int) -> None:
    assert bitserial().cycles(layer, w, a) == cycles


@given(widths, widths)
def test_a_3x3_convolution_is_a_longer_dot_product(w: int, a: int) -> None:
    """K and IC enter through their product alone, where the output is the same."""
    device = bitserial()
    kernel = device.cycles(ConvLayer(64, 48, 10, 3, 1, 1, 1), w, a)
    assert kernel == device.cycles(ConvLayer(576, 48, 10, 1, 1, 0, 1), w, a)


@given(widths, widths)
def test_more_bits_never_take_fewer_cycles(w: int, a: int) -> None:
    device = bitserial()
    for layer in (POINTWISE, ConvLayer(40, 40, 8, 3, 1, 1, 40)):
        now = device.cycles(layer, w, a)
        assert w == 8 or device.cycles(layer, w + 1, a) >= now
        assert a == 8 or device.cycles(layer, w, a + 1) >= now


def test_images_of_a_batch_come_one_after_another_but_for_linear_layers() -> None:
    one, batch = bitserial(), bitserial(batch=16)
    assert batch.cycles(POINTWISE, 6, 5) == 16 * one.cycles(POINTWISE, 6, 5)
    classifier = ConvLayer(256, 10, 1, 1, 1, 0, 1, linear=True)
    assert batch.cycles(classifier, 8, 8) == one.cycles(classifier, 8, 8)
    assert bitserial(batch=17).cycles(classifier, 8, 8) > one.cycles(classifier, 8, 8)


def test_grouped_convolutions_are_priced_group_by_group() -> None:
    device, grouped = bitserial(), ConvLayer(64, 32, 14, 3, 1, 1, 4)
    group = replace(grouped, in_channels=16, out_channels=8, groups=1)
    assert device.cycles(grouped, 4, 8) == 4 * device.cycles(group, 4, 8)


def test_there_is_latency_by_the_stated_clock_and_no_energy() -> None:
    device = bitserial(frequency_hz=100e6)
    assert device.cost(POINTWISE, 4, 4) == (pytest.approx(568 / 1e5), None)
    assert device.provenance()["parameters"] == {"batch": 1, "frequency_hz": 100e6}
    table = device.table(apq.SearchSpace.preset("digits"))
    assert table.metric_names == ("latency_ms",)


def test_what_it_does_not_run_is_an_error() -> None:
    with pytest.raises(MissingCostError, match="a_bits=32: device 'bitserial' executes"):
        bitserial().cycles(POINTWISE, 8, 32)
    with pytest.raises(CostTableError, match="has no output"):
        bitserial().cycles(ConvLayer(8, 8, 2, 5, 1, 0, 1), 8, 8)
    with pytest.raises(InvalidArgumentError, match="batch=0: a whole number, at least 1"):
        bitserial(batch=0)
    with pytest.raises(InvalidArgumentError, match="frequency_hz=nan: must be positive"):
        bitserial(frequency_hz=float("nan"))


@pytest.mark.parametrize(
    ("kernel", "cycles"),
    [
        # 16 channels at a time, M = N = 16, W8A8: compute kb 8 x 16 + 7, fetch as much
        (1, 135),
        (3, 135),  # kb = ceil(16 x 9 / 256) = 1
        (4, 135),
        (5, 263),  # 2
        (7, 519),  # 4
        ((3, 7), 263),  # 2: both sides count
        ((1, 51), 519),  # 4
        # 163, and two fillings of the buffer: compute 163 (2 x 128 - 64) + 14
        (51, 31_310),
    ],
    ids=str,
)
def test_a_depthwise_kernel_lengthens_its_dot_product(
    kernel: int | tuple[int, int], cycles: int
) -> None:
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    layer = ConvLayer(32, 32, (height + 3, width + 3), kernel, 1, 0, 32)
    assert bitserial().cycles(layer, 8, 8) == 2 * cycles


def test_a_table_made_with_the_kernel_left_out_is_told_apart() -> None:
    assert bitserial().provenance()["depthwise"] == "kb = ceil(16 K^2 / 256)"


@pytest.mark.parametrize("dilation", [2, 16, (1, 40)], ids=str)
def test_a_dilation_costs_nothing(dilation: int | tuple[int, int]) -> None:
    """As many taps over as many outputs."""
    dilated = ConvLayer(24, 24, 99, 3, 1, 0, 24, dilation)
    height, width = dilated.output_size
    plain = ConvLayer(24, 24, (height + 2, width + 2), 3, 1, 0, 24)
    assert bitserial().cycles(dilated, 4, 6) == bitserial().cycles(plain, 4, 6)
