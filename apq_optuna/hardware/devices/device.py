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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apq_optuna._progress import follow, progress_bar
from apq_optuna.errors import MissingCostError
from apq_optuna.hardware.costs import (
    Cost,
    Measurement,
    Report,
    whole_number,
    widths_of,
)
from apq_optuna.networks import ConvLayer, Subnet
from apq_optuna.space import SearchSpace

if TYPE_CHECKING:
    from apq_optuna.hardware.tables.table import CostTable
    from apq_optuna.supernet import SubnetModule


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

    def measure_networks(
        self, networks: Sequence[SubnetModule], *, report: Report | None = None
    ) -> list[Measurement]:
        """Latency of trained, quantized networks; by default as `measure` has it.

        A device that runs what was trained, not just its shapes, does it here.

        Raises:
            MissingCostError: The device runs no whole networks, or not these bit-widths.
            SpaceError: Networks of this family cannot be run.
        """
        return self.measure([network.description for network in networks], report=report)

    def check_bits(self, w_bits: int, a_bits: int) -> tuple[int, int]:
        """Bit-widths as Python's integers, of whatever kind they are.

        Raises:
            InvalidArgumentError: They are no whole numbers.
            MissingCostError: The device does not execute them.
        """
        widths = whole_number("w_bits", w_bits), whole_number("a_bits", a_bits)
        for operand, bits in zip(("w_bits", "a_bits"), widths, strict=True):
            if bits not in self.bits:
                raise MissingCostError(
                    f"{operand}={bits}: device {self.name!r} executes {list(self.bits)} bits"
                )
        return widths

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
        about |= {
            "bits": [whole_number("bits", width) for width in self.bits],
            "rounds": whole_number("rounds", self.rounds),
        }
        public = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        plain = (bool, int, float, str, type(None))
        numbers = {k: v.item() if isinstance(v, np.generic) else v for k, v in public.items()}
        return about | {k: v for k, v in numbers.items() if isinstance(v, plain)}

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
            InvalidArgumentError: Widths that are no whole numbers, or not as many as layers.
            MissingCostError: The device does not execute some of them.
        """
        layers = list(layers)
        widths = [
            widths_of(name, bits, len(layers))
            for name, bits in (("w_bits", w_bits), ("a_bits", a_bits))
        ]
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
        progress: bool = False,
    ) -> CostTable:
        """Costs of every layer choice of a space, fixed layers included.

        Bit-widths the device does not execute are left out, which makes them infeasible.

        Args:
            space: The joint space.
            journal: A file that costs are added to as they come; a table that was stopped goes on
                from it. It is left there: delete it once the table is saved.
            report: Told how many of all costs are there.
            progress: Shows a bar with the costs there are and the time left.

        Returns:
            The table; its provenance has the device's, the date and the space.

        Raises:
            MissingCostError: The device executes none of the space's bit-widths, or not those of
                the fixed layers.
            CostTableError: The device answers with something that is no cost, or the journal is
                of another space, device or parameters, or in use.
        """
        from apq_optuna.hardware.tables.build import build_table

        with progress_bar(1, f"{self.name}: layers", show=progress) as bar:
            told = follow(bar, report) if progress else report
            return build_table(self, space, journal=journal, report=told)
