"""Models of torchvision and timm: every network's true shapes are the sites'."""

from __future__ import annotations

import pytest
import torch

from apq_optuna.networks import TracedFamily
from apq_optuna.supernet.pretrained.sources import build_model

from .helpers import channels, check, family_of

TORCHVISION = {
    "resnet18": 12, "resnet50": 37, "mobilenet_v2": 25, "mobilenet_v3_large": 30,
    "efficientnet_b0": 40, "densenet121": 120, "googlenet": 57, "vgg11_bn": 10, "mnasnet1_0": 25,
    "inception_v3": 94, "resnext50_32x4d": 37, "convnext_tiny": 22, "regnet_y_400mf": 53,
    "shufflenet_v2_x1_0": 0, "vit_b_16": 12,
}  # fmt: skip
"""Groups of channels that are searched."""

SIDES = {"inception_v3": 96, "vit_b_16": 224, "googlenet": 64}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    side = SIDES.get(name, 64)
    space = check(build_model(f"torchvision:{name}", 10), (3, side, side), random=1)
    assert len(channels(space)) == TORCHVISION[name]
    explained(family_of(space))


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("tf_efficientnet_lite0", 24), ("mobilenetv3_small_050", 26), ("ghostnet_050", 31),
        ("rexnet_100", 31), ("ese_vovnet19b_dw", 23),
    ],
)  # fmt: skip
def test_timm(name: str, groups: int) -> None:
    torch.manual_seed(0)
    space = check(build_model(f"timm:{name}", 10), (3, 64, 64), random=1)
    assert len(channels(space)) == groups
    explained(family_of(space))


def explained(family: TracedFamily) -> None:
    """Whether every layer whose outputs are always whole is in a note."""
    searched = {m.path for g in family.groups for m in g.members if m.side in ("out", "both")}
    if any(note.startswith("every layer stays whole") for note in family.notes):
        assert not searched
        return
    said = {
        name for note in family.notes for name in note.partition(" stays whole: ")[0].split(", ")
    }
    for layer in family.traced[:-1]:
        few = layer.layer.out_channels <= 8 or not layer.module
        assert few or layer.module in searched | said, layer.module
