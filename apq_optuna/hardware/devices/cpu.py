"""`cpu`: this machine, measured with ONNX Runtime.

Every layer is a small graph, quantized (int8) for widths up to 8 and float32 for 32. A table goes
over all layers in rounds; whole networks are measured in rounds, too.

A machine is not always equally fast: a neighbour on the same host, or a warm processor, slows it
for a part of a second to several. A reference graph is timed before and after each visit, and a
visit that met a slow moment is repeated a little later.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from apq_optuna.errors import CostTableError
from apq_optuna.export.graphs import layer_graph, subnet_graph, summed_graph
from apq_optuna.export.measure import Run, cores, processor_name, rounds_over, visit
from apq_optuna.hardware.costs import (
    Cost,
    Measurement,
    Report,
    bit_widths,
    positive,
    whole_number,
)
from apq_optuna.hardware.devices.device import Device
from apq_optuna.networks import FLOAT_BITS, ConvLayer, Subnet

if TYPE_CHECKING:
    from apq_optuna.hardware.tables.table import CostTable
    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import SubnetModule

COPIES = 5
"""Copies of a layer in its graph, so that starting a run is a small part of its time."""


@dataclass(frozen=True)
class CPU(Device):
    """This machine, measured with ONNX Runtime: int8 up to 8 bits, else float; no energy.

    Attributes:
        threads: Of the runtime; 1 is the most repeatable.
        rounds: Visits to every layer or network, in turn; their median is the latency.
        repeats: Runs in one visit.
        pause_s: Between rounds over whole networks. A machine's speed drifts over minutes, which
            rounds close together do not see, nor their spread.
        summed: Layers whose output a sum takes, which an exported network keeps float; `table`
            finds those of its space.
    """

    threads: int = 1
    rounds: int = 7
    repeats: int = 40
    pause_s: float = 0.0
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)
    name: str = "cpu"
    runs_networks: bool = True
    summed: frozenset[ConvLayer] = field(default=frozenset(), repr=False, compare=False)

    def __post_init__(self) -> None:
        normal: dict[str, object] = {
            attribute: whole_number(attribute, getattr(self, attribute))
            for attribute in ("threads", "rounds", "repeats")
        }
        normal["pause_s"] = positive("pause_s", self.pause_s, zero=True)
        normal["bits"] = bit_widths(self.bits, (*range(2, 9), FLOAT_BITS))
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    def provenance(self) -> dict[str, Any]:
        """Processor, threads, versions, and how widths are run."""
        import onnx
        import onnxruntime

        return {
            "model": "measured with ONNX Runtime",
            "processor": processor_name(),
            "cores": cores(),
            "threads": self.threads,
            "rounds": self.rounds,
            "repeats": self.repeats,
            "system": platform.system(),
            "versions": {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__},
            "executes": {"2 to 8 bits": "int8 (QDQ)", "32 bits, either operand": "float32"},
        }

    def executes(self, w_bits: int, a_bits: int) -> tuple[int, int]:
        """int8 where both widths are at most 8, else float."""
        return (8, 8) if max(w_bits, a_bits) <= 8 else (FLOAT_BITS, FLOAT_BITS)

    def table(self, space: SearchSpace, **options: Any) -> CostTable:
        """See `Device.table`."""
        from apq_optuna.export.wiring import summed_layers

        return Device.table(replace(self, summed=summed_layers(space)), space, **options)

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        """(latency in ms of one visit, None).

        Raises:
            MissingCostError: Bits other than 2 to 8 and 32.
            CostTableError: The layer has no output.
        """
        w_bits, a_bits = self.check_bits(w_bits, a_bits)
        if min(layer.output_size) < 1:
            raise CostTableError(f"{layer} has no output: its input is smaller than its kernel")
        int8 = self.executes(w_bits, a_bits) == (8, 8)
        if int8 and layer in self.summed:
            model = summed_graph(layer, copies=COPIES)
        else:
            model, _ = layer_graph(layer, int8=int8, copies=COPIES)
        run = Run(model, self.threads)
        return visit(run, self.repeats, self.threads) / COPIES, None

    def measure(
        self, subnets: Sequence[Subnet], *, report: Report | None = None
    ) -> list[Measurement]:
        """Latency of whole networks, every round over all of them.

        Raises:
            MissingCostError: Bits other than 2 to 8 and 32.
        """
        for subnet in subnets:
            for placed in subnet.layers():
                self.check_bits(placed.w_bits, placed.a_bits)
        return self._timed([subnet_graph(subnet) for subnet in subnets], report)

    def measure_networks(
        self, networks: Sequence[SubnetModule], *, report: Report | None = None
    ) -> list[Measurement]:
        """Latency of quantized networks as `export_onnx` writes them.

        Raises:
            SpaceError: A network's code cannot be written as a graph.
        """
        from apq_optuna.export.building import build_onnx  # torch, which a table does without

        return self._timed([build_onnx(network).content for network in networks], report)

    def _timed(self, models: Sequence[bytes], report: Report | None) -> list[Measurement]:
        latencies = rounds_over(
            [Run(model, self.threads) for model in models], rounds=self.rounds,
            repeats=self.repeats, threads=self.threads, pause_s=self.pause_s, report=report,
        )  # fmt: skip
        return [Measurement.of(column) for column in latencies.T]


cpu = CPU
"""This machine; how it is measured can be given."""
