"""Folders of made-up images, for the tests of the data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apq_optuna.data import ImageData, load_data
from apq_optuna.errors import DataWarning


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
