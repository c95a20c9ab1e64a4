"""Joint search for network architecture, pruning and quantization, as an Optuna plugin.

Public names are loaded when they are first used, so that `import apq_optuna` is quick and the
parts that need neither Optuna nor SQLAlchemy work without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AMCSampler": "baselines",
    "APQSampler": "sampler",
    "AccuracyPredictor": "predictor",
    "ApqError": "errors",
    "CostTable": "hardware",
    "FinetuneOptions": "quantization",
    "HAQSampler": "baselines",
    "ImageData": "data",
    "Objective": "objective",
    "OnceForAllNet": "supernet",
    "PairStore": "pairs",
    "PretrainedNet": "supernet",
    "ParetoReport": "report",
    "SearchSpace": "space",
    "Subnet": "networks",
    "TrainingPlan": "supernet",
    "collect_pairs": "collect",
    "collect_quantized_pairs": "collect",
    "confirm": "confirming",
    "export_onnx": "export",
    "finish": "finishing",
    "layers_of": "hardware",
    "load_data": "data",
    "load_network": "quantization",
    "open_storage": "storage",
    "predicted_front": "prediction",
    "search_architecture": "baselines",
    "trace": "tracing",
    "train_supernet": "supernet",
}
_MODULES = (
    "data",
    "errors",
    "export",
    "hardware",
    "networks",
    "predictor",
    "quantization",
    "search",
    "space",
    "supernet",
    "tracing",
)

__all__ = [
    "AMCSampler",
    "APQSampler",
    "AccuracyPredictor",
    "ApqError",
    "CostTable",
    "FinetuneOptions",
    "HAQSampler",
    "ImageData",
    "Objective",
    "OnceForAllNet",
    "PairStore",
    "ParetoReport",
    "PretrainedNet",
    "SearchSpace",
    "Subnet",
    "TrainingPlan",
    "collect_pairs",
    "collect_quantized_pairs",
    "confirm",
    "export_onnx",
    "finish",
    "hardware",
    "layers_of",
    "load_data",
    "load_network",
    "open_storage",
    "predicted_front",
    "search_architecture",
    "trace",
    "train_supernet",
]

if TYPE_CHECKING:
    from apq_optuna import hardware
    from apq_optuna.baselines import AMCSampler, HAQSampler, search_architecture
    from apq_optuna.collect import collect_pairs, collect_quantized_pairs
    from apq_optuna.confirming import confirm
    from apq_optuna.data import ImageData, load_data
    from apq_optuna.errors import ApqError
    from apq_optuna.export import export_onnx
    from apq_optuna.finishing import finish
    from apq_optuna.hardware import CostTable, layers_of
    from apq_optuna.networks import Subnet
    from apq_optuna.objective import Objective
    from apq_optuna.pairs import PairStore
    from apq_optuna.prediction import predicted_front
    from apq_optuna.predictor import AccuracyPredictor
    from apq_optuna.quantization import FinetuneOptions, load_network
    from apq_optuna.report import ParetoReport
    from apq_optuna.sampler import APQSampler
    from apq_optuna.space import SearchSpace
    from apq_optuna.storage import open_storage
    from apq_optuna.supernet import OnceForAllNet, PretrainedNet, TrainingPlan, train_supernet
    from apq_optuna.tracing import trace


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"apq_optuna.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"apq_optuna.{name}")
    raise AttributeError(f"module 'apq_optuna' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
