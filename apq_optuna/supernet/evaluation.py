"""What a network is worth: BatchNorm statistics of its own, and its accuracy."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apq_optuna.data import ImageData

BATCH_PIXELS = 128 * 32 * 32
"""Pixels of a batch at evaluation."""

GPU_BATCHES = 16
"""As many times more on a GPU, whose kernels take as long for a few images."""


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Re-estimates every BatchNorm's statistics on training images (Cai et al., ICLR 2020).

    Each statistic becomes the plain average over `batches`; all other state is left as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for images, _ in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@torch.no_grad()
def accuracy(
    model: nn.Module,
    data: ImageData,
    *,
    split: str = "search_validation",
    limit: int | None = None,
    batch_size: int | None = None,
) -> float:
    """Share of a split's images that `model` classifies correctly, in [0, 1].

    Args:
        model: Any network from images to logits; put into evaluation mode.
        data: The data set.
        split: `train`, `search_validation` or `test`.
        limit: Most images to use.
        batch_size: Images a batch; by default as many as keep a network's activations near the
            processor.
    """
    model.eval()
    device = str(next(model.parameters()).device)
    if batch_size is None:
        batch_size = min(max(BATCH_PIXELS // data.image_size**2, 32), 512)
        batch_size *= 1 if device == "cpu" else GPU_BATCHES
    correct = torch.zeros((), dtype=torch.int64, device=device)
    seen = 0
    batches = data.evaluation_batches(getattr(data, split), batch_size, device=device, limit=limit)
    for images, labels in batches:
        correct += (model(images).argmax(1) == labels).sum()
        seen += len(labels)
    return correct.item() / max(seen, 1)
