"""A third family, tiny: a plain chain of convolutions whose widths and bits are choices.

No stages, no blocks, no depth. Each layer's input is the width of the one before, so a width
decides two layers; the last convolution's input is a concatenation of two of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna.networks import (
    FAMILIES,
    ConvLayer,
    Decision,
    Extent,
    Genotypes,
    PlacedLayer,
    Site,
    Step,
    Subnet,
    Width,
)
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import ConvNorm, SubnetModule, Supernet, module_of


@dataclass(frozen=True)
class Chain:
    """`length` 3x3 convolutions on 8x8 images, a mean over pixels and a classifier."""

    length: int = 3
    widths: tuple[int, ...] = (8, 16, 24)
    bits: tuple[int, ...] = (4, 8)
    side: int = 8
    num_classes: int = 10
    name: str = "chain"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (1, self.side, self.side)

    def decisions(self) -> tuple[Decision, ...]:
        found = []
        for i in range(self.length):
            found.append(Decision(f"conv{i}.width", self.widths, "channels", f"conv{i}"))
            found += [
                Decision(f"conv{i}.{operand}", self.bits, "bits", f"conv{i}")
                for operand in ("weights", "inputs")
            ]
        return tuple(found)

    def sites(self) -> tuple[Site, ...]:
        found = []
        inputs = Extent(1)
        for i in range(self.length):
            outputs = Extent(0, ((3 * i, self.widths),))
            layer = ConvLayer(max(inputs.constant, self.widths[-1]) if i else 1, self.widths[-1],
                              self.side, 3, 1, 1, 1)  # fmt: skip
            found.append(
                Site(
                    f"conv{i}", "convolution", layer, inputs, outputs,
                    Width(self.bits, 3 * i + 1), Width(self.bits, 3 * i + 2),
                )
            )  # fmt: skip
            inputs = outputs
        # the classifier sees all widths side by side
        joined = Extent(0, tuple((3 * i, self.widths) for i in range(self.length)))
        widest = self.widths[-1] * self.length
        last = ConvLayer(widest, self.num_classes, 1, 1, 1, 0, 1, linear=True)
        fixed = Width((8,))
        found.append(
            Site("classifier", "linear", last, joined, Extent(self.num_classes), fixed, fixed)
        )
        return tuple(found)

    def decode(self, genotype: Genotypes) -> ChainNet:
        choices = [d.choices[i] for d, i in zip(self.decisions(), genotype.tolist(), strict=True)]
        rows = [tuple(choices[3 * i : 3 * i + 3]) for i in range(self.length)]
        return ChainNet(self, tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        return {"family": "chain", **asdict(self)}

    def architecture(self) -> dict[str, Any]:
        return replace(self, bits=(8,)).to_dict()

    def subnet(self, description: Mapping[str, Any]) -> ChainNet:
        return ChainNet(self, tuple(tuple(row) for row in description["rows"]))

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Chain:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
        fields.pop("family")
        return cls(**fields)


FAMILIES["chain"] = Chain.from_dict


@dataclass(frozen=True)
class ChainNet(Subnet):
    """(width, weight bits, input bits) of each convolution."""

    chain: Chain
    rows: tuple[tuple[int, ...], ...]

    @property
    def family(self) -> Chain:
        return self.chain

    def layers(self) -> Iterator[PlacedLayer]:
        inputs, side = 1, self.chain.side
        for i, (width, w, a) in enumerate(self.rows):
            yield PlacedLayer(f"conv{i}", ConvLayer(inputs, width, side, 3, 1, 1, 1), w, a)
            inputs = width
        joined = sum(width for width, _, _ in self.rows)
        last = ConvLayer(joined, self.chain.num_classes, 1, 1, 1, 0, 1, linear=True)
        yield PlacedLayer("classifier", last, 8, 8)

    def steps(self) -> tuple[Step, ...]:
        found: list[Step] = []
        means, x = [], -1
        for i in range(len(self.rows)):
            found.append(Step("layer", (x,), i, relu=True))
            x = len(found) - 1
            found.append(Step("mean", (x,)))
            means.append(x + 1)
        found.append(Step("concat", tuple(means)))
        found.append(Step("layer", (len(found) - 1,), len(self.rows)))
        return tuple(found)

    def with_bits(self, bits: int) -> ChainNet:
        return replace(self, rows=tuple((width, bits, bits) for width, _, _ in self.rows))

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self.rows]}


class ChainModule(SubnetModule):
    """A network of the chain; every convolution's mean over pixels reaches the classifier."""

    def __init__(self, subnet: ChainNet) -> None:
        super().__init__(subnet)
        inputs = 1
        self.convs = nn.ModuleList()
        for width, _, _ in subnet.rows:
            self.convs.append(ConvNorm(inputs, width, 3))
            inputs = width
        joined = sum(width for width, _, _ in subnet.rows)
        self.classifier = nn.Linear(joined, subnet.chain.num_classes)

    def layer_slots(self) -> list[tuple[nn.Module, str, bool]]:
        slots: list[tuple[nn.Module, str, bool]] = [
            (self.convs, str(i), i == 0) for i in range(len(self.convs))
        ]
        return [*slots, (self, "classifier", False)]

    def forward(self, x: Tensor) -> Tensor:
        means = []
        for conv in self.convs:
            x = conv(x)
            means.append(x.mean((2, 3)))
        return self.classifier(torch.cat(means, 1))


@module_of.register
def _(subnet: ChainNet) -> SubnetModule:
    return ChainModule(subnet)


class ChainSupernet(Supernet):
    """The largest chain; a subnet is the first channels of every layer."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.whole = module_of(space.decode(space.extreme(largest=True)[0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x)

    def train_on(self, images: Tensor, labels: Tensor, steps: int) -> None:
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(self(images), labels).backward()
            optimizer.step()

    @torch.no_grad()
    def subnet(self, subnet: Subnet) -> SubnetModule:
        module = module_of(subnet)
        assert isinstance(module, ChainModule) and isinstance(self.whole, ChainModule)
        inputs, columns, start = 1, [], 0
        for mine, theirs in zip(module.convs, self.whole.convs, strict=True):
            width = mine.conv.out_channels
            mine.conv.weight.copy_(theirs.conv.weight[:width, :inputs])
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(mine.norm, name).copy_(getattr(theirs.norm, name)[:width])
            columns += list(range(start, start + width))
            inputs, start = width, start + theirs.conv.out_channels
        module.classifier.weight.copy_(self.whole.classifier.weight[:, columns])
        module.classifier.bias.copy_(self.whole.classifier.bias)
        return module.eval()
