"""Elastic layers: one set of weights, many kernel sizes and channel counts.

Notation:
    C   most expanded channels of a block; a subnet uses the first `c` of them
    K   largest kernel; a subnet uses the centre, passed through learned transforms
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna.networks.blocks import Block
from apq_optuna.supernet import products
from apq_optuna.supernet.convolution import conv2d


def channels_last(module: nn.Module) -> None:
    """Lays out a module's weights channels last, which convolves about twice as fast on CPUs."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs


def elastic_batch_norm(
    x: Tensor, norm: nn.BatchNorm2d, training: bool, *, relu: bool = False
) -> Tensor:
    """BatchNorm over the first `x.shape[1]` channels of `norm`, and a ReLU if asked for."""
    c = x.shape[1]
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    values = (
        mean[:c], var[:c], norm.weight[:c], norm.bias[:c], training, norm.momentum or 0.1,
        norm.eps
    )  # fmt: skip
    if x.is_cuda:
        return products.batch_norm(x, *values, relu=relu)
    x = F.batch_norm(x, *values)
    return F.relu(x, inplace=True) if relu else x


class ElasticKernel(nn.Module):
    """Depthwise weights `(C, 1, K, K)` with a learned transform to every smaller kernel.

    A kernel of size k is the centre k x k of the next larger one, its k*k values mixed by a matrix
    that starts as the identity and is shared by all channels (Cai et al., ICLR 2020, section 3.2).
    """

    def __init__(self, channels: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.kernels = tuple(sorted(kernels, reverse=True))
        largest = self.kernels[0]
        self.weight = nn.Parameter(torch.empty(channels, 1, largest, largest))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.transforms = nn.ParameterDict(
            {f"to{k}": nn.Parameter(torch.eye(k * k)) for k in self.kernels[1:]}
        )

    def kernel(self, size: int, channels: int) -> Tensor:
        """The weights of one kernel size, `(channels, 1, size, size)`."""
        weight = self.weight[:channels]
        for k in self.kernels[1:]:
            if weight.shape[-1] == size:
                break
            edge = (weight.shape[-1] - k) // 2
            centre = weight[:, :, edge : edge + k, edge : edge + k].reshape(channels, -1)
            weight = (centre @ self.transforms[f"to{k}"]).view(channels, 1, k, k)
        return weight


class ElasticBlock(nn.Module):
    """An inverted residual block whose kernel and expanded channels are chosen at each call."""

    def __init__(
        self, in_channels: int, channels: int, out_channels: int, kernels: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(channels)
        self.depthwise = ElasticKernel(channels, kernels)
        self.depthwise_norm = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, block: Block) -> Tensor:
        """`(B, in, H, W)` to `(B, out, H / stride, W / stride)` with the block's choices."""
        c = block.channels
        y = conv2d(x, self.expand.weight[:c])
        y = elastic_batch_norm(y, self.expand_norm, self.training, relu=True)
        kernel = self.depthwise.kernel(block.kernel, c)
        y = conv2d(y, kernel, None, block.stride, block.kernel // 2, c)
        y = elastic_batch_norm(y, self.depthwise_norm, self.training, relu=True)
        y = conv2d(y, self.project.weight[:, :c])
        y = elastic_batch_norm(y, self.project_norm, self.training)
        return x + y if block.residual else y

    @torch.no_grad()
    def sort_channels(self) -> Tensor:
        """Puts expanded channels in order of importance, the L1 norm of what leaves them.

        The function of the full block does not change; its first `c` channels become the ones
        worth keeping. Returns the permutation, `(C,) int64`.
        """
        importance = self.project.weight.abs().sum((0, 2, 3))
        order = importance.argsort(descending=True, stable=True)
        self.expand.weight.copy_(self.expand.weight[order])
        self.depthwise.weight.copy_(self.depthwise.weight[order])
        self.project.weight.copy_(self.project.weight[:, order])
        for norm in (self.expand_norm, self.depthwise_norm):
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert values is not None
                values.copy_(values[order])
        return order
