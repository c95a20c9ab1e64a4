"""Which images a folder has: its splits, its classes, and what is neither."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import DataError, DataWarning

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Files that are images, in any case; those of torchvision's `ImageFolder`."""

SPLIT_NAMES = {
    "train": ("train", "training", "train_set", "training_set", "trainset"),
    "val": ("val", "valid", "validation", "dev", "val_set", "valid_set", "validation_set",
            "dev_set", "valset"),
    "test": ("test", "testing", "test_set", "testing_set", "testset"),
}  # fmt: skip
"""Names of folders that are splits, in any case and with `-` or a space for `_`."""

_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_LITTER = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information",
           "lost+found")  # fmt: skip


class Paths(Sequence[Path]):
    """Files by name; a `Path` is made when one is asked for: a hundred thousand take long.

    Attributes:
        names: As strings.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> Path | Paths:
        if isinstance(index, slice):
            return Paths(self.names[index])
        return Path(self.names[index])

    def take(self, indices: NDArray[np.int64]) -> Paths:
        """Those at `indices`."""
        return Paths([self.names[i] for i in indices.tolist()])


@dataclass(frozen=True)
class Listing:
    """Images of one folder with class folders.

    Attributes:
        root: The folder.
        classes: Names of the class folders, sorted.
        paths: The files, class by class.
        labels: `(n,) int64`, of `paths`.
    """

    root: Path
    classes: tuple[str, ...]
    paths: Paths
    labels: NDArray[np.int64]

    def without(self, broken: Container[Path], name: str) -> Listing:
        """The listing less some files.

        Raises:
            DataError: A class would be without images.
        """
        kept = np.array([path not in broken for path in self.paths], bool)
        left = set(self.labels[kept].tolist())
        if lost := [c for label, c in enumerate(self.classes) if label not in left]:
            raise DataError(
                f"data={name!r}: none of the images of {', '.join(lost)} in {self.root} can be "
                "read, so that skip_broken (--skip-broken) would leave no image of the class"
            )
        paths = self.paths.take(np.flatnonzero(kept))
        return Listing(self.root, self.classes, paths, self.labels[kept])


def list_parts(name: str, root: Path) -> dict[str, Listing]:
    """Listings by split: `train` with `val`, `test` or both, or `all` where there are no splits.

    Raises:
        DataError: The folder is not in one of the layouts; says which folder, and what to do.
    """
    try:
        parts = {split: _list_images(name, at) for split, at in _places(name, root).items()}
    except OSError as error:
        raise DataError(f"data={name!r}: {error.filename}: {error.strerror}") from error
    first = next(iter(parts.values()))
    for part in parts.values():
        if part.classes != first.classes:
            differing = sorted(set(part.classes) ^ set(first.classes))
            raise DataError(
                f"data={name!r}: {first.root.name} and {part.root.name} have different classes: "
                f"{', '.join(differing)}"
            )
    return parts


# ---------------------------------------------------------------------- splits


def _places(name: str, root: Path) -> dict[str, Path]:
    """Folders by split; `all` is the whole."""
    folders = _folders(root)
    known: dict[str, list[str]] = {}
    for folder in folders:
        if split := _split_of(folder):
            known.setdefault(split, []).append(folder)
    names = [folder for same in known.values() for folder in same]
    if len(known) == 1 and len(names) < len(folders) and not any(
        _folders(root / folder) for folder in names
    ):  # fmt: skip
        text = f"{', '.join(names)} is taken as a class, not as a split: it has no class folders"
        warnings.warn(DataWarning(f"data={name!r}: {text}"), stacklevel=5)
        return {"all": root}
    if not known:
        _refuse_wrapped(name, root, folders)
        return {"all": root}
    for split, same in known.items():
        if len(same) > 1:
            raise DataError(
                f"data={name!r}: {root} has {same}, which are all names of the {split} part; "
                "keep one of them"
            )
    if "train" not in known or len(known) == 1:
        raise DataError(
            f"data={name!r}: {root} has {sorted(names)}, but a split folder needs train/ and "
            "test/, val/ or both; a folder that is not split yet has the class folders in itself"
        )
    if unused := [folder for folder in folders if folder not in names]:
        text = f"beside {', '.join(names)}, these folders are not used: {', '.join(unused)}"
        warnings.warn(DataWarning(f"data={name!r}: {text}"), stacklevel=5)
    if "test" not in known:
        text = f"there is no test folder: a tenth of {known['train'][0]} is the test part"
        warnings.warn(DataWarning(f"data={name!r}: {text}"), stacklevel=5)
    return {split: root / known[split][0] for split in SPLIT_NAMES if split in known}


def _split_of(folder: str) -> str | None:
    return _SPLIT_OF.get(folder.lower().replace("-", "_").replace(" ", "_"))


def _refuse_wrapped(name: str, root: Path, folders: list[str]) -> None:
    """Class folders, or splits, that lie below a lone folder: a message that finds them."""
    inner = root
    while len(folders) == 1 and not _has_images(inner / folders[0]):
        inner = inner / folders[0]
        folders = _folders(inner)
        if len(folders) > 1:
            raise DataError(
                f"data={name!r}: {root} has one folder only, and the class folders are below it: "
                f"use data='folder:{inner}'"
            )


# ---------------------------------------------------------------------- classes


def _list_images(name: str, root: Path) -> Listing:
    classes = _folders(root)
    if not classes:
        raise DataError(f"data={name!r}: {root} has no class folders; expected {root}/CLASS/IMAGE")
    if len(classes) < 2:
        raise DataError(
            f"data={name!r}: {root} has one class, {classes[0]!r}; at least two are needed"
        )
    _refuse_splits(name, root, classes)
    if _has_images(root):
        text = f"images in {root} itself, in no class folder, are not used"
        warnings.warn(DataWarning(f"data={name!r}: {text}"), stacklevel=6)
    found = [_images_below(str(root / folder)) for folder in classes]
    if empty := [folder for folder, files in zip(classes, found, strict=True) if not files]:
        raise DataError(
            f"data={name!r}: no images for the class {', '.join(empty)} in {root}; images are "
            f"{', '.join(SUFFIXES)}"
        )
    for folder in classes:
        try:
            folder.encode()
        except UnicodeEncodeError as error:  # a name in bytes of another encoding
            raise DataError(
                f"data={name!r}: {folder!r} in {root} is not UTF-8; rename the folder"
            ) from error
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in found])
    paths = Paths([path for files in found for path in files])
    return Listing(root, tuple(classes), paths, labels.astype(np.int64))


def _refuse_splits(name: str, root: Path, classes: list[str]) -> None:
    """Folders that hold the same class folders are splits or folds, never classes.

    The same: two names at least, and half of those of the smaller one.
    """
    inside = {
        folder: set(_folders(root / folder))
        for folder in classes
        if not _has_images(root / folder)
    }
    for one, other in itertools.combinations(inside, 2):
        same = inside[one] & inside[other]
        if len(same) >= 2 and 2 * len(same) >= min(len(inside[one]), len(inside[other])):
            raise DataError(
                f"data={name!r}: {one} and {other} in {root} hold the same folders "
                f"({', '.join(sorted(same)[:5])}): if they are splits, name them train and test "
                "(and val); if they are classes, put their images into them without folders "
                "between"
            )


def _images_below(folder: str) -> list[str]:
    """Image files at any depth, in the order of torchvision's `ImageFolder`."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [f for f in folders if not is_litter(f) and not _leads_back(place, f)]
        found.append((place, sorted(file for file in files if _is_image(file))))
    return [os.path.join(place, file) for place, files in sorted(found) for file in files]


def _raise(error: OSError) -> None:
    raise error  # a folder nobody may read would else be an empty one


def _leads_back(place: str, folder: str) -> bool:
    """Whether a folder is a link to one that it lies in, which would be walked without end."""
    path = os.path.join(place, folder)
    return os.path.islink(path) and Path(place).resolve().is_relative_to(Path(path).resolve())


def is_litter(name: str) -> bool:
    """Whether a file or folder is what systems and tools leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def _is_image(file: str) -> bool:
    return file.lower().endswith(SUFFIXES) and not is_litter(file)


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if not is_litter(e.name) and e.is_dir())


def _has_images(root: Path) -> bool:
    with os.scandir(root) as entries:
        return any(_is_image(entry.name) and entry.is_file() for entry in entries)
