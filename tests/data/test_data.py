"""Data: folders of images as users have them, and the splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import apq_optuna as apq
from apq_optuna.data import ImageData, load_data
from apq_optuna.data.folders import ImageFiles
from apq_optuna.data.images import _augment, _drawn
from apq_optuna.errors import DataError, InvalidArgumentError


def write_images(root: Path, classes: dict[str, int], size: tuple[int, int], mode: str) -> None:
    rng = np.random.default_rng(len(str(root)))
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / name / f"{i}.png")


def test_digits_are_split_by_class(digits: ImageData) -> None:
    assert (len(digits.train), len(digits.search_validation), len(digits.test)) == (898, 449, 450)
    assert (digits.image_size, digits.channels, digits.num_classes) == (8, 1, 10)
    for split in (digits.train, digits.search_validation, digits.test):
        share = torch.bincount(split.labels) / len(split)
        assert (share - 0.1).abs().max() < 0.01
    assert digits.split_hash == load_data("digits").split_hash


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_flat_folder(tmp_path: Path, mode: str) -> None:
    write_images(tmp_path, {"cat": 20, "dog": 40}, (12, 9), mode)
    data = load_data(f"folder:{tmp_path}")
    assert data.class_names == ("cat", "dog")
    assert (data.image_size, data.channels) == (9, 1 if mode == "L" else 3)
    assert [len(s) for s in (data.train, data.search_validation, data.test)] == [42, 9, 9]
    assert load_data(f"folder:{tmp_path}", seed=1).split_hash != data.split_hash
    assert load_data(f"folder:{tmp_path}", grayscale=True).channels == 1
    assert load_data(f"folder:{tmp_path}", grayscale=False, image_size=16).image_size == 16


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 30, "b": 30}, (8, 8), "RGB")
    write_images(tmp_path / "test", {"a": 5, "b": 5}, (8, 8), "RGB")
    data = load_data(f"folder:{tmp_path}")
    assert [len(s) for s in (data.train, data.search_validation, data.test)] == [54, 6, 10]


def test_large_folders_are_decoded_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, {"a": 10, "b": 10}, (8, 8), "RGB")
    in_memory = load_data(f"folder:{tmp_path}")
    monkeypatch.setattr("apq_optuna.data.folders.IN_MEMORY_BYTES", 100)
    lazy = load_data(f"folder:{tmp_path}", cache=False)
    assert isinstance(lazy.train.images, ImageFiles)
    assert lazy.split_hash == in_memory.split_hash
    batches = [
        next(d.training_batches(4, torch.Generator().manual_seed(0))) for d in (lazy, in_memory)
    ]
    assert torch.equal(batches[0][0], batches[1][0])


def test_augmentation_crops_and_mirrors(digits: ImageData) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    images = _augment(pixels, 1, *_drawn(200, 1, True, generator))
    assert images.shape == pixels.shape
    centre = images[:, 0, 3:5, 3:5].float()
    assert (centre[:, 0, 0] < centre[:, 0, 1]).float().mean() == pytest.approx(0.5, abs=0.15)
    assert len({tuple(row) for row in centre.view(200, -1).tolist()}) == 18  # 9 crops, mirrored
    assert torch.equal(_augment(pixels, 0, *_drawn(200, 0, False, generator)), pixels)


def test_evaluation_sees_every_image_once(digits: ImageData) -> None:
    batches = list(digits.evaluation_batches(digits.test, 64))
    assert torch.equal(torch.cat([labels for _, labels in batches]), digits.test.labels)
    limited = list(digits.evaluation_batches(digits.test, 64, limit=100))
    assert sum(len(x) for x, _ in limited) == 100


def test_a_limited_evaluation_sees_every_class(tmp_path: Path) -> None:
    """A folder's images come class by class; a share of them must not be a few classes."""
    write_images(tmp_path, dict.fromkeys("abcd", 40), (8, 8), "L")
    data = load_data(f"folder:{tmp_path}")
    for limit in (4, 8, 12):
        batches = data.evaluation_batches(data.train, 64, limit=limit)
        counts = torch.bincount(torch.cat([labels for _, labels in batches]))
        assert counts.tolist() == [limit // 4] * 4


def test_the_binary_version_of_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APQ_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"data_batch_1\.bin is missing; unpack the binary"):
        load_data("cifar10")
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        records = rng.integers(0, 256, (40, 3073), np.uint8)
        records[:, 0] = np.arange(40) % 10
        records.tofile(folder / f"{name}.bin")
    data = load_data("cifar10")
    assert [len(s) for s in (data.train, data.search_validation, data.test)] == [180, 20, 40]
    assert data.class_names[3] == "cat"
    assert torch.equal(data.test.images.batch(torch.tensor([0]))[0, 0, 0, :3],
                       torch.from_numpy(records[0, 1:4]))  # fmt: skip
    (folder / "test_batch.bin").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="not made of records of 3,073 bytes"):
        load_data("cifar10")


