"""Genotypes as features for a predictor.

Notation:
    D, n    decisions; genotypes in a batch, `(n, D)`
    F       feature columns: the architecture's first, the quantization's after
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import FLOAT_BITS, Decision, Genotypes
from apq_optuna.space.activity import Activity

Features = NDArray[np.float32]


class FeatureMap:
    """One-hot columns of decisions; wide numbers are one scaled column each.

    Depth has no columns of its own: a missing layer's zeros express it. 32 bits is no column set,
    so a network without quantization has an all-zero quantization part.

    Attributes:
        width: F.
        architecture: How many of them, the leading ones, are of the architecture.
        one_hot: Whether every feature is a one-hot column, so that `indices` says it all.
    """

    def __init__(self, decisions: Sequence[Decision], activity: Activity) -> None:
        self._activity = activity
        self._sizes = np.array([len(decision.choices) for decision in decisions], np.int32)
        most = int(self._sizes.max(initial=1))
        columns = np.full((len(decisions), most), -1, np.int64)
        scaled: list[tuple[int, int]] = []
        cursor = 0
        for quantization in (False, True):
            for row, decision in enumerate(decisions):
                if decision.quantization != quantization or decision.role == "depth":
                    continue
                if decision.scaled:
                    scaled.append((row, cursor))
                    cursor += 1
                    continue
                for choice, value in enumerate(decision.choices):
                    if quantization and value == FLOAT_BITS:
                        continue
                    columns[row, choice] = cursor
                    cursor += 1
            if not quantization:
                self.architecture = cursor
        self.width = cursor
        columns[columns < 0] = cursor
        self._table = columns.ravel()
        self._offset = np.arange(len(decisions)) * most
        self._scaled_rows = np.array([s[0] for s in scaled], np.intp)
        self._scaled_columns = np.array([s[1] for s in scaled], np.intp)
        self.one_hot = not scaled

    def indices(self, genotypes: Genotypes) -> NDArray[np.int64]:
        """The set one-hot columns of each genotype, `(n, D)`; `width` means none."""
        columns: NDArray[np.int64] = self._table[genotypes + self._offset]
        governed = self._activity.columns
        if len(governed):
            found = columns[:, governed]
            found[self._activity.out_of_use(genotypes)] = self.width
            columns[:, governed] = found
        return columns

    def __call__(self, genotypes: Genotypes) -> Features:
        """`(n, D)` to `(n, F) float32`; what is not in use is all zeros."""
        out = np.zeros((len(genotypes), self.width + 1), np.float32)
        np.put_along_axis(out, self.indices(genotypes), 1.0, axis=1)
        if len(self._scaled_rows):
            levels = np.maximum(self._sizes[self._scaled_rows] - 1, 1)
            out[:, self._scaled_columns] = genotypes[:, self._scaled_rows] / levels
        return out[:, :-1]
