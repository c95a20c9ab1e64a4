"""Convolutions as matrix products, as a GPU does them; they compute the same anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.supernet import elastic, network, products
from apq_optuna.supernet.devices import resolve_precision
from apq_optuna.supernet.products import batch_norm, convolved_as_products

CASES = [
    (8, 32, 3, 1, 8), (16, 32, 7, 2, 16), (24, 16, 5, 2, 24), (24, 8, 7, 1, 24), (16, 4, 7, 1, 16),
    (12, 5, 3, 2, 12), (12, 5, 1, 1, 1), (4, 40, 3, 1, 4), (6, 8, 3, 1, 2),
]  # fmt: skip


@pytest.mark.parametrize(("channels", "size", "kernel", "stride", "groups"), CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_convolutions(
    channels: int, size: int, kernel: int, stride: int, groups: int, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    x, weight = (
        tensor(3, channels, size, size),
        tensor(channels, channels // groups, kernel, kernel),
    )
    bias = tensor(channels) if biased else None
    given = [x, weight] + ([bias] if bias is not None else [])
    results = []
    for convolve in (convolved_as_products, lambda *a: F.conv2d(*a[:5], 1, a[5])):
        y = convolve(x, weight, bias, stride, kernel // 2, groups)
        results.append([y, *torch.autograd.grad((y * torch.cos(y.detach())).sum(), given)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_batch_norm_is_that_of_the_library(dtype: torch.dtype, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 8, 5, 5, generator=generator) * 3 + 1
    gain, shift = torch.rand(8, generator=generator) + 0.5, torch.randn(8, generator=generator)
    slope = torch.randn(6, 8, 5, 5, generator=generator)
    results = []
    for normalise in (batch_norm, F.batch_norm):
        x = values.to(dtype).clone().requires_grad_()
        weight, bias = gain.clone().requires_grad_(), shift.clone().requires_grad_()
        mean, var = torch.zeros(8), torch.ones(8)
        y = normalise(x, mean, var, weight, bias, True, 0.1, 1e-5)
        gradients = torch.autograd.grad(y, (x, weight, bias), slope.to(y.dtype))
        later = normalise(x, mean, var, weight, bias, False, 0.1, 1e-5)
        results.append([y, *gradients, mean, var, later])
    for ours, theirs in zip(*results, strict=True):
        scale = theirs.abs().max().item()
        assert (ours.float() - theirs.float()).abs().max().item() <= most * scale


def test_a_supernet_computes_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = apq.OnceForAllNet(apq.SearchSpace.preset("digits")).train()
    images = torch.randn(16, 1, 8, 8)
    subnet = net.spec.decode(net.space.sample(1, np.random.default_rng(0))[0])
    state = {name: value.clone() for name, value in net.state_dict().items()}
    expected = net(images, subnet)

    def norm(
        x: torch.Tensor, norm: torch.nn.BatchNorm2d, training: bool, *, relu: bool = False
    ) -> torch.Tensor:
        c = x.shape[1]
        assert norm.running_mean is not None and norm.running_var is not None
        return products.batch_norm(
            x, norm.running_mean[:c], norm.running_var[:c], norm.weight[:c], norm.bias[:c],
            training, norm.momentum or 0.1, norm.eps, relu=relu,
        )  # fmt: skip

    def conv(x, weight, bias=None, stride=1, padding=0, groups=1):  # type: ignore[no-untyped-def]
        return convolved_as_products(x, weight, bias, stride, padding, groups)

    for module in (elastic, network):
        monkeypatch.setattr(module, "conv2d", conv)
        monkeypatch.setattr(module, "elastic_batch_norm", norm)
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(state)
    torch.testing.assert_close(net(images, subnet), expected, rtol=1e-4, atol=1e-5)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, statistics[name], rtol=1e-4, atol=1e-5)


def test_precision_is_float32_where_there_is_no_gpu() -> None:
    assert resolve_precision("auto", "cpu") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"
    with pytest.raises(InvalidArgumentError, match="precision='half'"):
        resolve_precision("half", "cpu")


def test_training_in_bfloat16_learns(digits: apq.ImageData, tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net = apq.OnceForAllNet(apq.SearchSpace.preset("digits"))
    losses: list[float] = []
    plan = apq.TrainingPlan(epochs=3, batch_size=64)
    apq.train_supernet(
        net, digits, plan, tmp_path, device="cpu", precision="bfloat16",
        report=lambda done, phase, loss: losses.append(loss),
    )  # fmt: skip
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert all(value.dtype != torch.bfloat16 for value in net.state_dict().values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_by_replay(digits: apq.ImageData, tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    net = apq.OnceForAllNet(apq.SearchSpace.preset("digits"))
    losses: list[float] = []
    apq.train_supernet(
        net, digits, apq.TrainingPlan(epochs=12), tmp_path, device="cuda",
        report=lambda done, phase, loss: losses.append(loss),
    )  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
