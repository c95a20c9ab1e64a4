"""Which proposals are so near a running trial that its result will tell theirs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace

NEAR = 0.01
"""Share of a range: two running trials differ by more in some number, or in a choice."""


class Nearness:
    """Distance to running trials, where a space has numbers fine enough to need one.

    Workers that ask at the same time find the same best place, and in a continuous space never
    the same point.

    Args:
        space: The search space; rows of one without fine numbers are near only where equal.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.fine = space.family is None and bool((space.sizes > 1.0 / NEAR).any())
        self._table = np.zeros((len(space.decisions), int(space.sizes.max(initial=1))))
        for row, decision in enumerate(space.decisions):
            unordered = decision.role == "categorical"
            places = np.arange(len(decision.choices)) if unordered else decision.places()
            self._table[row, : len(decision.choices)] = places
        self._columns = np.arange(len(space.decisions))

    def __call__(self, rows: Genotypes, running: Genotypes) -> NDArray[np.bool_]:
        """Which of `(n, D)` rows are as good as one of `(r, D)`, `(n,) bool`."""
        near = np.zeros(len(rows), bool)
        places = self._table[self._columns, rows]
        for other in self._table[self._columns, running]:
            near |= (np.abs(places - other) <= NEAR).all(axis=1)
        return near
