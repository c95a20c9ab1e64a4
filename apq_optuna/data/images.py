"""Images as three splits: train, search-validation, test.

A search trains on `train` and is judged on `search_validation`; `test` is touched once, by
`finetune`. Small data sets are held in memory as uint8; a folder too large for that is decoded
batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

AUGMENTATIONS = ("none", "shift", "shift+flip")
"""What `load_data` and `--augment` offer."""


class Images:
    """uint8 images held in memory, `(n, C, H, W)`."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Tensor) -> Tensor:
        """The images at `indices`, `(len(indices), C, H, W) uint8`."""
        return self.pixels[indices.to(self.pixels.device, non_blocking=True)]

    def on(self, device: str) -> Images:
        """The same images in the memory of a device."""
        return Images(self.batch(torch.arange(len(self))).to(device))


@dataclass(frozen=True)
class Split:
    """One split: images, and `labels` `(n,) int64`."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def on(self, device: str) -> Split:
        """The same split, images and labels kept on a device where they are in memory."""
        return Split(self.images.on(device), self.labels.to(device))

    def labels_at(self, indices: Tensor, device: str) -> Tensor:
        """The labels of the images at `indices`, on `device`."""
        chosen = self.labels[indices.to(self.labels.device, non_blocking=True)]
        return chosen.to(device, non_blocking=True)


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
        fit: How a folder's images were made squares: `crop`, `pad` or `stretch`.
        skip_broken: Whether files that cannot be read were to be left out.
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
    fit: str = "crop"
    skip_broken: bool = False
    _normalisers: dict[str, tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def augment(self) -> str:
        """What training does to images: `none`, `shift`, `flip` or `shift+flip`."""
        done = ("shift",) * (self.crop_padding > 0) + ("flip",) * self.flip
        return "+".join(done) or "none"

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

    def on(self, device: str) -> ImageData:
        """The same data, its splits kept on a device: batches then need no way there."""
        if device == "cpu":
            return self
        return replace(
            self,
            train=self.train.on(device),
            search_validation=self.search_validation.on(device),
            test=self.test.on(device),
        )

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
        start: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled pass over the training split; a last smaller batch is dropped.

        Args:
            batch_size: Images a batch; capped at the size of the split.
            generator: Decides order and augmentation.
            device: Where the batches go.
            augment: Random crops and flips.
            limit: Most batches to give, those before `start` counted.
            start: Batches that are left out at the beginning: what is random about them is drawn,
                no image is read.

        Yields:
            `(B, C, H, W) float32` and `(B,) int64`.
        """
        n = len(self.train)
        size = min(batch_size, n)
        order = torch.randperm(n, generator=generator)
        batches = n // size if limit is None else min(limit, n // size)
        for b in range(batches):
            chosen = order[b * size : (b + 1) * size]
            drawn = _drawn(size, self.crop_padding, self.flip, generator) if augment else ()
            if b < start:
                continue
            pixels = self.train.images.batch(chosen)
            if augment:
                pixels = _augment(pixels, self.crop_padding, *drawn)
            yield self.normalise(pixels, device), self.train.labels_at(chosen, device)

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
            yield self.normalise(pixels, device), split.labels_at(chosen, device)


def usual_augment(name: str) -> str | None:
    """How `load_data` augments a data set where nothing is asked for; None for other data.

    It is also what supernets and studies that do not say their augmentation were made with.
    """
    if name == "digits":
        return "shift"
    return "shift+flip" if name == "cifar10" or name.startswith("folder:") else None


def _drawn(
    n: int, padding: int, flip: bool, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """What is random about `n` images: where they are cropped, and which are mirrored.

    It is drawn where `generator` is, so it is the same on every device.
    """
    offsets = mirrored = None
    if padding:
        offsets = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
    return offsets, mirrored


def _augment(
    pixels: Tensor, padding: int, offsets: Tensor | None, mirrored: Tensor | None
) -> Tensor:
    """Crops of the padded images, some of them mirrored; see `_drawn`."""
    n, _, height, width = pixels.shape
    device = pixels.device
    if offsets is not None:
        padded = torch.nn.functional.pad(pixels, (padding,) * 4)
        rows = offsets[0] + torch.arange(height)
        columns = offsets[1] + torch.arange(width)
        if mirrored is not None:
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = (at.to(device, non_blocking=True) for at in (rows, columns))
        image = torch.arange(n, device=device).view(n, 1, 1)
        # (n, H, W, C) after indexing two axes apart; back to channels first
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(
            0, 3, 1, 2
        )
    if mirrored is not None:
        return torch.where(mirrored.view(n, 1, 1, 1).to(device), pixels.flip(3), pixels)
    return pixels
