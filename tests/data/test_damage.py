"""Image files that cannot be read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import PngImagePlugin

from apq_optuna.data import load_data
from apq_optuna.errors import DataError, DataWarning
from tests.data.helpers import load, made, sizes, write

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
        load(tmp_path, cache=not large)
    with pytest.warns(DataWarning, match=r"left out 1 of 24 images, .*: .*dog/4\.png \("):
        data = load_data(f"folder:{tmp_path}", skip_broken=True, cache=not large)
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
    data = load(write(tmp_path), cache=False)
    for path in tmp_path.glob("cat/*"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"images cannot be read: .*cat/.*no image"):
        list(data.training_batches(8, torch.Generator().manual_seed(0)))
