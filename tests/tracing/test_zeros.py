"""On a GPU smaller networks are the whole model with zeros, where that learns the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import apq_optuna as apq
from apq_optuna.supernet.pretrained.sources import build_model

from .helpers import SHAPE, Wired, trained_like

SUFFICE = {
    ("resnet18", 64): True, ("efficientnet_b0", 64): True, ("densenet121", 64): True,
    ("mobilenet_v2", 32): True, ("convnext_tiny", 64): False,
}  # fmt: skip
"""LayerNorm takes statistics over channels."""


@pytest.mark.parametrize(("name", "side"), SUFFICE)
def test_torchvision(name: str, side: int) -> None:
    torch.manual_seed(0)
    model = trained_like(build_model(f"torchvision:{name}", 10))
    net = apq.PretrainedNet(model, apq.trace(model, (3, side, side)))
    space, before = net.space, net.weights_hash
    net.prepare_training("cuda:0")
    assert net.masked is SUFFICE[name, side]
    assert net.weights_hash == before and net.model.training is False
    if net.masked:
        subnet = space.decode(space.sample(1, np.random.default_rng(3))[0])
        image = torch.randn(2, 3, side, side)
        with torch.no_grad():  # evaluating: with the model's own statistics
            zeros = net(image, subnet)
            assert torch.allclose(zeros, net.subnet(subnet)(image), rtol=1e-3, atol=1e-4)
            assert not torch.allclose(zeros, net(image), rtol=1e-2, atol=1e-2)
    net.prepare_training("cpu")
    assert not net.masked


class Chain(Wired):
    """Two convolutions, a grouped one and a head, with something between them."""

    def __init__(self, *, head: float = 1.0, norm: bool = False) -> None:
        super().__init__(
            a=nn.Conv2d(3, 16, 3, 1, 1), b=nn.Conv2d(16, 32, 3, 1, 1),
            g=nn.Conv2d(32, 32, 3, 1, 1, groups=4), c=nn.Linear(32, 5),
            n=nn.GroupNorm(4, 32) if norm else nn.Identity(),
        )  # fmt: skip
        self.c.weight.data *= head
        self.c.bias.data *= head

    def between(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)  # of 0 it is not 0: what comes behind has to leave it out

    def forward(self, x: Tensor) -> Tensor:
        x = self.n(self.b(self.between(self.a(x))))
        x = self.between(self.g(self.between(x)))
        return self.c(x.mean((2, 3)))  # type: ignore[no-any-return]


class RootOfSquares(Chain):
    """Its slope at 0 is infinite, so that a gradient of 0 is none."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.g(torch.relu(self.b(torch.relu(self.a(x)))))
        return self.c(x.pow(2).mean((2, 3)).sqrt())  # type: ignore[no-any-return]


class Recomputing(Chain):
    """What backward computes anew, it computes with the weights that are there by then."""

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda y: self.b(self.a(y)), x, use_reentrant=False)
        return self.c(self.g(x).mean((2, 3)))  # type: ignore[no-any-return]


class Refusing(Chain):
    """Its code knows how many channels there are."""

    def between(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise ValueError("no doubles")
        return torch.relu(x)


def traced(model: nn.Module) -> apq.PretrainedNet:
    return apq.PretrainedNet(model, apq.trace(model, SHAPE))


@pytest.mark.parametrize("head", [1.0, 1e-3, 0.0])
def test_what_is_behind_a_small_head_is_seen(head: float) -> None:
    torch.manual_seed(0)
    for norm in (False, True):
        net = traced(Chain(head=head, norm=norm))
        assert len({d.name for d in net.space.decisions if d.role == "channels"}) > 1
        net.prepare_training("cuda")
        assert net.masked is not norm


@pytest.mark.parametrize("kind", [RootOfSquares, Recomputing, Refusing])
def test_where_zeros_learn_something_else_networks_are_cut_out(kind: type[Chain]) -> None:
    torch.manual_seed(0)
    net, state = traced(kind()), torch.get_rng_state()
    net.prepare_training("cuda")
    assert not net.masked
    assert torch.equal(torch.get_rng_state(), state)


def test_every_mask_is_needed() -> None:
    """Gradients of a random network of zeros are those of the same one cut out."""
    torch.manual_seed(0)
    net = traced(Chain()).double()
    subnet = net.space.decode(net.space.sample(1, np.random.default_rng(0))[0])
    images, found = torch.randn(4, *SHAPE, dtype=torch.float64), []
    for masked in (False, True):
        net.masked = masked
        net.zero_grad()
        net(images, subnet).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-8, atol=1e-12), name


def test_ones_are_where_channels_are_kept() -> None:
    model = build_model("torchvision:densenet121", 10)  # with inputs of several groups
    net = apq.PretrainedNet(model, apq.trace(model, (3, 64, 64)))
    rows = net.space.sample(3, np.random.default_rng(0))
    read = None
    for row in rows:
        subnet = net.space.decode(row)
        counts = net.choose(subnet, "cpu")
        assert counts.tolist() == list(subnet.channels)
        assert read is None or counts is read  # a recorded pass reads it where it was
        read = counts
        masks = net.slicer.masks(counts)
        keep = net.slicer.keep(subnet.channels)
        assert set(keep) <= set(masks)
        for key, mask in masks.items():
            kept = keep.get(key)
            wanted = torch.arange(len(mask)) if kept is None else kept
            assert torch.equal(mask.nonzero().flatten(), wanted)
