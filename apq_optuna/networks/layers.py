"""Convolutions and linear layers as values: the unit of cost."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields
from typing import Any

from apq_optuna.errors import InvalidArgumentError

FLOAT_BITS = 32
"""The width that stands for "not quantized"."""

Size = int | tuple[int, int]


def as_pair(size: Size) -> tuple[int, int]:
    """An int or a (height, width) pair as a pair."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def as_whole(value: Any) -> int:
    """A whole number of any kind, NumPy's too, as Python's.

    Raises:
        TypeError: It is none; truth values and floats are not.
    """
    if isinstance(value, bool):
        raise TypeError("a truth value is no number")
    return operator.index(value)


@dataclass(frozen=True, order=True)
class ConvLayer:
    """One convolution or linear layer: the unit of cost.

    Attributes:
        in_channels: Input channels (features of a linear layer).
        out_channels: Output channels.
        input_size: Height and width of the input, before padding; an int when square.
        kernel_size: Kernel height and width; an int when square.
        stride, padding, dilation: As in `torch.nn.Conv2d`; ints when the same on both axes.
        groups: 1 is dense, `in_channels` is depthwise.
        linear: A linear layer, which is a 1x1 convolution on one pixel.

    Whole numbers of any kind are taken, and kept as Python's: layers are keys and go into files.

    Raises:
        InvalidArgumentError: A field that is no whole number, nor a pair of them where allowed.
    """

    in_channels: int
    out_channels: int
    input_size: Size
    kernel_size: Size
    stride: Size
    padding: Size
    groups: int
    dilation: Size = 1
    linear: bool = False

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if type(value) is not int:  # families make layers by the thousand, of Python's
                object.__setattr__(self, name, _plain(name, value))
        if type(self.linear) is not bool:
            object.__setattr__(self, "linear", bool(self.linear))

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        sizes = zip(
            as_pair(self.input_size), as_pair(self.kernel_size), as_pair(self.stride),
            as_pair(self.padding), as_pair(self.dilation), strict=True,
        )  # fmt: skip
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return height, width

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return (
            self.out_channels
            * (self.in_channels // self.groups)
            * math.prod(as_pair(self.kernel_size))
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return self.weights * math.prod(self.output_size)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved on its own."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels


_SIZES = ("input_size", "kernel_size", "stride", "padding", "dilation")
_NUMBERS = tuple(field.name for field in fields(ConvLayer) if field.name != "linear")


def _plain(name: str, value: Any) -> Size:
    """A field's value as an int or a pair of them."""
    try:
        return as_whole(value)
    except TypeError:
        pass
    try:
        if name not in _SIZES or isinstance(value, str):
            raise TypeError
        height, width = (as_whole(side) for side in value)
    except (TypeError, ValueError):
        pair = " or a pair of them" if name in _SIZES else ""
        raise InvalidArgumentError(f"{name}={value!r}: a whole number{pair}") from None
    return height if height == width else (height, width)


@dataclass(frozen=True)
class PlacedLayer:
    """A layer of a network with its name there and its bit-widths (`a_bits` is its input's).

    Attributes:
        searched: Whether something about it is a choice; the other layers are in every network
            alike.
    """

    name: str
    layer: ConvLayer
    w_bits: int
    a_bits: int
    searched: bool = True
