"""The accuracy predictor, its transfer to quantized networks, and its metrics."""

from apq_optuna.predictor.gaussian import GaussianProcess
from apq_optuna.predictor.metrics import PredictorMetrics, evaluate, kendall_tau, pairwise_accuracy
from apq_optuna.predictor.mlp import AccuracyPredictor
from apq_optuna.predictor.transfer import transfer, transferred

__all__ = [
    "AccuracyPredictor",
    "GaussianProcess",
    "PredictorMetrics",
    "evaluate",
    "kendall_tau",
    "pairwise_accuracy",
    "transfer",
    "transferred",
]
