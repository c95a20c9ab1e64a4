"""A copy of somebody's model to work on, and whether it is the one that was traced."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import TracedFamily, as_pair


def own_copy(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy to work on, evaluating in float32 on the CPU, and what there is to say of it.

    Raises:
        InvalidArgumentError: No model, one that cannot be copied, or that has lazy layers.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(
            f"model is a {type(model).__name__}: give a model, an instance of torch.nn.Module"
        )
    if isinstance(model, nn.Conv2d | nn.Linear):
        raise InvalidArgumentError(
            "model is a single layer, which has no name: give torch.nn.Sequential(model)"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InvalidArgumentError("model is a TorchScript: give the module it was made of")
    tensors = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise InvalidArgumentError(
            "the model has lazy layers, whose weights the first image makes: run it once on an "
            "image, then give it"
        )
    if any(tensor.is_meta for tensor in tensors):
        raise InvalidArgumentError(
            "the model has weights on the meta device, that is none: initialise or load them first"
        )
    inputs = _inputs(model)
    if inputs > 1:
        raise InvalidArgumentError(
            f"the model's forward takes {inputs} inputs; give one that takes a batch of images"
        )
    try:
        own = copy.deepcopy(model)
    except Exception as error:  # tensors in its attributes that hang on a graph, say
        raise InvalidArgumentError(f"the model cannot be copied: {error}") from error
    notes = []
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if kinds - {torch.float32}:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        notes.append(f"weights are {names}: a copy in float32 is searched")
    places = {str(tensor.device) for tensor in tensors} - {"cpu"}
    if places:
        notes.append(f"weights are on {', '.join(sorted(places))}: traced in a copy on the CPU")
    return own.float().to("cpu").eval(), notes


def lay_out(module: nn.Module, *, last: bool) -> None:
    """Lays out the weights of convolutions channels last, or all as usual."""
    layout = torch.channels_last if last else torch.contiguous_format
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _inputs(model: nn.Module) -> int:
    """How many inputs a forward cannot do without."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def check_model(model: nn.Module, family: TracedFamily) -> None:
    """Whether a model is the one that a family was traced from, by names and shapes.

    Raises:
        InvalidArgumentError: It is another; names what differs.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    wrong = []
    for t in family.traced:
        module = modules.get(t.module)
        if not t.module:
            continue
        weight = getattr(module, "weight", None)
        kernel = () if t.layer.linear else as_pair(t.layer.kernel_size)
        expected = (t.layer.out_channels, t.layer.in_channels // t.layer.groups, *kernel)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != expected:
            wrong.append(t.module)
    if wrong:
        names = ", ".join(dict.fromkeys(wrong[:5]))
        raise InvalidArgumentError(
            f"this is not the model that {family.name} was traced from: {names} "
            f"{'is' if len(wrong) == 1 else 'are'} not there, or of another shape"
        )
