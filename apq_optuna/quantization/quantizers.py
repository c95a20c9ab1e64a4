"""Pure quantization functions: uniform, symmetric, straight-through, with learned step sizes.

Notation:
    x       values, any shape
    scale   step size, broadcast against x: a scalar, or one per output channel
    low, high   the integer codes at b bits: [-2^(b-1), 2^(b-1) - 1] signed, [0, 2^b - 1] unsigned
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

SMALLEST_SCALE = 1e-8


def code_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Lowest and highest integer code of a bit-width."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Integer codes of `x`, as floats: `round(clip(x / scale, low, high))` (LSQ, eq. 1)."""
    return (x / scale).clamp_(low, high).round_()


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradients of Esser et al., ICLR 2020, eq. 3 and 5."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, scale_gradient: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.codes = (low, high, scale_gradient)
        return quantize(x, scale, low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        low, high, scale_gradient = ctx.codes
        v = x / scale
        codes = v.clamp(low, high)
        inside = codes == v
        # eq. 3: d(x_hat)/d(scale) is round(v) - v inside the range and the clipped code outside
        slope = codes.round().sub_(v.mul_(inside)).mul_(gradient)
        reduce = [d for d in range(x.ndim) if scale.ndim == x.ndim and scale.shape[d] == 1]
        step = slope.sum(reduce, keepdim=True) if scale.ndim else slope.sum()
        return gradient * inside, step.mul_(scale_gradient), None, None, None


def fake_quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """`x` rounded to the grid of `scale`, differentiable in both (LSQ).

    The gradient of the scale is normalised by `1 / sqrt(values per scale * high)` (LSQ, section
    2.2).

    Args:
        x: Values.
        scale: Positive step sizes: a scalar, or of `x`'s rank with one entry per channel.
        low, high: Integer codes, from `code_range`.

    Returns:
        Values of the shape of `x`, each a multiple of its scale.
    """
    values = x.numel() / scale.numel()
    weight = 1.0 / math.sqrt(values * max(high, 1))
    result: Tensor = _FakeQuantize.apply(x, scale.clamp_min(SMALLEST_SCALE), low, high, weight)
    return result


@torch.no_grad()
def calibrated_scale(x: Tensor, low: int, high: int, *, per_channel: bool = False) -> Tensor:
    """The step size that loses least: smallest squared error over shares of the full range.

    Args:
        x: Sample values; with `per_channel`, the first axis is the channel.
        low, high: Integer codes.
        per_channel: One scale per channel, shaped to broadcast against `x`.

    Returns:
        A scalar, or `(C, 1, ...)`.
    """
    rows = x.reshape(x.shape[0], -1) if per_channel else x.reshape(1, -1)
    # up to the scale at which the largest value, of either sign, is not clipped
    full = rows.abs().amax(1, keepdim=True).div_(high).clamp_min_(SMALLEST_SCALE)
    best, best_error = full, torch.full_like(full, math.inf)
    for share in torch.linspace(1.0, 0.2, 21).tolist():
        scale = full * share
        error = (
            quantize(rows, scale, low, high).mul_(scale).sub_(rows).square_().sum(1, keepdim=True)
        )
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best.view(-1, *[1] * (x.ndim - 1)) if per_channel else best.reshape(())
