"""Folders of images: one folder a class, decoded at once or as they are needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apq_optuna.data.cache import Cache, Entry, MappedImages, key_of
from apq_optuna.data.decode import (
    check,
    decode,
    is_colour,
    is_gray,
    open_image,
    why_unreadable,
)
from apq_optuna.data.images import ImageData, Images, Split
from apq_optuna.data.listing import Listing, Paths, list_parts
from apq_optuna.data.splits import assemble, stratified
from apq_optuna.errors import DataError, DataWarning

IN_MEMORY_BYTES = 512 * 2**20
"""A folder whose decoded images would take more than this is decoded batch by batch."""

NAMED = 10
"""Unreadable files that a message names; the rest are counted."""

Drawn = tuple[Paths, NDArray[np.int64]]


class ImageFiles(Images):
    """Images decoded from files as they are asked for, each made a square."""

    def __init__(self, paths: Sequence[Path], size: int, grayscale: bool, fit: str) -> None:
        self.paths = paths
        self.size = size
        self.grayscale = grayscale
        self.fit = fit

    def __len__(self) -> int:
        return len(self.paths)

    def on(self, device: str) -> Images:
        """Itself: what is too large for memory is decoded batch by batch for a device too."""
        return self

    @property
    def bytes_decoded(self) -> int:
        """Memory that all of them would take."""
        return len(self) * self.size * self.size * (1 if self.grayscale else 3)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices`, decoded by a few threads.

        Raises:
            DataError: Some of them cannot be read.
        """
        pixels, broken = self.decoded([self.paths[i] for i in indices.tolist()])
        if broken:
            raise DataError(_unreadable(broken, len(self)))
        return pixels

    def decoded(self, paths: Sequence[Path]) -> tuple[Tensor, dict[Path, str]]:
        """Pixels of some files, `(n, C, H, W) uint8`, and what is wrong with unreadable ones."""
        channels = 1 if self.grayscale else 3
        out = np.empty((len(paths), channels, self.size, self.size), np.uint8)

        def read(i: int, path: Path) -> None:
            out[i] = decode(path, self.size, self.grayscale, self.fit)

        broken = _broken(paths, read)
        return torch.from_numpy(out), broken


