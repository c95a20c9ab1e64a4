"""torchvision, importable beside a CPU-only torch.

The torchvision wheel on PyPI is built against CUDA. Beside a CPU-only torch its compiled operators
do not load, and `import torchvision` stops at the first function that registers a fake kernel for
one of them: "operator torchvision::nms does not exist". Data sets, transforms and models are plain
Python and need none of the operators, so it is enough to define the two missing schemas before
importing again. Every other module and script takes torchvision from here.
"""

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # kept alive: dropping it removes the schemas


def _import_torchvision() -> ModuleType:
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    return importlib.import_module("torchvision")


torchvision = _import_torchvision()
datasets = importlib.import_module("torchvision.datasets")
models = importlib.import_module("torchvision.models")
