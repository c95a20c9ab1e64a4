"""Grids of bytes and codes of weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apq_optuna.export.codes import Grid, LayerCodes


@given(st.integers(2, 8), st.booleans())
def test_a_grid_has_the_codes_of_its_bits(bits: int, signed: bool) -> None:
    grid = Grid.of(0.1, bits, signed=signed)
    assert grid.high - grid.low + 1 == 2**bits
    assert 0 <= grid.low <= grid.zero <= grid.high <= 255
    assert grid.whole == (bits == 8)


@given(
    st.floats(-3, 3), st.floats(0.01, 1.0), st.integers(2, 8), st.booleans(),
    st.floats(-2, 0), st.floats(0, 2),
)  # fmt: skip
def test_a_bound_on_codes_is_the_clamp(
    value: float, scale: float, bits: int, signed: bool, low: float, high: float
) -> None:
    """Rounding keeps the order of values, so it does not matter which comes first."""
    grid, x, step = Grid.of(scale, bits, signed=signed), np.float32(value), np.float32(scale)

    def code(v: np.float32, g: Grid) -> int:
        byte = np.clip(np.rint(v / step) + g.zero, 0, 255)
        return int(np.clip(byte, g.low, g.high))

    bounded = code(x, grid.clamped(low, high))
    assert bounded == code(np.clip(x, np.float32(low), np.float32(high)), grid)


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_a_grid_over_a_range_has_zero_and_both_ends(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    grid = Grid.over(low, high)
    assert 0 <= grid.zero <= 255
    for value in (0.0, low, high):
        code = np.clip(round(value / grid.scale) + grid.zero, 0, 255)
        assert (code - grid.zero) * grid.scale == pytest.approx(value, abs=1.01 * grid.scale)


def layer(weight: np.ndarray, bias: list[float]) -> LayerCodes:
    scale = np.full(len(weight), 1e-8, np.float32)
    return LayerCodes(
        "layer", 4, 4, weight.astype(np.int8), scale, np.array(bias, np.float32),
        Grid.of(0.5, 4, signed=True),
    )  # fmt: skip


def test_a_channel_without_weights_keeps_its_bias() -> None:
    dead = layer(np.zeros((1, 3)), [40.0])
    assert not dead.bias_fits()  # 40 is 8e9 units of products
    fitted = dead.fitting()
    assert fitted.bias_fits()
    whole = np.rint(fitted.bias / fitted.bias_scale())
    assert whole * fitted.bias_scale() == pytest.approx([40.0], rel=1e-5)


def test_a_channel_with_weights_keeps_its_step() -> None:
    alive = layer(np.ones((1, 3)), [40.0])
    assert alive.fitting().weight_scale == pytest.approx(alive.weight_scale)
    assert not alive.fitting().bias_fits()
