"""Folders as users have them: what is a split, a class, an image, or nothing at all."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import apq_optuna as apq
from apq_optuna.data import ImageData, load_data, usual_augment
from apq_optuna.errors import DataError, DataWarning, InvalidArgumentError


def made(mode: str, number: int, width: int = 10, height: int = 10) -> Image.Image:
    """An image that is the same on every machine."""

    def pixels(seed: int, *shape: int) -> np.ndarray:
        steps = np.arange(np.prod(shape), dtype=np.int64)
        return ((steps * 7919 + seed * 104729) % 251).astype(np.uint8).reshape(shape)

    if mode == "colour":
        return Image.fromarray(pixels(number, height, width, 3))
    if mode == "opaque":
        image = Image.fromarray(pixels(number, height, width, 3))
        image.putalpha(255)
        return image
    plain = pixels(number, height, width)
    if mode == "palette":
        image = Image.fromarray(plain, "P")
        image.putpalette(pixels(number + 1, 768).tobytes())
        return image
    return Image.fromarray(plain > 125 if mode == "bilevel" else plain)


def write(
    root: Path, mode: str = "colour", count: int = 12, classes: tuple[str, ...] = ("cat", "dog"),
    *, suffix: str = "png", width: int = 10, height: int = 10,
) -> Path:  # fmt: skip
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = made(mode, 100 * place + i, width, height)
            image.save(root / name / f"{i}.{suffix}")
    return root


def load(root: Path, **options: Any) -> ImageData:
    """A folder that gives no reason to warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        return load_data(f"folder:{root}", **options)


def sizes(data: ImageData) -> list[int]:
    return [len(split) for split in (data.train, data.search_validation, data.test)]


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


# ---------------------------------------------------------------------- files that cannot be read


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def long_text(path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    made("colour", 0).save(path, pnginfo=text)


def bomb(path: Path) -> None:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    length, check = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + length + chunk + check)


def flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nothing"))


def saved_as_jpeg_and_cut(path: Path) -> None:
    made("colour", 3, 64, 64).save(path, "JPEG")
    truncated(path)


def saved_as_webp_and_cut(path: Path) -> None:
    made("colour", 3, 64, 64).save(path, "WEBP")
    truncated(path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("not an image"),
    "empty": lambda path: path.write_bytes(b""),
    "cut": truncated,
    "cut-jpeg": saved_as_jpeg_and_cut,
    "cut-webp": saved_as_webp_and_cut,
    "broken-chunk": lambda path: path.write_bytes(path.read_bytes()[:40] + b"\0" * 100),
    "long-text": long_text,
    "bomb": bomb,
    "flipped-bit": flipped_bit,
    "ppm": lambda path: path.write_bytes(b"P6 10 x 255\n"),
    "short-ppm": lambda path: path.write_bytes(b"P6 10 10 255\n123"),
    "dangling-link": dangling,
}


