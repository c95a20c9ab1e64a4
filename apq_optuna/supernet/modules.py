"""What the rest of the package knows of supernets and of the modules that they give."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna.data import ImageData
from apq_optuna.errors import DataError, SpaceError
from apq_optuna.networks import Subnet
from apq_optuna.space import SearchSpace
from apq_optuna.supernet.products import convolved_as_products

AUGMENTED = "augmented"
"""In `data_info`: statistics of BatchNorm are of images as they were trained on."""


class Supernet(nn.Module, ABC):
    """Every network of a space in one set of weights: subnets are evaluated without training.

    Attributes:
        space: The search space.
        data_info: What travels with a checkpoint about the images it was trained on: class names,
            size, normalisation, split hash, how they were made squares and augmented, and whether
            broken ones were left out; with `statistics`, of which images subnets take theirs of
            BatchNorm. Empty until trained or loaded.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.data_info: dict[str, object] = {}

    @abstractmethod
    def subnet(self, subnet: Subnet) -> SubnetModule:
        """A network of its own with the weights of `subnet`, in evaluation mode.

        BatchNorm statistics are copied too, but those of a supernet mix all subnets: call
        `recalibrate` before trusting its accuracy.
        """

    def save(self, path: str | Path) -> Path:
        """Writes a checkpoint into a folder; returns its file.

        Raises:
            SpaceError: Nets of this kind have not said how.
        """
        raise SpaceError(f"a {type(self).__name__} does not say how it is saved")

    def prepare_training(self, device: str) -> None:
        """Told before it is trained where that will be, and "cpu" once it is over."""

    @property
    def device(self) -> str:
        """Where its weights are."""
        return str(next(self.parameters()).device)

    @property
    def augmented_statistics(self) -> bool:
        """Whether statistics of BatchNorm are taken of augmented images.

        Weights are used to statistics of the images they were trained on: borders of random crops
        are part of them, and of whole images they are others, which costs the package's CIFAR-10
        supernet 3 points. Supernets that were trained before this was known keep to whole images.
        """
        return self.data_info.get("statistics") == AUGMENTED

    @property
    def weights_hash(self) -> str:
        """Identity of the trained weights, 16 hexadecimal digits; pairs are keyed by it."""
        salt = f" {AUGMENTED}" if self.augmented_statistics else ""
        return hash_of(self, self.space.architecture_hash + salt)


def hash_of(module: nn.Module, salt: str = "") -> str:
    """Identity of a module's weights, 16 hexadecimal digits."""
    digest = hashlib.sha256(salt.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        values = value.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def info_of(data: ImageData) -> dict[str, object]:
    """What travels with a checkpoint about images; see `Supernet.data_info`."""
    return {
        "name": data.name,
        "class_names": list(data.class_names),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "split_hash": data.split_hash,
        "fit": data.fit,
        "skip_broken": data.skip_broken,
        "augment": data.augment,
    }


def check_data(net: Supernet, data: ImageData) -> None:
    """Raises `DataError` where images do not fit a supernet."""
    family = net.space.networks
    channels, size, _ = family.input_shape
    wanted = (size, channels, family.num_classes)
    given = (data.image_size, data.channels, data.num_classes)
    if wanted != given:
        raise DataError(
            f"data={data.name!r} has (image size, channels, classes) = {given}, "
            f"but the supernet was made for {wanted}"
        )
    trained_with = net.data_info.get("split_hash")
    if trained_with is not None and trained_with != data.split_hash:
        raise DataError(
            f"data={data.name!r} (split {data.split_hash}) is not what the supernet was trained "
            f"on (split {trained_with}): its search-validation images may have been trained on"
        )
    for what, now in (("mean", data.mean), ("std", data.std)):
        used_to: Any = net.data_info.get(what)
        if used_to is not None and not np.allclose(used_to, now, atol=1e-3):
            raise DataError(
                f"data={data.name!r} has {what} {[round(v, 4) for v in now]}, the supernet was "
                f"made for {[round(v, 4) for v in used_to]}: load_data({what}=...)"
            )


class Slot(NamedTuple):
    """Where a layer sits.

    Attributes:
        parent: The module that holds it; None for what is no module, and stays as it is.
        attribute: Its name there.
        signed: Whether the layer's input can be negative. Inputs that come straight out of a ReLU,
            or a mean of one, cannot.
        norm: (parent, attribute) of a BatchNorm that is folded into it.
    """

    parent: nn.Module | None
    attribute: str
    signed: bool
    norm: tuple[nn.Module, str] | None = None


class SubnetModule(nn.Module, ABC):
    """A subnet as an ordinary network.

    Attributes:
        description: The subnet.
        about: What was stored with a finished network.
    """

    def __init__(self, subnet: Subnet) -> None:
        super().__init__()
        self.description = subnet
        self.about: dict[str, Any] = {}

    def lay_out(self) -> None:
        """Lays out weights as they convolve fastest."""
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs

    @abstractmethod
    def layer_slots(self) -> Sequence[Slot]:
        """Where each layer of `Subnet.layers()` sits, in that order.

        A module that is called twice is there twice.
        """


@singledispatch
def module_of(subnet: Subnet, model: nn.Module | None = None) -> SubnetModule:
    """A module for a subnet, its weights untrained; each family registers how.

    Args:
        subnet: The subnet.
        model: What networks of a traced family are made of; other families need none.

    Raises:
        SpaceError: The family has not said how.
    """
    raise SpaceError(f"{type(subnet).__name__}: no module is known for networks of this family")


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, and a ReLU where there is one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # a network of shapes of its own, for which the library would prepare itself
            conv = self.conv
            y = convolved_as_products(
                x, conv.weight, None, conv.stride[0], int(conv.padding[0]), conv.groups
            )
        else:
            y = self.conv(x)
        x = self.norm(y)
        return F.relu(x, inplace=True) if self.relu else x
