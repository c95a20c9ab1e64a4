"""Networks as files for runtimes: a quantized network as ONNX, proven; graphs to measure.

Names are loaded when they are used: `python -m apq_optuna.export.measure` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "build_float_onnx": "building",
    "build_onnx": "building",
    "export_onnx": "writing",
    "kernels_of": "running",
    "measure_file": "measure",
    "parity": "running",
}

__all__ = [
    "build_float_onnx",
    "build_onnx",
    "export_onnx",
    "kernels_of",
    "measure_file",
    "parity",
]

if TYPE_CHECKING:
    from apq_optuna.export.building import build_float_onnx, build_onnx
    from apq_optuna.export.measure import measure_file
    from apq_optuna.export.running import kernels_of, parity
    from apq_optuna.export.writing import export_onnx


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"apq_optuna.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'apq_optuna.export' has no attribute {name!r}")
