"""`cpu`: this machine, measured with ONNX Runtime.

Every layer is a small graph, quantized (int8) for widths up to 8 and float32 for 32. A table goes
over all layers in rounds; whole networks are measured in rounds, too.

A machine is not always equally fast: a neighbour on the same host, or a warm processor, slows it
for a part of a second to several. A reference graph is timed before and after each visit, and a
visit that met a slow moment is repeated a little later.
"""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import CostTableError
from apq_optuna.export.graphs import layer_graph, subnet_graph
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

COPIES = 5
"""Copies of a layer in its graph, so that starting a run is a small part of its time."""

WARM_UP = 5
"""Runs before the first that counts."""

FEWEST, LONGEST_S = 10, 0.1
"""Repeats end early after this many, once they have taken so long."""


DISTURBED = 1.15
"""The reference takes so much longer than at its best while something disturbs."""

WAITS_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Before each further try; what the least disturbed one measured then counts."""

REMEMBERED = 60
"""Timings of the reference that its best is the best of."""

REFERENCE = ConvLayer(64, 64, 16, 3, 1, 1, 1)


@dataclass(frozen=True)
class CPU(Device):
    """This machine, measured with ONNX Runtime: int8 up to 8 bits, else float; no energy.

    Attributes:
        threads: Of the runtime; 1 is the most repeatable.
        rounds: Visits to every layer or network, in turn; their median is the latency.
        repeats: Runs in one visit.
        pause_s: Between rounds over whole networks. A machine's speed drifts over minutes, which
            rounds close together do not see, nor their spread.
    """

    threads: int = 1
    rounds: int = 7
    repeats: int = 40
    pause_s: float = 0.0
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, FLOAT_BITS)
    name: str = "cpu"
    runs_networks: bool = True

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
        model, shape = layer_graph(layer, int8=int8, copies=COPIES)
        run = _Run(model, shape, self.threads, np.uint8 if int8 else np.float32)
        return self._visit(run) / COPIES, None

    def _visit(self, run: _Run) -> float:
        """Median latency of a visit in an undisturbed moment, ms."""
        reference = _reference(self.threads)
        tries: list[tuple[float, float]] = []
        for wait in (0.0, *WAITS_S):
            time.sleep(wait)
            before = reference.slowness()
            latency = run.median_ms(self.repeats)
            slowness = max(before, reference.slowness())
            if slowness < DISTURBED:
                return latency
            tries.append((slowness, latency))
        return min(tries)[1]

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
        runs = []
        for subnet in subnets:
            int8 = [self.executes(p.w_bits, p.a_bits) == (8, 8) for p in subnet.layers()]
            model, shape = subnet_graph(subnet, int8)
            runs.append(_Run(model, shape, self.threads, np.float32))
        latencies = np.empty((self.rounds, len(runs)))
        for turn in range(self.rounds):
            time.sleep(self.pause_s if turn else 0.0)
            for i, run in enumerate(runs):
                latencies[turn, i] = self._visit(run)
                if report is not None:
                    report(turn * len(runs) + i + 1, latencies.size)
        return [Measurement.of(column) for column in latencies.T]


cpu = CPU
"""This machine; how it is measured can be given."""


class _Run:
    """A model in the runtime, its input and outputs in place, ready to be timed."""

    def __init__(
        self, model: bytes, shape: tuple[int, ...], threads: int, kind: type[np.generic]
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        values: NDArray[Any] = rng.random(shape, np.float32)
        if kind is np.uint8:
            values = (values * 255).astype(np.uint8)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(values))
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)
        self._session.run_with_iobinding(self._binding)  # allocates the outputs, now kept
        for output, value in zip(
            self._session.get_outputs(), self._binding.get_outputs(), strict=True
        ):
            self._binding.bind_ortvalue_output(output.name, value)

    def median_ms(self, repeats: int) -> float:
        """Median of the repeats, after a warm-up."""
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter
        for _ in range(WARM_UP):
            run(binding)
        seconds = []
        started = clock()
        for done in range(repeats):
            before = clock()
            run(binding)
            after = clock()
            seconds.append(after - before)
            if done + 1 >= FEWEST and after - started > LONGEST_S:
                break
        return float(np.median(seconds)) * 1e3


class _Reference:
    """A graph that always takes the same, unless something disturbs."""

    def __init__(self, threads: int) -> None:
        model, shape = layer_graph(REFERENCE, int8=True, copies=1)
        self._run = _Run(model, shape, threads, np.uint8)
        self._latest = deque((self._run.median_ms(FEWEST) for _ in range(20)), REMEMBERED)

    def slowness(self) -> float:
        """What it takes now over its best lately.

        Lately: a processor that has become slower for good is soon no longer taken for disturbed.
        """
        now = self._run.median_ms(FEWEST)
        self._latest.append(now)
        return now / min(self._latest)


@cache
def _reference(threads: int) -> _Reference:
    return _Reference(threads)


def processor_name() -> str:
    """What the machine calls its processor."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
