"""Images of two pictures each, which a small network cannot learn by heart."""

from __future__ import annotations

import torch
from torch import Tensor


def mixed_images(
    images: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Some images of a batch mixed with the one before them, which is any other if shuffled.

    Half of them are blended (mixup, Zhang et al., ICLR 2018), half have a square of the other
    (CutMix, Yun et al., ICCV 2019). A blend has a uniform share of each; a square's area is
    uniform in [0, 1], too, but its middle may lie at an edge, beyond which it is cut off.

    Args:
        images: `(B, C, H, W)` float.
        share: Of the images that are mixed, in [0, 1].
        generator: Decides which, how much and where; of the CPU.

    Returns:
        The images, and `(B,) float32`: how much of each is its own. The rest is of the one before
        it, of the last one for the first.
    """
    size, (height, width) = len(images), images.shape[2:]
    kind, own, y, x = torch.rand(4, size, generator=generator).to(images.device, non_blocking=True)
    side = (1 - own).sqrt() / 2  # of a square of that area, to both sides of its middle

    def within(middle: Tensor, side: Tensor, pixels: int) -> Tensor:
        centres = (torch.arange(pixels, device=images.device) + 0.5) / pixels
        return (centres - middle[:, None]).abs() < side[:, None]

    square = within(y, side, height)[:, :, None] & within(x, side, width)[:, None, :]
    blended, cut = kind < share / 2, (kind >= share / 2) & (kind < share)
    keep = torch.where(blended, own, torch.ones_like(own))[:, None, None]
    keep = keep * ~(square & cut[:, None, None])
    other = images.roll(1, 0)
    return other.lerp(images, keep[:, None].to(images.dtype)), keep.mean((1, 2))


def mixed_labels(labels: Tensor, own: Tensor, classes: int) -> Tensor:
    """Probabilities `(B, classes) float32` of mixed images; see `mixed_images`."""
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return one_hot.roll(1, 0).lerp(one_hot, own[:, None])
