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

import datetime
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from apq_optuna.errors import InvalidArgumentError, MissingCostError
from apq_optuna.space import ConvLayer, SearchSpace
from apq_optuna.space.subnet import stem_layers, tail_layers

if TYPE_CHECKING:
    from apq_optuna.hardware.table import CostTable

Cost = tuple[float, float | None]
"""(latency in ms, energy in mJ or None)."""


class Device:
    """Base of the devices.

    Attributes:
        name: Shown in tables and reports.
        bits: Bit-widths the device executes; others are an error.
    """

    name: str = "device"
    bits: tuple[int, ...] = ()

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        """(latency in ms, energy in mJ or None) of one layer for one image.

        Raises:
            MissingCostError: The device does not execute these bit-widths.
        """
        raise MissingCostError(f"device {self.name!r} prices no layers")

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

    def table(self, space: SearchSpace) -> CostTable:
        """Costs of every layer choice of a space, fixed layers included.

        Bit-widths the device does not execute are left out, which makes them infeasible.

        Raises:
            MissingCostError: The device cannot execute the fixed layers.
        """
        from apq_optuna.hardware.table import CostTable

        pairs = [(w, a) for w in space_bits(space) for a in space_bits(space)]
        pairs = [pair for pair in pairs if set(pair) <= set(self.bits)]
        entries: dict[tuple[ConvLayer, int, int], Cost] = {}
        for layer in searched_layers(space):
            for (w, a), cost in zip(pairs, self.costs(layer, pairs), strict=True):
                entries[layer, w, a] = cost
        for placed in fixed_layers(space):
            key = (placed.layer, placed.w_bits, placed.a_bits)
            entries[key] = self.cost(*key)
        made = {"created": datetime.date.today().isoformat(), "space": space.hash}
        return CostTable(entries, device=self.name, provenance=self.provenance() | made)


def space_bits(space: SearchSpace) -> tuple[int, ...]:
    """The bit-widths of a network's space."""
    return space._network().bits


def fixed_layers(space: SearchSpace) -> list[Any]:
    """The placed layers every subnet has, in order."""
    spec = space._network()
    return [*stem_layers(spec), *tail_layers(spec)]


def searched_layers(space: SearchSpace) -> list[ConvLayer]:
    """Every distinct layer that some subnet of a space has in a searched block."""
    from apq_optuna.space.subnet import Block, stage_input_size

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
