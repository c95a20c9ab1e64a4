"""Decoded folders that are kept: the same images, found again, and never a wrong or half one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apq_optuna.cli import main
from apq_optuna.data import ImageData, cache, folders, load_data
from apq_optuna.data.cache import Cache, MappedImages
from apq_optuna.data.decode import decode
from apq_optuna.errors import DataWarning, InvalidArgumentError
from tests.data.helpers import write


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write(tmp_path / "images", "colour")


def pixels(data: ImageData) -> list[torch.Tensor]:
    splits = (data.train, data.search_validation, data.test)
    return [split.images.batch(torch.arange(len(split))) for split in splits]


def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing is decoded."""

    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(folders, "decode", refuse)


def test_the_second_opening_decodes_nothing_and_gives_the_same(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_data(f"folder:{images}", cache=False)
    assert not kept.exists()
    first = load_data(f"folder:{images}")
    undecoded(monkeypatch)
    second = load_data(f"folder:{images}")
    assert isinstance(second.train.images, MappedImages)
    assert plain.split_hash == first.split_hash == second.split_hash
    assert (plain.mean, plain.std) == (second.mean, second.std)
    for one, other in zip(pixels(plain), pixels(second), strict=True):
        assert torch.equal(one, other)


def test_other_splits_are_of_the_same_entry(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_data(f"folder:{images}")
    undecoded(monkeypatch)
    other = load_data(f"folder:{images}", seed=1)
    monkeypatch.undo()
    assert other.split_hash == load_data(f"folder:{images}", seed=1, cache=False).split_hash


@pytest.mark.parametrize("what", ["size", "time", "name", "one more", "one less", "option"])
def test_what_changed_is_decoded_anew(kept: Path, images: Path, what: str) -> None:
    load_data(f"folder:{images}")
    file = sorted(images.rglob("*.png"))[0]
    options = {}
    if what == "size":
        file.write_bytes(file.read_bytes() + b"\0")
    elif what == "time":
        os.utime(file, ns=(1, 1))
    elif what == "name":
        file.rename(file.with_name("zz.png"))
    elif what == "one more":
        file.with_name("zz.png").write_bytes(file.read_bytes())
    elif what == "one less":
        file.unlink()
    else:
        options = {"image_size": 8}
    again = load_data(f"folder:{images}", **options)  # type: ignore[arg-type]
    assert len(list(kept.glob("*.json"))) == 2
    plain = load_data(f"folder:{images}", cache=False, **options)  # type: ignore[arg-type]
    assert again.split_hash == plain.split_hash


def test_broken_images_stay_left_out(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted(images.rglob("*.png"))[0].write_bytes(b"no image")
    with pytest.warns(DataWarning, match="left out 1 of"):
        plain = load_data(f"folder:{images}", skip_broken=True, cache=False)
    with pytest.warns(DataWarning, match="left out 1 of"):
        load_data(f"folder:{images}", skip_broken=True)
    undecoded(monkeypatch)
    with pytest.warns(DataWarning, match=r"left out 1 of .*\(it is no image"):
        again = load_data(f"folder:{images}", skip_broken=True)
    assert again.split_hash == plain.split_hash
    with pytest.raises(ValueError, match="cannot be read as an image: it is no image"):
        load_data(f"folder:{images}")


@pytest.mark.parametrize("damage", ["array cut", "array gone", "description cut", "json"])
def test_a_damaged_entry_is_made_anew(kept: Path, images: Path, damage: str) -> None:
    wanted = load_data(f"folder:{images}")
    (array,), (about,) = kept.glob("*.npy"), kept.glob("*.json")
    if damage == "array cut":
        os.truncate(array, array.stat().st_size - 1)
    elif damage == "array gone":
        array.unlink()
    else:
        about.write_text("{" if damage == "description cut" else "[]")
    again = load_data(f"folder:{images}")
    assert isinstance(again.train.images, MappedImages)
    assert torch.equal(pixels(again)[0], pixels(wanted)[0])


@pytest.mark.parametrize("gib", ["0", "0.000001"])
def test_what_is_beyond_the_limit_is_not_kept(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch, gib: str
) -> None:
    monkeypatch.setenv("APQ_CACHE_GIB", gib)
    data = load_data(f"folder:{images}")
    assert not isinstance(data.train.images, MappedImages)
    assert not list(kept.glob("*"))


def test_a_limit_that_is_no_number_is_refused(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APQ_CACHE_GIB", "much")
    with pytest.raises(InvalidArgumentError, match="APQ_CACHE_GIB='much': must be a number"):
        load_data(f"folder:{images}")


def test_the_entry_used_longest_ago_makes_room(tmp_path: Path) -> None:
    store = Cache(tmp_path, limit=100_000)

    def decode(paths: object) -> tuple[torch.Tensor, dict[Path, str]]:
        return torch.zeros((1, 1, 10, 50), dtype=torch.uint8), {}

    def add(key: str) -> None:
        assert store.add(key, key, [Path(key)], (1, 10, 50), decode) is not None

    for i, key in enumerate("abc"):
        add(key)
        os.utime(tmp_path / f"{key}.json", (100 + i, 100 + i))
    assert store.find("a") is not None  # which is using it
    store.limit = 4096 + 500 + 2 * store.entries()[0].bytes
    add("d")
    assert {entry.folder for entry in store.entries()} == {"a", "c", "d"}
    assert len(list(tmp_path.glob("*.npy"))) == 3


def test_a_place_that_cannot_be_written_costs_nothing_but_the_cache(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APQ_CACHE", str(tmp_path / "file" / "cache"))
    data = load_data(f"folder:{images}")
    assert not isinstance(data.train.images, MappedImages)


def test_a_full_disk_leaves_nothing_half_written(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    data = load_data(f"folder:{images}")
    assert not isinstance(data.train.images, MappedImages)
    assert not list(kept.glob("*"))


def test_what_a_stopped_process_left_is_removed(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.mkdir()
    for name in ("x.1.part", "y.npy"):
        (kept / name).write_bytes(b"half")
    load_data(f"folder:{images}")
    assert (kept / "y.npy").exists()  # another process may be about to describe it
    monkeypatch.setattr(cache, "STALE_SECONDS", -1.0)
    Cache()._clear_parts(-1.0)
    assert not list(kept.glob("*.part"))
    assert len(list(kept.glob("*.npy"))) == 1


def test_processes_that_open_a_folder_at_once_agree(kept: Path, images: Path) -> None:
    program = (
        "import sys; from apq_optuna.data import load_data; "
        "print(load_data('folder:' + sys.argv[1]).split_hash)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(images)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    found = {process.communicate()[0] for process in running}
    assert len(found) == 1
    assert found == {load_data(f"folder:{images}", cache=False).split_hash.encode() + b"\n"}
    assert len(list(kept.glob("*"))) == 2


def test_a_process_that_it_is_sent_to_maps_the_same_file(kept: Path, images: Path) -> None:
    data = load_data(f"folder:{images}")
    sent = pickle.dumps(data.train.images)
    assert len(sent) < 2000
    assert torch.equal(
        pickle.loads(sent).batch(torch.arange(3)), data.train.images.batch(torch.arange(3))
    )


def test_folders_alike_but_for_their_pixels_are_told_apart(kept: Path, tmp_path: Path) -> None:
    """Archives may unpack files of one name, size and date."""
    hashes = []
    for name, shade in (("one", 10), ("other", 200)):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(12):
                file = tmp_path / name / label / f"{i}.bmp"
                Image.new("RGB", (8, 8), (shade, i, 0)).save(file)
                os.utime(file, (10**9, 10**9))
        hashes.append(load_data(f"folder:{tmp_path / name}").split_hash)
    assert hashes[0] != hashes[1]
    assert hashes[1] == load_data(f"folder:{tmp_path / 'other'}", cache=False).split_hash


def test_what_could_not_be_read_is_tried_again(
    kept: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bad = load_data(f"folder:{images}", cache=False), sorted(images.rglob("*.png"))[0]

    def refused(path: Path, *how: object) -> object:
        if path == bad:
            raise PermissionError(13, "Permission denied")
        return decode(path, *how)  # type: ignore[arg-type]

    monkeypatch.setattr(folders, "decode", refused)
    with pytest.raises(ValueError, match="Permission denied"):
        load_data(f"folder:{images}")
    monkeypatch.undo()
    monkeypatch.setenv("APQ_CACHE", str(kept))
    assert load_data(f"folder:{images}").split_hash == whole.split_hash


def test_an_entry_that_is_no_array_is_made_anew(kept: Path, images: Path) -> None:
    wanted = load_data(f"folder:{images}")
    (array,) = kept.glob("*.npy")
    size = array.stat().st_size
    array.unlink()
    array.write_bytes(b"x" * size)
    again = load_data(f"folder:{images}")
    assert torch.equal(pixels(again)[0], pixels(wanted)[0])


def test_images_outlive_their_entry(kept: Path, images: Path) -> None:
    data = load_data(f"folder:{images}")
    before = pixels(data)[0]
    Cache().clear()
    assert torch.equal(pixels(data)[0], before)
    sent = pickle.loads(pickle.dumps(data.train.images))
    assert torch.equal(sent.batch(torch.arange(len(sent))), before)


def test_the_command_shows_and_empties(
    kept: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_data(f"folder:{images}")
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert str(images) in shown
    assert "1 decoded folders" in shown
    assert "at most 4096 MiB" in shown
    assert main(["cache", "--clear"]) == 0
    assert not list(kept.glob("*"))
    assert "removed from" in capsys.readouterr().out
