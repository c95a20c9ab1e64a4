"""Costs as values, what messages call a layer, and checks of numbers: shared by devices, tables
and their files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import ConvLayer, as_pair
from apq_optuna.networks.layers import as_whole

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


def whole_number(name: str, value: object, least: int = 1) -> int:
    """A parameter as Python's integer, of whatever kind it is.

    Raises:
        InvalidArgumentError: It is no whole number from `least` up.
    """
    with contextlib.suppress(TypeError):
        number = as_whole(value)
        if number >= least:
            return number
    raise InvalidArgumentError(f"{name}={value!r}: a whole number, at least {least}")


def positive(name: str, value: object, *, zero: bool = False) -> int | float:
    """A parameter as Python's number, of whatever kind it is.

    Raises:
        InvalidArgumentError: It is no finite number above 0, or from 0 up where `zero` is allowed.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, bool):
        enough = value >= 0 if zero else value > 0
        if enough and math.isfinite(value):
            return value
    raise InvalidArgumentError(
        f"{name}={value!r}: {'cannot be negative' if zero else 'must be positive'}"
    )


def bit_widths(bits: object, allowed: Sequence[int]) -> tuple[int, ...]:
    """Widths as a tuple of Python's integers, whatever sequence they come in.

    Raises:
        InvalidArgumentError: They are not some of `allowed`.
    """
    with contextlib.suppress(TypeError):
        if not isinstance(bits, str | bytes | Mapping):
            found = tuple(as_whole(width) for width in bits)  # type: ignore[attr-defined]
            if found and set(found) <= set(allowed):
                return found
    raise InvalidArgumentError(f"bits={bits!r}: a tuple of some of {list(allowed)}")


def widths_of(name: str, bits: object, n: int) -> list[int]:
    """One width for each of n layers, from one for all or one for each.

    Raises:
        InvalidArgumentError: They are no whole numbers, or not as many as layers.
    """
    with contextlib.suppress(TypeError):
        return [as_whole(bits)] * n
    try:
        if isinstance(bits, str | bytes | Mapping):
            raise TypeError
        given = list(bits)  # type: ignore[call-overload]
    except TypeError:
        raise InvalidArgumentError(
            f"{name}={bits!r}: a whole number, or one for each layer"
        ) from None
    widths = [whole_number(name, width) for width in given]
    if len(widths) != n:
        raise InvalidArgumentError(f"{name} has {len(widths)} widths for {n} layers")
    return widths


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
