"""What a model does with an image, layer by layer: which module, how signed, which BatchNorm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakIdKeyDictionary

from apq_optuna.errors import InvalidArgumentError, UnsupportedLayerError
from apq_optuna.hardware.layers import record
from apq_optuna.hardware.layers.operators import base_name, written
from apq_optuna.hardware.layers.recorder import Recorder, tensors_in
from apq_optuna.networks import ConvLayer

LAYERS = (nn.Conv2d, nn.Linear)
"""Modules that are quantized."""


@dataclass
class Call:
    """A layer at one of its calls.

    Attributes:
        module: Dotted name of the module; empty where the layer is none.
        layer: As it was called.
        signed: Whether its input can be negative.
    """

    module: str
    layer: ConvLayer
    signed: bool


@dataclass
class Watched:
    """What was seen.

    Attributes:
        calls: Layers in execution order.
        norms: BatchNorms that directly follow a layer and nothing else does, by the layer's name.
        unpriced: What computes and has no price, a line each.
        result: What the model made of the image.
        changed: Whether the model wrote to the image it was given.
    """

    calls: list[Call]
    norms: dict[str, str]
    unpriced: list[str]
    result: Any
    changed: bool


def watch(model: nn.Module, input_shape: Sequence[int], image: Tensor | None = None) -> Watched:
    """Runs one image through a model, by default a black one, and tells what it did.

    Raises:
        InvalidArgumentError: The model does not take such an image.
    """
    watchers: list[_Watcher] = []

    def make(image: Tensor) -> _Watcher:
        watchers.append(_Watcher(image))
        return watchers[0]

    with _told(model, watchers):
        watcher, result = record(model, input_shape, make, image)
    return Watched(
        watcher.calls(), watcher.norms(), watcher.unpriced, result,
        watcher.image._version != watcher.version,
    )  # fmt: skip


class _Tags:
    """Something known of tensors, until they are written to."""

    def __init__(self) -> None:
        self._found: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def set(self, tensor: Tensor, value: Any, *, written: bool = False) -> None:
        """What is known; of one that is being written to, whose version comes to be the next."""
        self._found[tensor] = (tensor._version + written, value)  # a view has its base's version

    def __getitem__(self, tensor: Tensor) -> Any:
        version, value = self._found.get(tensor, (None, None))
        return value if version == tensor._version else None


class _Watcher(Recorder):
    """Notes what torch's operators and the hooks of modules tell, side by side."""

    def __init__(self, image: Tensor) -> None:
        super().__init__(image)
        self.image, self.version = image, image._version
        self.unpriced: list[str] = []
        self._modules: list[str] = []
        self._of: list[tuple[str, bool]] = []
        self._signed: list[bool] = []
        self._positive = _Tags()
        self._made_by = _Tags()
        self._uses: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._followers: dict[str, str] = {}

    # ------------------------------------------------------------------ told by modules

    def enter(self, name: str, x: Tensor) -> None:
        self._modules.append(name)
        self._signed.append(not self._positive[x])
        self._times[name] = self._times.get(name, 0) + 1

    def leave(self, name: str, y: Tensor) -> None:
        self._modules.pop()
        self._signed.pop()
        self._made_by.set(y, name)

    def norm(self, name: str, module: nn.Module, x: Tensor) -> None:
        self._times[name] = self._times.get(name, 0) + 1
        by_channel = x.ndim == (4 if isinstance(module, nn.BatchNorm2d) else 2)
        before = self._made_by[x]
        if before is not None and by_channel and _folds(module):
            self._followers[before] = name

    def calls(self) -> list[Call]:
        return [
            Call(name, layer, signed)
            for layer, (name, signed) in zip(self.layers, self._of, strict=True)
        ]

    def norms(self) -> dict[str, str]:
        return {
            layer: norm
            for layer, norm in self._followers.items()
            if self._uses.get(layer) == self._times[layer] == self._times[norm] == 1
        }

    # ------------------------------------------------------------------ told by operators

    def _price(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any],
        results: Sequence[Tensor],
    ) -> None:  # fmt: skip
        for tensor in tensors_in([args, kwargs]):
            if (name := self._made_by[tensor]) is not None:
                self._uses[name] = self._uses.get(name, 0) + 1
        try:
            super()._price(func, args, kwargs, results)
        except UnsupportedLayerError as error:
            self.refused = None
            inside = f"{self._modules[-1]}: " if self._modules else ""
            self.unpriced.append(f"{inside}{error}")
        module = self._modules[-1] if self._modules else ""
        signed = self._signed[-1] if self._signed else True
        self._of += [(module, signed)] * (len(self.layers) - len(self._of))
        positive = _is_positive(func, [*args, *kwargs.values()], self._positive)
        into = {id(tensor) for tensor in tensors_in(written(func, args, {}))}
        for tensor in results:
            self._positive.set(tensor, positive, written=id(tensor) in into)


