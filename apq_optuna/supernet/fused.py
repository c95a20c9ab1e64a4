"""BatchNorm and the ReLU behind it in four passes over memory, for GPUs with Triton.

A small network on a GPU waits for memory. Operation by operation, a BatchNorm and its ReLU read or
write their images nineteen times in a training step; here it is eight times: two reads and a write
forwards, four reads and a write backwards, where what the ReLU let through is worked out anew
instead of being kept.

Notation:
    C, n        channels; images x positions. Images are `(C, n)`, channels first of all
    y           scale x + shift: BatchNorm with the moments of x itself
    g           the gradient of y, zero where the ReLU let nothing through
"""

from __future__ import annotations

import contextlib
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 2048
"""Values of a row that a program works on at a time."""

CHUNK = 16
"""Blocks of a row that are summed by one program."""


@cache
def kernels() -> Any:
    """The compiled kernels, or None where there is no Triton."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit  # type: ignore[untyped-decorator]
    def moments(x, out, n, splits, block: tl.constexpr, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
        row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
        total = tl.zeros([block], tl.float32)
        squares = tl.zeros([block], tl.float32)
        for step in range(chunk):
            at = (split * chunk + step) * block + tl.arange(0, block)
            value = tl.load(x + row * n + at, mask=at < n, other=0.0).to(tl.float32)
            total += value
            squares += value * value
        place = out + (row * splits + split) * 2
        tl.store(place, tl.sum(total, 0))
        tl.store(place + 1, tl.sum(squares, 0))

    @triton.jit  # type: ignore[untyped-decorator]
    def apply(x, y, scale, shift, n, relu: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * block + tl.arange(0, block)
        value = tl.load(x + row * n + at, mask=at < n, other=0.0).to(tl.float32)
        value = value * tl.load(scale + row) + tl.load(shift + row)
        if relu:
            value = tl.where(value < 0, 0.0, value)  # what is no number stays none
        tl.store(y + row * n + at, value, mask=at < n)

    @triton.jit  # type: ignore[untyped-decorator]
    def sums(  # type: ignore[no-untyped-def]
        x, dy, scale, shift, out, n, splits,
        relu: tl.constexpr, block: tl.constexpr, chunk: tl.constexpr,
    ):  # fmt: skip
        row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
        a, b = tl.load(scale + row), tl.load(shift + row)
        total = tl.zeros([block], tl.float32)
        with_x = tl.zeros([block], tl.float32)
        for step in range(chunk):
            at = (split * chunk + step) * block + tl.arange(0, block)
            value = tl.load(x + row * n + at, mask=at < n, other=0.0).to(tl.float32)
            g = tl.load(dy + row * n + at, mask=at < n, other=0.0).to(tl.float32)
            if relu:
                g = tl.where(value * a + b > 0, g, 0.0)
            total += g
            with_x += g * value
        place = out + (row * splits + split) * 2
        tl.store(place, tl.sum(total, 0))
        tl.store(place + 1, tl.sum(with_x, 0))

    @triton.jit  # type: ignore[untyped-decorator]
    def gradient(  # type: ignore[no-untyped-def]
        x, dy, dx, scale, shift, slope, offset, n, relu: tl.constexpr, block: tl.constexpr
    ):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * block + tl.arange(0, block)
        value = tl.load(x + row * n + at, mask=at < n, other=0.0).to(tl.float32)
        g = tl.load(dy + row * n + at, mask=at < n, other=0.0).to(tl.float32)
        a = tl.load(scale + row)
        if relu:
            g = tl.where(value * a + tl.load(shift + row) > 0, g, 0.0)
        value = g * a + value * tl.load(slope + row) + tl.load(offset + row)
        tl.store(dx + row * n + at, value, mask=at < n)

    return moments, apply, sums, gradient


@cache
def usable() -> bool:
    """Whether the kernels are there and run; Triton comes with torch, its compiler need not."""
    if kernels() is None:
        return False
    try:
        x = torch.ones(2, 8, device="cuda", requires_grad=True)
        y, _, _ = NormAndReLU.apply(x, x[:, 0], x[:, 1], 1e-5, True)
        y.sum().backward()
    except Exception as error:  # whatever a compiler or a driver says
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        warnings.warn(
            f"Triton does not work here ({reason}): training goes on without it, more slowly",
            stacklevel=2,
        )
        return False
    return True


class NormAndReLU(torch.autograd.Function):
    """Rows `(C, n)` of mean 0 and variance 1, times a weight, plus a bias, and perhaps a ReLU.

    Gives the moments as well, `(C,) float32` each, for running statistics.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        moments, apply, _, _ = kernels()
        rows, n = x.shape
        splits = -(-n // (BLOCK * CHUNK))
        found = torch.empty(rows, splits, 2, device=x.device)
        with _device_of(x):
            moments[rows, splits](x, found, n, splits, BLOCK, CHUNK)
        mean, square = (found.sum(1) / n).unbind(1)
        var = (square - mean.square()).clamp_min(0)
        inverse = (var + eps).rsqrt()
        scale = weight * inverse
        shift = bias - mean * scale
        y = torch.empty_like(x)
        with _device_of(x):
            apply[rows, -(-n // BLOCK)](x, y, scale, shift, n, relu, BLOCK)
        ctx.save_for_backward(x, mean, inverse, scale, shift)
        ctx.relu = relu
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        _, _, sums, gradient = kernels()
        x, mean, inverse, scale, shift = ctx.saved_tensors
        dy = dy.contiguous()
        rows, n = x.shape
        splits = -(-n // (BLOCK * CHUNK))
        found = torch.empty(rows, splits, 2, device=x.device)
        with _device_of(x):
            sums[rows, splits](x, dy, scale, shift, found, n, splits, ctx.relu, BLOCK, CHUNK)
        of_bias, with_x = found.sum(1).unbind(1)
        of_weight = (with_x - mean * of_bias) * inverse
        # dx = scale (g - mean of g - normalised x times mean of g normalised x)
        slope = -scale * of_weight * inverse / n
        offset = -scale * of_bias / n - slope * mean
        dx = torch.empty_like(x)
        with _device_of(x):
            gradient[rows, -(-n // BLOCK)](
                x, dy, dx, scale, shift, slope, offset, n, ctx.relu, BLOCK
            )
        return dx, of_weight, of_bias, None, None


def _device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels go to the current device, whichever their tensors are on."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
