"""What a model does with an image, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from apq_optuna.errors import UnsupportedLayerError
from apq_optuna.hardware.layers.operators import (
    converted,
    full_name,
    is_free,
    is_torchs,
    takes_shapes_only,
    written,
)
from apq_optuna.networks import ConvLayer, Size

_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Exported blocks that only set something around a function, and which argument that is."""


class Recorder(TorchDispatchMode):
    """Sees every operator with its tensors, and follows what depends on the image.

    What does not depend on it costs nothing, whatever the operator: weights made of weights are
    made before the first image comes. A product of two tensors that depend on it is no layer.

    Attributes:
        layers: What has been priced, in order.
        refused: The first operator without a price. A model may catch the error and take another
            way, and torch.jit raises one without its text in its place.
        failed: The last error of an operator, for the latter reason.
    """

    supports_higher_order_operators = True

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.layers: list[ConvLayer] = []
        self.refused: UnsupportedLayerError | None = None
        self.failed: Exception | None = None
        self._activations = _Tensors()
        self._activations.add(image)
        self._made = _Tensors()
        self._before: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._region(func, args)
        with self:  # composed of others, which inference mode does not take apart by itself
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        targets = list(tensors_in(written(func, args, kwargs)))
        for target in targets:
            self._keep(target)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            self.failed = error
            raise
        results = list(tensors_in(result))
        for tensor in results:
            self._made.add(tensor)
        if not self.follows([args, kwargs]) or takes_shapes_only(func):
            return result
        for tensor in (*results, *targets):
            self._activations.add(tensor)
        self._price(func, args, kwargs, results or targets)
        return result

    def _price(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any],
        results: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """Adds what an operator on the image costs to the layers."""
        if func in _CONVOLUTIONS:
            self._convolution(func, *args[:9])
        elif func.overloadpacket in _PRODUCTS:
            self._product(func, *args[-2:])
        elif not is_free(func) and (results or not is_torchs(func)):
            shapes = [tuple(tensor.shape) for tensor in tensors_in(args)]
            self._refuse(
                f"operator {full_name(func)} on {shapes} computes but is neither a 2-d "
                f"convolution nor a linear layer, so it has no price{converted(func)}"
            )

    def follows(self, value: Any) -> bool:
        """Whether any tensor in nested containers depends on the image."""
        return any(tensor in self._activations for tensor in tensors_in(value))

    def restore(self) -> None:
        """Gives tensors from before the run, the model's buffers above all, their values back."""
        for storage, values in self._before:
            storage.copy_(values)

    def _keep(self, tensor: Tensor) -> None:
        """Remembers the values of a tensor from before the run that is about to be written to."""
        if tensor in self._made or tensor in self._activations or tensor.is_meta:
            return
        if _storage(tensor) is None:
            return
        self._made.add(tensor)
        storage = tensor.untyped_storage()
        self._before.append((storage, storage.clone()))

    def _refuse(self, message: str) -> NoReturn:
        self.refused = self.refused or UnsupportedLayerError(message)
        raise self.refused

    def _region(self, func: Any, args: tuple[Any, ...]) -> Any:
        place = _REGIONS.get(func.name())
        if place is None:
            self._refuse(
                f"operator higher_order::{func.name()} is not looked into, so it has no price"
            )
        with self:
            return args[place](*args[place + 1 :])

    def _convolution(
        self, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int],
        padding: Sequence[int], dilation: Sequence[int], transposed: bool,
        output_padding: Sequence[int], groups: int,
    ) -> None:  # fmt: skip
        if self.follows(weight) and self.follows(x):
            self._refuse_product(func, x, weight)
        if self.follows(weight):
            self._refuse(
                f"operator {full_name(func)} has weights {tuple(weight.shape)} that depend on the "
                "image; it has no price"
            )
        if not self.follows(x):
            return  # a bias that depends on the image is added to what does not
        if transposed or x.ndim != 4:
            kind = "transposed" if transposed else f"{x.ndim - 2}-d"
            self._refuse(
                f"operator {full_name(func)} ({kind}, weight {tuple(weight.shape)}) has no price"
            )
        layer = ConvLayer(
            in_channels=x.shape[1],
            out_channels=weight.shape[0],
            input_size=_pair(x.shape[2:]),
            kernel_size=_pair(weight.shape[2:]),
            stride=_pair(stride),
            padding=_pair(padding),
            groups=groups,
            dilation=_pair(dilation),
        )
        self.layers += [layer] * x.shape[0]  # one image cut into several is as many convolutions

    def _product(self, func: Any, first: Tensor, second: Tensor) -> None:
        """A product with weights on either side; several rows are as many pixels."""
        if self.follows(first) and self.follows(second):
            self._refuse_product(func, first, second)
        if self.follows(first):
            (rows, inputs), outputs = first.shape, second.shape[1]
        elif self.follows(second):  # weights come first: each column is a pixel
            (inputs, rows), outputs = second.shape, first.shape[0]
        else:
            return
        size: Size = (rows, 1)
        if rows:
            self.layers.append(ConvLayer(inputs, outputs, size, 1, 1, 0, 1, linear=True))

    def _refuse_product(self, func: Any, first: Tensor, second: Tensor) -> NoReturn:
        self._refuse(
            f"operator {full_name(func)} multiplies two activations, {tuple(first.shape)} by "
            f"{tuple(second.shape)}; it has no price"
        )


_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)
_PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)


class _Tensors:
    """Tensors by the memory they are in: a view is in the same as what it is a view of."""

    def __init__(self) -> None:
        self._storages: set[StorageWeakRef] = set()
        self._others: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is None:
            self._others[tensor] = True
        else:
            self._storages.add(storage)

    def __contains__(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return tensor in self._others if storage is None else storage in self._storages


def _storage(tensor: Tensor) -> StorageWeakRef | None:
    """A tensor's memory, none where its layout has none of its own (sparse, MKL-DNN)."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):
        return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    height, width = values[0], values[-1]  # one number stands for both
    return height, width
