"""The once-for-all network: elastic layers, training, extraction, checkpoints."""

from apq_optuna.supernet.checkpoint import load_net, load_supernet, save_supernet
from apq_optuna.supernet.evaluation import accuracy, recalibrate
from apq_optuna.supernet.modules import ConvNorm, Slot, SubnetModule, Supernet, module_of
from apq_optuna.supernet.network import OnceForAllNet
from apq_optuna.supernet.plan import TrainingPlan
from apq_optuna.supernet.pretrained.net import PretrainedNet
from apq_optuna.supernet.training import train_supernet

__all__ = [
    "ConvNorm",
    "OnceForAllNet",
    "PretrainedNet",
    "Slot",
    "SubnetModule",
    "Supernet",
    "TrainingPlan",
    "accuracy",
    "load_net",
    "load_supernet",
    "module_of",
    "recalibrate",
    "save_supernet",
    "train_supernet",
]
