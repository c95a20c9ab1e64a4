"""Convolutions as matrix products, for GPUs: images laid out channels first of all.

Every random subnet brings shapes of its own, and the GPU's library for convolutions prepares
itself anew for every shape, which takes longer than a step. Its matrix products do not, and tensor
cores make them so quick that even a depthwise convolution of a small map is worth being one.

Notation:
    B, C        images, channels
    P, p        positions (rows x columns) of the input and of the output
    k           kernel

With X of shape (C, B P), a 1x1 convolution is W X. A depthwise one multiplies, for every channel,
(B, P) by a matrix (P, p) that holds the kernel's k k values where input and output positions
meet, zeros elsewhere. That matrix is itself a product: of the kernel and a fixed 0/1 matrix
(k k, P p), so that its gradient is one too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apq_optuna.supernet import fused

MOST_POSITIONS = 1 << 20
"""P times p of a channel up to which a depthwise convolution is done as a product."""


def convolved_as_products(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int
) -> Tensor:
    """`torch.nn.functional.conv2d`, 1x1 and small depthwise convolutions as matrix products.

    Those give `(B, C, H, W)` laid out as `(C, B, H, W)`, which is free to go on with.
    """
    kernel = weight.shape[-1]
    if kernel == 1 and (stride, padding, groups) == (1, 0, 1):
        y = channels_first(x).flatten(1)
        matrix = weight.flatten(1)
        y = matrix @ y if bias is None else torch.addmm(bias[:, None], matrix, y)
        return y.view(len(weight), len(x), *x.shape[2:]).transpose(0, 1)
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:])
    depthwise = groups == x.shape[1] == len(weight)
    if depthwise and x.shape[2] * x.shape[3] * rows * columns <= MOST_POSITIONS:
        dtype = weight.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        places = _places(kernel, stride, padding, *x.shape[2:], x.device, dtype)
        matrix = (weight.flatten(1) @ places).view(groups, -1, rows * columns)
        y = torch.bmm(channels_first(x).flatten(2), matrix.to(x.dtype))
        y = y.view(groups, len(x), rows, columns).transpose(0, 1)
        return y if bias is None else y + bias.view(1, -1, 1, 1)
    return F.conv2d(x, weight, bias, stride, padding, 1, groups)


def batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool,
    momentum: float, eps: float, *, relu: bool = False,
) -> Tensor:  # fmt: skip
    """`torch.nn.functional.batch_norm` of images laid out channels first of all, and a ReLU.

    The library's own kernels give every channel to one block of threads, and small networks have
    few channels; sums over rows are spread over the whole GPU.
    """
    if not training:
        x = F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)
        return F.relu(x, inplace=True) if relu else x
    flat = channels_first(x).flatten(1)
    together = x.is_cuda and fused.usable()
    if together:
        y, found, spread = fused.NormAndReLU.apply(flat, weight, bias, eps, relu)
    else:
        y, found, spread = _Normalised.apply(flat, weight, bias, eps)
    with torch.no_grad():
        n = flat.shape[1]
        mean.lerp_(found, momentum)
        var.lerp_(spread * (n / max(n - 1, 1)), momentum)
    normalised: Tensor = y.view(x.shape[1], len(x), *x.shape[2:]).transpose(0, 1)
    return F.relu(normalised, inplace=True) if relu and not together else normalised


class _Normalised(torch.autograd.Function):
    """Rows `(C, n)` of mean 0 and variance 1, times a weight, plus a bias; also both moments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        n = x.shape[1]
        mean = x.sum(1, dtype=torch.float32) / n
        square = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square() / n
        var = (square - mean.square()).clamp_min(0)
        inverse = (var + eps).rsqrt()
        scale = weight * inverse
        ctx.save_for_backward(x, mean, inverse, scale)
        ctx.mark_non_differentiable(mean, var)
        return _affine(x, scale, bias - mean * scale), mean, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, mean, inverse, scale = ctx.saved_tensors
        n = x.shape[1]
        of_bias = dy.sum(1, dtype=torch.float32)
        with_x = (dy * x).sum(1, dtype=torch.float32)
        of_weight = (with_x - mean * of_bias) * inverse
        # dx = scale (dy - mean of dy - normalised x times mean of dy normalised x)
        slope = -scale * of_weight * inverse / n
        dx = _affine(x, slope, -scale * of_bias / n - slope * mean)
        dx.addcmul_(dy, scale[:, None].to(dy.dtype))
        return dx, of_weight, of_bias, None


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Rows times a scale plus a shift, worked out in float32 and given in `x`'s precision."""
    y = torch.empty_like(x)
    torch.addcmul(shift[:, None], x, scale[:, None], out=y)
    return y


def channels_first(x: Tensor) -> Tensor:
    """`(B, C, H, W)` as contiguous `(C, B, H, W)`, of the same memory where it is laid out so."""
    return x.transpose(0, 1).contiguous()


@cache
def _places(
    kernel: int, stride: int, padding: int, height: int, width: int,
    device: torch.device, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Which kernel value joins an input to an output position, `(k k, P p)` of zeros and ones."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a shape that was not prepared before passes were recorded")
    inputs = torch.arange(height * width, device=device)
    found = []
    for size, at in ((height, inputs // width), (width, inputs % width)):
        outputs = torch.arange((size + 2 * padding - kernel) // stride + 1, device=device)
        tap = at[:, None] - outputs * stride + padding  # (P, h) and (P, w)
        taps = torch.arange(kernel, device=device)
        found.append(tap == taps[:, None, None])  # (k, P, h) and (k, P, w)
    rows, columns = found
    both = rows[:, None, :, :, None] & columns[None, :, :, None, :]
    return both.reshape(kernel * kernel, -1).to(dtype)
