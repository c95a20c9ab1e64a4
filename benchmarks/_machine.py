"""What every benchmark prints first: the machine, and its matrix product rate in the same run."""

from __future__ import annotations

import platform
import time

import numpy as np
import torch


def gemm_rate(seconds: float = 0.5) -> float:
    """Float32 matrix product rate in GFLOP/s, best of several 1024 x 1024 products."""
    a = torch.randn(1024, 1024)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < seconds:
        t = time.perf_counter()
        _ = a @ a
        best = min(best, time.perf_counter() - t)
    return 2 * 1024**3 / best / 1e9


def describe() -> float:
    """Prints processor, threads and versions; returns the matrix product rate."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        processor = f"{len(names)} x {names[0]}"
    except (OSError, IndexError):
        pass
    rate = gemm_rate()
    print(
        f"{processor}; torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"numpy {np.__version__}; GEMM {rate:.0f} GFLOP/s"
    )
    return rate


def best_of(function: object, repeats: int = 5) -> tuple[float, float]:
    """(best, median) seconds of several calls, after one to warm up."""
    assert callable(function)
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times), float(np.median(times))
