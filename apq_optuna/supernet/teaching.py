"""A network from outside that tells the networks of a supernet what is in an image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.space import SearchSpace


class Renormalised(nn.Module):
    """A network for images that were normalised in another way.

    Args:
        model: The network.
        given: Mean and deviation, a value a channel each, that images come normalised with.
        wanted: Those that the network was trained with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        given: tuple[Sequence[float], Sequence[float]],
        wanted: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.model = model
        mean, std, wanted_mean, wanted_std = map(np.array, (*given, *wanted))
        for name, value in (("scale", std), ("shift", mean - wanted_mean)):
            values = torch.tensor(value / wanted_std, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        told: Tensor = self.model(images * self.scale + self.shift)
        return told


def check_teacher(teacher: nn.Module, space: SearchSpace) -> None:
    """Raises `InvalidArgumentError` where a network cannot tell what a supernet has to learn."""
    channels, height, width = space.networks.input_shape
    image = torch.zeros(1, channels, height, width)
    at = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    training = teacher.training
    try:
        with torch.no_grad():
            told = teacher.eval()(image.to(at))
    except Exception as error:  # whatever somebody's network raises
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InvalidArgumentError(
            f"teacher: fails on an image {tuple(image.shape)}: {reason}"
        ) from error
    finally:
        teacher.train(training)
    wanted = (1, space.networks.num_classes)
    if not isinstance(told, Tensor) or tuple(told.shape) != wanted:
        given = tuple(told.shape) if isinstance(told, Tensor) else f"a {type(told).__name__}"
        raise InvalidArgumentError(
            f"teacher: gives {given} for one image, wanted are logits {wanted}"
        )


def prepared_teacher(teacher: nn.Module, space: SearchSpace, device: str) -> nn.Module:
    """A copy that is ready to tell, once it is known to fit; the teacher stays as it is."""
    check_teacher(teacher, space)
    return deepcopy(teacher).float().to(device).eval().requires_grad_(False)
