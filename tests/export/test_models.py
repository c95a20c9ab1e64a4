"""Models of one's own as files: every way in which layers follow each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna._torchvision import models
from apq_optuna.data import ImageData
from apq_optuna.errors import SpaceError
from apq_optuna.export import build_onnx, export_onnx
from apq_optuna.export.modules import codes_of
from apq_optuna.export.placing import ASKED, GROUPED, LARGE
from apq_optuna.quantization.network import quantized_layers
from tests.export.helpers import check, images, quantized
from tests.tracing.helpers import Residual


class Head(nn.Module):
    """Layers of one kind before a classifier."""

    def __init__(self, *layers: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def conv(i: int, o: int, k: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)  # type: ignore[arg-type]


class SamePadding(nn.Conv2d):
    """Pads by the image's size, as TensorFlow does: more below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Ignorant(nn.Conv2d):
    """Knows of no bias: that of a BatchNorm which is folded into it has to be added."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Standardised(nn.Conv2d):
    """Adds its bias in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight) + (
            0.0 if self.bias is None else 2 * self.bias.view(-1, 1, 1)
        )


class Branches(nn.Module):
    """Outputs that two layers take, a concatenation, and pooling in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(3, 16), conv(16, 8), conv(16, 8, 1)
        self.last, self.fc = conv(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        return self.fc(F.hardswish(self.last(x)).mean((2, 3)))


class Tokens(nn.Module):
    """Linear layers on three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.up, self.down = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Linear(16, 32),
            nn.Linear(32, 16),
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(x)))
        return self.fc(x.mean(1))


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.fc = conv(3, 16), conv(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.stem(x))))
        return self.fc(F.relu(self.again(x)).mean((2, 3)))


class Flat(nn.Module):
    """Flattens images into a classifier, as LeNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = conv(3, 8), nn.BatchNorm2d(8), nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.max_pool2d(F.relu(self.norm(self.stem(x))), 2).flatten(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "relu6": lambda: Head(conv(3, 16), nn.ReLU6(), conv(16, 16), nn.ReLU6()),
    "relu and pooling": lambda: Head(
        conv(3, 16), nn.ReLU(), nn.MaxPool2d(2), conv(16, 16), nn.ReLU()
    ),
    "no activation": lambda: Head(conv(3, 16), conv(16, 16), nn.Hardtanh(-1, 2), conv(16, 16)),
    "own padding": lambda: Head(
        SamePadding(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        SamePadding(16, 16, 3, 2),
    ),
    "zero padding": lambda: Head(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 16, 3, 2), nn.ReLU(), conv(16, 16)
    ),
    "dilated": lambda: Head(
        nn.Conv2d(3, 16, 3, dilation=2), nn.ReLU(), nn.Conv2d(16, 16, (1, 3), (2, 1))
    ),
    "own bias": lambda: Head(Standardised(3, 16, 1), nn.ReLU(), conv(16, 16)),
    "no bias": lambda: Head(
        Ignorant(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16)
    ),
    "branches": Branches,
    "tokens": Tokens,
    "twice": Twice,
    "flat": Flat,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_the_model_computes(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    for seed in (None, 0):
        network = quantized(model, seed=seed)
        _, kernels = check(network)
        assert kernels.share == 1.0 and not kernels.other, kernels


def test_grouped_layers_that_sums_take_are_float_and_named() -> None:
    torch.manual_seed(0)
    model = Head(conv(3, 16), nn.SiLU(), conv(16, 16, groups=16), nn.SiLU(), conv(16, 16, 1))
    made, kernels = check(quantized(model))
    assert dict(kernels.other) == {"body.2": GROUPED} and 0.5 < kernels.share < 1
    assert [layer.why for layer in made.layers] == ["", GROUPED, "", ""]


def test_layers_of_one_float_operand_stay_float() -> None:
    torch.manual_seed(0)
    network = quantized(Residual(), bits=(4, 8, 32), seed=3)
    widths = {p.name: (p.w_bits, p.a_bits) for p in network.description.layers()}
    mixed = [name for name, both in widths.items() if 32 in both]
    assert mixed and len(mixed) < len(widths)
    _, kernels = check(network)
    assert [name for name, _ in kernels.other] == mixed
    assert all("an operand is float" in why for _, why in kernels.other)


def test_sums_in_floating_point_are_exact_too() -> None:
    torch.manual_seed(0)
    made, kernels = check(quantized(Residual()), float_sums=True)
    assert set(dict(kernels.other).values()) == {ASKED} and "ConvInteger" not in kernels.operators
    assert {layer.name for layer in made.layers if layer.why} == set(dict(kernels.other))


def test_rounded_outputs_are_close_and_need_no_sums() -> None:
    torch.manual_seed(0)
    network = quantized(Residual())
    made, kernels = check(network, close=0.3, exact=None, round_outputs=[images(64)])
    assert any(layer.rounded for layer in made.layers)
    assert "ConvInteger" not in kernels.operators and kernels.share == 1.0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "googlenet"])
def test_models_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    more = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    model = getattr(models, name)(num_classes=10, **more)
    network = quantized(model, (3, 32, 32), seed=0)
    made, kernels = check(network, (3, 32, 32), close=0.5, exact=None)
    assert kernels.share >= (0.6 if name == "mobilenet_v3_small" else 0.9), kernels
    assert len(made.layers) == len(list(network.description.layers()))


class OwnBias(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, 2 * self.bias)


class OwnWeight(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 3, self.bias)


class TiedUse(nn.Module):
    """A layer's weight, used again in a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.fc = conv(3, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(F.relu(self.stem(x)).mean((2, 3))))
        return self.fc(F.relu(F.linear(y, self.a.weight)))


