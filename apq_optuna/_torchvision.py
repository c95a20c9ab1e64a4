"""torchvision, importable beside a CPU-only torch, and somebody's own modules that import it.

The torchvision wheel on PyPI is built against CUDA. Beside a CPU-only torch its compiled operators
do not load, and `import torchvision` stops at the first function that registers a fake kernel for
one of them: "operator torchvision::nms does not exist". Data sets, transforms and models are plain
Python and need none of the operators, so it is enough to define the two missing schemas before
that function's module is imported. Every other module and script takes torchvision from here, or
imports it itself once `make_importable` has been called. Neither torch nor torchvision is loaded
for whom needs none.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_REGISTERS = "torchvision._meta_registrations"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # kept alive: dropping it removes the schemas


class _Schemas:
    """Finds no module, but is told when the one that needs the schemas is about to be imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == _REGISTERS:  # torchvision has tried to load its operators by now
            _define_schemas()


def _define_schemas() -> None:
    global _library
    import torch

    if _library is None and not hasattr(torch.ops.torchvision, "nms"):
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)


_finder = _Schemas()


def make_importable() -> None:
    """From now on `import torchvision` works, in whatever module it stands."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def import_named(name: str) -> Any:
    """Somebody's object, as `module:name`; the module may lie in the current folder.

    Raises:
        Exception: Whatever the module raises.
    """
    module, _, attribute = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file here must not stand before somebody's package
    make_importable()
    return getattr(importlib.import_module(module), attribute)


def load_entry_point(point: EntryPoint) -> Any:
    """What an installed package's entry point names; raises whatever its module raises."""
    make_importable()
    return point.load()


def __getattr__(name: str) -> ModuleType:
    if name in ("torchvision", "datasets", "models"):
        make_importable()
        importlib.import_module("torchvision")
        return sys.modules["torchvision" if name == "torchvision" else f"torchvision.{name}"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
