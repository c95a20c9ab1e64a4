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

from apq_optuna.supernet.convolution import exporting

SMALLEST_SCALE = 1e-8
"""No step size is smaller; training keeps to it."""

CALIBRATION_AT_ONCE = 1 << 18
"""Values with which several step sizes are tried at once; more would leave the cache."""


def code_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Lowest and highest integer code of a bit-width."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Integer codes of `x`, as floats: `round(clip(x / scale, low, high))` (LSQ, eq. 1)."""
    return (x / scale).clamp_(low, high).round_()


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradients of Esser et al., ICLR 2020, eq. 3 and 5.

    With q the codes and x_hat = q * scale, inside the range d(x_hat)/d(scale) is q - x / scale and
    d(x_hat)/dx is 1; beyond it q, which is `low` or `high`, and 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, scale_gradient: float
    ) -> Tensor:
        result = quantize(x, scale, low, high).mul_(scale)
        ctx.save_for_backward(x, scale, result)
        ctx.codes = (low, high, scale_gradient)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, result = ctx.saved_tensors
        low, high, scale_gradient = ctx.codes
        if x.device.type == "cpu" and x.dtype == torch.float32 and not scale.ndim:
            of_x, step = _of_activations(gradient, x, result, float(scale), low, high)
        else:
            of_x, slope = value_gradients(gradient, x, scale, low, high)
            reduce = [d for d in range(x.ndim) if scale.ndim == x.ndim and scale.shape[d] == 1]
            step = slope.sum(reduce, keepdim=True) if scale.ndim else slope.sum()
        return of_x, step.mul_(scale_gradient), None, None, None


def value_gradients(
    gradient: Tensor, x: Tensor, scale: Tensor, low: int | Tensor, high: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and, still to be summed, of the scale of each value (LSQ, eq. 3 and 5).

    Args:
        gradient: Of the quantized values.
        x: The values.
        scale, low, high: As in `quantize`; of one value each, or shared by some.
    """
    v = x / scale
    codes = torch.clamp(v, low, high)  # type: ignore[arg-type]  # both numbers or both tensors
    inside = codes == v
    codes = codes.round_()
    slope = torch.where(inside, codes - v, codes).mul_(gradient)
    return torch.where(inside, gradient, 0.0), slope


EDGE = 3e-7
"""Share by which the ends of a range are moved outward, so that values on them are inside."""


def _of_activations(
    gradient: Tensor, x: Tensor, result: Tensor, scale: float, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """Gradients of a tensor with one scale, in few passes: it is large.

    The kernel of `hardtanh`'s gradient lets a value through where another is inside a range.
    """
    keep = torch.ops.aten.hardtanh_backward
    bottom, top = scale * (low * (1 + EDGE) - EDGE), scale * high * (1 + EDGE)
    of_x = keep(gradient, x, bottom, top)
    rest = keep(x, x, bottom, top)  # 0 beyond the range
    torch.sub(result, rest, out=rest)
    return of_x, torch.dot(_flat(gradient), _flat(rest)).div_(scale)


def _flat(x: Tensor) -> Tensor:
    """The values as a vector, images channels last: the order they have in memory."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1)


def fake_quantize(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """`x` rounded to the grid of `scale`, differentiable in both (LSQ).

    The gradient of the scale is normalised by `1 / sqrt(values per scale * high)` (LSQ, section
    2.2).

    Args:
        x: Values.
        scale: Step sizes, at least `SMALLEST_SCALE`: a scalar, or of `x`'s rank with one entry per
            channel.
        low, high: Integer codes, from `code_range`.

    Returns:
        Values of the shape of `x`, each a multiple of its scale.
    """
    if exporting():  # sizes may be symbols, and nothing learns
        return (x / scale).clamp(low, high).round() * scale
    values = x.numel() / scale.numel()
    weight = 1.0 / math.sqrt(max(values * max(high, 1), 1))
    result: Tensor = _FakeQuantize.apply(x, scale, low, high, weight)
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
    shares = torch.linspace(1.0, 0.2, 21, device=x.device)
    best, best_error = full, torch.full_like(full, math.inf)
    for some in shares.split(max(1, CALIBRATION_AT_ONCE // rows.numel())):
        scale = full * some[:, None, None]  # (shares, rows, 1)
        error = quantize(rows, scale, low, high).mul_(scale).sub_(rows).square_().sum(2, True)
        for s, e in zip(scale, error, strict=True):
            best = torch.where(e < best_error, s, best)
            best_error = torch.minimum(e, best_error)
    return best.view(-1, *[1] * (x.ndim - 1)) if per_channel else best.reshape(())
