"""What the rest of the package knows of supernets and of the modules that they give."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import singledispatch
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna.errors import SpaceError
from apq_optuna.networks import Subnet
from apq_optuna.space import SearchSpace
from apq_optuna.supernet.products import convolved_as_products


class Supernet(nn.Module, ABC):
    """Every network of a space in one set of weights: subnets are evaluated without training.

    Attributes:
        space: The search space.
        data_info: What travels with a checkpoint about the images it was trained on: class names,
            size, normalisation, split hash, how they were made squares and augmented, and whether
            broken ones were left out. Empty until trained or loaded.
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

    @property
    def device(self) -> str:
        """Where its weights are."""
        return str(next(self.parameters()).device)

    @property
    def weights_hash(self) -> str:
        """Identity of the trained weights, 16 hexadecimal digits; pairs are keyed by it."""
        digest = hashlib.sha256(self.space.architecture_hash.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


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

    @abstractmethod
    def layer_slots(self) -> list[tuple[nn.Module, str, bool]]:
        """Where each layer of `Subnet.layers()` sits, in that order.

        Returns:
            (parent module, attribute, whether the layer's input can be negative). Inputs that come
            straight out of a ReLU, or a mean of one, cannot.
        """


@singledispatch
def module_of(subnet: Subnet) -> SubnetModule:
    """A module for a subnet, its weights untrained; each family registers how.

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
