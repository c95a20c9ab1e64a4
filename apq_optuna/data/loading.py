"""`load_data`: a data set by its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from apq_optuna.data.decode import FITS
from apq_optuna.data.folders import load_folder
from apq_optuna.data.images import AUGMENTATIONS, ImageData, Images, Split
from apq_optuna.data.splits import assemble, stratified
from apq_optuna.errors import DataError, InvalidArgumentError

_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    grayscale: bool | None = None,
    seed: int = 0,
    fit: str = "crop",
    skip_broken: bool = False,
    augment: str | None = None,
    cache: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageData:
    """Loads a data set and splits it.

    A folder holds one folder of images a class, at any depth below it, or folders of those for
    the splits. Names of the training part are train, training, train_set or training_set; of the
    search-validation part val, valid, validation or dev; of the test part test or testing; in
    any case. Without a search-validation part a tenth of the training part becomes it; with one,
    but without a test part, a tenth of the training part is the test part, and a warning says so.
    Hidden files and what systems leave behind (`.DS_Store`, `__MACOSX`, `.ipynb_checkpoints`)
    are nothing.

    Images are set upright by their EXIF orientation and put on white where they are transparent.
    Gray ones of 16 bits are scaled by their depth; floats by 1 where they lie in [0, 1], by 255
    where they lie in [0, 255], otherwise by their own least and largest value.

    Args:
        name: `digits` (1,797 8x8 images that come with scikit-learn), `cifar10` (the binary
            version, in `$APQ_DATA/cifar-10-batches-bin`, by default below `data`), or
            `folder:PATH`: one folder of images a class, flat or below `PATH/train` and
            `PATH/test`. `~` is the home folder.
        image_size: Side to which a folder's images are resized; by default the first one's shorter
            side.
        grayscale: True converts, False makes three channels; by default a folder stays gray if
            its first image is and none has colour.
        seed: Decides the splits of a folder without a test part.
        fit: How a folder's images that are not square become it: `crop` resizes the shorter side
            and keeps the middle, `pad` resizes the longer side and puts the image on black,
            `stretch` resizes both.
        skip_broken: Leaves out a folder's files that cannot be read, with a warning that names
            them. The splits are those of a folder without these files. A folder too large for
            memory is read once, whole, to find them.
        augment: What training does to images at random: `none`, `shift` (crops of the padded
            image), or `shift+flip` (mirror images as well); by default `shift` for digits and
            `shift+flip` for the others. Digits, text and signs are wrong when mirrored.
        cache: Keeps a folder's decoded images in the user's cache directory (`$APQ_CACHE`, up to
            `$APQ_CACHE_GIB` in all, 4 by default), where the next process finds them.
        mean, std: Per channel, of pixels in [0, 1], that images are normalised with: those that a
            pretrained model was trained with; by default the training images' own.

    Raises:
        InvalidArgumentError: Unknown name, fit or augmentation, or what only a folder can be
            given for another data set.
        DataError: No images, fewer than two classes, a folder in no known layout, or files that
            cannot be read; names them.
    """
    for what, value, allowed in (("fit", fit, FITS), ("augment", augment, (*AUGMENTATIONS, None))):
        if value not in allowed:
            choices = ", ".join(repr(choice) for choice in allowed if choice is not None)
            raise InvalidArgumentError(f"{what}={value!r} is unknown; choose from {choices}")
    if name == "digits":
        data = _load_digits()
    elif name == "cifar10":
        root = _expanded(name, os.environ.get("APQ_DATA", "data"))
        data = _load_cifar10(root / "cifar-10-batches-bin")
    elif name.startswith("folder:"):
        data = load_folder(
            name, _expanded(name, name.removeprefix("folder:")), image_size=image_size,
            grayscale=grayscale, fit=fit, skip_broken=skip_broken, seed=seed, cache=cache,
        )  # fmt: skip
    else:
        raise InvalidArgumentError(
            f"data={name!r} is unknown; use 'digits', 'cifar10' or 'folder:PATH' (one folder a "
            "class)"
        )
    if not name.startswith("folder:"):
        _refuse_for_folders(data, image_size, grayscale, fit, skip_broken)
    data = normalised_with(data, mean, std)
    if augment is None:
        return data
    padding = 0 if augment == "none" else data.crop_padding
    return replace(data, crop_padding=padding, flip=augment == "shift+flip")


def normalised_with(
    data: ImageData, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ImageData:
    """The data with a model's own mean and deviation of its channels.

    Raises:
        InvalidArgumentError: Not as many numbers as channels, or outside [0, 1].
    """
    found: dict[str, tuple[float, ...]] = {}
    for what, given in (("mean", mean), ("std", std)):
        if given is None:
            continue
        values = tuple(float(value) for value in given)
        if len(values) != data.channels or not all(0 <= v <= 1 for v in values):
            raise InvalidArgumentError(
                f"{what}={values}: {data.channels} numbers in [0, 1], one a channel"
            )
        if what == "std" and min(values) == 0:
            raise InvalidArgumentError(f"std={values}: must be above 0")
        found[what] = values
    return replace(data, **found, _normalisers={}) if found else data  # type: ignore[arg-type]


def _refuse_for_folders(
    data: ImageData, image_size: int | None, grayscale: bool | None, fit: str, skip_broken: bool
) -> None:
    """Refuses what a data set of one form cannot be given as."""
    gray = data.channels == 1
    for what, given, fixed in (
        ("image_size", image_size, data.image_size), ("grayscale", grayscale, gray),
        ("fit", fit, "crop"), ("skip_broken", skip_broken, False),
    ):  # fmt: skip
        if given not in (None, fixed):
            raise InvalidArgumentError(
                f"{what}={given!r} is for folders of images; data={data.name!r} is "
                f"{data.image_size}x{data.image_size} and {'gray' if gray else 'in colour'}"
            )


def _expanded(name: str, path: str) -> Path:
    """A path with the home folder for `~`, which no shell expands behind `folder:`."""
    if not path:
        raise InvalidArgumentError(f"data={name!r}: give a path, as in folder:images")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"data={name!r}: {path}: {error}") from error


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    train, validation, test = stratified(bunch.target, (0.5, 0.25, 0.25), seed=0)
    parts = [
        Split(Images(pixels[i]), labels[i])
        for i in map(torch.from_numpy, (train, validation, test))
    ]
    return assemble("digits", parts, tuple("0123456789"), 8, crop_padding=1, flip=False)


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
    train, validation = stratified(labels[0].numpy(), (0.9, 0.1), seed=0)
    parts = [
        Split(Images(pixels[0][torch.from_numpy(train)]), labels[0][torch.from_numpy(train)]),
        Split(Images(pixels[0][torch.from_numpy(validation)]),
        labels[0][torch.from_numpy(validation)]), Split(Images(pixels[1]), labels[1]),
    ]  # fmt: skip
    return assemble("cifar10", parts, _CIFAR10_CLASSES, 32, crop_padding=4, flip=True)
