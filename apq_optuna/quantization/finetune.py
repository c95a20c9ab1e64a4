"""Quantization-aware finetuning: a fixed number of steps, decided by a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna.data import ImageData
from apq_optuna.errors import ApqError, InvalidArgumentError
from apq_optuna.networks import Subnet
from apq_optuna.quantization.network import calibrate, quantize_network
from apq_optuna.supernet import SubnetModule, Supernet, recalibrate


@dataclass(frozen=True)
class FinetuneOptions:
    """How a quantized subnet is finetuned.

    Attributes:
        steps: Optimiser steps; 0 measures right after calibration.
        batch_size: Images a step.
        learning_rate: Peak, for Adam; falls to zero along a cosine.
        calibration_images: Training images for BatchNorm statistics and step sizes.
        distillation: Weight of the fp32 subnet's own predictions in the loss, in [0, 1].
    """

    steps: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    calibration_images: int = 512
    distillation: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InvalidArgumentError(f"steps={self.steps}: cannot be negative")
        if self.batch_size < 1 or self.calibration_images < 1:
            raise InvalidArgumentError(
                f"batch_size={self.batch_size}, calibration_images={self.calibration_images}: "
                "both must be at least 1"
            )
        if self.learning_rate <= 0:
            raise InvalidArgumentError(f"learning_rate={self.learning_rate}: must be positive")


class DivergedError(ApqError, ArithmeticError):
    """A finetune whose loss became infinite or NaN."""


def fp32_network(
    supernet: Supernet, subnet: Subnet, data: ImageData, images: int, seed: int
) -> SubnetModule:
    """The extracted subnet with BatchNorm statistics of its own, from `images` training images."""
    module = supernet.subnet(subnet)
    device = supernet.device
    generator = torch.Generator().manual_seed(seed)
    batch = min(256, images, len(data.train))
    recalibrate(
        module,
        data.training_batches(
            batch, generator, device=device, augment=False, limit=-(-images // batch)
        ),
    )
    return module


def quantized_network(
    module: SubnetModule, subnet: Subnet, data: ImageData, images: int, seed: int
) -> SubnetModule:
    """An fp32 subnet folded, quantized to `subnet`'s bits and calibrated on training images."""
    quantized = quantize_network(module, subnet)
    device = str(next(module.parameters()).device)
    generator = torch.Generator().manual_seed(seed)
    batch = min(images, len(data.train))
    batches = data.training_batches(batch, generator, device=device, augment=False, limit=1)
    for calibration_images, _ in batches:
        calibrate(quantized, calibration_images)
    return quantized


def finetune_quantized(
    module: SubnetModule,
    data: ImageData,
    options: FinetuneOptions,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    report: Callable[[int, float], None] | None = None,
) -> SubnetModule:
    """Trains weights, biases and step sizes of a calibrated network in place.

    Args:
        module: From `quantized_network`.
        data: Only `data.train` is used.
        options: Steps and rates.
        seed: Of order and augmentation: the same seed gives the same network.
        teacher: Network whose predictions are distilled, usually the fp32 subnet.
        report: Called after each step with its number and loss.

    Raises:
        DivergedError: The loss became infinite or NaN.
    """
    if options.steps == 0:
        return module.eval()
    device = str(next(module.parameters()).device)
    scales = [p for n, p in module.named_parameters() if n.endswith("_scale")]
    others = [p for n, p in module.named_parameters() if not n.endswith("_scale")]
    groups = [{"params": others, "weight": 1.0}, {"params": scales, "weight": 0.3}]
    optimizer = torch.optim.Adam(groups, lr=options.learning_rate, eps=1e-8)
    batches = _endless(data, options.batch_size, seed, device)
    module.train()
    for step in range(options.steps):
        rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["weight"]
        images, labels = next(batches)
        optimizer.zero_grad(set_to_none=True)
        logits = module(images)
        loss = F.cross_entropy(logits, labels)
        if teacher is not None and options.distillation > 0:
            with torch.no_grad():
                soft = teacher(images).softmax(1)
            d = options.distillation
            loss = (1 - d) * loss + d * F.cross_entropy(logits, soft)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"the loss became {value} at step {step + 1} of {options.steps}")
        loss.backward()
        nn.utils.clip_grad_norm_(others, 5.0)
        optimizer.step()
        if report is not None:
            report(step + 1, value)
    return module.eval()


def _endless(
    data: ImageData, batch_size: int, seed: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from data.training_batches(batch_size, generator, device=device)
