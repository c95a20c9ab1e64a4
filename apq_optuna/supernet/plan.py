"""How a supernet is trained: for how long, in which phases, at which rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from apq_optuna.errors import InvalidArgumentError

PHASES = ("largest", "kernel", "depth", "channels")


@dataclass(frozen=True)
class TrainingPlan:
    """How a supernet is trained.

    Attributes:
        epochs: Passes over the training images; ignored where `minutes` is given.
        minutes: Training time instead of epochs.
        batch_size: Images a step.
        learning_rate: Peak, for SGD with Nesterov momentum.
        weight_decay: Not applied to BatchNorm and biases.
        warmup: Share of the run in which the learning rate rises.
        shares: Shares of the run for the phases `largest`, `kernel`, `depth`, `channels`.
        random_subnets: Random subnets a step beside the largest and the smallest.
        label_smoothing: Of the largest network's loss on labels; a teacher says enough.
        mixed: Share of training images that are mixed with another (mixup and CutMix; see
            `apq_optuna.data.mixed_images`). Much of it is for long training, with a teacher above
            all.
        checkpoint_seconds: Time between checkpoints.
        start: `weights_hash` of a trained supernet that is trained for longer, so that a stopped
            training does not go on as that of another.
    """

    epochs: float = 20.0
    minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-5
    warmup: float = 0.03
    shares: tuple[float, float, float, float] = (0.25, 0.1, 0.15, 0.5)
    random_subnets: int = 1
    label_smoothing: float = 0.05
    checkpoint_seconds: float = 60.0
    mixed: float = 0.0
    start: str = ""

    def __post_init__(self) -> None:
        if self.minutes is None and self.epochs <= 0:
            raise InvalidArgumentError(f"epochs={self.epochs}: must be positive")
        if self.minutes is not None and self.minutes <= 0:
            raise InvalidArgumentError(f"minutes={self.minutes}: must be positive")
        if self.batch_size < 2:
            raise InvalidArgumentError(f"batch_size={self.batch_size}: at least 2")
        if not 0 <= self.mixed <= 1:
            raise InvalidArgumentError(f"mixed={self.mixed}: a share between 0 and 1")

    @property
    def identity(self) -> dict[str, Any]:
        """Its settings in JSON types; without those that came later where they say nothing."""
        later = ("mixed", "start")
        return {k: v for k, v in asdict(self).items() if v or k not in later}

    def phase(self, progress: float) -> str:
        """Name of the phase at a progress in [0, 1]."""
        edges = np.cumsum(self.shares) / sum(self.shares)
        return PHASES[int(np.searchsorted(edges[:-1], progress, side="right"))]

    def rate(self, progress: float) -> float:
        """Learning rate at a progress in [0, 1]."""
        if progress < self.warmup:
            return self.learning_rate * (progress / self.warmup * 0.95 + 0.05)
        cosine = (progress - self.warmup) / (1 - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(cosine, 1.0)))
