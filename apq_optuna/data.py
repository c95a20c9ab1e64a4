"""Images as three splits: train, search-validation, test.

A search trains on `train` and is judged on `search_validation`; `test` is touched once, by
`finetune`. Small data sets are held in memory as uint8; a folder too large for that is decoded
batch by batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apq_optuna.errors import DataError, InvalidArgumentError

IN_MEMORY_BYTES = 512 * 2**20
"""A folder whose decoded images would take more than this is decoded batch by batch."""

_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Images:
    """uint8 images held in memory, `(n, C, H, W)`."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices`, `(len(indices), C, H, W) uint8`."""
        return self.pixels[indices]


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


@dataclass(frozen=True)
class Split:
    """One split: images, and `labels` `(n,) int64`."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set ready for search.

    Attributes:
        name: What `load_data` was given.
        train, search_validation, test: The splits.
        class_names: In label order.
        image_size: Side in pixels.
        mean, std: Per channel, of training pixels in [0, 1]; they travel with checkpoints.
        crop_padding: Pixels of padding for random crops in training; 0 is none.
        flip: Whether training mirrors images at random.
        split_hash: Identity of images, labels and splits.
    """

    name: str
    train: Split
    search_validation: Split
    test: Split
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    split_hash: str
    _normalisers: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def channels(self) -> int:
        """1 for grayscale, 3 for colour."""
        return len(self.mean)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1.0 / self.num_classes

    def normalise(self, pixels: Tensor, device: str = "cpu") -> Tensor:
        """uint8 `(n, C, H, W)` to normalised float32 on `device`, channels last."""
        if device not in self._normalisers:
            shape = (1, -1, 1, 1)
            mean = torch.tensor(self.mean, device=device).view(shape) * 255
            self._normalisers[device] = (
                mean,
                torch.tensor(self.std, device=device).view(shape) * 255,
            )
        mean, std = self._normalisers[device]
        values = pixels.to(device).float().sub_(mean).div_(std)
        return values.contiguous(memory_format=torch.channels_last)

    def training_batches(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        device: str = "cpu",
        augment: bool = True,
        limit: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled pass over the training split; a last smaller batch is dropped.

        Args:
            batch_size: Images a batch; capped at the size of the split.
            generator: Decides order and augmentation.
            device: Where the batches go.
            augment: Random crops and flips.
            limit: Most batches to give.

        Yields:
            `(B, C, H, W) float32` and `(B,) int64`.
        """
        n = len(self.train)
        size = min(batch_size, n)
        order = torch.randperm(n, generator=generator)
        batches = n // size if limit is None else min(limit, n // size)
        for b in range(batches):
            chosen = order[b * size : (b + 1) * size]
            pixels = self.train.images.batch(chosen)
            if augment:
                pixels = _augment(pixels, self.crop_padding, self.flip, generator)
            yield self.normalise(pixels, device), self.train.labels[chosen].to(device)

    def evaluation_batches(
        self, split: Split, batch_size: int, *, device: str = "cpu", limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """`split` in order, never augmented; with `limit`, that many images spread evenly over it.

        A split is ordered by class, so its beginning would be a few classes only.
        """
        n = len(split) if limit is None else min(limit, len(split))
        every = torch.linspace(0, len(split) - 1, n, dtype=torch.float64).round().long()
        for start in range(0, n, batch_size):
            chosen = every[start : start + batch_size]
            pixels = split.images.batch(chosen)
            yield self.normalise(pixels, device), split.labels[chosen].to(device)


def _augment(pixels: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """A random crop of the padded image and a random mirror image, per image."""
    n, _, height, width = pixels.shape
    if padding:
        padded = torch.nn.functional.pad(pixels, (padding,) * 4)
        offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
        rows = offsets[0] + torch.arange(height)
        columns = offsets[1] + torch.arange(width)
        if flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        image = torch.arange(n).view(n, 1, 1)
        # (n, H, W, C) after indexing two axes apart; back to channels first
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(
            0, 3, 1, 2
        )
    if flip:
        mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
        return torch.where(mirrored, pixels.flip(3), pixels)
    return pixels


# ---------------------------------------------------------------------- loading


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    grayscale: bool | None = None,
    seed: int = 0,
) -> ImageData:
    """Loads a data set and splits it.

    Args:
        name: `digits` (1,797 8x8 images that come with scikit-learn), `cifar10` (the binary
            version, in `$APQ_DATA/cifar-10-batches-bin`, by default below `data`), or
            `folder:PATH`: one folder of images a class, flat or below `PATH/train` and
            `PATH/test`.
        image_size: Side to which a folder's images are resized; by default the first one's shorter
            side.
        grayscale: True converts, False makes three channels; by default a folder whose first image
            is grayscale stays so.
        seed: Decides the splits of a folder without a test part.

    Raises:
        InvalidArgumentError: Unknown name.
        DataError: No images, fewer than two classes, or a broken file.
    """
    if name == "digits":
        return _load_digits()
    if name == "cifar10":
        return _load_cifar10(Path(os.environ.get("APQ_DATA", "data")) / "cifar-10-batches-bin")
    if name.startswith("folder:"):
        return _load_folder(name, Path(name.removeprefix("folder:")), image_size, grayscale, seed)
    raise InvalidArgumentError(
        f"data={name!r} is unknown; use 'digits', 'cifar10' or 'folder:PATH' (one folder a class)"
    )


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, validation, test = _stratified(bunch.target, (0.5, 0.25, 0.25), seed=0)
    parts = [
        Split(Images(pixels[i]), labels[i])
        for i in map(torch.from_numpy, (train, validation, test))
    ]
    return _finish("digits", parts, tuple("0123456789"), 8, crop_padding=1, flip=False)


def _load_cifar10(root: Path) -> ImageData:
    files = [root / f"data_batch_{i}.bin" for i in range(1, 6)] + [root / "test_batch.bin"]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(
            f"data='cifar10': {missing[0]} is missing; unpack the binary version of CIFAR-10 "
            "(cifar-10-binary.tar.gz) into $APQ_DATA, or use folder:PATH with images"
        )
    records = [np.fromfile(file, np.uint8) for file in files]
    for file, record in zip(files, records, strict=True):
        if len(record) % 3073:
            raise DataError(f"data='cifar10': {file} is not made of records of 3,073 bytes")
    tables = [np.concatenate(records[:5]).reshape(-1, 3073), records[5].reshape(-1, 3073)]
    pixels = [torch.from_numpy(t[:, 1:].reshape(-1, 3, 32, 32).copy()) for t in tables]
    labels = [torch.from_numpy(t[:, 0].astype(np.int64)) for t in tables]
    train, validation = _stratified(labels[0].numpy(), (0.9, 0.1), seed=0)
    parts = [
        Split(Images(pixels[0][torch.from_numpy(train)]), labels[0][torch.from_numpy(train)]),
        Split(Images(pixels[0][torch.from_numpy(validation)]),
        labels[0][torch.from_numpy(validation)]), Split(Images(pixels[1]), labels[1]),
    ]  # fmt: skip
    return _finish("cifar10", parts, _CIFAR10_CLASSES, 32, crop_padding=4, flip=True)


def _load_folder(
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
        train, validation = _stratified(labels, (0.9, 0.1), seed)
    else:
        train, validation, test = _stratified(labels, (0.7, 0.15, 0.15), seed)
        test_paths, test_labels = [paths[i] for i in test], labels[test]
    size, gray = _image_format(name, paths[0], image_size, grayscale)
    parts = [
        _read_split(name, [paths[i] for i in train], labels[train], size, gray),
        _read_split(name, [paths[i] for i in validation], labels[validation], size, gray),
        _read_split(name, test_paths, test_labels, size, gray),
    ]
    return _finish(name, parts, classes, size, crop_padding=max(1, size // 8), flip=True)


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


def _stratified(
    labels: NDArray[np.int64], shares: Sequence[float], seed: int
) -> list[NDArray[np.int64]]:
    """Indices of `len(shares)` disjoint parts, each with every class in proportion."""
    rng = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in shares]
    edges = np.cumsum(shares)[:-1]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # at least one image of every class in every part, as long as there are enough
        cuts = np.maximum(np.round(edges * len(members)).astype(int), np.arange(1, len(shares)))
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(pieces)) for pieces in parts]


def _finish(
    name: str,
    parts: Sequence[Split],
    classes: tuple[str, ...],
    size: int,
    *,
    crop_padding: int,
    flip: bool,
) -> ImageData:
    train, validation, test = parts
    few = torch.linspace(0, len(train) - 1, min(2048, len(train))).long()
    sample = train.images.batch(few).float().div_(255)
    mean = tuple(round(v, 5) for v in sample.mean((0, 2, 3)).tolist())
    std = tuple(max(round(v, 5), 1e-3) for v in sample.std((0, 2, 3)).tolist())
    digest = hashlib.sha256(f"{classes}{size}{len(mean)}".encode())
    for split in parts:
        digest.update(split.labels.numpy().tobytes())
        # file order and a sample of pixels identify the images without hashing all of them
        some = torch.linspace(0, len(split) - 1, min(256, len(split))).long()
        digest.update(split.images.batch(some).contiguous().numpy().tobytes())
    return ImageData(
        name, train, validation, test, classes, size, mean, std, crop_padding, flip,
        digest.hexdigest()[:16],
    )  # fmt: skip
