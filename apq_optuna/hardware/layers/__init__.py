"""`layers_of`: the convolutions and linear layers of any torch model, with their true shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from apq_optuna._torchvision import make_importable
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware.costs import whole_number
from apq_optuna.hardware.layers.recorder import Recorder, tensors_in
from apq_optuna.networks import ConvLayer

_optimized = torch.jit.optimized_execution  # type: ignore[attr-defined]

make_importable()  # for the modules that bring the models


def layers_of(
    module: nn.Module | torch.export.ExportedProgram, input_shape: Sequence[int]
) -> list[ConvLayer]:
    """Runs one image through a model and lists what computes, in execution order.

    The model is as it was afterwards: its mode, buffers and attributes, and torch's random state.

    Args:
        module: Any torch model that takes one batch of images; a compiled, traced, scripted or
            exported one, too.
        input_shape: (channels, height, width) of an image.

    Returns:
        The layers with their true shapes. Activations, norms, pooling, elementwise arithmetic and
        concatenations cost nothing and are left out, and so is what does not depend on the image,
        such as weights made of weights. A convolution of n parts of the image is there n times.

    Raises:
        UnsupportedLayerError: An operator computes but is not a 2-d convolution or a linear layer.
        InvalidArgumentError: No model, no (C, H, W), or the model does not take such an image.
    """
    recorder, result = record(module, input_shape, Recorder)
    if recorder.refused is not None:
        raise recorder.refused
    _check_followed(recorder, result)
    return recorder.layers


R = TypeVar("R", bound=Recorder)


def record(
    module: nn.Module | torch.export.ExportedProgram,
    input_shape: Sequence[int],
    recorder_of: Callable[[Tensor], R],
    image: Tensor | None = None,
) -> tuple[R, Any]:
    """Runs one image through a model under a recorder, and leaves the model as it was.

    Args:
        module: Any torch model that takes one batch of images.
        input_shape: (channels, height, width) of an image.
        recorder_of: Makes the recorder, given the image.
        image: `(1, C, H, W)`; a black one by default.

    Returns:
        The recorder, and what the model made of the image.

    Raises:
        UnsupportedLayerError: The recorder refused an operator.
        InvalidArgumentError: No model, no (C, H, W), or the model does not take such an image.
    """
    if isinstance(module, torch.export.ExportedProgram):
        module = module.module()
    if not isinstance(module, nn.Module):
        raise InvalidArgumentError(
            f"module is a {type(module).__name__}: give a model, an instance of torch.nn.Module"
        )
    shape = image_shape(input_shape)
    state = list(chain(module.parameters(), module.buffers()))
    if any(nn.parameter.is_lazy(tensor) for tensor in state):
        raise InvalidArgumentError(
            "module has lazy layers, whose weights the first image makes: run it once on an "
            "image, then give it"
        )
    # the type of weights is told by what computes; counters and packed weights are of others
    like = next((t for t in state if t.is_floating_point()), torch.empty(0))
    if image is None:
        image = torch.zeros(1, *shape)
    image = image.to(device=like.device, dtype=like.dtype)
    recorder = recorder_of(image)
    try:
        with _as_it_was(module, recorder), torch.no_grad(), _as_written(), recorder:
            result = module(image)
    except Exception as error:  # whatever somebody's model raises
        if recorder.refused is not None:
            raise recorder.refused from None
        raise InvalidArgumentError(
            f"input_shape={shape}: the model does not take one image of it: "
            f"{_cause(error, recorder)}"
        ) from error
    return recorder, result


def image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as three whole numbers.

    Raises:
        InvalidArgumentError: It is none.
    """
    if isinstance(input_shape, str) or not isinstance(input_shape, Sequence):
        raise InvalidArgumentError(f"input_shape={input_shape!r}: give (C, H, W)")
    shape = tuple(whole_number("input_shape", side) for side in input_shape)
    if len(shape) != 3:
        raise InvalidArgumentError(f"input_shape={input_shape!r}: give (C, H, W)")
    return shape


def _check_followed(recorder: Recorder, result: object) -> None:
    """A result that no operator took from the image may come of layers that were not seen."""
    if list(tensors_in(result)) and not recorder.follows(result):
        raise InvalidArgumentError(
            "the model's result does not follow from the image: it ignores it, or takes it out of "
            "torch on the way (as a NumPy array, say)"
        )


def _cause(error: Exception, recorder: Recorder) -> str:
    """What an error says; that of a script is a traceback in its own language."""
    if "TorchScript" in str(error) and recorder.failed is not None:
        error = recorder.failed
    return str(error).strip()


@contextlib.contextmanager
def _as_written() -> Iterator[None]:
    """Runs code as it is written: nothing compiled, fused or taken from a cache."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"), _optimized(False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def _as_it_was(module: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Evaluates a model, and leaves it and the random state as they were."""
    cards = {t.device.index for t in chain(module.parameters(), module.buffers()) if t.is_cuda}
    flags = [(part, part.training) for part in module.modules() if hasattr(part, "training")]
    try:
        _evaluate(module, flags)
        kept = [_attributes(part) for part in module.modules()]
        try:
            with torch.random.fork_rng(devices=sorted(cards)):
                yield
        finally:
            recorder.restore()
            for now, before in chain.from_iterable(kept):
                for added in now.keys() - before.keys():
                    del now[added]
                now.update(before)
    finally:
        for part, training in flags:
            # by its own method, which may do more; then by hand, where that says otherwise
            if part.training != training:
                with contextlib.suppress(NotImplementedError):
                    part.train(training)
        for part, training in flags:
            part.training = training


def _evaluate(module: nn.Module, flags: list[tuple[nn.Module, bool]]) -> None:
    if not hasattr(module, "training"):  # a frozen script has one mode
        return
    try:
        module.eval()
    except NotImplementedError:  # so has an exported module, and what has one in it
        for part, _ in flags:
            part.training = False


def _attributes(part: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A module's attributes and members, each with a copy; a script keeps its own elsewhere."""
    if isinstance(part, torch.jit.ScriptModule):
        return []
    kinds: tuple[dict[str, Any], ...] = (
        vars(part),
        part._buffers,
        part._parameters,
        part._modules,
    )
    return [(found, dict(found)) for found in kinds]
