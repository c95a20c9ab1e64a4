"""The once-for-all network: elastic layers, training, extraction, checkpoints."""

from apq_optuna.supernet.checkpoint import load_supernet, save_supernet
from apq_optuna.supernet.network import OnceForAllNet, SubnetModule, accuracy, recalibrate
from apq_optuna.supernet.training import TrainingPlan, train_supernet

__all__ = [
    "OnceForAllNet",
    "SubnetModule",
    "TrainingPlan",
    "accuracy",
    "load_supernet",
    "recalibrate",
    "save_supernet",
    "train_supernet",
]
