"""What a quantized layer holds, as an integer runtime takes it.

Notation:
    b       bit-width of an operand
    zero    zero point: 0 for activations that cannot be negative, 128 for others, 0 for weights
    low, high   stored codes that b bits have, `zero` added: within 0 to 255

Signed activations are unsigned bytes with the zero point 128: runtimes take no others beside
signed weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

UNSIGNED, SIGNED = 0, 128
"""Zero points."""


@dataclass(frozen=True)
class Grid:
    """How a tensor becomes unsigned bytes: its step size, and the codes it may have."""

    scale: float
    zero: int
    low: int
    high: int

    @classmethod
    def of(cls, scale: float, bits: int, *, signed: bool) -> Grid:
        """The grid of a layer's input at its bit-width."""
        if signed:
            half = 1 << (bits - 1)
            return cls(scale, SIGNED, SIGNED - half, SIGNED + half - 1)
        return cls(scale, UNSIGNED, 0, (1 << bits) - 1)

    @classmethod
    def over(cls, low: float, high: float) -> Grid:
        """All 256 codes over a range, which 0 is in: for what no layer has a grid of its own."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32(max((high - low) / 255, 1e-12)))
        return cls(scale, round(-low / scale), 0, 255)

    def clamped(self, low: float, high: float) -> Grid:
        """The grid of values that were clamped to a range: rounding keeps their order."""

        def code(value: float) -> int:
            steps = np.rint(np.float32(value) / np.float32(self.scale))
            return int(np.clip(steps, -512, 512)) + self.zero

        bottom = self.low if low == -np.inf else max(self.low, code(low))
        top = self.high if high == np.inf else min(self.high, code(high))
        return replace(self, low=min(bottom, self.high), high=max(top, self.low))

    @property
    def whole(self) -> bool:
        """Whether all codes of a byte are allowed: then it saturates by itself."""
        return self.low <= 0 and self.high >= 255


@dataclass(frozen=True)
class LayerCodes:
    """A layer's weights and grid.

    Attributes:
        name: Of the layer.
        w_bits, a_bits: Bit-widths; 32 is float.
        weight: `(out, in / groups, ...)`: int8 codes, or float32 where `w_bits` is 32.
        weight_scale: `(out,)` float32; None where `w_bits` is 32.
        bias: `(out,)` float32.
        grid: Of its input; None where `a_bits` is 32.
    """

    name: str
    w_bits: int
    a_bits: int
    weight: NDArray[Any]
    weight_scale: Floats | None
    bias: Floats
    grid: Grid | None

    @property
    def integer(self) -> bool:
        """Whether both operands are integers."""
        return self.weight_scale is not None and self.grid is not None

    def float_weight(self) -> Floats:
        """The weights as the codes mean them."""
        if self.weight_scale is None:
            return np.asarray(self.weight, np.float32)
        steps = self.weight_scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        return np.asarray(self.weight.astype(np.float32) * steps, np.float32)

    def fitting(self) -> LayerCodes:
        """The same layer with steps of weights that its bias fits beside, as an int32.

        A channel whose codes are all 0 may have any step; one that has codes keeps its own.
        """
        if not self.integer:
            return self
        assert self.weight_scale is not None and self.grid is not None
        dead = ~self.weight.reshape(len(self.weight), -1).any(axis=1)
        needed = np.abs(self.bias.astype(np.float64)) / (self.grid.scale * 2.0**20)
        steps = np.where(dead, np.maximum(needed, 1e-4), self.weight_scale)
        return replace(self, weight_scale=steps.astype(np.float32))

    def bias_scale(self) -> Floats:
        """`(out,)`: steps of the bias: an integer kernel adds it to sums of products of codes."""
        assert self.weight_scale is not None and self.grid is not None
        return np.asarray(np.float32(self.grid.scale) * self.weight_scale, np.float32)

    def bias_fits(self) -> bool:
        """Whether the bias is an int32 at its steps, with as much room for the sums of products
        that are added to it."""
        steps = self.bias_scale().astype(np.float64)
        return bool((steps > 0).all() and (np.abs(self.bias / steps) <= 2.0**30).all())