# ---------------------------------------------------------------------- bad input


def test_unknown_names_are_errors() -> None:
    with pytest.raises(InvalidArgumentError, match="data='mnist' is unknown; use 'digits', 'cif"):
        load_data("mnist")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nothing"):
        load_data(f"folder:{tmp_path}/nothing")


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "loose.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"has no class folders; expected .*/CLASS/IMAGE"):
        load_data(f"folder:{tmp_path}")


def test_a_folder_with_one_class(tmp_path: Path) -> None:
    write_images(tmp_path, {"only": 5}, (8, 8), "L")
    with pytest.raises(DataError, match="has one class, 'only'; at least two are needed"):
        load_data(f"folder:{tmp_path}")


def test_a_class_without_images(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 5}, (8, 8), "L")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        load_data(f"folder:{tmp_path}")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, {"a": 9, "b": 9}, (8, 8), "L")
    (tmp_path / "b" / "4.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"b/4\.png cannot be read as an image"):
        load_data(f"folder:{tmp_path}")


def test_train_and_test_of_different_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 5, "b": 5}, (8, 8), "L")
    write_images(tmp_path / "test", {"a": 5, "c": 5}, (8, 8), "L")
    with pytest.raises(DataError, match="train and test have different classes: b, c"):
        load_data(f"folder:{tmp_path}")


def test_ones_own_images_can_be_searched(tmp_path: Path) -> None:
    """A folder of colour images of another size, from training to a finished network."""
    write_images(tmp_path / "images", {"a": 24, "b": 24, "c": 24}, (12, 12), "RGB")
    data = apq.load_data(f"folder:{tmp_path}/images")
    space = apq.SearchSpace.preset("digits", image_size=12, in_channels=3, num_classes=3)
    plan = apq.TrainingPlan(epochs=1, batch_size=16)
    net = apq.train_supernet(apq.OnceForAllNet(space), data, plan, tmp_path / "run")
    costs = apq.hardware.bitfusion_small().table(space)
    apq.finish(net, data, net.largest.with_bits(4), tmp_path / "out", epochs=1, costs=costs)
    network = apq.load_network(tmp_path / "out")
    assert network.about["class_names"] == ["a", "b", "c"]
    assert network(torch.zeros(2, 3, 12, 12)).shape == (2, 3)


@pytest.mark.parametrize("augment", ["none", "shift", "shift+flip"])
def test_batches_from_the_middle_are_those_that_would_have_come(augment: str) -> None:
    data = load_data("digits", augment=augment)
    whole, part = (torch.Generator().manual_seed(5) for _ in range(2))
    every = list(data.training_batches(100, whole))
    left = list(data.training_batches(100, part, start=3))
    assert len(left) == len(every) - 3
    for (images, labels), (same, told) in zip(every[3:], left, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, told)
    assert torch.equal(torch.rand(3, generator=whole), torch.rand(3, generator=part))