@pytest.mark.parametrize("large", [False, True], ids=["in memory", "batch by batch"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_can_be_left_out(
    damage: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("apq_optuna.data.folders.IN_MEMORY_BYTES", 100)
    write(tmp_path)
    broken = tmp_path / "dog" / "4.png"
    DAMAGE[damage](broken)
    with pytest.raises(DataError, match=r"dog/4\.png cannot be read as an image: .*--skip-broken"):
        load(tmp_path)
    with pytest.warns(DataWarning, match=r"left out 1 of 24 images, .*: .*dog/4\.png \("):
        data = load_data(f"folder:{tmp_path}", skip_broken=True)
    assert data.skip_broken and sum(sizes(data)) == 23
    broken.unlink()
    assert load(tmp_path).split_hash == data.split_hash  # as if it had never been there


def test_all_damaged_files_of_all_splits_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train", count=20)
    write(tmp_path / "test", count=3)
    broken = [tmp_path / f"train/cat/{i}.png" for i in range(9)]
    broken += [
        tmp_path / "test/dog/2.png",
        tmp_path / "test/cat/0.png",
        tmp_path / "test/cat/1.png",
    ]
    for path in broken:
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"12 of 46 images cannot be read: .* and 2 more; "
    ) as error:
        load(tmp_path)
    assert sum(str(path) in str(error.value) for path in broken) == 10
    with pytest.warns(DataWarning, match="left out 12 of 46 images"):
        data = load_data(f"folder:{tmp_path}", skip_broken=True)
    assert sum(sizes(data)) == 34


def test_a_class_that_would_lose_all_its_images(tmp_path: Path) -> None:
    write(tmp_path)
    for path in (tmp_path / "dog").iterdir():
        path.write_text("x")
    with pytest.raises(DataError, match=r"none of the images of dog in .* can be read"):
        load(tmp_path, skip_broken=True)


def test_a_first_image_that_is_damaged_decides_nothing(tmp_path: Path) -> None:
    write(tmp_path, "gray")
    (tmp_path / "cat" / "0.png").write_bytes(b"")
    with pytest.warns(DataWarning, match="left out 1"):
        data = load_data(f"folder:{tmp_path}", skip_broken=True)
    assert (data.image_size, data.channels) == (10, 1)


def test_a_file_that_breaks_later_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apq_optuna.data.folders.IN_MEMORY_BYTES", 100)
    data = load(write(tmp_path))
    for path in tmp_path.glob("cat/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"images cannot be read: .*cat/.*no image"):
        list(data.training_batches(8, torch.Generator().manual_seed(0)))


# ---------------------------------------------------------------------- gray and colour


def test_gray_beside_colour_is_colour(tmp_path: Path) -> None:
    write(tmp_path, "gray", classes=("a", "b"))
    write(tmp_path, "colour", classes=("c",))
    with pytest.warns(DataWarning, match="gray images beside colour ones: all are taken as colo"):
        assert load_data(f"folder:{tmp_path}").channels == 3
    assert load(tmp_path, grayscale=True).channels == 1
    assert load(tmp_path, grayscale=False).channels == 3


@pytest.mark.parametrize("other", ["bilevel", "16 bits", "gray palette", "gray with alpha"])
def test_gray_beside_gray_of_another_kind_stays_gray(other: str, tmp_path: Path) -> None:
    write(tmp_path, "gray")
    image = made("bilevel" if other == "bilevel" else "gray", 1)
    if other == "16 bits":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    if other == "gray palette":
        image.putpalette(np.arange(256, dtype=np.uint8).repeat(3).tobytes())
    if other == "gray with alpha":
        image.putalpha(255)
    image.save(tmp_path / "dog" / "x.png")
    assert load(tmp_path).channels == 1


def test_a_folder_of_16_bits_is_that_of_8(tmp_path: Path) -> None:
    plain = load(write(tmp_path / "plain", "gray"))
    deep = write(tmp_path / "deep", "gray")
    for path in deep.glob("*/*"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 257).save(path)
    assert load(deep).split_hash == plain.split_hash


# ---------------------------------------------------------------------- squares, augmentation


def test_ways_to_a_square_are_other_data(tmp_path: Path) -> None:
    write(tmp_path)
    hashes = {load(tmp_path, fit=fit).split_hash for fit in ("crop", "pad", "stretch")}
    assert len(hashes) == 3


@pytest.mark.parametrize("name", ["digits", "folder"])
@pytest.mark.parametrize("augment", [None, "none", "shift", "shift+flip"])
def test_augmentation_is_a_choice(name: str, augment: str | None, tmp_path: Path) -> None:
    if name == "folder":
        name = f"folder:{write(tmp_path, width=32, height=32)}"
    data = load_data(name, augment=augment)
    usual = load_data(name)
    assert usual.augment == usual_augment(name) == ("shift" if name == "digits" else "shift+flip")
    assert data.augment == (augment or usual.augment)
    assert data.crop_padding == (0 if augment == "none" else usual.crop_padding)
    assert data.flip is (data.augment == "shift+flip")
    assert data.split_hash == usual.split_hash


@pytest.mark.parametrize("option", [{"fit": "zoom"}, {"augment": "flip"}])
def test_unknown_choices_are_errors(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"='(zoom|flip)' is unknown; choose from '"):
        load_data("digits", **option)


def test_a_study_is_of_one_augmentation(
    supernet: apq.OnceForAllNet, digits: ImageData, digits_costs: Any, url: str
) -> None:
    import optuna

    from apq_optuna._optuna import set_study_attribute, study_attribute

    def objective(augment: str | None) -> apq.Objective:
        return apq.Objective(supernet, load_data("digits", augment=augment), digits_costs)

    usual = objective(None)
    study = optuna.create_study(storage=url, directions=usual.directions)
    usual.check_study(study)
    objective("shift").check_study(study)
    with pytest.raises(apq.errors.StudyMismatchError, match="augmentation 'shift', now 'none'"):
        objective("none").check_study(study)
    conditions = study_attribute(study, "objective")
    del conditions["augmentation"]  # as a study has it that was made before there was a choice
    set_study_attribute(study, "objective", conditions)
    usual.check_study(study)
    with pytest.raises(apq.errors.StudyMismatchError, match="augmentation 'shift', now 'none'"):
        objective("none").check_study(study)


@pytest.mark.parametrize(
    "given", [{"image_size": 16}, {"grayscale": False}, {"fit": "pad"}, {"skip_broken": True}]
)
def test_what_is_for_folders_is_refused_for_digits(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(given))}=.* is for folders"):
        load_data("digits", **given)
    assert load_data("digits", image_size=8, grayscale=True).image_size == 8
