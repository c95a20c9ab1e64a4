"""Times any ONNX file: warm-up, rounds, spread, and a reference that tells a disturbed moment.

Needs `numpy`, `onnxruntime` and Python 3.9 alone, so that this one file can be copied to a board
or a phone:

    python measure.py network.onnx --out network.json

A machine is not always equally fast: a neighbour on the same host, or a warm processor, slows it
for a part of a second to several. A reference graph is timed before and after each visit, and a
visit that met a slow moment is repeated a little later.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

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

ROUNDS, REPEATS = 7, 40

REFERENCE = (
    "CAgSADqGAwovCgFuEgF3Ig9Db25zdGFudE9mU2hhcGUqFgoFdmFsdWUqCggBEAMqASVCAXagAQQKJAoBeBIBdCIJ"
    "VHJhbnNwb3NlKhEKBHBlcm1AAEADQAFAAqABBwoeCgF0CgFzCgF6EgFkIhBEZXF1YW50aXplTGluZWFyCh8KAXcK"
    "AXMKAno4EgFlIhBEZXF1YW50aXplTGluZWFyCiIKAWQKAWUSAWMiBENvbnYqEQoEcGFkc0ABQAFAAUABoAEHCgwK"
    "AWMSAXIiBFJlbHUKHAoBcgoBcwoBehIBcSIOUXVhbnRpemVMaW5lYXIKJAoBcRIBeSIJVHJhbnNwb3NlKhEKBHBl"
    "cm1AAEACQANAAaABBxIBciopCAQQB0IBbkogQAAAAAAAAABAAAAAAAAAAAMAAAAAAAAAAwAAAAAAAAAqCxABQgFz"
    "SgQK16M8KggQAkIBekoBACoJEANCAno4SgEAWhsKAXgSFgoUCAISEAoCCAEKAggQCgIIEAoCCEBiCQoBeRIECgII"
    "AkIECgAQEQ=="
)
"""A quantized 3x3 convolution of 64 channels on 16x16, as an ONNX file in base64."""

KINDS = {
    "tensor(float)": np.float32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class Run:
    """A model in the runtime, its input and outputs in place, ready to be timed.

    Args:
        model: A file's path or content.
        threads: Of the runtime.
        batch: What a dimension without a size is.
        settings: Of the session, by name.
    """

    def __init__(
        self, model: str | bytes, threads: int = 1, *, batch: int = 1,
        settings: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        for name, value in (settings or {}).items():
            options.add_session_config_entry(name, value)
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        self._binding = self._session.io_binding()
        self.shapes: list[list[int]] = []
        for each in self._session.get_inputs():
            shape = [size if isinstance(size, int) and size > 0 else batch for size in each.shape]
            values = rng.random(shape, np.float32)
            kind = KINDS.get(each.type)
            if kind is None:
                raise ValueError(f"input {each.name!r} is a {each.type}: no images")
            whole = not np.issubdtype(kind, np.floating)
            values = (values * (255 if kind == np.uint8 else 1 + 126 * whole)).astype(kind)
            self._binding.bind_ortvalue_input(
                each.name, onnxruntime.OrtValue.ortvalue_from_numpy(values)
            )
            self.shapes.append(shape)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)
        self._session.run_with_iobinding(self._binding)  # allocates the outputs, now kept
        values = self._binding.get_outputs()
        for i, output in enumerate(self._session.get_outputs()):
            self._binding.bind_ortvalue_output(output.name, values[i])

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


class Reference:
    """A graph that always takes the same, unless something disturbs."""

    def __init__(self, threads: int) -> None:
        self._run = Run(base64.b64decode(REFERENCE), threads)
        self._latest = deque((self._run.median_ms(FEWEST) for _ in range(20)), REMEMBERED)

    def slowness(self) -> float:
        """What it takes now over its best lately.

        Lately: a processor that has become slower for good is soon no longer taken for disturbed.
        """
        now = self._run.median_ms(FEWEST)
        self._latest.append(now)
        return now / self.best_ms

    @property
    def best_ms(self) -> float:
        """Its best lately."""
        return min(self._latest)


@cache
def reference(threads: int) -> Reference:
    """The reference of this process."""
    return Reference(threads)


def visit(run: Run, repeats: int, threads: int) -> float:
    """Median latency of a visit in an undisturbed moment, ms."""
    known = reference(threads)
    tries: list[tuple[float, float]] = []
    for wait in (0.0, *WAITS_S):
        time.sleep(wait)
        before = known.slowness()
        latency = run.median_ms(repeats)
        slowness = max(before, known.slowness())
        if slowness < DISTURBED:
            return latency
        tries.append((slowness, latency))
    return min(tries)[1]


def rounds_over(
    runs: Sequence[Run], *, rounds: int = ROUNDS, repeats: int = REPEATS, threads: int = 1,
    pause_s: float = 0.0, report: Callable[[int, int], None] | None = None,
) -> Any:  # fmt: skip
    """Latencies of models, every round over all of them: `(rounds, models)`, ms.

    Args:
        runs: The models.
        rounds: Visits to each.
        repeats: Runs in one visit.
        threads: That they run with.
        pause_s: Between rounds: a machine's speed drifts over minutes.
        report: Told how many of all visits are done.
    """
    latencies = np.empty((rounds, len(runs)))
    for turn in range(rounds):
        time.sleep(pause_s if turn else 0.0)
        for i, run in enumerate(runs):
            latencies[turn, i] = visit(run, repeats, threads)
            if report is not None:
                report(turn * len(runs) + i + 1, latencies.size)
    return latencies


def measure_file(
    path: str | Path, *, threads: int = 1, rounds: int = ROUNDS, repeats: int = REPEATS,
    batch: int = 1, settings: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What an ONNX file takes here, in JSON types.

    Raises:
        OSError: It cannot be read.
        ValueError: A number below 1.
        Exception: The runtime cannot load or run it; says why.
    """
    if min(threads, rounds, repeats, batch) < 1:
        raise ValueError("threads, rounds, repeats and batch: at least 1")
    content = Path(path).read_bytes()
    run = Run(str(path), threads, batch=batch, settings=settings)  # may have weights beside it
    latencies = rounds_over([run], rounds=rounds, repeats=repeats, threads=threads)[:, 0]
    return describe(
        content, Path(path).name, latencies, run.shapes, threads=threads, rounds=rounds,
        repeats=repeats, settings=settings,
    )  # fmt: skip


