"""The once-for-all network: every subnet of a space, in one set of weights.

stem 3x3 - BN - ReLU
first:  depthwise 3x3 - BN - ReLU, pointwise - BN
stages: inverted residual blocks (elastic depth, kernel, channels)
last 1x1 - BN - ReLU - global average pool - classifier
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from apq_optuna.errors import SpaceError
from apq_optuna.networks import MobileFamily, MobileSubnet, Subnet
from apq_optuna.networks.blocks import Block
from apq_optuna.space import SearchSpace
from apq_optuna.supernet.convolution import conv2d
from apq_optuna.supernet.elastic import ElasticBlock, channels_last, elastic_batch_norm
from apq_optuna.supernet.modules import ConvNorm, Slot, SubnetModule, Supernet, module_of


class OnceForAllNet(Supernet):
    """A supernet over a search space (Cai et al., ICLR 2020).

    Args:
        space: A joint space of the mobile family; its bit-widths play no part here.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        if not isinstance(space.family, MobileFamily):
            raise SpaceError("OnceForAllNet needs a search space of the mobile family")
        spec = self.spec = space.family
        self.stem = nn.Conv2d(
            spec.in_channels, spec.stem_channels, 3, spec.stem_stride, 1, bias=False
        )
        self.stem_norm = nn.BatchNorm2d(spec.stem_channels)
        width = spec.stem_channels
        self.first_depthwise = nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)
        self.first_depthwise_norm = nn.BatchNorm2d(width)
        self.first_project = nn.Conv2d(width, spec.first_channels, 1, bias=False)
        self.first_project_norm = nn.BatchNorm2d(spec.first_channels)
        self.blocks = nn.ModuleDict()
        for s, stage in enumerate(spec.stages):
            for b in range(stage.depths[-1]):
                inputs, channels = spec.block_inputs(s, b), spec.channel_choices(s, b)[-1]
                block = ElasticBlock(inputs, channels, stage.out_channels, stage.kernels)
                self.blocks[_key(s, b)] = block
        self.last = nn.Conv2d(spec.stages[-1].out_channels, spec.last_channels, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(spec.last_channels)
        self.classifier = nn.Linear(spec.last_channels, spec.num_classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.largest = spec.decode(space.extreme(largest=True)[0])
        channels_last(self)

    def forward(self, x: Tensor, subnet: MobileSubnet | None = None) -> Tensor:
        """`(B, C, H, W)` images to `(B, num_classes)` logits; by default of the largest subnet."""
        training, width = self.training, self.stem.out_channels
        x = elastic_batch_norm(self.stem(x), self.stem_norm, training, relu=True)
        x = conv2d(x, self.first_depthwise.weight, None, 1, 1, width)
        x = elastic_batch_norm(x, self.first_depthwise_norm, training, relu=True)
        x = conv2d(x, self.first_project.weight)
        x = elastic_batch_norm(x, self.first_project_norm, training)
        for block in (subnet or self.largest).blocks:
            x = self.blocks[_key(block.stage, block.index)](x, block)
        x = conv2d(x, self.last.weight)
        x = elastic_batch_norm(x, self.last_norm, training, relu=True)
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]

    def elastic_blocks(self) -> Iterable[ElasticBlock]:
        """Every block of the supernet."""
        return (block for block in self.blocks.values() if isinstance(block, ElasticBlock))

    @torch.no_grad()
    def subnet(self, subnet: Subnet) -> MobileModule:
        """See `Supernet.subnet`; the weights are slices of the supernet's."""
        if not isinstance(subnet, MobileSubnet):
            raise SpaceError(f"subnet: a {type(subnet).__name__} is not of the mobile family")
        module = MobileModule(subnet).to(self.stem.weight.device)
        pairs: list[tuple[ConvNorm, Tensor, nn.BatchNorm2d]] = [
            (module.stem, self.stem.weight, self.stem_norm),
            (module.first.depthwise, self.first_depthwise.weight, self.first_depthwise_norm),
            (module.first.project, self.first_project.weight, self.first_project_norm),
            (module.last, self.last.weight, self.last_norm),
        ]
        for block, target in zip(subnet.blocks, module.searched_blocks(), strict=True):
            source = self.blocks[_key(block.stage, block.index)]
            assert isinstance(source, ElasticBlock)
            c = block.channels
            kernel = source.depthwise.kernel(block.kernel, c)
            pairs += [
                (target.expand, source.expand.weight[:c], source.expand_norm),
                (target.depthwise, kernel, source.depthwise_norm),
                (target.project, source.project.weight[:, :c], source.project_norm),
            ]
        for layer, weight, norm in pairs:
            layer.conv.weight.copy_(weight)
            _copy_norm(norm, layer.norm)
        module.classifier.load_state_dict(self.classifier.state_dict())
        return module.eval()

    def save(self, path: str | Path) -> Path:
        """Writes a checkpoint folder; see `checkpoint.save_supernet`."""
        from apq_optuna.supernet.checkpoint import save_supernet

        return save_supernet(self, path)

    @classmethod
    def load(cls, path: str | Path, *, space: SearchSpace | None = None) -> OnceForAllNet:
        """Reads a checkpoint folder; see `checkpoint.load_supernet`.

        Args:
            path: Folder that `save` wrote, or the name of a supernet that comes with the package.
            space: The space the checkpoint must be of; bit-widths may differ, and are then
                `space`'s.
        """
        from apq_optuna.supernet.checkpoint import load_supernet

        return load_supernet(path, space=space)


class SeparableBlock(nn.Module):
    """The fixed first block: depthwise, then pointwise."""

    def __init__(self, spec: MobileFamily) -> None:
        super().__init__()
        width = spec.stem_channels
        self.depthwise = ConvNorm(width, width, 3, groups=width)
        self.project = ConvNorm(width, spec.first_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.depthwise(x))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """One block of an extracted subnet."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        c = block.channels
        self.residual = block.residual
        self.expand = ConvNorm(block.in_channels, c, 1)
        self.depthwise = ConvNorm(c, c, block.kernel, block.stride, c)
        self.project = ConvNorm(c, block.out_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y  # type: ignore[no-any-return]


class MobileModule(SubnetModule):
    """A subnet as an ordinary network; its submodules carry the names of `Subnet.layers()`."""

    def __init__(self, subnet: MobileSubnet) -> None:
        super().__init__(subnet)
        spec = subnet.spec
        self.stem = ConvNorm(spec.in_channels, spec.stem_channels, 3, spec.stem_stride)
        self.first = SeparableBlock(spec)
        self.block_names = [_key(block.stage, block.index) for block in subnet.blocks]
        self.blocks = nn.ModuleDict(
            {
                name: InvertedResidual(block)
                for name, block in zip(self.block_names, subnet.blocks, strict=True)
            }
        )
        self.last = ConvNorm(spec.stages[-1].out_channels, spec.last_channels, 1)
        self.classifier = nn.Linear(spec.last_channels, spec.num_classes)
        channels_last(self)

    def layer_slots(self) -> list[Slot]:
        """See `SubnetModule.layer_slots`."""
        slots = [
            Slot(self, "stem", True), Slot(self.first, "depthwise", False),
            Slot(self.first, "project", False),
        ]  # fmt: skip
        for block in self.blocks.values():
            slots += [
                Slot(block, "expand", True),
                Slot(block, "depthwise", False),
                Slot(block, "project", False),
            ]
        return [*slots, Slot(self, "last", True), Slot(self, "classifier", False)]

    def searched_blocks(self) -> list[InvertedResidual]:
        """The inverted residual blocks in order."""
        return [block for block in self.blocks.values() if isinstance(block, InvertedResidual)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        for block in self.blocks.values():
            x = block(x)
        return self.classifier(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


def _copy_norm(source: nn.BatchNorm2d, target: nn.BatchNorm2d) -> None:
    c = target.num_features
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(target, name).copy_(getattr(source, name)[:c])


def _key(stage: int, block: int) -> str:
    return f"stage{stage + 1}_block{block + 1}"


@module_of.register
def _(subnet: MobileSubnet, model: nn.Module | None = None) -> SubnetModule:
    return MobileModule(subnet)