def load_folder(
    name: str,
    root: Path,
    *,
    image_size: int | None,
    grayscale: bool | None,
    fit: str,
    skip_broken: bool,
    seed: int,
    cache: bool = True,
) -> ImageData:
    """A folder's images; arguments and errors are those of `load_data`."""
    if not root.is_dir():
        raise DataError(f"data={name!r}: there is no folder {root}")
    if image_size is not None and image_size < 4:
        raise DataError(f"image_size={image_size}: at least 4 pixels are needed")
    parts = list_parts(name, root)
    total = sum(len(part.paths) for part in parts.values())
    classes = next(iter(parts.values())).classes
    size, gray = _image_format(name, parts, image_size, grayscale)
    left_out: dict[Path, str] = {}
    kept = _kept(root, parts, size, gray, fit) if cache else None
    while True:
        drawn = _draw(name, parts, seed)
        if kept is not None:
            splits, broken = kept.splits(drawn)
        else:
            splits, broken = _read_splits(drawn, size, gray, fit, whole=skip_broken)
        if not broken:
            break
        left_out |= broken
        if not skip_broken:
            raise DataError(f"data={name!r}: {_unreadable(left_out, total)}")
        # splits are drawn anew from what is left, as if the others had never been there
        parts = {split: part.without(left_out, name) for split, part in parts.items()}
    if left_out:
        left = f"left out {len(left_out)} of {total} images, which cannot be read"
        _warn(name, f"{left}: {_names(left_out)}", 2)
    return assemble(
        name, splits, classes, size, crop_padding=max(1, size // 8), flip=True, fit=fit,
        skip_broken=skip_broken,
    )  # fmt: skip


class _Kept:
    """A folder's decoded images in the cache, by file."""

    def __init__(self, entry: Entry, paths: Paths) -> None:
        self._images = MappedImages(entry.file, np.arange(len(paths)))
        self._row = {name: row for row, name in enumerate(paths.names)}
        self._broken = {paths[row]: why for row, why in entry.broken.items()}

    def splits(self, drawn: Sequence[Drawn]) -> tuple[list[Split], dict[Path, str]]:
        """What `_read_splits` gives."""
        splits = []
        for paths, labels in drawn:
            rows = np.array([self._row[name] for name in paths.names], np.int64)
            splits.append(Split(self._images.take(rows), torch.from_numpy(labels)))
        here = {path for paths, _ in drawn for path in paths} if self._broken else set()
        return splits, {path: why for path, why in self._broken.items() if path in here}


def _kept(
    root: Path, parts: Mapping[str, Listing], size: int, grayscale: bool, fit: str
) -> _Kept | None:
    """The folder's images in the cache, decoded into it where they are not there yet.

    None where the cache does not take them.
    """
    paths = Paths([name for part in parts.values() for name in part.paths.names])
    files = ImageFiles(paths, size, grayscale, fit)
    key = key_of(root, paths.names, (size, grayscale, fit))
    if key is None:
        return None
    store = Cache()
    shape = (1 if grayscale else 3, size, size)
    entry = store.find(key)
    if entry is not None and entry.broken:  # of some the disk or a permission was at fault
        _, unread = files.decoded([paths[place] for place in entry.broken])
        entry = entry if len(unread) == len(entry.broken) else None
    for _ in range(2):
        entry = entry or store.add(key, str(root.absolute()), paths, shape, files.decoded)
        if entry is None:
            return None
        with suppress(OSError, ValueError):  # removed meanwhile, or damaged
            return _Kept(entry, paths)
        store.remove(entry)
        entry = None
    return None


def _draw(name: str, parts: Mapping[str, Listing], seed: int) -> list[Drawn]:
    """Files and labels of training, search-validation and test split."""
    main = next(iter(parts.values()))
    pieces: list[NDArray[np.int64]]
    if "all" in parts:
        pieces = stratified(main.labels, (0.7, 0.15, 0.15), seed)
    elif len(parts) == 2:
        pieces = stratified(main.labels, (0.9, 0.1), seed)
    else:
        pieces = [np.arange(len(main.paths))]
    drawn: list[Drawn] = [(main.paths.take(piece), main.labels[piece]) for piece in pieces]
    given = {split: (part.paths, part.labels) for split, part in parts.items()}
    if "val" in given:
        drawn.insert(1, given["val"])
    if "test" in given:
        drawn.append(given["test"])
    if not all(len(paths) for paths, _ in drawn):
        raise DataError(f"data={name!r}: too few images to make three splits")
    return drawn


def _image_format(
    name: str, parts: Mapping[str, Listing], image_size: int | None, grayscale: bool | None
) -> tuple[int, bool]:
    """Side of the images, and whether they are gray."""
    paths = Paths([name for part in parts.values() for name in part.paths.names])
    size, gray = _format_of_first(paths)
    if grayscale is None and gray and any(map(is_colour, paths)):
        gray = False
        text = "gray images beside colour ones: all are taken as colour"
        _warn(name, f"{text}; grayscale=True (--grayscale) takes all as gray", 3)
    return image_size or size, gray if grayscale is None else grayscale


def _format_of_first(paths: Sequence[Path]) -> tuple[int, bool]:
    """Shorter side of the first image that can be read, and whether it is gray."""
    from PIL import Image

    for path in paths:
        try:
            with Image.open(path) as image:
                gray = is_gray(image.mode)
            return min(open_image(path).size), gray
        except Exception:
            continue  # reading the splits names it
    return 1, True


def _read_splits(
    drawn: Sequence[Drawn], size: int, grayscale: bool, fit: str, *, whole: bool
) -> tuple[list[Split], dict[Path, str]]:
    """The splits, and every file of them that cannot be read.

    Files that stay files are only looked at, or decoded once where all damage must be known.
    """
    look = open_image if whole else check
    splits: list[Split] = []
    broken: dict[Path, str] = {}
    for paths, labels in drawn:
        files = ImageFiles(paths, size, grayscale, fit)
        images: Images = files
        if files.bytes_decoded > IN_MEMORY_BYTES:
            broken |= _broken(paths, lambda i, path: look(path))
        else:
            pixels, unread = files.decoded(paths)
            images = Images(pixels)
            broken |= unread
        splits.append(Split(images, torch.from_numpy(labels)))
    return splits, broken


def _broken(paths: Sequence[Path], read: Callable[[int, Path], object]) -> dict[Path, str]:
    """Reads files with a few threads; what is wrong with those that cannot be read."""
    found: dict[int, str] = {}

    def read_some(start: int) -> None:
        for i in range(start, min(start + 32, len(paths))):
            try:
                read(i, paths[i])
            except Exception as error:  # a broken file raises whatever its decoder ran into
                found[i] = why_unreadable(error)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(read_some, range(0, len(paths), 32)):
            pass  # only to let an interrupt through
    return {paths[i]: found[i] for i in sorted(found)}


def _unreadable(broken: Mapping[Path, str], total: int) -> str:
    if len(broken) == 1:
        ((path, reason),) = broken.items()
        what = f"{path} cannot be read as an image: {reason}"
    else:
        what = f"{len(broken)} of {total} images cannot be read: {_names(broken)}"
    return f"{what}; mend or remove, or leave out with skip_broken=True (--skip-broken)"


def _names(broken: Mapping[Path, str]) -> str:
    shown = [f"{path} ({reason})" for path, reason in list(broken.items())[:NAMED]]
    return ", ".join(shown) + f" and {len(broken) - NAMED} more" * (len(broken) > NAMED)


def _warn(name: str, text: str, depth: int) -> None:
    """Warns whoever called `load_data`, `depth` calls above the one that warns."""
    warnings.warn(DataWarning(f"data={name!r}: {text}"), stacklevel=depth + 2)
