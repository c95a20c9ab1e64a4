"""How good a predictor is, on rows it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class PredictorMetrics:
    """Quality of predictions.

    Attributes:
        pairwise_accuracy: Share of pairs with different targets put in the right order.
        kendall_tau: Kendall's tau-b.
        rmse: Root mean squared error, in units of the targets.
        coverage: Share of targets within 1.96 predicted standard deviations; 0.95 is calibrated.
        rows: Number of rows.
    """

    pairwise_accuracy: float
    kendall_tau: float
    rmse: float
    coverage: float
    rows: int


def _ordered_pairs(targets: Floats, predictions: Floats) -> tuple[Floats, Floats]:
    upper = np.triu_indices(len(targets), 1)
    return (
        np.sign(targets[upper[0]] - targets[upper[1]]),
        np.sign(predictions[upper[0]] - predictions[upper[1]]),
    )


def pairwise_accuracy(targets: Floats, predictions: Floats) -> float:
    """Share of pairs in the right order; ties of the prediction count half, of the target not."""
    truth, guess = _ordered_pairs(targets, predictions)
    counted = truth != 0
    if not counted.any():
        return float("nan")
    return float((0.5 * (1 + truth[counted] * guess[counted])).mean())


def kendall_tau(targets: Floats, predictions: Floats) -> float:
    """Kendall's tau-b, which corrects for ties on both sides."""
    truth, guess = _ordered_pairs(targets, predictions)
    scale = np.sqrt(float((truth != 0).sum()) * float((guess != 0).sum()))
    return float((truth * guess).sum() / scale) if scale else float("nan")


def evaluate(targets: Floats, mean: Floats, std: Floats) -> PredictorMetrics:
    """All metrics of predictions `(n,)` against targets `(n,)`."""
    return PredictorMetrics(
        pairwise_accuracy=pairwise_accuracy(targets, mean),
        kendall_tau=kendall_tau(targets, mean),
        rmse=float(np.sqrt(np.mean((targets - mean) ** 2))),
        coverage=float((np.abs(targets - mean) <= 1.96 * std).mean()),
        rows=len(targets),
    )
