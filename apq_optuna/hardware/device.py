"""What a device is: something that prices a layer at given bit-widths.

A device of one's own is a subclass with a name, its bit-widths and one method:

    class Board(Device):
        name = "board"
        bits = (8,)

        def cost(self, layer, w_bits, a_bits):
            self.check_bits(w_bits, a_bits)
            return measure_ms(layer), measure_mj(layer)
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError, MissingCostError
from apq_optuna.space import ConvLayer, SearchSpace, Subnet
from apq_optuna.space.subnet import (
    Block,
    NetworkSpec,
    as_pair,
    stage_input_size,
    stem_layers,
    tail_layers,
)

if TYPE_CHECKING:
    from apq_optuna.hardware.table import CostTable

Cost = tuple[float, float | None]
"""(latency in ms, energy in mJ or None)."""

Key = tuple[ConvLayer, int, int]
"""(layer, w_bits, a_bits)."""

Report = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


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


class Device:
    """Base of the devices.

    Attributes:
        name: Shown in tables and reports.
        bits: Bit-widths the device takes; others are an error.
        rounds: How often a table asks for each cost: more than once where it is measured. The
            rounds go over all layers in turn, and the median is kept.
        runs_networks: Whether `measure` runs whole networks.
    """

    name: str = "device"
    bits: tuple[int, ...] = ()
    rounds: int = 1
    runs_networks: bool = False

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        """(latency in ms, energy in mJ or None) of one layer for one image.

        Raises:
            MissingCostError: The device does not execute these bit-widths.
        """
        raise MissingCostError(f"device {self.name!r} prices no layers")

    def executes(self, w_bits: int, a_bits: int) -> tuple[int, int]:
        """The widths that a layer of these widths runs at; layers that run alike cost the same.

        By default what is asked. A device with 8-bit arithmetic alone answers (8, 8) for less.
        """
        return w_bits, a_bits

    def measure(
        self, subnets: Sequence[Subnet], *, report: Report | None = None
    ) -> list[Measurement]:
        """Latency of whole networks, run for real; their rounds are interleaved.

        Args:
            subnets: The networks.
            report: Told how many of all visits are done.

        Returns:
            One measurement each, in their order.

        Raises:
            MissingCostError: The device runs no whole networks, or not these bit-widths.
        """
        raise MissingCostError(f"device {self.name!r} runs no whole networks")

    def check_bits(self, w_bits: int, a_bits: int) -> None:
        """Raises `MissingCostError` for bit-widths the device does not execute."""
        for operand, bits in (("w_bits", w_bits), ("a_bits", a_bits)):
            if bits not in self.bits:
                raise MissingCostError(
                    f"{operand}={bits}: device {self.name!r} executes {list(self.bits)} bits"
                )

    def costs(self, layer: ConvLayer, pairs: Sequence[tuple[int, int]]) -> list[Cost]:
        """Costs of a layer at several (w_bits, a_bits), in their order.

        Raises:
            MissingCostError: The device does not execute some of them.
        """
        return [self.cost(layer, w, a) for w, a in pairs]

    def provenance(self) -> dict[str, Any]:
        """Where this device's numbers come from, in JSON types.

        By default its class and a digest of that class's source, bits and rounds, and what its
        public attributes are. A table that was stopped goes on, and one that a run keeps is used
        again, only where this is the same.
        """
        about: dict[str, Any] = {"device": self.name, "class": type(self).__qualname__}
        with contextlib.suppress(OSError, TypeError):  # typed in, or compiled: no source
            source = inspect.getsource(type(self))
            about["source"] = hashlib.sha256(source.encode()).hexdigest()[:16]
        about |= {"bits": list(self.bits), "rounds": self.rounds}
        public = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        plain = (bool, int, float, str, type(None))
        return about | {k: v for k, v in public.items() if isinstance(v, plain)}

    def network_cost(
        self,
        layers: Iterable[ConvLayer],
        w_bits: int | Sequence[int],
        a_bits: int | Sequence[int],
    ) -> Cost:
        """Summed cost of a network's layers.

        Args:
            layers: The layers, from `layers_of`.
            w_bits, a_bits: One width for all layers, or one for each.

        Returns:
            (latency in ms, energy in mJ or None where the device has none).

        Raises:
            InvalidArgumentError: Another number of widths than layers.
            MissingCostError: The device does not execute some of them.
        """
        layers = list(layers)
        widths = [
            [bits] * len(layers) if isinstance(bits, int) else list(bits)
            for bits in (w_bits, a_bits)
        ]
        for name, given in zip(("w_bits", "a_bits"), widths, strict=True):
            if len(given) != len(layers):
                raise InvalidArgumentError(
                    f"{name} has {len(given)} widths for {len(layers)} layers"
                )
        costs = [self.cost(layer, w, a) for layer, w, a in zip(layers, *widths, strict=True)]
        energies = [energy for _, energy in costs if energy is not None]
        return sum(ms for ms, _ in costs), (
            sum(energies) if len(energies) == len(costs) and costs else None
        )

    def table(
        self,
        space: SearchSpace,
        *,
        journal: str | Path | None = None,
        report: Report | None = None,
    ) -> CostTable:
        """Costs of every layer choice of a space, fixed layers included.

        Bit-widths the device does not execute are left out, which makes them infeasible.

        Args:
            space: The joint space.
            journal: A file that costs are added to as they come; a table that was stopped goes on
                from it. It is left there: delete it once the table is saved.
            report: Told how many of all costs are there.

        Returns:
            The table; its provenance has the device's, the date and the space.

        Raises:
            MissingCostError: The device executes none of the space's bit-widths, or not those of
                the fixed layers.
            CostTableError: The device answers with something that is no cost, or the journal is
                of another space, device or parameters, or in use.
        """
        from apq_optuna.hardware.build import build_table

        return build_table(self, space, journal=journal, report=report)


def space_bits(space: SearchSpace) -> tuple[int, ...]:
    """The bit-widths of a network's space."""
    return space._network().bits


