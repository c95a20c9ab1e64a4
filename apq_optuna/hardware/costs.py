"""Costs as values, what messages call a layer, and checks of numbers: shared by devices, tables
and their files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import ConvLayer, as_pair

METRIC_NAMES = ("latency_ms", "energy_mj")

Cost = tuple[float, float | None]
"""(latency in ms, energy in mJ or None)."""

Key = tuple[ConvLayer, int, int]
"""(layer, w_bits, a_bits)."""

Report = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


class Priced(Protocol):
    """What can be compiled: the parts of a cost table that prices follow from."""

    device: str
    partial: bool
    overhead: tuple[float, ...]
    metric_names: tuple[str, ...]

    @property
    def entries(self) -> Mapping[Key, Cost]:
        """What each layer costs at each pair of bit-widths."""


class Measurement(NamedTuple):
    """What a device took for one whole network.

    Attributes:
        latency_ms: Median of the rounds.
        spread_ms: How far the rounds stray from the median, the farthest one left out.
        rounds: Each round's own median, in ms.
    """

    latency_ms: float
    spread_ms: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: Sequence[float] | NDArray[np.floating]) -> Measurement:
        """Median and spread of the rounds of one network, in ms."""
        middle = float(np.median(rounds))
        strays = np.sort(np.abs(np.asarray(rounds) - middle))
        spread = float(strays[-2] if len(strays) > 2 else strays[-1])
        return cls(middle, spread, tuple(float(value) for value in rounds))


def whole_number(name: str, value: object, least: int = 1) -> None:
    """Raises `InvalidArgumentError` for a parameter that is no whole number from `least` up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgumentError(f"{name}={value!r}: a whole number, at least {least}")


def positive(name: str, value: object, *, zero: bool = False) -> None:
    """Raises `InvalidArgumentError` for a parameter that is no finite number above 0."""
    number = float(value) if isinstance(value, int | float) else math.nan
    if (
        isinstance(value, bool)
        or not math.isfinite(number)
        or number < 0
        or (number == 0 and not zero)
    ):
        raise InvalidArgumentError(
            f"{name}={value!r}: {'cannot be negative' if zero else 'must be positive'}"
        )


def bit_widths(bits: object, allowed: Sequence[int]) -> None:
    """Raises `InvalidArgumentError` for widths that are not a tuple of some of `allowed`."""
    if not isinstance(bits, tuple) or not bits or not set(bits) <= set(allowed):
        raise InvalidArgumentError(f"bits={bits!r}: a tuple of some of {list(allowed)}")


def layer_name(layer: ConvLayer, w_bits: int, a_bits: int) -> str:
    """What messages call a layer at its bit-widths."""
    kind = "linear" if layer.linear else "depthwise" if layer.depthwise else "convolution"
    usual = tuple((d * (k - 1)) // 2 for k, d in zip(
        as_pair(layer.kernel_size), as_pair(layer.dilation), strict=True))  # fmt: skip
    padding = "" if as_pair(layer.padding) == usual else f" padding {layer.padding}"
    return (
        f"{kind} {layer.in_channels}->{layer.out_channels} kernel {layer.kernel_size} "
        f"stride {layer.stride}{padding} groups {layer.groups} at input {layer.input_size}, "
        f"W{w_bits}A{a_bits}"
    )
