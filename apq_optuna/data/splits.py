"""How images become three splits, and what identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from apq_optuna.data.images import ImageData, Split


def stratified(
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


def assemble(
    name: str,
    parts: Sequence[Split],
    classes: tuple[str, ...],
    size: int,
    *,
    crop_padding: int,
    flip: bool,
    fit: str = "crop",
    skip_broken: bool = False,
) -> ImageData:
    """The splits as a data set, with normalisation and identity.

    Files that were left out are not part of the identity: it is that of the images there are.
    """
    train, validation, test = parts
    few = torch.linspace(0, len(train) - 1, min(2048, len(train))).long()
    sample = train.images.batch(few).float().div_(255)
    mean = tuple(round(v, 5) for v in sample.mean((0, 2, 3)).tolist())
    std = tuple(max(round(v, 5), 1e-3) for v in sample.std((0, 2, 3)).tolist())
    fitted = "" if fit == "crop" else fit  # a hash from before there was a choice stays
    digest = hashlib.sha256(f"{classes}{size}{len(mean)}{fitted}".encode())
    for split in parts:
        digest.update(split.labels.numpy().tobytes())
        # file order and a sample of pixels identify the images without hashing all of them
        some = torch.linspace(0, len(split) - 1, min(256, len(split))).long()
        digest.update(split.images.batch(some).contiguous().numpy().tobytes())
    return ImageData(
        name, train, validation, test, classes, size, mean, std, crop_padding, flip,
        digest.hexdigest()[:16], fit, skip_broken,
    )  # fmt: skip
