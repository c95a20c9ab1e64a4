"""Convolutions in the quicker of two ways: small 1x1 ones, and depthwise weight gradients.

A 1x1 convolution of images laid out channels last is a matrix product. Small ones are quicker as
such than through the libraries for convolutions.

Notation:
    B, C        images, channels
    H, h        rows of the input and of the output; columns alike
    s, p, k     stride, padding, kernel

The gradient of a depthwise weight is, for every channel, the correlation of input and output
gradient, summed over the images:

    dw[c, i, j] = sum over b, y, x of dy[b, c, y, x] * input[b, c, s y + i - p, s x + j - p]

The CPU libraries behind torch have fast kernels of it for 3x3 only; 5x5 and 7x7 take ten to
twenty times as long as the gradient of the input. But it is itself a depthwise convolution: of
B x C channels, with dy as the kernel (h x h, dilation s), whose forward pass is fast. What is left
is to sum over the images.

One way may be wrong: for the weight gradient of a strided 1x1 convolution of few channels, laid
out channels last, the CPU library writes beyond its copy of the input (oneDNN 3.12, issue 6035),
which crashes or spoils what lies there. Such a convolution is one of stride 1, of the positions
that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from apq_optuna.networks import ConvLayer
from apq_optuna.networks.layers import as_pair
from apq_optuna.supernet.products import convolved_as_products

FAST_KERNEL = 3
"""Up to this kernel size torch's own weight gradient is quick."""

SMALL_PRODUCT = 4_000_000
"""Multiply-accumulates of a 1x1 convolution up to which a plain matrix product is quicker."""

POSITIONS, STRIDED_POSITIONS = 256, 64
"""Most output positions an image for which the other way is quicker, at stride 1 and beyond."""

NARROW = 16
"""Input channels below which a strided 1x1 weight gradient may be wrong: fewer than a block, which
has 8 with AVX2 and 16 with AVX-512."""


def _quicker(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    """Whether a convolution is a depthwise one whose weight gradient is quicker our way."""
    kernel = weight.shape[-1]
    if kernel <= FAST_KERNEL or groups != x.shape[1] or weight.shape[0] != groups:
        return False
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:])
    limit = POSITIONS if stride == 1 else STRIDED_POSITIONS
    return rows * columns <= limit and x.device.type == "cpu" and x.dtype == torch.float32


def _small(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    """Whether a convolution is a matrix product, and so small that this is quicker."""
    if weight.shape[-1] != 1 or weight.shape[-2] != 1 or (stride, padding, groups) != (1, 0, 1):
        return False
    small = x.numel() * weight.shape[0] <= SMALL_PRODUCT and x.device.type == "cpu"
    return small and x.is_contiguous(memory_format=torch.channels_last)


def _overruns(
    x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: object, groups: int
) -> bool:
    """Whether the library may write beyond its buffer for a convolution's weight gradient."""
    if max(stride) == 1 or weight.shape[2:] != (1, 1) or groups != 1 or weight.shape[1] >= NARROW:
        return False
    unpadded = padding in (0, (0,), (0, 0), "valid")
    learns = torch.is_grad_enabled() and weight.requires_grad
    return unpadded and learns and x.device.type == "cpu"


def _read(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The positions of images that a strided 1x1 convolution reads, laid out as those are."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x[..., :: stride[0], :: stride[-1]].contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def sound_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d`, its weight gradient right (see above)."""
    step = (stride,) if isinstance(stride, int) else tuple(stride)
    unpadded = padding if isinstance(padding, int | str) else tuple(padding)
    if input.ndim == 4 and _overruns(input, weight, step, unpadded, groups):
        input, stride, padding = _read(input, step), 1, 0
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


class SoundGradients(TorchFunctionMode):
    """Within it, calls of `torch.conv2d` by anybody's modules are `sound_conv2d`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return (sound_conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))


def sound_gradients(x: Tensor, layers: Iterable[ConvLayer]) -> AbstractContextManager[object]:
    """`SoundGradients` where a network of such layers learns and may need it, else nothing.

    Args:
        x: Images of the pass.
        layers: Of the largest network; smaller ones have fewer channels.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled() or exporting():
        return nullcontext()
    needed = any(as_pair(n.kernel_size) == (1, 1) and max(as_pair(n.stride)) > 1 for n in layers)
    return SoundGradients() if needed else nullcontext()


def exporting() -> bool:
    """Whether `torch.export` is at work: sizes may be symbols."""
    asked = getattr(torch.compiler, "is_exporting", None)  # not in all versions
    return bool(asked and asked())


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, done in another way where that is quicker."""
    if exporting():
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    if x.is_cuda:
        return convolved_as_products(x, weight, bias, stride, padding, groups)
    if _overruns(x, weight, (stride,), padding, groups):
        x, stride = _read(x, (stride,)), 1
    if torch.is_autocast_enabled(x.device.type):  # which knows the library's functions only
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    if _small(x, weight, stride, padding, groups):
        product: Tensor = _Pointwise.apply(x, weight, bias)
        return product
    learns = torch.is_grad_enabled() and weight.requires_grad
    if learns and _quicker(x, weight, stride, padding, groups):
        result: Tensor = _Depthwise.apply(x, weight, bias, stride, padding)
        return result
    return F.conv2d(x, weight, bias, stride, padding, 1, groups)


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution as a matrix product.

    Its result is a tensor and no view of one: what changes a view in place is slow to go back
    through.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        matrix, outputs = weight.flatten(1).t(), len(weight)
        y = _like(x, outputs)
        if bias is None:
            torch.mm(_rows(x), matrix, out=_rows(y))
        else:
            torch.addmm(bias, _rows(x), matrix, out=_rows(y))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _like(x, x.shape[1])
            torch.mm(_rows(gradient), weight.flatten(1), out=_rows(of_x))
        if ctx.needs_input_grad[1]:
            of_weight = torch.mm(_rows(gradient).t(), _rows(x)).view(weight.shape)
        if ctx.needs_input_grad[2]:
            of_bias = _rows(gradient).sum(0)
        return of_x, of_weight, of_bias


def _like(x: Tensor, channels: int) -> Tensor:
    """Images of other channels, not yet filled, channels last."""
    shape = (len(x), channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """`(B, C, H, W)` channels last as `(B H W, C)`, of the same memory."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        s, p = ctx.stride, ctx.padding
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [s, s], [p, p], [1, 1], False, [0, 0], len(weight),
                [True, False, False],
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            of_weight = depthwise_weight_gradient(x, gradient, weight.shape[-1], s, p)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def depthwise_weight_gradient(
    x: Tensor, gradient: Tensor, kernel: int, stride: int, padding: int
) -> Tensor:
    """Gradient of a depthwise weight.

    Args:
        x: `(B, C, H, W)` input.
        gradient: `(B, C, h, w)` of the output.
        kernel, stride, padding: Of the convolution, alike in both directions.

    Returns:
        `(C, 1, kernel, kernel)`.
    """
    images, channels, height, width = x.shape
    # images beside channels, which are next to each other in memory and stay so
    both = images * channels
    wide = x.permute(2, 3, 0, 1).reshape(1, height, width, both).permute(0, 3, 1, 2)
    kernels = gradient.reshape(both, 1, *gradient.shape[2:])
    found = F.conv2d(wide, kernels, None, 1, padding, stride, both)
    # rows that no stride reached are beyond the kernel
    found = found[0, :, :kernel, :kernel].permute(1, 2, 0)
    summed = found.reshape(kernel, kernel, images, channels).sum(2)
    return summed.permute(2, 0, 1).reshape(channels, 1, kernel, kernel)
