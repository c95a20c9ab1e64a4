"""Of which images a supernet's networks take their statistics of BatchNorm."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.data import ImageData
from apq_optuna.quantization import fp32_network
from apq_optuna.supernet import (
    OnceForAllNet,
    TrainingPlan,
    load_supernet,
    recalibrate,
    train_supernet,
)
from tests.supernet.test_teacher import fresh

PLAN = TrainingPlan(epochs=0.1, batch_size=64)


@pytest.fixture
def shifted(digits: ImageData) -> ImageData:
    """Images that are augmented, whatever `digits` are."""
    return replace(digits, crop_padding=1)


def statistics(net: OnceForAllNet, data: ImageData) -> torch.Tensor:
    module = fp32_network(net, net.largest, data, 256, seed=3)
    return torch.cat([b.flatten() for n, b in module.named_buffers() if n.endswith("mean")])


def statistics_of(net: OnceForAllNet, data: ImageData, *, augment: bool) -> torch.Tensor:
    module = net.subnet(net.largest)
    generator = torch.Generator().manual_seed(3)
    recalibrate(module, data.training_batches(256, generator, augment=augment, limit=1))
    return torch.cat([b.flatten() for n, b in module.named_buffers() if n.endswith("mean")])


def test_a_supernet_that_is_trained_now_takes_them_of_augmented_images(
    shifted: ImageData, tmp_path: Path
) -> None:
    train_supernet(fresh(), shifted, PLAN, tmp_path)
    net = load_supernet(tmp_path)
    assert net.augmented_statistics
    augmented, whole = (statistics_of(net, shifted, augment=a) for a in (True, False))
    assert not torch.equal(augmented, whole)
    assert torch.equal(statistics(net, shifted), augmented)


def test_one_that_was_trained_before_keeps_to_whole_images(
    shifted: ImageData, tmp_path: Path
) -> None:
    net = train_supernet(fresh(), shifted, PLAN, tmp_path)
    now = net.weights_hash
    del net.data_info["statistics"]
    net.save(tmp_path)
    before = load_supernet(tmp_path)
    assert not before.augmented_statistics
    assert torch.equal(statistics(before, shifted), statistics_of(before, shifted, augment=False))
    assert before.weights_hash != now  # pairs of the two do not compare


def test_a_training_that_began_before_ends_as_it_would_have(
    digits: ImageData, tmp_path: Path
) -> None:
    train_supernet(fresh(), digits, PLAN, tmp_path)
    file = tmp_path / "training.safetensors"
    tensors, about = read_checkpoint(file)
    assert about.pop("statistics") == "augmented"
    about = {k: v for k, v in about.items() if k not in ("schema", "sha256")}
    write_checkpoint(file, tensors, about)
    net = train_supernet(fresh(), digits, PLAN, tmp_path)
    assert not net.augmented_statistics
    assert "statistics" not in json.loads((tmp_path / "supernet.json").read_text())["data"]


def test_the_packages_former_supernets_stay_as_they_were() -> None:
    for name in ("cifar10-4", "cifar10-3", "cifar10-2", "cifar10-1"):
        assert not load_supernet(f"pretrained:{name}").augmented_statistics


def test_the_packages_supernet_is_the_former_with_other_statistics() -> None:
    now, former = (load_supernet(f"pretrained:{name}") for name in ("cifar10", "cifar10-4"))
    assert now.augmented_statistics
    assert now.weights_hash != former.weights_hash  # pairs of the two do not compare
    for name, value in now.state_dict().items():
        assert torch.equal(value, former.state_dict()[name])
