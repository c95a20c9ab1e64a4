"""`layers_of`: the convolutions and linear layers of any torch model, with their true shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from apq_optuna.errors import InvalidArgumentError, UnsupportedLayerError
from apq_optuna.hardware.costs import whole_number
from apq_optuna.networks import ConvLayer, Size

# What costs nothing beside convolutions and products, by words in the operators' names. Pointwise
# operators and views are free by their nature; whatever is not known to be free is an error.
_FREE = (
    "pool", "norm", "cat", "stack", "pad", "upsample", "softmax", "dropout", "bernoulli", "mean",
    "sum", "max", "min", "var", "std", "clone", "copy", "contiguous", "empty", "zeros", "ones",
    "full", "arange", "scalar", "tensor", "split", "chunk", "roll", "flip", "repeat", "shuffle",
    "index", "gather", "slice", "im2col", "local_scalar", "lift", "detach", "randperm", "relu",
    "hardtanh", "softplus", "glu", "channel", "rand", "fill", "clamp", "all", "any", "argsort",
    "view", "linspace", "cumsum", "eye", "tril", "triu", "meshgrid", "equal", "where", "zero",
    "as_strided", "sort", "topk", "median", "one_hot", "unique", "nonzero", "expand", "set_",
    "scatter", "masked", "prod", "diag", "col2im", "swish", "sigmoid", "silu", "mish",
    "elu", "tanh", "hardshrink",
)  # fmt: skip
_NOT_FREE = ("layer_fwd", "attention", "embedding", "grid", "cdist", "roi_", "nms")


def layers_of(module: nn.Module, input_shape: Sequence[int]) -> list[ConvLayer]:
    """Runs one image through a model and lists what computes, in execution order.

    Args:
        module: Any torch model that takes one batch of images.
        input_shape: (channels, height, width) of an image.

    Returns:
        The layers with their true shapes. Activations, norms, pooling, elementwise arithmetic and
        concatenations cost nothing and are left out.

    Raises:
        UnsupportedLayerError: An operator computes but is not a 2-d convolution or a linear layer.
        InvalidArgumentError: No (C, H, W), or the model does not take such an image.
    """
    if not isinstance(input_shape, list | tuple) or len(input_shape) != 3:
        raise InvalidArgumentError(f"input_shape={input_shape!r}: give (C, H, W)")
    for side in input_shape:
        whole_number("input_shape", side)
    training = module.training
    parameter = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    recorder = _Recorder(image)
    try:
        module.eval()
        with torch.no_grad(), recorder:
            module(image)
    except UnsupportedLayerError:
        raise
    except Exception as error:  # whatever somebody's model raises
        raise InvalidArgumentError(
            f"input_shape={tuple(input_shape)}: the model does not take one image of it: {error}"
        ) from error
    finally:
        module.train(training)
    return recorder.layers


class _Recorder(TorchDispatchMode):
    """Sees every ATen operator with its tensors, and follows what depends on the image.

    A product of two such tensors is no layer, however much one of them looks like weights.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.layers: list[ConvLayer] = []
        self._activations: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._activations[image] = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self._depends([*args, *(kwargs or {}).values()]):
            for tensor in result if isinstance(result, list | tuple) else [result]:
                if isinstance(tensor, Tensor):
                    self._activations[tensor] = True
        if name == "convolution":
            self._refuse_two(name, args[0], args[1])
            self.layers.append(_convolution(*args[:9]))
        elif name in ("addmm", "mm"):
            x, weight = (args[1], args[2]) if name == "addmm" else (args[0], args[1])
            self._refuse_two(name, x, weight)
            self.layers.append(_linear(x, weight))
        elif not _is_free(func, name):
            shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
            raise UnsupportedLayerError(
                f"operator aten::{name} on {shapes} computes but is neither a 2-d convolution nor "
                "a linear layer, so it has no price"
            )
        return result

    def _depends(self, arguments: Iterable[Any]) -> bool:
        for argument in arguments:
            if isinstance(argument, Tensor) and argument in self._activations:
                return True
            if isinstance(argument, list | tuple) and self._depends(argument):
                return True
        return False

    def _refuse_two(self, name: str, x: Tensor, weight: Tensor) -> None:
        if self._depends([weight]):
            raise UnsupportedLayerError(
                f"operator aten::{name} multiplies two activations, {tuple(x.shape)} by "
                f"{tuple(weight.shape)}; it has no price"
            )


def _is_free(func: Any, name: str) -> bool:
    if any(word in name for word in _NOT_FREE):
        return False
    # an operator in place is what its functional form is
    forms = getattr(torch.ops.aten, name.rstrip("_"), None)
    kinds = [func] if forms is None else [func, *(getattr(forms, o) for o in forms.overloads())]
    if any(kind.is_view or torch.Tag.pointwise in kind.tags for kind in kinds):
        return True
    return any(word in name for word in _FREE)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> ConvLayer:  # fmt: skip
    if transposed or x.ndim != 4:
        kind = "transposed" if transposed else f"{x.ndim - 2}-d"
        raise UnsupportedLayerError(
            f"operator aten::convolution ({kind}, weight {tuple(weight.shape)}) has no price"
        )
    return ConvLayer(
        in_channels=x.shape[1],
        out_channels=weight.shape[0],
        input_size=_square(x.shape[2:]),
        kernel_size=_square(weight.shape[2:]),
        stride=_square(stride),
        padding=_square(padding),
        groups=groups,
        dilation=_square(dilation),
    )


def _linear(x: Tensor, weight: Tensor) -> ConvLayer:
    """A product with weights `(in, out)`; several rows are as many pixels."""
    rows = x.shape[0]
    size: Size = 1 if rows == 1 else (rows, 1)
    return ConvLayer(weight.shape[0], weight.shape[1], size, 1, 1, 0, 1, linear=True)


def _square(values: Sequence[int]) -> Size:
    first, *rest = (int(v) for v in values)
    if not rest or rest[0] == first:
        return first
    return (first, rest[0])