def fixed_layers(space: SearchSpace) -> list[Any]:
    """The placed layers every subnet has, in order."""
    spec = space._network()
    return [*stem_layers(spec), *tail_layers(spec)]


def block_sites(spec: NetworkSpec) -> Iterator[tuple[int, int, int, int]]:
    """(stage, block, input side, stride) of every block that some subnet has, in order."""
    for s, stage in enumerate(spec.stages):
        size = stage_input_size(spec, s)
        for b in range(stage.depths[-1]):
            stride = stage.stride if b == 0 else 1
            yield s, b, size, stride
            size = (size - 1) // stride + 1


def block_layers(
    spec: NetworkSpec, site: tuple[int, int, int, int], channels: int, kernel: int
) -> tuple[ConvLayer, ConvLayer, ConvLayer]:
    """Expand, depthwise and project layer of a block at one of `block_sites`."""
    s, b, size, stride = site
    block = Block(
        "", s, b, spec.block_inputs(s, b), channels, spec.stages[s].out_channels, kernel, stride,
        size, 8, 8, 8, 8,
    )  # fmt: skip
    expand, depthwise, project = (placed.layer for placed in block.layers())
    return expand, depthwise, project


def searched_layers(space: SearchSpace) -> list[ConvLayer]:
    """Every distinct layer that some subnet of a space has in a searched block."""
    spec = space._network()
    found: dict[ConvLayer, None] = {}
    for site in block_sites(spec):
        for kernel in spec.stages[site[0]].kernels:
            for channels in spec.channel_choices(*site[:2]):
                found.update(dict.fromkeys(block_layers(spec, site, channels, kernel)))
    return list(found)


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


def needed_entries(
    space: SearchSpace, bits: Sequence[int]
) -> dict[ConvLayer, list[tuple[int, int]]]:
    """What a table for a space holds: each layer with its (w_bits, a_bits), as far as `bits` go.

    Fixed layers come with the widths they have in every network, whatever `bits` are.
    """
    allowed = [b for b in space_bits(space) if b in bits]
    pairs = [(w, a) for w in allowed for a in allowed]
    needed = {layer: list(pairs) for layer in searched_layers(space)}
    for placed in fixed_layers(space):
        widths = needed.setdefault(placed.layer, [])
        if (placed.w_bits, placed.a_bits) not in widths:
            widths.append((placed.w_bits, placed.a_bits))
    return needed


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
