"""Traced networks quantized: signs, folding, codes, and what is left as it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna.quantization import fold_network, quantize_network
from apq_optuna.quantization.network import calibrate, quantized_layers
from apq_optuna.space import SearchSpace

from .helpers import SHAPE, Residual, Twice, Wired, check, family_of, trained_like


@pytest.fixture(scope="module")
def net() -> apq.PretrainedNet:
    torch.manual_seed(0)
    model = Residual()
    trained_like(model)
    return apq.PretrainedNet(model, apq.trace(model, SHAPE))


@pytest.fixture(scope="module")
def space(net: apq.PretrainedNet) -> SearchSpace:
    return net.space


def test_inputs_are_signed_where_they_may_be_negative(space: SearchSpace) -> None:
    signed = {layer.name: layer.signed for layer in family_of(space).traced}
    assert signed == {
        "stem.0": True, "a.0": False, "a.3": False, "skip": False, "dw": False, "pw": False,
        "head": False,
    }  # fmt: skip


class Signs(Wired):
    """What feeds each layer, in its name."""

    def __init__(self) -> None:
        names = "image relu6 sigmoid pool mean silu minus inplace sum difference"
        super().__init__(
            **{name: nn.Conv2d(3, 3, 1) for name in names.split()}, head=nn.Linear(3, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(F.relu6(self.image(x)))
        x = self.sigmoid(torch.sigmoid(x))
        x = self.pool(F.max_pool2d(F.relu(x), 2))
        x = self.mean(F.adaptive_avg_pool2d(F.relu(x), 4))
        x = self.silu(F.silu(x))
        positive = F.relu(x)
        x = self.minus(positive - 1)
        changed = F.relu(x)
        changed.sub_(1)
        x = self.inplace(changed)
        x = self.sum(F.relu(x) + positive)
        x = self.difference(F.relu(x) - positive)
        return self.head(F.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_signs_follow_what_feeds_a_layer() -> None:
    family = family_of(apq.trace(Signs().eval(), SHAPE))
    signed = {layer.name for layer in family.traced if layer.signed}
    assert signed == {"image", "silu", "minus", "inplace", "difference"}


def test_batchnorm_is_folded_where_it_directly_follows() -> None:
    class Norms(Wired):
        def __init__(self) -> None:
            super().__init__(
                a=nn.Conv2d(3, 8, 3), na=nn.BatchNorm2d(8), b=nn.Conv2d(8, 8, 3),
                nb=nn.BatchNorm2d(8), nc=nn.BatchNorm2d(8), c=nn.Conv2d(8, 8, 3),
                d=nn.Linear(8, 5), nd=nn.BatchNorm1d(5),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.na(self.a(x)))
            y = self.b(x)
            x = self.nb(y) + y  # used twice: not folded
            x = F.relu(self.nc(F.relu(x)))  # follows no layer
            return self.nd(self.d(self.c(x).mean((2, 3))))  # type: ignore[no-any-return]

    model = trained_like(Norms())
    space = apq.trace(model, SHAPE)
    folded = {layer.name: layer.norm for layer in family_of(space).traced}
    assert folded == {"a": "na", "b": "", "c": "", "d": "nd"}
    network = apq.PretrainedNet(model, space).subnet(space.decode(space.extreme(largest=True)[0]))
    left = [name for name, m in fold_network(network).named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # fmt: skip
    assert left == ["model.nb", "model.nc"]


def test_a_shared_module_keeps_one_set_of_codes() -> None:
    model = Twice().eval()
    space = apq.trace(model, SHAPE)
    net = apq.PretrainedNet(model, space)
    subnet = space.decode(space.extreme(largest=True, bits=4)[0])
    quantized = quantize_network(net.subnet(subnet), subnet)
    assert quantized.model.b is quantized.model.again
    assert len(quantized_layers(quantized)) == 3
    calibrate(quantized, torch.randn(4, *SHAPE))
    assert quantized(torch.randn(2, *SHAPE)).shape == (2, 5)


def test_weights_are_quantized_to_their_widths(net: apq.PretrainedNet) -> None:
    space = net.space
    subnet = space.decode(space.extreme(largest=True, bits=4)[0])
    quantized = quantize_network(net.subnet(subnet), subnet)
    calibrate(quantized, torch.randn(8, *SHAPE))
    for layer in quantized_layers(quantized):
        codes = (layer.quantized_weight() / layer.weight_scale).round()
        assert codes.abs().max() <= 2 ** (layer.w_bits - 1)
        assert layer.w_bits == (8 if layer.name in ("stem.0", "head") else 4)


class Ported(Wired):
    """What models of elsewhere have: `view`, 5 dimensions, transposed weights, lists."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 16, 3, 2, 1), b=nn.Conv2d(16, 16, (1, 3), padding=(0, 1), groups=16),
            c=nn.Linear(16 * 64, 24), d=nn.Linear(24, 5),
        )  # fmt: skip
        self.d.weight.data = (torch.randn(24, 5) * 0.1).t()
        self.table = nn.Parameter(torch.ones(1, 1, 1, 1, 1))
        self.layers = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        x = x.view(x.size(0), -1) * self.table.view(1)
        return self.d(F.relu(self.c(x)))  # type: ignore[no-any-return]


def test_what_is_written_elsewhere_is_finetuned_as_it_is_evaluated() -> None:
    from apq_optuna.quantization.together import WeightsTogether

    model = Ported()
    space = check(model)
    assert not family_of(space).channels_last
    subnet = space.decode(space.extreme(largest=True, bits=4)[0])
    quantized = quantize_network(apq.PretrainedNet(model, space).subnet(subnet), subnet)
    layers = quantized_layers(quantized)
    assert len(layers) == 4 and quantized.model.layers == [quantized.model.a, quantized.model.b]
    image = torch.randn(4, *SHAPE)
    calibrate(quantized, image)
    alone = [layer.quantized_weight().detach().clone() for layer in layers]
    together = WeightsTogether(layers)
    with together:
        for layer, weight in zip(layers, alone, strict=True):
            assert torch.equal(layer.quantized_weight().detach(), weight)
        quantized(image).sum().backward()


class Standardised(nn.Conv2d):
    """A convolution by weights of another kind than its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Activated(nn.BatchNorm2d):
    """A BatchNorm that does more than one does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def test_what_is_not_what_it_looks_like_stays_as_it_is() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), Activated(16), Standardised(16, 16, 3), nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16, track_running_stats=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    family = family_of(check(model))
    assert not any(layer.norm for layer in family.traced)
    assert {layer.name: layer.fixed for layer in family.traced} == {
        "0": 8,
        "2": 32,
        "4": 0,
        "8": 8,
    }
    assert any(note.startswith("2 computes with its weights") for note in family.notes)
