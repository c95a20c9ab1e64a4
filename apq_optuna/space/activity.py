"""Which decisions of a genotype are in use, for whole batches.

Notation:
    D, n    decisions; genotypes in a batch, `(n, D)`
    G       governed decisions: those that are not always in use
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import SpaceError
from apq_optuna.networks import Decision, Genotypes, Needs


@dataclass(frozen=True)
class Inactivity:
    """Tells whether some of `width` things are out of use; for hot paths that look at a few."""

    width: int
    positions: NDArray[np.intp]
    governing: NDArray[np.intp]
    thresholds: NDArray[np.int32]

    @classmethod
    def of(cls, needs: Sequence[Needs | None]) -> Inactivity:
        """Of things with these needs, in their order."""
        governed = [(i, *need) for i, need in enumerate(needs) if need is not None]
        positions, governing, thresholds = np.array(governed, np.intp).reshape(-1, 3).T
        return cls(len(needs), positions, governing, thresholds.astype(np.int32))

    def __call__(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """`(n, D)` to `(n, width) bool`."""
        mask = np.zeros((len(genotypes), self.width), bool)
        if len(self.positions):
            mask[:, self.positions] = genotypes[:, self.governing] < self.thresholds
        return mask


class Activity:
    """What is in use in genotypes of some decisions.

    Raises:
        SpaceError: A decision needs one that is not there, does not come before it, or is not
            always in use.
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        place = {decision.name: column for column, decision in enumerate(decisions)}
        self.needs: list[Needs | None] = []
        for column, decision in enumerate(decisions):
            if decision.needs is None:
                self.needs.append(None)
                continue
            name, least = decision.needs
            governor = place.get(name, column)
            if governor >= column or self.needs[governor] is not None:
                raise SpaceError(
                    f"{decision.name} needs {name!r}, which is not a decision before it that is "
                    "always in use"
                )
            self.needs.append((governor, least))
        all_of_them = Inactivity.of(self.needs)
        self.columns = all_of_them.positions
        """Columns of governed decisions, `(G,)`."""
        self._governing, self._thresholds = all_of_them.governing, all_of_them.thresholds

    def out_of_use(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """`(n, D)` to `(n, G)`: which governed decisions are not in use."""
        return np.asarray(genotypes[:, self._governing] < self._thresholds)

    def active(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """`(n, D)` to `(n, D)`: which decisions are in use."""
        mask = np.ones(genotypes.shape, bool)
        if len(self.columns):
            mask[:, self.columns] = ~self.out_of_use(genotypes)
        return mask

    def canonical(self, genotypes: Genotypes) -> Genotypes:
        """`(n, D)` with what is not in use at its first choice."""
        result = np.array(genotypes, np.int32)
        if len(self.columns):
            columns = result[:, self.columns]
            columns[self.out_of_use(result)] = 0
            result[:, self.columns] = columns
        return result
