"""Which images a folder has: its splits, its classes, and what is neither."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apq_optuna.data import load_data
from apq_optuna.errors import DataError, DataWarning
from tests.data.helpers import load, made, sizes, write

# ---------------------------------------------------------------------- what was stays


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("colour", {}, "8fd8e235474eb6cc"),
        ("gray", {}, "4d20ad12938261fa"),
        ("opaque", {}, "8fd8e235474eb6cc"),
        ("palette", {}, "7bfb822bf3ca4e25"),
        ("bilevel", {}, "5d4388910871ed79"),
        ("colour", {"image_size": 8}, "b8e3b5241364b515"),
        ("colour", {"grayscale": True}, "e047204f7f38031f"),
        ("colour", {"seed": 1}, "524163dc95237c05"),
        ("colour", {"skip_broken": True}, "8fd8e235474eb6cc"),
        ("colour", {"augment": "none"}, "8fd8e235474eb6cc"),
    ],
    ids=str,
)
def test_an_ordinary_folder_keeps_its_hash(
    mode: str, options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    """Computed by version 0.1.0, before folders that are not ordinary were looked after."""
    assert load(write(tmp_path, mode), **options).split_hash == expected


def test_so_do_train_and_test_oblong_images_and_names_of_any_kind(tmp_path: Path) -> None:
    write(tmp_path / "a/train")
    write(tmp_path / "a/test", count=4)
    write(tmp_path / "b", width=16, height=11)
    write(tmp_path / "c", classes=("Zebra", "ape", "éa"), suffix="ppm")
    hashes = [load(tmp_path / name).split_hash for name in "abc"]
    assert hashes == ["ebdd1e40f7f4036d", "05731ef59f4f09db", "82f9f680d7e62aae"]


def test_the_order_is_that_of_torchvision(tmp_path: Path) -> None:
    from apq_optuna._torchvision import datasets
    from apq_optuna.data.listing import list_parts

    write(tmp_path, classes=("b a", "B", "a-b", "a", "ü"), count=2)
    write(tmp_path / "a", classes=("x", "x-y", "x/z"), count=2, suffix="JPG")
    (listing,) = list_parts("folder:x", tmp_path).values()
    folder = datasets.ImageFolder(str(tmp_path))
    assert list(listing.classes) == folder.classes
    found = [(str(p), n) for p, n in zip(listing.paths, listing.labels.tolist(), strict=True)]
    assert found == folder.samples


# ---------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"), ("Train", "Test"), ("training_set", "test_set"),
        ("TRAIN", "testing"), ("training-set", "Test Set"), ("trainset", "testset"),
    ],
)  # fmt: skip
def test_names_of_splits(train: str, test: str, tmp_path: Path) -> None:
    write(tmp_path / train, count=20)
    write(tmp_path / test, count=3)
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert sizes(data) == [36, 4, 6]


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "validation_set", "dev"])
def test_a_val_folder_is_the_search_validation_split(val: str, tmp_path: Path) -> None:
    write(tmp_path / "train", count=20)
    write(tmp_path / val, count=5, mode="opaque", classes=("cat", "dog"))
    with pytest.warns(DataWarning, match="no test folder: a tenth of train is the test part"):
        data = load_data(f"folder:{tmp_path}")
    assert sizes(data) == [36, 10, 4]
    write(tmp_path / "test", count=3)
    data = load(tmp_path)
    assert sizes(data) == [40, 10, 6]
    images = data.search_validation.images.batch(torch.tensor([0, 5]))
    expected = [np.asarray(made("colour", number)) for number in (0, 100)]
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "Training", "test"], r"has \['Training', 'train'\], which are all names"),
        (["train", "test", "val", "dev"], r"has \['dev', 'val'\], which are all names of the val"),
        (["test", "val"], r"has \['test', 'val'\], but a split folder needs train/ and test/"),
        (["train"], r"has \['train'\], but a split folder needs train/ and test/"),
        (["part1", "part2"], r"part1 and part2 in .* hold the same folders \(cat, dog\): if they "
         "are splits, name them train and test"),
        (["fold1", "fold2", "fold3"], r"fold1 and fold2 in .* hold the same folders"),
        (["train/fold1", "train/fold2", "test/fold1", "test/fold2"], "fold1 and fold2 in .*train"),
        (["images"], "one folder only, and the class folders are below it: use "
         r"data='folder:.*/images'"),
        (["x/y/z"], r"use data='folder:.*/x/y/z'"),
        (["data/train", "data/test"], r"use data='folder:.*/data'"),
    ],
)  # fmt: skip
def test_layouts_that_are_errors(folders: list[str], message: str, tmp_path: Path) -> None:
    for folder in folders:
        write(tmp_path / folder, count=2)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_splits_that_hold_nearly_the_same_classes(tmp_path: Path) -> None:
    write(tmp_path / "one", classes=("a", "b", "c"), count=2)
    write(tmp_path / "two", classes=("a", "b"), count=2)
    with pytest.raises(DataError, match=r"one and two in .* hold the same folders \(a, b\)"):
        load(tmp_path)


@pytest.mark.parametrize("below", [("images",), ("indoors", "outdoors")])
def test_classes_may_have_folders(below: tuple[str, ...], tmp_path: Path) -> None:
    """One folder of the same name in each is no split, nor are others beside images."""
    for name in ("cat", "dog"):
        write(tmp_path / name, classes=below)
        if len(below) > 1:
            made("colour", 7).save(tmp_path / name / "x.png")
    assert load(tmp_path).class_names == ("cat", "dog")


def test_folders_beside_the_splits_are_told(tmp_path: Path) -> None:
    for part in ("train", "test", "extra"):
        write(tmp_path / part, count=10)
    with pytest.warns(DataWarning, match="beside test, train, these folders are not used: extra"):
        assert sizes(load_data(f"folder:{tmp_path}")) == [18, 2, 20]


def test_images_in_no_class_folder_are_told(tmp_path: Path) -> None:
    made("colour", 0).save(write(tmp_path) / "loose.png")
    with pytest.warns(DataWarning, match="itself, in no class folder, are not used"):
        assert sum(sizes(load_data(f"folder:{tmp_path}"))) == 24


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    write(tmp_path, classes=("Invalid", "Valid"))
    with pytest.warns(DataWarning, match="Valid is taken as a class, not as a split"):
        assert load_data(f"folder:{tmp_path}").class_names == ("Invalid", "Valid")


def test_images_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path, classes=("train", "test"), count=2)
    with pytest.raises(DataError, match=r"train has no class folders; expected .*train/CLASS"):
        load_data(f"folder:{tmp_path}")


# ---------------------------------------------------------------------- litter, links, names


def test_litter_is_nothing(tmp_path: Path) -> None:
    clean = load(write(tmp_path / "clean")).split_hash
    root = write(tmp_path / "littered")
    for place in (root, root / "cat"):
        for folder in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
            write(place / folder, count=1)
        for file in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"):
            (place / file).write_bytes(b"not an image")
    assert load(root).split_hash == clean


def test_extensions_in_any_case(tmp_path: Path) -> None:
    hashes = {load(write(tmp_path / s, suffix=s)).split_hash for s in ("png", "PNG", "Tif", "BMP")}
    assert len(hashes) == 1


@pytest.mark.parametrize("litter", [None, ".DS_Store", "notes.txt"])
def test_a_class_without_images_is_named(litter: str | None, tmp_path: Path) -> None:
    write(tmp_path, count=5)
    (tmp_path / "empty").mkdir()
    if litter:
        (tmp_path / "empty" / litter).write_bytes(b"")
    with pytest.raises(DataError, match=r"no images for the class empty in .*; images are \.jpg"):
        load(tmp_path)


def test_links_spaces_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(write(tmp_path / "häuser und hütten")).split_hash
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(tmp_path / "häuser und hütten" / name)
    (tmp_path / "häuser und hütten" / "cat" / "back").symlink_to(tmp_path / "häuser und hütten")
    (tmp_path / "link").symlink_to(linked)
    assert load(linked).split_hash == load(tmp_path / "link").split_hash == plain
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("folder:~/linked").split_hash == plain
    monkeypatch.setenv("APQ_DATA", "~/data")
    with pytest.raises(DataError, match=f"{tmp_path}/data/cifar-10-batches-bin/data_batch_1.bin"):
        load_data("cifar10")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(write(tmp_path, count=5)) + b"/caf\xe9")
    made("gray", 0).save(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/0.png"))
    with pytest.raises(DataError, match=r"'caf\\udce9' in .* is not UTF-8; rename the folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("folder:", "give a path, as in folder:images"), ("folder:~nobody-at-all/x", "home dir")],
)
def test_paths_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(name)


def test_a_folder_nobody_may_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty class would be the wrong reason."""
    write(tmp_path, count=3)
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="/dog: Permission denied"):
        load(tmp_path)
