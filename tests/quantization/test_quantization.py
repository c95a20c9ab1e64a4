"""Quantization: every code, every gradient, and the reductions that must hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import CheckpointError, InvalidArgumentError
from apq_optuna.quantization import (
    DivergedError,
    FinetuneOptions,
    calibrated_scale,
    code_range,
    fake_quantize,
    finetune_quantized,
    fp32_network,
    load_network,
    quantize,
    quantize_network,
    quantized_network,
    save_network,
)
from apq_optuna.quantization.network import quantized_layers
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet, accuracy

WIDTHS = range(2, 9)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("signed", [True, False])
def test_every_code_of_a_width_is_reached_and_kept(bits: int, signed: bool) -> None:
    low, high = code_range(bits, signed=signed)
    codes = torch.arange(low, high + 1, dtype=torch.float32)
    assert len(codes) == 2**bits
    scale = torch.tensor(0.37)
    torch.testing.assert_close(quantize(codes * scale, scale, low, high), codes)
    torch.testing.assert_close(fake_quantize(codes * scale, scale, low, high), codes * scale)
    for shift in (-0.49, 0.49):  # anything nearer to a code than to its neighbours becomes it
        torch.testing.assert_close(quantize((codes + shift) * scale, scale, low, high), codes)
    outside = torch.tensor([low - 5.0, high + 5.0]) * scale
    assert quantize(outside, scale, low, high).tolist() == [low, high]


@given(st.integers(0, 2**32 - 1), st.sampled_from(WIDTHS), st.booleans())
def test_gradients_are_those_of_lsq(seed: int, bits: int, per_channel: bool) -> None:
    """Against the same formula written with detach, which autograd differentiates itself."""
    generator = torch.Generator().manual_seed(seed)
    low, high = code_range(bits, signed=True)
    x = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    shape = (6, 1, 1, 1) if per_channel else ()
    scale = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1).requires_grad_()
    upstream = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((fake_quantize(x, scale, low, high) * upstream).sum(), [x, scale])
    weight = 1 / np.sqrt(x.numel() / scale.numel() * high)
    balanced = scale * weight + (scale - scale * weight).detach()
    clipped = (x / balanced).clamp(low, high)
    reference = (clipped + (clipped.round() - clipped).detach()) * balanced
    theirs = torch.autograd.grad((reference * upstream).sum(), [x, scale])
    for mine, autograds in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, autograds)


@pytest.mark.parametrize("bits", WIDTHS)
def test_calibration_beats_the_full_range(bits: int) -> None:
    x = torch.randn(8, 500, generator=torch.Generator().manual_seed(bits)) ** 3
    low, high = code_range(bits, signed=True)
    scale = calibrated_scale(x, low, high, per_channel=True)
    assert scale.shape == (8, 1)
    full = x.abs().amax(1, keepdim=True) / high

    def error(s: torch.Tensor) -> torch.Tensor:
        return (fake_quantize(x, s, low, high) - x).square().sum(1)

    assert (error(scale) <= error(full) + 1e-5).all()


# ---------------------------------------------------------------------- networks


def test_32_bits_is_no_quantization(run_folder: Path, digits: ImageData) -> None:
    space = SearchSpace.preset("digits", bits=(8, 32))
    supernet = OnceForAllNet.load(run_folder, space=space)
    subnet = space.decode(space.extreme(largest=True, bits=32)[0])
    module = fp32_network(supernet, subnet, digits, 256, 0)
    quantized = quantize_network(module, subnet)
    searched = [layer for layer in quantized_layers(quantized) if layer.name.startswith("stage")]
    assert all(layer.w_bits == layer.a_bits == 32 for layer in searched)
    x = torch.randn(3, 16, 8, 8)[:, :8]
    for block, folded in zip(module.blocks.values(), quantized.blocks.values(), strict=True):
        torch.testing.assert_close(folded(x), block(x), rtol=1e-3, atol=1e-4)
        x = block(x)


def test_bits_go_where_the_policy_says(supernet: OnceForAllNet) -> None:
    space = supernet.space
    params = space.to_params(space.extreme(largest=True)[0])
    params["stage2.block1.pw_w_bits"] = 4
    params["stage2.block1.dw_a_bits"] = 2
    subnet = space.decode(space.from_params(params))
    quantized = quantize_network(supernet.subnet(subnet), subnet)
    bits = {layer.name: (layer.w_bits, layer.a_bits) for layer in quantized_layers(quantized)}
    assert bits["stage2.block1.expand"] == (4, 8)
    assert bits["stage2.block1.project"] == (4, 8)
    assert bits["stage2.block1.depthwise"] == (8, 2)
    assert bits["stem"] == bits["classifier"] == bits["last"] == (8, 8)
    assert list(bits) == [placed.name for placed in subnet.layers()]


def test_executed_weights_are_codes_times_a_scale(supernet: OnceForAllNet) -> None:
    subnet = supernet.largest.with_bits(4)
    for layer in quantized_layers(quantize_network(supernet.subnet(subnet), subnet)):
        codes = layer.quantized_weight() / layer.weight_scale
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
        low, high = code_range(layer.w_bits, signed=True)
        assert low - 0.5 < codes.min() and codes.max() < high + 0.5


def test_only_inputs_that_can_be_negative_are_signed(
    supernet: OnceForAllNet, digits: ImageData
) -> None:
    quantized = quantize_network(supernet.subnet(supernet.largest), supernet.largest)
    inputs: dict[str, float] = {}
    for layer in quantized_layers(quantized):
        layer.register_forward_pre_hook(
            lambda module, args: inputs.__setitem__(module.name, float(args[0].detach().min()))
        )
    images, _ = next(digits.training_batches(64, torch.Generator()))
    quantized(images)
    for layer in quantized_layers(quantized):
        assert layer.signed == (inputs[layer.name] < 0), layer.name


def test_8_bits_lose_little_and_finetuning_recovers_4(
    supernet: OnceForAllNet, digits: ImageData
) -> None:
    accuracies = {}
    for bits in (8, 4):
        subnet = supernet.largest.with_bits(bits)
        module = fp32_network(supernet, subnet, digits, 512, 0)
        quantized = quantized_network(module, subnet, digits, 256, 0)
        accuracies[bits] = (accuracy(module, digits), accuracy(quantized, digits))
    assert accuracies[8][1] > accuracies[8][0] - 0.03
    options = FinetuneOptions(steps=30, learning_rate=3e-3)
    finetune_quantized(quantized, digits, options, seed=0, teacher=module)
    assert accuracy(quantized, digits) > accuracies[4][1] + 0.02


def test_finetuning_is_decided_by_its_seed(supernet: OnceForAllNet, digits: ImageData) -> None:
    subnet = supernet.largest.with_bits(4)

    def weights(seed: int) -> torch.Tensor:
        module = fp32_network(supernet, subnet, digits, 128, 0)
        quantized = quantized_network(module, subnet, digits, 128, 0)
        options = FinetuneOptions(steps=3, batch_size=32)
        return finetune_quantized(quantized, digits, options, seed=seed).stem.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_divergence_is_reported(supernet: OnceForAllNet, digits: ImageData) -> None:
    subnet = supernet.largest
    module = fp32_network(supernet, subnet, digits, 128, 0)
    with torch.no_grad():
        module.classifier.weight.fill_(float("nan"))
    quantized = quantized_network(module, subnet, digits, 128, 0)
    with pytest.raises(DivergedError, match="the loss became nan at step 1 of 3"):
        finetune_quantized(quantized, digits, FinetuneOptions(steps=3), seed=0)


def test_a_saved_network_classifies_as_before(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    space = supernet.space
    subnet = space.decode(space.sample(1, np.random.default_rng(3))[0])
    costs = apq.hardware.bitfusion_small().table(space)
    network, stored = apq.finish(supernet, digits, subnet, tmp_path, epochs=1, costs=costs)
    again = load_network(tmp_path)
    images, _ = next(digits.evaluation_batches(digits.test, 64))
    assert torch.equal(again(images), network(images))
    assert accuracy(again, digits, split="test") == stored["accuracy"]["test"]
    assert accuracy(again, digits) == stored["accuracy"]["search_validation"]
    assert again.about["class_names"] == list("0123456789")
    assert set(again.about["costs"]) == {"latency_ms", "energy_mj"}


def test_bad_networks_are_refused(
    supernet: OnceForAllNet, run_folder: Path, tmp_path: Path
) -> None:
    network = quantize_network(supernet.subnet(supernet.largest), supernet.largest)
    path = save_network(network, tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        load_network(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_network(run_folder)


def test_bad_options_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match="steps=-1: cannot be negative"):
        FinetuneOptions(steps=-1)
    with pytest.raises(InvalidArgumentError, match="learning_rate=0: must be positive"):
        FinetuneOptions(learning_rate=0)


def test_a_compiled_network_learns_as_one_that_is_not() -> None:
    x = torch.linspace(-1, 1, 32).requires_grad_()
    scale = torch.tensor(0.1).requires_grad_()

    def loss(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return fake_quantize(x, scale, -8, 7).square().sum()

    expected = torch.autograd.grad(loss(x, scale), (x, scale))
    found = torch.autograd.grad(torch.compile(loss, backend="eager")(x, scale), (x, scale))
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b) and a.abs().sum() > 0


# ---------------------------------------------------------------------- rates by width


def moved(
    supernet: OnceForAllNet, digits: ImageData, bits: int, rates: str
) -> tuple[dict[str, float], dict[str, float]]:
    """How far one step moves weights, absolutely, and step sizes, as shares of themselves."""
    subnet = supernet.largest.with_bits(bits)
    module = fp32_network(supernet, subnet, digits, 256, 0)
    network = quantized_network(module, subnet, digits, 256, 0)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    finetune_quantized(
        network, digits, FinetuneOptions(steps=1, learning_rate=1e-3, rates=rates), seed=0
    )
    weights, steps = {}, {}
    for name, value in network.named_parameters():
        change = (value.detach() - before[name]).abs()
        if name.endswith("_scale"):
            steps[name] = float((change / before[name]).max())
        elif name.endswith("weight"):
            weights[name] = float(change.max())
    return weights, steps


def test_a_layers_rate_falls_with_its_width(supernet: OnceForAllNet, digits: ImageData) -> None:
    rates = {bits: moved(supernet, digits, bits, "by-width")[0] for bits in (4, 6, 8)}
    names = [name for name in rates[4] if rates[4][name] > 1.5 * rates[8][name]]
    assert len(names) > 5
    for name in names:  # Adam's first step is its rate
        assert rates[4][name] == pytest.approx(1e-3, rel=0.02)
        assert rates[6][name] == pytest.approx(5e-4, rel=0.02)
        assert rates[8][name] == pytest.approx(2.5e-4, rel=0.02)
    alike, _ = moved(supernet, digits, 8, "alike")
    assert all(alike[name] == pytest.approx(1e-3, rel=0.02) for name in names)


def test_step_sizes_change_by_a_share_of_themselves(
    supernet: OnceForAllNet, digits: ImageData
) -> None:
    _, steps = moved(supernet, digits, 8, "by-width")
    assert max(steps.values()) == pytest.approx(6e-3, rel=0.02)
    _, steps = moved(supernet, digits, 8, "alike")
    assert max(steps.values()) > 0.03  # 3e-4 of a step size of less than 0.01


def test_rates_are_named(supernet: OnceForAllNet) -> None:
    with pytest.raises(InvalidArgumentError, match="rates='other': by-width or alike"):
        FinetuneOptions(rates="other")