def _folds(norm: nn.Module) -> bool:
    """Whether a BatchNorm is one by statistics it has kept, and no more than that.

    timm's have an activation in them, as `drop` and `act`, which stay when it is folded.
    """
    assert isinstance(norm, _BatchNorm)
    plain = type(norm).forward is _BatchNorm.forward
    with_act = all(isinstance(getattr(norm, name, None), nn.Module) for name in ("drop", "act"))
    return norm.running_var is not None and (plain or with_act)


_MAKES_POSITIVE = frozenset(
    ["relu", "sigmoid", "hardsigmoid", "softmax", "_softmax", "abs", "square", "exp", "softplus"]
)
_KEEPING = """
max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d mean sum amax amin
add mul cat view _unsafe_view reshape _reshape_copy permute transpose t slice select split
split_with_sizes unbind squeeze unsqueeze expand clone alias detach _to_copy native_dropout
upsample_nearest2d upsample_bilinear2d pixel_shuffle pixel_unshuffle channel_shuffle
native_channel_shuffle unfold as_strided
"""
_KEEPS_POSITIVE = frozenset(_KEEPING.split())


def _is_positive(func: Any, args: Sequence[Any], known: _Tags) -> bool:
    """Whether no value that an operator gives is below zero."""
    name = base_name(func).removesuffix("_")
    if name in _MAKES_POSITIVE:
        return True
    if name in ("hardtanh", "clamp", "clamp_min"):
        low = args[1] if len(args) > 1 else (-1.0 if name == "hardtanh" else None)
        return isinstance(low, int | float) and low >= 0
    if name not in _KEEPS_POSITIVE:
        return False
    numbers = [a for a in args if isinstance(a, float)]
    if name in ("add", "mul") and any(isinstance(a, int | float) and a < 0 for a in args):
        return False
    return all(known[tensor] for tensor in tensors_in(args)) and not any(n < 0 for n in numbers)


@contextmanager
def _told(model: nn.Module, watchers: list[_Watcher]) -> Iterator[None]:
    """Tells the watcher, once it is there, when layers and BatchNorms of a model are called."""
    handles = []

    def enter(name: str) -> Any:
        return lambda module, args, kwargs: watchers[0].enter(name, _first(name, args, kwargs))

    def leave(name: str) -> Any:
        return lambda module, args, kwargs, result: watchers[0].leave(name, result)

    def norm(name: str) -> Any:
        return lambda module, args, kwargs: watchers[0].norm(
            name, module, _first(name, args, kwargs)
        )

    try:
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):
                handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
                handles.append(module.register_forward_hook(leave(name), with_kwargs=True))
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                handles.append(module.register_forward_pre_hook(norm(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that a layer is called with."""
    found = next(tensors_in([args, kwargs]), None)
    if found is None:
        raise InvalidArgumentError(f"{name} is called without a tensor")
    return found


def logits_of(result: Any, what: str) -> Tensor:
    """A model's result, which has to be one row of logits.

    Raises:
        InvalidArgumentError: It is something else; says what.
    """
    if isinstance(result, Tensor) and result.ndim == 2 and result.shape[0] == 1:
        return result
    if isinstance(result, Tensor):
        kind = f"a tensor of shape {tuple(result.shape)} for one image"
    elif isinstance(result, dict):
        kind = f"a {type(result).__name__} with {', '.join(map(str, list(result)[:5]))}"
    else:
        kind = f"a {type(result).__name__}"
    raise InvalidArgumentError(
        f"{what} gives {kind}; a classifier gives logits, (images, classes). Wrap it in a module "
        "whose forward returns them"
    )


def same_result(first: Any, second: Any, tolerance: float) -> bool:
    """Whether two results are of one shape and equal up to a share of the largest value."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    if first.shape != second.shape:
        return False
    scale = max(float(second.abs().max()), 1e-6)
    return bool(torch.isfinite(first).all()) and float((first - second).abs().max()) <= (
        tolerance * scale
    )
