"""Constraints that only trials can tell, learned from their values.

Notation:
    k       constraints; a value above 0 breaks one
    V       total violation of a trial: the sum of its values above 0, as Optuna ranks them
    S       draws of the models' outcomes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from apq_optuna.networks import Genotypes
from apq_optuna.sampler.history import Snapshot
from apq_optuna.sampler.surrogate import Surrogate, clipped
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]

DRAWS = 64
SMALLEST = 1e-12
"""Expected decreases below this tell nothing apart."""


class Constraints:
    """A model of each constraint.

    Args:
        space: The search space.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._models: dict[str, Surrogate] = {}
        self._told: list[Surrogate] = []
        self._least = 0.0

    def refresh(self, snapshot: Snapshot) -> Constraints:
        """Takes in all trials; a trial that lacks a constraint tells nothing of it."""
        self._told = []
        for name, values in snapshot.constraints.items():
            told = ~np.isnan(values)
            if told.any():
                model = self._models.setdefault(name, Surrogate(self.space))
                rows = snapshot.genotypes[told]
                model = model.refresh(rows, clipped(values[told]))
                self._told.append(model.believing(snapshot.running))
        finite = snapshot.violation[np.isfinite(snapshot.violation)]
        self._least = float(finite.min(initial=np.inf)) if len(finite) else 1.0
        if len(snapshot.running):  # what they are believed to reach need not be reached again
            self._least = min(self._least, float(self._believed(snapshot.running).min()))
        return self

    def _believed(self, rows: Genotypes) -> Floats:
        """V of `(n, D)` rows, were every constraint as predicted, `(n,)`."""
        total = np.zeros(len(rows))
        for model in self._told:
            total += np.maximum(model.predict(rows)[0], 0.0)
        return total

    def believed_met(self, rows: Genotypes) -> NDArray[np.bool_]:
        """Whether `(n, D)` rows are predicted to meet every constraint, `(n,)`."""
        return self._believed(rows) <= 0.0

    def probability(self, rows: Genotypes) -> Floats:
        """Probability that `(n, D)` rows meet every constraint, `(n,)`."""
        result = np.ones(len(rows))
        for model in self._told:
            mean, std = model.predict(rows)
            result *= ndtr(-mean / np.maximum(std, 1e-12))
        return result

    def decrease(self, rows: Genotypes) -> Floats:
        """By how much rows are expected to lower the least V so far, `(n,)`, as a share of it.

        The probability of meeting all is 0 far from where that is possible, and says no direction.
        Where the expected decrease is, too, rows are told apart by what they might reach at best.
        """
        draws = np.random.default_rng(0).standard_normal((len(self._told), DRAWS))
        total = np.zeros((len(rows), DRAWS))
        hoped = np.zeros(len(rows))
        scale = max(self._least, 1e-300)
        for model, z in zip(self._told, draws, strict=True):
            mean, std = (part / scale for part in model.predict(rows))
            total += np.maximum(mean[:, None] + std[:, None] * z, 0.0)
            hoped += np.maximum(mean - 2.0 * std, 0.0)
        gain = np.maximum(1.0 - total, 0.0).mean(axis=1)
        return np.where(gain > SMALLEST, gain, -SMALLEST * hoped / (1.0 + hoped))
