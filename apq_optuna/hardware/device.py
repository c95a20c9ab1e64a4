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

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError, MissingCostError
from apq_optuna.space import ConvLayer, SearchSpace, Subnet
from apq_optuna.space.subnet import Block, stage_input_size, stem_layers, tail_layers

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
        """Costs of a layer at several (w_bits, a_bits)."""
        return [self.cost(layer, w, a) for w, a in pairs]

    def provenance(self) -> dict[str, Any]:
        """Where this device's numbers come from, in JSON types."""
        return {"device": self.name}

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
                from it. It is removed when the table is whole.
            report: Told how many of all costs are there.

        Raises:
            MissingCostError: The device cannot execute the fixed layers.
            CostTableError: The journal is of another space or device.
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


def searched_layers(space: SearchSpace) -> list[ConvLayer]:
    """Every distinct layer that some subnet of a space has in a searched block."""
    spec = space._network()
    found: dict[ConvLayer, None] = {}
    for s, stage in enumerate(spec.stages):
        size = stage_input_size(spec, s)
        for b in range(stage.depths[-1]):
            stride = stage.stride if b == 0 else 1
            for kernel in stage.kernels:
                for channels in spec.channel_choices(s, b):
                    block = Block(
                        "", s, b, spec.block_inputs(s, b), channels, stage.out_channels,
                        kernel, stride, size, 8, 8, 8, 8,
                    )  # fmt: skip
                    found.update(dict.fromkeys(placed.layer for placed in block.layers()))
            size = (size - 1) // stride + 1
    return list(found)


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
    return (
        f"{kind} {layer.in_channels}->{layer.out_channels} kernel {layer.kernel_size} "
        f"stride {layer.stride} groups {layer.groups} at input {layer.input_size}, "
        f"W{w_bits}A{a_bits}"
    )
