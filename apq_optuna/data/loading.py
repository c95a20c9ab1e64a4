"""`load_data`: a data set by its name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from apq_optuna.data.folders import load_folder
from apq_optuna.data.images import ImageData, Images, Split
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
        return load_folder(name, Path(name.removeprefix("folder:")), image_size, grayscale, seed)
    raise InvalidArgumentError(
        f"data={name!r} is unknown; use 'digits', 'cifar10' or 'folder:PATH' (one folder a class)"
    )


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
