"""Folders of images: one folder a class, decoded at once or as they are needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apq_optuna.data.images import ImageData, Images, Split
from apq_optuna.data.splits import assemble, stratified
from apq_optuna.errors import DataError

IN_MEMORY_BYTES = 512 * 2**20
"""A folder whose decoded images would take more than this is decoded batch by batch."""


class ImageFiles(Images):
    """Images decoded from files as they are asked for, each resized to a square."""

    def __init__(self, paths: Sequence[Path], size: int, grayscale: bool) -> None:
        self.paths = list(paths)
        self.size = size
        self.grayscale = grayscale

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices`, decoded by a few threads."""
        chosen = [self.paths[i] for i in indices.tolist()]
        out = np.empty((len(chosen), 1 if self.grayscale else 3, self.size, self.size), np.uint8)

        def decode(i: int) -> None:
            out[i] = _decode(chosen[i], self.size, self.grayscale)

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(decode, range(len(chosen)), chunksize=64):
                pass  # only to let errors through
        return torch.from_numpy(out)


def load_folder(
    name: str, root: Path, image_size: int | None, grayscale: bool | None, seed: int
) -> ImageData:
    if not root.is_dir():
        raise DataError(f"data={name!r}: there is no folder {root}")
    separate = (root / "train").is_dir() and (root / "test").is_dir()
    found = sorted({"train", "test", "val", "valid", "validation"} & set(os.listdir(root)))
    if found and not separate:
        raise DataError(
            f"data={name!r}: {root} has {found}, but a split folder needs both train/ and test/; "
            "the search-validation images are taken from train/"
        )
    classes, paths, labels = _list_images(name, root / "train" if separate else root)
    if separate:
        test_classes, test_paths, test_labels = _list_images(name, root / "test")
        if test_classes != classes:
            differing = sorted(set(classes) ^ set(test_classes))
            raise DataError(
                f"data={name!r}: train and test have different classes: {', '.join(differing)}"
            )
        train, validation = stratified(labels, (0.9, 0.1), seed)
    else:
        train, validation, test = stratified(labels, (0.7, 0.15, 0.15), seed)
        test_paths, test_labels = [paths[i] for i in test], labels[test]
    size, gray = _image_format(name, paths[0], image_size, grayscale)
    parts = [
        _read_split(name, [paths[i] for i in train], labels[train], size, gray),
        _read_split(name, [paths[i] for i in validation], labels[validation], size, gray),
        _read_split(name, test_paths, test_labels, size, gray),
    ]
    return assemble(name, parts, classes, size, crop_padding=max(1, size // 8), flip=True)


def _list_images(name: str, root: Path) -> tuple[tuple[str, ...], list[Path], NDArray[np.int64]]:
    """Class names, image paths and labels of a folder in the layout of `ImageFolder`."""
    from apq_optuna._torchvision import datasets

    if not any(entry.is_dir() for entry in root.iterdir()):
        raise DataError(f"data={name!r}: {root} has no class folders; expected {root}/CLASS/IMAGE")
    try:
        folder = datasets.ImageFolder(str(root))
    except FileNotFoundError as error:  # a class folder without a single image
        raise DataError(f"data={name!r}: {error}") from error
    if len(folder.classes) < 2:
        raise DataError(
            f"data={name!r}: {root} has one class, {folder.classes[0]!r}; at least two are needed"
        )
    labels = np.array([label for _, label in folder.samples], np.int64)
    return tuple(folder.classes), [Path(path) for path, _ in folder.samples], labels


def _image_format(
    name: str, path: Path, image_size: int | None, grayscale: bool | None
) -> tuple[int, bool]:
    from PIL import Image

    if image_size is not None and image_size < 4:
        raise DataError(f"image_size={image_size}: at least 4 pixels are needed")
    try:
        with Image.open(path) as image:
            size = min(image.size) if image_size is None else image_size
            return size, image.mode in ("1", "L") if grayscale is None else grayscale
    except OSError as error:
        raise DataError(f"data={name!r}: {path} cannot be read as an image: {error}") from error


def _decode(path: Path, size: int, grayscale: bool) -> NDArray[np.uint8]:
    """An image file as `(C, size, size) uint8`, centre-cropped to a square first."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            converted = image.convert("L" if grayscale else "RGB")
        if converted.size != (size, size):
            converted = ImageOps.fit(converted, (size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(converted, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    return pixels[None] if grayscale else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _read_split(
    name: str, paths: Sequence[Path], labels: NDArray[np.int64], size: int, grayscale: bool
) -> Split:
    if not len(paths):
        raise DataError(f"data={name!r}: too few images to make three splits")
    files = ImageFiles(paths, size, grayscale)
    bytes_needed = len(paths) * size * size * (1 if grayscale else 3)
    if bytes_needed > IN_MEMORY_BYTES:
        return Split(files, torch.from_numpy(labels))
    return Split(Images(files.batch(torch.arange(len(paths)))), torch.from_numpy(labels))
