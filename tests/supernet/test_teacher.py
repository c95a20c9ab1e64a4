"""Supernets that learn what a network from outside says, and train on mixed images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.data import ImageData
from apq_optuna.errors import CheckpointError, InvalidArgumentError
from apq_optuna.quantization import fp32_network
from apq_optuna.supernet import TrainingPlan, accuracy, train_supernet
from apq_optuna.supernet.modules import hash_of
from apq_optuna.supernet.teaching import Renormalised
from apq_optuna.supernet.training import _Trainer


class Teacher(nn.Module):
    """Two layers, trained below on the same images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        return self.body(images)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def teacher(digits: ImageData) -> Teacher:
    torch.manual_seed(0)
    net = Teacher()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(15):
        for images, labels in digits.training_batches(64, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    assert accuracy(net, digits) > 0.9
    return net


def fresh() -> apq.OnceForAllNet:
    torch.manual_seed(0)
    return apq.OnceForAllNet(apq.SearchSpace.preset("digits"))


def known(net: apq.OnceForAllNet, data: ImageData) -> float:
    """Accuracy of the largest network, with statistics of its own."""
    return accuracy(fp32_network(net, net.largest, data, 256, 0), data)


def with_wrong_labels(data: ImageData) -> ImageData:
    return replace(data, train=replace(data.train, labels=(data.train.labels + 1) % 10))


def test_a_supernet_learns_what_its_teacher_says_and_no_labels(
    digits: ImageData, teacher: Teacher, tmp_path: Path
) -> None:
    plan = TrainingPlan(epochs=5, batch_size=64, learning_rate=0.05, mixed=0.5)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    asked = teacher.asked
    net = train_supernet(
        fresh(), with_wrong_labels(digits), plan, tmp_path, device="cpu", teacher=teacher
    )
    assert known(net, digits) > 0.6
    assert teacher.asked == asked + 1  # whether it fits; then a copy of it was
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_smallest_and_the_largest_learn_from_the_teacher_alike(
    digits: ImageData, teacher: Teacher, tmp_path: Path
) -> None:
    trainer = _Trainer(
        fresh(), digits, TrainingPlan(label_smoothing=0.3), tmp_path, "cpu", teacher=teacher
    )
    images, labels = next(digits.training_batches(32, torch.Generator().manual_seed(0)))
    same, told = trainer._taught(images, labels)
    assert same is images
    torch.testing.assert_close(told, teacher(images).softmax(1))
    passes = trainer.passes
    passes.images, passes.labels = images, told
    for subnet in (None, *passes.sandwich("channels")):
        loss = passes.loss(subnet)
        logits = trainer.net(images, subnet)
        wanted = -(told * logits.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)


def test_mixed_images_without_a_teacher_have_mixed_labels(
    digits: ImageData, tmp_path: Path
) -> None:
    trainer = _Trainer(fresh(), digits, TrainingPlan(mixed=1.0), tmp_path, "cpu")
    images, labels = next(digits.training_batches(64, torch.Generator().manual_seed(0)))
    mixed, told = trainer._taught(images, labels)
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(told.sum(1), torch.ones(64))
    assert ((told > 0).sum(1) == 2).any()
    one_hot = nn.functional.one_hot(labels, 10)
    assert (told[(one_hot + one_hot.roll(1, 0)) == 0] == 0).all()


def test_training_on_mixed_images_learns(digits: ImageData, tmp_path: Path) -> None:
    plan = TrainingPlan(epochs=5, batch_size=64, learning_rate=0.05, mixed=0.5)
    net = train_supernet(fresh(), digits, plan, tmp_path, device="cpu")
    assert known(net, digits) > 0.6


def test_training_goes_on_with_its_own_teacher_only(
    digits: ImageData, teacher: Teacher, tmp_path: Path
) -> None:
    plan = TrainingPlan(epochs=0.2, batch_size=64)
    train_supernet(fresh(), digits, plan, tmp_path, device="cpu", teacher=teacher)
    seen: list[float] = []
    train_supernet(
        fresh(), digits, plan, tmp_path, device="cpu", teacher=teacher,
        report=lambda done, phase, loss: seen.append(done),
    )  # fmt: skip
    assert not seen  # done already
    torch.manual_seed(1)
    for other in (None, Teacher()):
        with pytest.raises(CheckpointError, match="of another teacher"):
            train_supernet(fresh(), digits, plan, tmp_path, device="cpu", teacher=other)


def test_checkpoints_from_before_there_were_teachers_go_on(
    digits: ImageData, tmp_path: Path
) -> None:
    net = fresh()
    before = f'["{net.space.architecture_hash}", "{digits.split_hash}", 3, ' + (
        '{"batch_size": 64, "checkpoint_seconds": 60.0, "epochs": 0.2, "label_smoothing": 0.05, '
        '"learning_rate": 0.1, "minutes": null, "random_subnets": 1, '
        '"shares": [0.25, 0.1, 0.15, 0.5], "warmup": 0.03, "weight_decay": 5e-05}]'
    )
    plan = TrainingPlan(epochs=0.2, batch_size=64)
    train_supernet(net, digits, plan, tmp_path, device="cpu", seed=3)
    tensors, about = read_checkpoint(tmp_path / "training.safetensors")
    assert about["fingerprint"] == before
    write_checkpoint(tmp_path / "training.safetensors", tensors, about | {"fingerprint": before})
    seen: list[float] = []
    train_supernet(
        fresh(), digits, plan, tmp_path, device="cpu", seed=3,
        report=lambda done, phase, loss: seen.append(done),
    )  # fmt: skip
    assert not seen


def test_a_teacher_of_other_classes_is_refused(digits: ImageData, tmp_path: Path) -> None:
    plan = TrainingPlan(epochs=0.1)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(InvalidArgumentError, match=r"teacher: gives \(1, 7\) .* \(1, 10\)"):
        train_supernet(fresh(), digits, plan, tmp_path, device="cpu", teacher=wrong)


class Failing(nn.Module):
    """Takes colour only."""

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("expected 3 channels\nand more")


class Dictionary(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": images}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Failing(), r"fails on an image \(1, 1, 8, 8\): ValueError: expected 3 channels$"),
        (Dictionary(), "gives a dict"),
    ],
)
def test_a_teacher_that_cannot_tell_is_refused(
    digits: ImageData, tmp_path: Path, wrong: nn.Module, said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        train_supernet(fresh(), digits, TrainingPlan(), tmp_path, device="cpu", teacher=wrong)


class Writing(nn.Module):
    """Writes into its input, and has no parameters."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(0).flatten(1)[:, :10]


def test_a_teacher_may_write_into_its_images(digits: ImageData, tmp_path: Path) -> None:
    trainer = _Trainer(fresh(), digits, TrainingPlan(), tmp_path, "cpu", teacher=Writing())
    images, labels = next(digits.training_batches(32, torch.Generator().manual_seed(0)))
    same, told = trainer._taught(images, labels)
    assert same.abs().sum() > 0
    torch.testing.assert_close(told, torch.full((32, 10), 0.1))


def test_images_normalised_in_another_way_reach_the_teacher_as_it_wants_them() -> None:
    pixels = torch.rand(4, 3, 5, 5)
    given, wanted = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (1.0, 0.5, 2.0))

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        values = [torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std)]
        return (pixels - values[0]) / values[1]

    found = Renormalised(nn.Identity(), given, wanted)(normalised(*given))
    torch.testing.assert_close(found, normalised(*wanted))


def test_weights_of_half_precision_have_an_identity() -> None:
    module = nn.Linear(3, 2)
    half = nn.Linear(3, 2).to(torch.bfloat16)
    assert len(hash_of(half)) == len(hash_of(module)) == 16
    assert hash_of(half) != hash_of(module)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_nothing_and_everything(share: float) -> None:
    with pytest.raises(InvalidArgumentError, match="mixed"):
        TrainingPlan(mixed=share)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_from_a_teacher(digits: ImageData, teacher: Teacher, tmp_path: Path) -> None:
    plan = TrainingPlan(epochs=12, mixed=0.5)
    net = train_supernet(fresh(), digits, plan, tmp_path, device="cuda", teacher=teacher)
    assert known(net, digits) > 0.6
