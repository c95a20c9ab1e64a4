"""A cost table's rows as they are read: each is checked against itself and those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.costs import Cost, Key, layer_name
from apq_optuna.networks import FLOAT_BITS, ConvLayer, Size, as_pair

SCHEMA = 1
UNITS = {"latency": "ms", "energy": "mJ"}

SHAPE = ("in_channels", "out_channels", "input_size", "kernel_size", "stride", "padding", "groups",
         "dilation", "linear")  # fmt: skip
PAIRS = ("input_size", "kernel_size", "stride", "padding", "dilation")
_DEFAULTS = {"stride": 1, "groups": 1, "dilation": 1, "linear": False}

UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, SyntaxError)
"""What reading a malformed row may raise."""


@dataclass
class Contents:
    """What a file holds; the fields are those of `CostTable`."""

    device: str
    entries: dict[Key, Cost] = field(default_factory=dict)
    spreads: dict[Key, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    partial: bool = False
    overhead: tuple[float, ...] = (0.0, 0.0)

    @property
    def with_energy(self) -> bool:
        """Whether entries have an energy."""
        return any(energy is not None for _, energy in self.entries.values())


class Rows:
    """Collects the rows of one file into its contents.

    Args:
        path: The file, for messages.
        contents: Takes the rows in.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents = path, contents
        self.place: dict[Key, str] = {}

    def fail(self, place: str, message: str) -> CostTableError:
        """An error about one place of the file, to be raised."""
        return CostTableError(f"{self.path}, {place}: {message}")

    def add(self, place: str, key: Key, cost: Cost, spread: float | None = None) -> None:
        """Takes in a row.

        Raises:
            CostTableError: A shape, width or cost that cannot be, a repeated row, or one with
                energy among others without.
        """
        wrong = shape_fault(key) or fault(*cost, spread)
        if wrong:
            raise self.fail(place, f"{wrong} ({layer_name(*key)})")
        if key in self.place:
            raise self.fail(place, f"repeats {self.place[key]}: {layer_name(*key)}")
        if self.place:
            first = next(iter(self.place))
            if (self.contents.entries[first][1] is None) != (cost[1] is None):
                without = place if cost[1] is None else self.place[first]
                raise self.fail(
                    without,
                    "has no energy, but other rows do: give it for all of them, or for none "
                    "(energy is then no objective)",
                )
        self.place[key] = place
        self.contents.entries[key] = cost
        if spread is not None:
            self.contents.spreads[key] = spread

    def finish(self) -> Contents:
        """The contents, once all rows are in.

        Raises:
            CostTableError: There was none.
        """
        if not self.place:
            raise CostTableError(f"{self.path} has no entries")
        return self.contents


def fault(latency_ms: float, energy_mj: float | None, spread_ms: float | None = None) -> str:
    """What is wrong with the costs of a row; empty where nothing is."""
    named = {"latency_ms": latency_ms, "energy_mj": energy_mj, "latency_spread_ms": spread_ms}
    for name, value in named.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            return f"{name}={value}: costs are finite and not negative"
    return ""


def shape_fault(key: Key) -> str:
    """What is wrong with the layer or the widths of a row; empty where nothing is."""
    layer, *bits = key
    for name in ("in_channels", "out_channels", "groups"):
        if getattr(layer, name) < 1:
            return f"{name}={getattr(layer, name)}: at least 1"
    for name in PAIRS:
        least = 0 if name == "padding" else 1
        if min(as_pair(getattr(layer, name))) < least:
            return f"{name}={getattr(layer, name)}: at least {least}"
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        return f"groups={layer.groups} does not divide the channels"
    if min(layer.output_size) < 1:
        return "the kernel is larger than the padded input"
    for name, width in zip(("w_bits", "a_bits"), bits, strict=True):
        if not (1 <= width <= 8 or width == FLOAT_BITS):
            return f"{name}={width}: bit-widths are 1 to 8, and {FLOAT_BITS} for float"
    return ""


def layer_of(values: Mapping[str, Any]) -> ConvLayer:
    """A layer from what a row says of it; padding is by default what keeps the size."""
    shape = {name: values[name] for name in SHAPE if name in values}
    if "padding" not in shape:
        high, wide = as_pair(shape["kernel_size"])
        shape["padding"] = as_size([high // 2, wide // 2])
    return ConvLayer(**(_DEFAULTS | shape))


def as_size(values: list[int]) -> Size:
    """One number or two (height, width) as a layer has them: an int where they are equal.

    Raises:
        ValueError: Another number of them.
    """
    if not 1 <= len(values) <= 2:
        raise ValueError("one number, or height and width")
    return values[0] if values[0] == values[-1] else (values[0], values[1])
