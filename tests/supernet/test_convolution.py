"""Convolutions done in another way: the same values, and the same gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apq_optuna.supernet import convolution
from apq_optuna.supernet.convolution import conv2d


def made(*shape: int, last: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator)
    if last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x.requires_grad_()


def gradients(function: object, *arguments: object) -> tuple[Tensor, list[Tensor]]:
    """A result, and gradients of everything that has one."""
    assert callable(function)
    result = function(*arguments)
    upstream = torch.cos(torch.arange(result.numel(), dtype=result.dtype)).view_as(result)
    learned = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    return result, list(torch.autograd.grad((result * upstream).sum(), learned))


def same(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(4, 7, 1, 3), (8, 7, 1, 3), (8, 5, 2, 2), (7, 5, 2, 2), (9, 5, 1, 0), (16, 7, 2, 3),
     (5, 5, 3, 1)],
)  # fmt: skip
def test_a_depthwise_convolution_has_torchs_gradients(
    size: int, kernel: int, stride: int, padding: int, last: bool, bias: bool
) -> None:
    x, weight = made(3, 6, size, size, last=last), made(6, 1, kernel, kernel)
    b = made(6) if bias else None
    assert convolution._quicker(x, weight, stride, padding, 6)
    ours = gradients(conv2d, x, weight, b, stride, padding, 6)
    theirs = gradients(F.conv2d, x, weight, b, stride, padding, 1, 6)
    same(ours, theirs)


@pytest.mark.parametrize("bias", [False, True])
def test_a_small_pointwise_convolution_has_torchs_gradients(bias: bool) -> None:
    x, weight, b = made(4, 5, 6, 6), made(7, 5, 1, 1), made(7) if bias else None
    assert convolution._small(x, weight, 1, 0, 1)
    ours = gradients(conv2d, x, weight, b)
    same(ours, gradients(F.conv2d, x, weight, b))
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        same(conv2d(x, weight, b), F.conv2d(x, weight, b))


@pytest.mark.parametrize(
    ("x", "weight", "stride", "padding", "groups"),
    [
        (made(2, 6, 8, 8), made(6, 1, 3, 3), 1, 1, 6),  # quick as it is
        (made(2, 6, 8, 8), made(12, 1, 5, 5), 1, 2, 6),  # two outputs a channel
        (made(2, 6, 8, 8), made(6, 3, 5, 5), 1, 2, 2),  # grouped
        (made(2, 3, 40, 40), made(3, 1, 5, 5), 1, 2, 3),  # large
        (made(2, 6, 8, 8).double(), made(6, 1, 5, 5).double(), 1, 2, 6),
        (made(2, 6, 8, 8), made(4, 6, 1, 1), 2, 0, 1),
    ],
)
def test_any_other_convolution_is_torchs(
    x: Tensor, weight: Tensor, stride: int, padding: int, groups: int
) -> None:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    ours = gradients(conv2d, x, weight, None, stride, padding, groups)
    same(ours, gradients(F.conv2d, x, weight, None, stride, padding, 1, groups))


def test_only_gradients_that_are_asked_for_are_worked_out() -> None:
    x, weight = made(2, 6, 8, 8), made(6, 1, 5, 5)
    assert gradients(conv2d, x.detach(), weight, None, 1, 2, 6)[1][0].shape == weight.shape
    assert gradients(conv2d, x, weight.detach(), None, 1, 2, 6)[1][0].shape == x.shape


@pytest.mark.parametrize(
    ("variable", "kept"),
    [({}, True), ({"APQ_KEEP_BUFFERS": "0"}, False), ({"MALLOC_TRIM_THRESHOLD_": "1"}, False)],
    ids=str,
)
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_large_buffers_are_kept_unless_somebody_decided_otherwise(
    variable: dict[str, str], kept: bool
) -> None:
    program = "from apq_optuna._memory import keep_buffers; print(keep_buffers())"
    done = subprocess.run(
        [sys.executable, "-c", program], env=variable, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(kept)
