"""A part of the training images held out, so that a search leaves the other splits alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from apq_optuna.data import ImageData, Images, Split
from apq_optuna.errors import InvalidArgumentError


class _Part(Images):
    """Some of other images, which stay where they are."""

    def __init__(self, images: Images, rows: Tensor) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.images.batch(self.rows[indices])


def hold_out(
    data: ImageData, share: float, generator: torch.Generator
) -> tuple[ImageData, ImageData]:
    """The same data twice, its training images divided among them at random.

    Args:
        data: The images.
        share: How much of `data.train` the second one gets, between 0 and 1.
        generator: Decides which images.

    Returns:
        What is left, and what is held out; `search_validation` and `test` are those of `data`.

    Raises:
        InvalidArgumentError: One of them would have fewer than two images.
    """
    n = len(data.train)
    count = round(n * share)
    if count < 2 or n - count < 2:
        raise InvalidArgumentError(
            f"held_out={share}: of {n} training images, {count} would be held out; at least 2 "
            "have to be, and 2 left"
        )
    order = torch.randperm(n, generator=generator)
    left, held = (_part(data.train, rows) for rows in (order[count:], order[:count]))
    return replace(data, train=left), replace(data, train=held)


def _part(split: Split, rows: Tensor) -> Split:
    return Split(_Part(split.images, rows), split.labels_at(rows, str(split.labels.device)))