def describe(
    content: bytes, name: str, latencies: Any, shapes: Sequence[Sequence[int]], *,
    threads: int = 1, rounds: int = ROUNDS, repeats: int = REPEATS,
    settings: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a file's latencies, `(rounds,)` in ms, say, and where they were measured."""
    import onnxruntime

    return {
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "latency_ms": float(np.median(latencies)),
        "spread_ms": float(np.subtract(*np.percentile(latencies, [75, 25]))),
        "input_shapes": [list(shape) for shape in shapes],
        "rounds": rounds,
        "repeats": repeats,
        "threads": threads,
        "reference_ms": reference(threads).best_ms,
        "processor": processor_name(),
        "cores": cores(),
        "system": platform.platform(),
        "versions": {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
        "settings": dict(settings or {}),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor_name() -> str:
    """What the machine calls its processor."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line.split(":", 1) for line in file if ":" in line]
        names = [v.strip() for k, v in lines if k.strip() in ("model name", "Hardware", "Model")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Times ONNX files with ONNX Runtime: the median of rounds, as `cpu` is timed."
    )
    parser.add_argument("files", nargs="+", metavar="FILE.onnx")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default 1)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"(default {ROUNDS})")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"runs in one round (default {REPEATS})"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default 1)")
    parser.add_argument(
        "--precise", action="store_true",
        help="with session.x64quantprecision: kernels that do not saturate",
    )  # fmt: skip
    parser.add_argument("--out", help="JSON file with all of it (of one FILE)")
    given = parser.parse_args(arguments)
    if min(given.threads, given.rounds, given.repeats, given.batch) < 1:
        parser.error("--threads, --rounds, --repeats and --batch: at least 1")
    if given.out and len(given.files) > 1:
        parser.error("--out takes the result of one file")
    if given.out and not os.access(os.path.dirname(os.path.abspath(given.out)), os.W_OK):
        parser.error(f"--out {given.out} cannot be written")
    settings = {"session.x64quantprecision": "1"} if given.precise else {}
    for path in given.files:
        try:
            found = measure_file(
                path, threads=given.threads, rounds=given.rounds, repeats=given.repeats,
                batch=given.batch, settings=settings,
            )  # fmt: skip
        except Exception as error:  # no file, no model, or one that this runtime cannot run
            print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print(
            f"{path}: {found['latency_ms']:.4f} ms (spread {found['spread_ms']:.4f}; reference "
            f"{found['reference_ms']:.4f} ms) on {found['processor']}, {found['threads']} thread"
            f"{'s' * (found['threads'] > 1)}",
            flush=True,
        )
        if given.out:
            Path(given.out).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
