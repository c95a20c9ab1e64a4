"""Models by name, and weights from files."""

from __future__ import annotations

import difflib
import inspect
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apq_optuna._checkpoints import is_pickle, read_tensors
from apq_optuna._torchvision import import_named, make_importable
from apq_optuna.errors import CheckpointError, InvalidArgumentError

FORMS = "torchvision:NAME, timm:NAME or module:factory"

LIBRARIES = ("torchvision:", "timm:")
"""Models that are somebody's whom one trusts: a file may name them."""

CONVERT = """\
from torch import load; from safetensors.torch import save_file
save_file(load("{path}", weights_only=True), "{stem}.safetensors")
(of a training checkpoint its tensors alone: load(...)["state_dict"], or as it calls them)"""

CONVERT_MODEL = """\
from torch import load; from safetensors.torch import save_file
save_file(load("{path}", weights_only=False).state_dict(), "{stem}.safetensors")
(it is a whole model, torch.save(model): where its class is, and only if you trust the file, since
that runs what it says)"""


@dataclass(frozen=True)
class Preprocessing:
    """How images were prepared for a model: `mean` and `std` of pixels in [0, 1], a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What torchvision's models were trained with."""


def build_model(source: str, num_classes: int | None = None) -> nn.Module:
    """A model by name, its weights untrained.

    Args:
        source: `torchvision:NAME`, `timm:NAME`, or `module:factory`, somebody's function or class
            that makes one; its module may lie in the current folder.
        num_classes: Passed on to torchvision and timm, and to a factory that takes `num_classes`.

    Raises:
        InvalidArgumentError: No such model; or the factory fails, or makes none.
    """
    kind, _, name = source.partition(":")
    if not name:
        raise InvalidArgumentError(f"model={source!r}: give {FORMS}")
    make_importable()
    classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if kind == "torchvision":
        from apq_optuna._torchvision import models

        _known(source, name, models.list_models())
        auxiliary = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        made: Any = models.get_model(name, weights=None, **classes, **auxiliary)
    elif kind == "timm":
        timm = _timm(source)
        _known(source, name, timm.list_models())
        made = timm.create_model(name, pretrained=False, **classes)
    else:
        made = _by_factory(source, classes)
    if not isinstance(made, nn.Module):
        raise InvalidArgumentError(
            f"model={source!r} makes a {type(made).__name__}, not a torch.nn.Module"
        )
    return made


def _timm(source: str) -> Any:
    make_importable()
    try:
        import timm
    except ImportError as error:
        raise InvalidArgumentError(
            f"model={source!r}: timm is not installed: pip install timm"
        ) from error
    return timm


def _by_factory(source: str, classes: dict[str, Any]) -> Any:
    try:
        factory = import_named(source)
    except (ImportError, AttributeError) as error:
        module = source.partition(":")[0]
        hint = ""
        if module.endswith(".py"):
            hint = f"; without .py: {module.removesuffix('.py')}:{source.partition(':')[2]}"
        elif isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]:
            hint = "; it is looked for in the current folder and on PYTHONPATH"
        raise InvalidArgumentError(f"model={source!r}: {error}{hint}") from error
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise InvalidArgumentError(f"model={source!r} is a {type(factory).__name__}: no factory")
    try:
        takes = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        takes = {}  # type: ignore[assignment]
    try:
        return factory(**(classes if "num_classes" in takes else {}))
    except Exception as error:  # whatever somebody's code raises
        raise InvalidArgumentError(
            f"model={source!r} fails: {type(error).__name__}: {error}"
        ) from error


def _known(source: str, name: str, known: list[str]) -> None:
    """Raises `InvalidArgumentError` where a library has no model of a name."""
    if name not in known:
        close = difflib.get_close_matches(name, known, 3)
        said = f"; close are {', '.join(close)}" if close else ""
        library = source.partition(":")[0]
        raise InvalidArgumentError(f"model={source!r}: {library} has no such model{said}")


def preprocessing_of(source: str) -> Preprocessing | None:
    """How a library's model was trained; None where nobody says."""
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return IMAGENET
    if kind == "timm":
        told = _timm(source).get_pretrained_cfg(name)
        if told is not None:
            return Preprocessing(tuple(told.mean), tuple(told.std))
    return None


def input_side_of(source: str) -> int:
    """Side in pixels of the images that a library's model was trained with; else 224."""
    kind, _, name = source.partition(":")
    if kind == "timm":
        told = _timm(source).get_pretrained_cfg(name)
        if told is not None:
            return int(told.input_size[-1])
    return 299 if name == "inception_v3" else 224


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A `state_dict` from safetensors.

    Raises:
        CheckpointError: Missing, a pickle (says what converts it), or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"weights={path}: no such file")
    with path.open("rb") as file:
        first = file.read(2)
    if is_pickle(first):
        other = "-tensors" if path.suffix == ".safetensors" else ""
        lines = (CONVERT_MODEL if _whole_model(path) else CONVERT).format(
            path=path, stem=f"{path.with_suffix('')}{other}"
        )
        raise CheckpointError(
            f"weights={path} is a pickle (torch.save), and nothing is unpickled here. Convert it "
            f"once, with Python:\n{lines}"
        )
    return read_tensors(path)


def _whole_model(path: Path) -> bool:
    """Whether `torch.save` was given the model itself: its layers' classes are named. The file is
    looked at, not unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return any(b"torch.nn.modules" in archive.read(name) for name in names)
    except (zipfile.BadZipFile, OSError):
        return False


def fit_state(model: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Loads weights that have to fit.

    Args:
        model: Changed in place.
        tensors: By name.
        path: Named in messages.

    Raises:
        CheckpointError: Names or shapes differ; the first five.
    """
    own = model.state_dict()
    counters = (".num_batches_tracked", "num_batches_tracked")
    lacking = [name for name in own if name not in tensors and not name.endswith(counters)]
    strange = [name for name in tensors if name not in own]
    other = [n for n in tensors if n in own and tensors[n].shape != own[n].shape]
    said = []
    for what, names in (
        ("it lacks", lacking), ("the model lacks", strange), ("of another shape are", other),
    ):  # fmt: skip
        if names:
            some = [
                f"{n} {tuple(tensors[n].shape)} instead of {tuple(own[n].shape)}"
                if names is other
                else n
                for n in names[:5]
            ]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            said.append(f"{what} {', '.join(some)}{more}")
    if strange and all(name.startswith("module.") for name in tensors):
        said.append("they are of a DataParallel: save model.module.state_dict()")
    if said:
        raise CheckpointError(f"{path}: the weights do not fit the model: {'; '.join(said)}")
    model.load_state_dict(dict(tensors), strict=False)
