"""The accuracy predictor, its transfer to quantized networks, and its metrics.

The Gaussian process and the metrics need no torch; the ensemble is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from apq_optuna.predictor.averaging import AveragedProcess, averaged
from apq_optuna.predictor.gaussian import GaussianProcess
from apq_optuna.predictor.metrics import PredictorMetrics, evaluate, kendall_tau, pairwise_accuracy

if TYPE_CHECKING:
    from apq_optuna.predictor.mlp import AccuracyPredictor
    from apq_optuna.predictor.transfer_learning import transfer, transferred

_HOMES = {
    "AccuracyPredictor": "mlp",
    "transfer": "transfer_learning",
    "transferred": "transfer_learning",
}

__all__ = [
    "AccuracyPredictor",
    "AveragedProcess",
    "GaussianProcess",
    "PredictorMetrics",
    "averaged",
    "evaluate",
    "kendall_tau",
    "pairwise_accuracy",
    "transfer",
    "transferred",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"apq_optuna.predictor.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
