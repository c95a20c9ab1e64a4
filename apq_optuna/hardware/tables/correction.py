"""From a sum of layers to a network: the small correction that a few measured networks allow.

Notation:
    k       measured networks
    x, y    summed and measured latencies, `(k,)`, ms
    s, o    scale and overhead: y is about s x + o

Least squares of the relative error, with s and o held near 1 and 0 as by so many networks as the
priors are worth: three networks of similar size say almost nothing about o, and cannot make it
wild.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError

Floats = NDArray[np.floating]

ERROR, SCALE_SPREAD, OVERHEAD_SPREAD = 0.02, 0.5, 0.5
"""Relative error of a network, and how far scale and overhead (as a share of x) stray: priors."""


@dataclass(frozen=True)
class Correction:
    """What whole networks say about sums of layers.

    Attributes:
        scale: Latency of a network for each ms of its sum.
        overhead_ms: And beside it.
        networks: How many were measured.
        error: Mean relative error of each network, corrected by the others; of one alone, its own.
    """

    scale: float
    overhead_ms: float
    networks: int
    error: float

    def __call__(self, summed: Floats) -> Floats:
        """Corrected latencies of `(n,)` sums, in ms."""
        return np.asarray(self.scale * summed + self.overhead_ms)

    def provenance(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def fit_correction(
    summed: Sequence[float] | Floats, measured: Sequence[float] | Floats
) -> Correction:
    """The correction that k networks allow.

    Args:
        summed: Latencies summed from the table, `(k,)`, ms.
        measured: The same networks run whole, `(k,)`, ms.

    Returns:
        Scale and overhead, the former positive, the latter never negative.

    Raises:
        InvalidArgumentError: No networks, other shapes, or latencies that are not positive.
    """
    x, y = np.asarray(summed, float), np.asarray(measured, float)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise InvalidArgumentError(
            f"summed {x.shape} and measured {y.shape}: give both for at least one network"
        )
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise InvalidArgumentError("summed and measured latencies must be finite and positive")
    scale, overhead = _fit(x, y)
    others = [np.arange(len(x)) != i for i in range(len(x))] if len(x) > 1 else [np.ones(1, bool)]
    errors = []
    for i, kept in enumerate(others):
        s, o = _fit(x[kept], y[kept])
        errors.append(abs((s * x[i] + o) / y[i] - 1))
    return Correction(scale, overhead, len(x), float(np.mean(errors)))


def _fit(x: Floats, y: Floats) -> tuple[float, float]:
    """(scale, overhead in ms)."""
    mean = float(x.mean())
    design = np.column_stack([x / y, mean / y]) / ERROR
    prior = np.diag([1 / SCALE_SPREAD, 1 / OVERHEAD_SPREAD])
    targets = np.concatenate([np.full(len(x), 1 / ERROR), [1 / SCALE_SPREAD, 0.0]])
    scale, overhead = np.linalg.lstsq(np.concatenate([design, prior]), targets, rcond=None)[0]
    # no network takes less for being one, nor the less the more its layers take
    if overhead < 0 or scale <= 0:
        scale, overhead = (
            np.linalg.lstsq(np.concatenate([design, prior])[:, :1], targets, rcond=None)[0][0],
            0.0,
        )
    return float(scale), float(overhead * mean)
