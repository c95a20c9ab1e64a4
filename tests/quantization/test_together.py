"""What is done to many layers at once is what was done to each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.quantization import (
    fake_quantize,
    finetune_quantized,
    fold_network,
    fp32_network,
    load_network,
    quantized_network,
    save_network,
)
from apq_optuna.quantization.network import quantized_layers
from apq_optuna.quantization.quantizers import SMALLEST_SCALE
from apq_optuna.quantization.together import FlatParameters, WeightsTogether
from apq_optuna.supernet import OnceForAllNet, SubnetModule


@pytest.fixture
def network(supernet: OnceForAllNet, digits: ImageData) -> SubnetModule:
    subnet = supernet.space.decode(supernet.space.sample(4, np.random.default_rng(3))[1])
    module = fp32_network(supernet, subnet, digits, 128, 0)
    return quantized_network(module, subnet, digits, 128, 0)


def test_weights_together_are_each_layers_own(network: SubnetModule) -> None:
    layers = quantized_layers(network)
    assert len({layer.w_bits for layer in layers}) > 1
    upstream = [torch.cos(layer.weight.detach() * 50) for layer in layers]
    wanted = []
    for layer, given in zip(layers, upstream, strict=True):
        weight, scale = layer.weight.detach().clone(), layer.weight_scale.detach().clone()
        weight.requires_grad_(), scale.requires_grad_()
        with torch.no_grad():
            scale *= 0.6  # so that some values are clipped
        result = fake_quantize(weight, scale, *layer.weight_codes)
        wanted.append((result, *torch.autograd.grad((result * given).sum(), (weight, scale))))
    with torch.no_grad():
        for layer in layers:
            layer.weight_scale *= 0.6
    together = WeightsTogether(layers)
    with together:
        loss = sum(
            (layer.quantized_weight() * given).sum()
            for layer, given in zip(layers, upstream, strict=True)
        )
        for layer, (result, _, _) in zip(layers, wanted, strict=True):
            assert torch.equal(layer.quantized_weight(), result)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    for layer, (_, of_weight, of_scale) in zip(layers, wanted, strict=True):
        torch.testing.assert_close(layer.weight.grad, of_weight)
        torch.testing.assert_close(layer.weight_scale.grad, of_scale, rtol=1e-4, atol=1e-5)
        assert layer.prepared is None


@pytest.mark.parametrize("signed", [False, True])
def test_a_tensors_quantizer_has_the_gradients_of_a_channels(signed: bool) -> None:
    """One channel of weights goes the general way, a tensor of activations the short one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 5, 5, generator=generator)
    x = x if signed else x.relu()
    x[0, 0, 0, :3] = torch.tensor([0.0, 3 * 0.1, 40.0])  # on the grid, at its ends, beyond
    low, high = (-8, 7) if signed else (0, 15)
    upstream = torch.randn(1, 3, 5, 5, generator=generator)
    found = []
    for shape in ((), (1, 1, 1, 1)):
        values, scale = x.clone().requires_grad_(), torch.full(shape, 0.1, requires_grad=True)
        result = fake_quantize(values, scale, low, high)
        of_x, of_scale = torch.autograd.grad((result * upstream).sum(), (values, scale))
        found.append((result.detach(), of_x, of_scale.reshape(())))
    torch.testing.assert_close(found[0], found[1])


def test_flat_parameters_are_views_until_they_are_released() -> None:
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    flat = FlatParameters(list(layer.parameters()))
    for name, p in layer.named_parameters():
        assert torch.equal(p, before[name])
        assert p.stride() == before[name].stride()
    with torch.no_grad():
        flat.vector += 1
    layer(torch.ones(1, 3, 3, 3)).sum().backward()
    assert flat.vector.grad is not None
    assert torch.equal(flat.vector.grad, torch.ones(len(flat.vector)))
    flat.release()
    with torch.no_grad():
        flat.vector += 1
    for name, p in layer.named_parameters():
        assert torch.equal(p, before[name] + 1)
        assert p.grad is None


def test_a_folded_network_computes_the_same(supernet: OnceForAllNet, digits: ImageData) -> None:
    subnet = supernet.space.decode(supernet.space.sample(1, np.random.default_rng(0))[0])
    module = fp32_network(supernet, subnet, digits, 128, 0)
    images, _ = next(digits.evaluation_batches(digits.search_validation, 64))
    with torch.no_grad():
        wanted = module(images)
        torch.testing.assert_close(fold_network(module)(images), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(module(images), wanted)  # which is as it was


def test_finetuning_ends_with_ordinary_parameters(
    network: SubnetModule, digits: ImageData
) -> None:
    finetune_quantized(network, digits, apq.FinetuneOptions(steps=3, batch_size=32), seed=0)
    starts = {p.data_ptr() for p in network.parameters()}
    assert len(starts) == len(list(network.parameters()))
    assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in network.parameters())
    scales = [p for name, p in network.named_parameters() if name.endswith("_scale")]
    assert min(float(p.min()) for p in scales) >= SMALLEST_SCALE


def test_a_stored_scale_below_the_smallest_is_read_as_the_smallest(
    network: SubnetModule, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Earlier versions kept to it when they quantized, not when they trained."""
    with torch.no_grad():
        quantized_layers(network)[1].activation_scale.fill_(-1.0)
    path = tmp_path_factory.mktemp("network")
    save_network(network, path)
    layer = quantized_layers(load_network(path))[1]
    assert float(layer.activation_scale) == pytest.approx(SMALLEST_SCALE)


def test_a_network_whose_weights_are_floats_is_finetuned(
    supernet: OnceForAllNet, digits: ImageData
) -> None:
    subnet = supernet.space.decode(supernet.space.sample(1, np.random.default_rng(0))[0])
    network = fold_network(fp32_network(supernet, subnet, digits, 128, 0))
    before = quantized_layers(network)[0].weight.detach().clone()
    finetune_quantized(network, digits, apq.FinetuneOptions(steps=2, batch_size=32), seed=0)
    assert not torch.equal(quantized_layers(network)[0].weight, before)
