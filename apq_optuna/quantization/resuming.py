"""A finetuning that takes long, kept on disk while it lasts, so that a stop costs a minute."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.errors import CheckpointError

FORM = 1
"""Of the state; another one is not gone on with."""

KEEP_EVERY = 60.0
"""Seconds between two checkpoints."""


class FinetuneCheckpoint:
    """Where the state of one finetuning is kept.

    Args:
        file: The safetensors file; its sidecar lies beside it.
        identity: Of everything that decides what comes out. What is kept of another one is not
            gone on with.
        every: Seconds between two checkpoints.

    Attributes:
        seconds_before: What was spent on it before a stop.
    """

    def __init__(self, file: Path, identity: str, every: float = KEEP_EVERY) -> None:
        self.file, self.identity, self.every = file, [FORM, identity], every
        self._started = self._kept = time.perf_counter()
        self.seconds_before = 0.0

    def read(self) -> tuple[dict[str, Tensor], int] | None:
        """State and steps done; None if there is nothing to go on with."""
        try:
            tensors, about = read_checkpoint(self.file)
        except CheckpointError:
            return None
        if about.get("identity") != self.identity:
            return None
        self.seconds_before = float(about["seconds"])
        return tensors, int(about["step"])

    @property
    def due(self) -> bool:
        """Whether it is time to keep the state again."""
        return time.perf_counter() - self._kept >= self.every

    def write(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Keeps the state after a number of steps."""
        seconds = self.seconds_before + time.perf_counter() - self._started
        about = {"kind": "finetuning", "identity": self.identity, "step": step}
        write_checkpoint(self.file, tensors, about | {"seconds": seconds})
        self._kept = time.perf_counter()

    def remove(self) -> None:
        """Once it is of no use any more."""
        for file in (self.file, self.file.with_suffix(".json")):
            file.unlink(missing_ok=True)
