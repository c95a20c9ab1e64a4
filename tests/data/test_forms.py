"""Gray and colour, ways to a square, and what training does to images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import apq_optuna as apq
from apq_optuna.data import ImageData, load_data, usual_augment
from apq_optuna.errors import DataWarning, InvalidArgumentError
from tests.data.helpers import load, made, write

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
