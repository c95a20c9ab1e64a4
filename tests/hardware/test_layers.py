"""`layers_of`: the layers of any model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apq_optuna._torchvision import models
from apq_optuna.errors import (
    InvalidArgumentError,
    UnsupportedLayerError,
)
from apq_optuna.hardware import bitfusion, bitserial, layers_of
from apq_optuna.networks import ConvLayer


@pytest.mark.parametrize(
    ("name", "count", "mmacs"),
    [("mobilenet_v2", 53, 300.8), ("resnet18", 21, 1814.1), ("mobilenet_v3_large", 64, 216.6)],
)
def test_torchvision_models_are_listed_whole(name: str, count: int, mmacs: float) -> None:
    layers = layers_of(getattr(models, name)(), (3, 224, 224))
    assert len(layers) == count
    assert sum(layer.macs for layer in layers) / 1e6 == pytest.approx(mmacs, abs=0.1)
    for device in (bitfusion(), bitserial()):
        assert 0 < device.network_cost(layers, 4, 4)[0] < device.network_cost(layers, 8, 8)[0]


def test_true_shapes_are_seen() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)), nn.ReLU(),
        nn.Conv2d(8, 16, 3, dilation=2, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip
    assert layers_of(model, (3, 20, 12)) == [
        ConvLayer(3, 8, (20, 12), (3, 5), (2, 1), (1, 2), 1),
        ConvLayer(8, 16, (10, 12), 3, 1, 0, 4, 2),
        ConvLayer(16, 5, 1, 1, 1, 0, 1, linear=True),
    ]
    assert model.training


def test_what_computes_and_has_no_price_is_named() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2) @ x.flatten(2).transpose(1, 2)

    with pytest.raises(UnsupportedLayerError, match=r"aten::bmm .* has no price"):
        layers_of(Attention(), (3, 8, 8))

    class Gram(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(1)
            return rows @ rows.t()

    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.conv2d(x, x[:, :, :3, :3])

    class Distances(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pdist(x[0].flatten(1))

    encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)

    with pytest.raises(UnsupportedLayerError, match=r"_scaled_dot_product|two activations"):
        layers_of(nn.Sequential(nn.Flatten(2), encoder), (3, 8, 8))
    for module in (Gram(), Dynamic()):
        with pytest.raises(UnsupportedLayerError, match="multiplies two activations"):
            layers_of(module, (3, 8, 8))
    with pytest.raises(UnsupportedLayerError, match="aten::_pdist_forward"):
        layers_of(Distances(), (3, 8, 8))
    with pytest.raises(UnsupportedLayerError, match="transposed"):
        layers_of(nn.ConvTranspose2d(3, 4, 2), (3, 8, 8))


def test_everything_between_layers_is_free() -> None:
    between = [
        nn.LayerNorm([8, 8]), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), nn.PReLU(),
        nn.Hardswish(True), nn.SiLU(True), nn.GELU(), nn.Mish(), nn.Sigmoid(),
        nn.LPPool2d(2, 2), nn.ReflectionPad2d(1),
        nn.Upsample(scale_factor=2, mode="bicubic"), nn.Softmax2d(), nn.AdaptiveAvgPool2d(4),
        nn.Dropout2d(), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.MaxPool2d(2),
    ]  # fmt: skip

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.between, self.conv = nn.Sequential(*between), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(self.between(x))
            y = torch.cat([y, y * 2, y.sigmoid_() + 1], dim=1)
            return y.clamp_(0, 1).std() + y.sort().values.mean() + y.topk(1).values.sum()

    assert layers_of(Mixed(), (3, 8, 8)) == [ConvLayer(3, 4, 1, 1, 1, 0, 1)]


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, -1), (3, 8, 8.0), 5, "888", (4, 8, 8)])
def test_images_a_model_does_not_take_are_named(shape: object) -> None:
    with pytest.raises(InvalidArgumentError, match="input_shape="):
        layers_of(nn.Conv2d(3, 4, 3), shape)  # type: ignore[arg-type]


def test_weights_that_are_computed_are_weights() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    assert layers_of(nn.Sequential(nn.Flatten(), layer), (2, 2, 2)) == [
        ConvLayer(8, 4, 1, 1, 1, 0, 1, linear=True)
    ]