def linear_body(*layers: nn.Module) -> nn.Module:
    """Linear layers between a convolution and the head."""
    flat = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers, nn.Unflatten(1, (16, 1, 1))]
    return Head(conv(3, 16), nn.ReLU(), *flat)


@pytest.mark.parametrize("kind", ["bias", "weight"])
def test_a_layer_that_uses_its_weights_in_a_way_of_its_own_is_refused(kind: str) -> None:
    """Integers in its place would compute something else."""
    torch.manual_seed(0)
    if kind == "bias":
        model = linear_body(OwnBias(16, 16), nn.ReLU())
    else:
        model = Head(conv(3, 16), nn.ReLU(), OwnWeight(16, 16, 1), nn.ReLU())
    with pytest.raises(SpaceError, match="weight or bias in a way of its own"):
        build_onnx(quantized(model))


def test_a_weight_that_is_used_again_is_not_taken_for_its_layer() -> None:
    torch.manual_seed(0)
    made, _ = check(quantized(TiedUse()))
    assert "a" in {layer.name for layer in made.layers if not layer.why}


@pytest.mark.parametrize("kind", ["linear", "conv", "tokens"])
def test_layers_of_equal_weights_stay_apart(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "tokens":
        model: nn.Module = Tokens()
        first, second = nn.Linear(16, 16), nn.Linear(16, 16)
        model.up, model.down = first, second
    elif kind == "linear":
        first, second = nn.Linear(16, 16), nn.Linear(16, 16)
        model = linear_body(first, nn.ReLU(), second, nn.ReLU())
    else:
        first, second = conv(16, 16, 1), conv(16, 16, 1)  # type: ignore[assignment]
        model = Head(conv(3, 16), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU())
    second.weight.data.copy_(first.weight.data)
    check(quantized(model))


def test_calls_of_one_layer_share_its_weights() -> None:
    torch.manual_seed(0)
    made, _ = check(quantized(Twice()))
    graph = onnx.load_from_string(made.content).graph
    weights = [each.raw_data for each in graph.initializer if len(each.dims) == 4]
    assert len(set(weights)) == len(weights)


@pytest.mark.parametrize("groups", [1, 16])
def test_a_bias_that_no_int32_holds(groups: int) -> None:
    torch.manual_seed(0)
    model = Head(conv(3, 16), nn.ReLU(), conv(16, 16, groups=groups), nn.ReLU(), conv(16, 16))
    network = quantized(model)
    layer = quantized_layers(network)[1]
    with torch.no_grad():
        layer.weight[0] *= 1e-6
        layer.weight_scale[0] = 1e-8
        layer.bias[0] = 5.0
    _, kernels = check(network)
    assert dict(kernels.other) == ({} if groups == 1 else {"body.2": LARGE})


def test_rounded_outputs_where_several_take_them_and_beside_float_layers() -> None:
    torch.manual_seed(0)
    for bits in ((4, 8), (8, 32)):
        network = quantized(Branches(), bits=bits, seed=1)
        _, kernels = check(network, close=0.5, exact=None, round_outputs=[images(64)])
        floats = [p.name for p in network.description.layers() if 32 in (p.w_bits, p.a_bits)]
        assert [name for name, _ in kernels.other] == floats


def test_mixed_and_grouped_networks_are_proven(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Head(conv(1, 16), nn.SiLU(), conv(16, 16, groups=16), nn.SiLU(), conv(16, 16, 1))
    model.fc = nn.Linear(16, 10)
    for bits, seed in (((4, 8), 0), ((8, 32), 2)):
        network = quantized(model, (1, 8, 8), bits=bits, seed=seed)
        report = export_onnx(network, tmp_path / f"{seed}.onnx", data=digits)
        assert report["parity"]["passed"]


def test_what_saturates_has_weights_of_7_bits_then() -> None:
    """No sum of two products of a byte and a weight is beyond 16 bits, whatever the input."""
    torch.manual_seed(0)
    made, _ = check(quantized(Residual(), bits=(4, 6, 8), seed=4), reduce_range=True)
    for layer in quantized_layers(made.network):
        codes = codes_of(layer)
        assert codes.grid is not None
        assert 2 * codes.grid.high * int(np.abs(codes.weight.astype(int)).max()) < 2**15
