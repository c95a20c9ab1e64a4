"""Convolutions done in another way: the same values, and the same gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import apq_optuna as apq
from apq_optuna.networks import ConvLayer, PlacedLayer
from apq_optuna.quantization.network import QuantizedLayer, quantize_network
from apq_optuna.supernet import convolution
from apq_optuna.supernet.convolution import conv2d, sound_conv2d


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
        (made(2, 16, 8, 8), made(4, 16, 1, 1), 2, 0, 1),
    ],
)
def test_any_other_convolution_is_torchs(
    x: Tensor, weight: Tensor, stride: int, padding: int, groups: int
) -> None:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    ours = gradients(conv2d, x, weight, None, stride, padding, groups)
    same(ours, gradients(F.conv2d, x, weight, None, stride, padding, 1, groups))


class Asked(TorchFunctionMode):
    """Notes which strided 1x1 convolutions reach the library, by their input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.conv2d and args[1].shape[2:] == (1, 1):
            stride = args[3] if len(args) > 3 else 1
            if max([stride] if isinstance(stride, int) else stride) > 1:
                self.channels.append(args[1].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("channels", [1, 3, 6, 7, 8, 15])
@pytest.mark.parametrize("stride", [2, 3, (2, 1), (1, 2)], ids=str)
def test_a_narrow_strided_convolution_has_right_gradients(
    stride: int | tuple[int, int], channels: int, last: bool
) -> None:
    """The library's are wrong now and then, or end the process: it writes beyond a buffer."""
    # of sizes that the strides divide: the library goes wrong with these only
    x, weight, bias = made(2, channels, 12, 6, last=last), made(4, channels, 1, 1), made(4)
    right = gradients(F.conv2d, *(t.detach().double().requires_grad_() for t in (x, weight, bias)),
                      stride)  # fmt: skip
    functions = [sound_conv2d, conv2d] if isinstance(stride, int) else [sound_conv2d]
    for function in functions:
        with Asked() as asked:
            value, learned = gradients(function, x, weight, bias, stride)
        assert not asked.channels
        assert channels == 1 or value.is_contiguous(  # one channel lies either way
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        same((value.double(), [g.double() for g in learned]), right)


class Function(nn.Module):
    """A convolution that is no module of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :3], self.weight, None, 2)


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own, as timm's that pad as they need."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, 2 * self.weight, self.bias, self.stride)


class Narrow(nn.Module):
    """A residual block whose strided shortcut gets narrow as it is pruned."""

    def __init__(self, short: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.long = nn.Conv2d(16, 24, 3, 2, 1)
        self.short = short
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.long(x) + self.short(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "short", [nn.Conv2d(16, 24, 1, 2), nn.Conv2d(16, 24, 1, 2, "valid"), Scaled(16, 24, 1, 2),
              Function()],
    ids=["usual", "valid", "its own forward", "a function"],
)  # fmt: skip
def test_a_model_of_ones_own_learns_with_right_gradients(short: nn.Module) -> None:
    torch.manual_seed(0)
    model = Narrow(short)
    whole = 16 if isinstance(short, nn.Conv2d) else 3
    space = apq.trace(model, (3, 8, 8), keep=(0.25, 1.0), step=2)
    net = apq.PretrainedNet(model, space).train()
    smallest = space.decode(space.extreme(largest=False)[0])
    images = torch.randn(2, 3, 8, 8)
    with Asked() as asked:
        net(images, smallest).sum().backward()
    assert not asked.channels
    with Asked() as asked, torch.no_grad():  # nothing is learned: nothing is changed
        net(images, smallest)
    assert asked.channels == [4 if whole == 16 else 3]
    with Asked() as asked:
        net(images).sum().backward()
    assert asked.channels == [16] * (whole == 16)
    network = net.subnet(smallest)
    for learning in (network, quantize_network(network, smallest)):
        with Asked() as asked:
            learning(images).sum().backward()
        assert not asked.channels


@pytest.mark.parametrize("stride", [2, (2, 1)], ids=str)
def test_a_quantized_layer_learns_with_right_gradients(stride: int | tuple[int, int]) -> None:
    placed = PlacedLayer("short", ConvLayer(6, 4, 8, 1, stride, 0, 1), 8, 8)
    layer = QuantizedLayer(
        torch.randn(4, 6, 1, 1), torch.zeros(4), placed, signed=True, relu=False,
        stride=stride,
    )  # fmt: skip
    with Asked() as asked:
        layer(made(2, 6, 8, 8)).sum().backward()
    assert not asked.channels


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
