"""Models of the kinds that pruning has been reported to break, and what has to hold for all."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna.hardware import layers_of
from apq_optuna.networks import TracedFamily
from apq_optuna.quantization import fold_network
from apq_optuna.space import SearchSpace
from apq_optuna.tracing.watching import same_result, watch

SHAPE = (3, 16, 16)


def family_of(space: SearchSpace) -> TracedFamily:
    assert isinstance(space.family, TracedFamily)
    return space.family


def trained_like(model: nn.Module) -> nn.Module:
    """Statistics and scales of BatchNorm as training leaves them: not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            n = module.num_features
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.copy_(torch.randn(n, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(n, generator=generator) + 0.5)
            if module.affine:
                module.weight.data.copy_(torch.rand(n, generator=generator) + 0.5)
                module.bias.data.copy_(torch.randn(n, generator=generator) * 0.1)
    return model.eval()


def check(
    model: nn.Module, shape: tuple[int, int, int] = SHAPE, random: int = 3, **options: object
) -> SearchSpace:
    """Traces a model, and sees that smallest, largest and random networks are what is said."""
    trained_like(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    space = apq.trace(model, shape, **options)  # type: ignore[arg-type]
    assert apq.SearchSpace.from_dict(space.to_dict()) == space
    net = apq.PretrainedNet(model, space)
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    rows = [
        space.extreme(largest=True), space.extreme(largest=False),
        space.sample(random, np.random.default_rng(0)),
    ]  # fmt: skip
    with torch.no_grad():
        for k, row in enumerate(np.concatenate(rows)):
            subnet = space.decode(row)
            network = net.subnet(subnet)
            said = [placed.layer for placed in subnet.layers()]
            unpriced = any(note.startswith("not priced") for note in family_of(space).notes)
            seen = watch(network, shape).calls if unpriced else None
            layers = layers_of(network, shape) if seen is None else [c.layer for c in seen]
            assert layers == said
            logits = network(image.clone())
            assert logits.shape == (2, family_of(space).num_classes)
            if k == 0:
                whole = model(image.clone())
                assert same_result(logits, whole, 1e-4)
            folded = fold_network(network)
            scale = max(float(logits.abs().max()), 1e-3)
            assert float((folded(image.clone()) - logits).abs().max()) < 1e-4 * scale
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    return space


def channels(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    return {group.name: group.choices for group in family_of(space).groups}


class Residual(nn.Module):
    """Channels that are added are one decision; a shortcut and a depthwise layer hang on it."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.a = nn.Sequential(
            nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32),
        )  # fmt: skip
        self.skip = nn.Conv2d(16, 32, 1, 2)
        self.dw = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.pw = nn.Conv2d(32, 64, 1)
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.a(x) + self.skip(x))
        x = torch.relu(self.pw(torch.relu(self.dw(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Wired(nn.Module):
    """Layers by name, wired by a function."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Shuffled(Wired):
    """`PixelShuffle`: four channels become one of four times the pixels."""

    def __init__(self) -> None:
        super().__init__(a=nn.Conv2d(3, 32, 3, 1, 1), b=nn.Conv2d(8, 16, 3), c=nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.pixel_shuffle(F.relu(self.a(x)), 2)))
        return self.c(x.mean((2, 3)))  # type: ignore[no-any-return]


class Doubled(Wired):
    """`cat([x, x])`: each channel is there twice."""

    def __init__(self) -> None:
        super().__init__(a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(32, 24, 3), c=nn.Linear(24, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.b(torch.cat([x, x], 1)))
        return self.c(x.mean((2, 3)))  # type: ignore[no-any-return]


class Mixed(Wired):
    """Concatenations of a concatenation, of sums, and of the image itself."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 16, 3, 1, 1), b=nn.Conv2d(3, 24, 3, 1, 1), c=nn.Conv2d(40, 16, 1),
            d=nn.Conv2d(59, 16, 1), e=nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        both = torch.cat([a, b], 1)
        c = F.relu(self.c(both)) + a
        return self.e(F.relu(self.d(torch.cat([x, both, c], 1))).mean((2, 3)))  # type: ignore[no-any-return]


class Flat(Wired):
    """Flattened before a linear layer with 16 pixels a channel."""

    def __init__(self) -> None:
        super().__init__(a=nn.Conv2d(3, 16, 4, 4), b=nn.Linear(256, 32), c=nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)).flatten(1))))  # type: ignore[no-any-return]


class OneChannel(Wired):
    """A dense layer of one output, which is not a depthwise one: a mask over the pixels."""

    def __init__(self) -> None:
        super().__init__(a=nn.Conv2d(3, 16, 3, 1, 1), mask=nn.Conv2d(16, 1, 1), c=nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c((x * torch.sigmoid(self.mask(x))).mean((2, 3)))  # type: ignore[no-any-return]


class Chunked(Wired):
    """A depthwise layer of which halves go different ways."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 32, 1), dw=nn.Conv2d(32, 32, 3, 1, 1, groups=32),
            b=nn.Conv2d(16, 16, 1), c=nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.dw(F.relu(self.a(x)))).chunk(2, 1)
        return self.c((self.b(first) * torch.sigmoid(second)).mean((2, 3)))  # type: ignore[no-any-return]


class Excited(Wired):
    """Squeeze and excite: a product of channels with a function of their means."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 32, 3, 1, 1), squeeze=nn.Conv2d(32, 16, 1),
            excite=nn.Conv2d(16, 32, 1), b=nn.Conv2d(32, 16, 1), c=nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.c(F.relu(self.b(x * gate)).mean((2, 3)))  # type: ignore[no-any-return]


class Scaled(Wired):
    """Bare parameters: a scale of each channel, and one convolved with."""

    def __init__(self) -> None:
        super().__init__(a=nn.Conv2d(3, 32, 3, 1, 1), b=nn.Conv2d(32, 16, 1), c=nn.Linear(16, 5))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 32).view(32, 1, 1))
        self.filter = nn.Parameter(torch.randn(16, 16, 3, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x)) * self.scale))
        return self.c(F.relu(F.conv2d(x, self.filter)).mean((2, 3)))  # type: ignore[no-any-return]


class ScaledBranches(Wired):
    """A bare parameter before branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 16, 3, 1, 1), left=nn.Conv2d(16, 16, 1), right=nn.Conv2d(16, 24, 1),
            mix=nn.Conv2d(40, 16, 1), c=nn.Linear(16, 5),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 16).view(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)) * self.scale
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.c(F.relu(self.mix(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Twice(Wired):
    """A module that is called twice, under two names."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 16, 3, 1, 1), b=nn.Conv2d(16, 16, 3, 1, 1), c=nn.Linear(16, 5)
        )  # fmt: skip
        self.again = self.b

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.b(x)) - 0.5
        return self.c(F.relu(self.again(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Softened(Wired):
    """A mean over channels, which changes when some are left out."""

    def __init__(self) -> None:
        super().__init__(a=nn.Conv2d(3, 16, 3, 1, 1), b=nn.Conv2d(16, 16, 1), c=nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.b(x / x.mean(1, keepdim=True).add(1)))
        return self.c(x.mean((2, 3)))  # type: ignore[no-any-return]


class Grouped(Wired):
    """Convolutions of 5 groups, and a GroupNorm of 4."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 40, 3, 1, 1), b=nn.Conv2d(40, 40, 3, 1, 1, groups=5),
            norm=nn.GroupNorm(4, 40), c=nn.Conv2d(40, 16, 1), d=nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(F.relu(self.a(x)))))
        return self.d(F.relu(self.c(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Odd(Wired):
    """Dilation, a stride of two numbers, padding by name, reflections, a PReLU, LayerNorm."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 16, 3, padding="same", bias=False), na=nn.BatchNorm2d(16),
            act=nn.PReLU(16), b=nn.Conv2d(16, 24, 3, (2, 1), 2, dilation=2),
            nb=nn.BatchNorm2d(24, affine=False),
            c=nn.Conv2d(24, 16, 3, padding=1, padding_mode="reflect"), nc=nn.BatchNorm2d(16),
            norm=nn.LayerNorm(16), d=nn.Linear(16, 24), e=nn.Linear(24, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.na(self.a(x)))
        x = F.hardswish(self.nb(self.b(x)))
        x = self.norm(self.nc(self.c(x)).permute(0, 2, 3, 1))
        return self.e(F.gelu(self.d(x)).mean((1, 2)))  # type: ignore[no-any-return]
