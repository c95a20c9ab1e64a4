"""A walk through the layers of one network: a step for each decision that an agent takes.

Notation:
    D       decisions of the space; a genotype is `(D,) int32`
    T       steps of the walk
    k       choices of a step

A decision may govern several layers (of a mobile block both pointwise layers share their widths),
and a layer may follow several decisions. One step a decision; where an original has one layer,
the step has the layers that its decision governs: their weights are summed, shapes are those of
the one with the most MACs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import ConvLayer, Genotypes, Site, as_pair
from apq_optuna.space import SearchSpace

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class WalkStep:
    """One decision that the agent takes.

    Attributes:
        column: Of the decision.
        choices: Indices of the choices it may take, ascending.
        sites: Positions of the governed layers among the family's sites, in execution order; only
            those that the network has.
        operand: Whether bits are of weights (1), of inputs (0), or of both (0.5).
    """

    column: int
    choices: tuple[int, ...]
    sites: tuple[int, ...]
    operand: float = 1.0

    def at(self, action: float) -> int:
        """The choice of an action in [0, 1]: equal intervals."""
        return self.choices[min(int(action * len(self.choices)), len(self.choices) - 1)]

    def action_of(self, choice: int) -> float:
        """The middle of a choice's interval; of one that the step does not offer, the nearest's.

        The inverse of `at`.
        """
        place = int(np.abs(np.array(self.choices) - choice).argmin())
        return (place + 0.5) / len(self.choices)

    def below(self, choice: int) -> int | None:
        """The next lower choice; None below the lowest."""
        return max((c for c in self.choices if c < choice), default=None)


def walked_columns(space: SearchSpace, row: Genotypes, role: str) -> list[int]:
    """Columns of the decisions of a role that a network `(D,)` has."""
    active = space.active(row[None])[0]
    return [c for c, d in enumerate(space.decisions) if d.role == role and active[c]]


def active_sites(space: SearchSpace, row: Genotypes) -> list[tuple[int, Site]]:
    """The layers that a network `(D,)` has, with their positions among the family's sites."""
    return [
        (position, site)
        for position, site in enumerate(space.networks.sites())
        if site.needs is None or row[site.needs[0]] >= site.needs[1]
    ]


def layer_at(site: Site, row: Genotypes) -> ConvLayer:
    """The layer of a site in a network `(D,)`."""
    return site.layer_of(site.sizes(row[None])[0])


def shapes(
    space: SearchSpace, row: Genotypes, steps: Sequence[WalkStep]
) -> dict[str, NDArray[np.float64]]:
    """What each step's layers are in a network `(D,)`: entries of `(T,)`, not scaled.

    Zero for a decision that governs no layer of it.
    """
    sites = space.networks.sites()
    kinds = list(dict.fromkeys(site.kind for site in sites))
    entries = ("kind", "depthwise", "in", "out", "stride", "kernel", "weights", "pixels")
    found = {entry: np.zeros(len(steps)) for entry in entries}
    for t, step in enumerate(steps):
        layers = [(sites[position], layer_at(sites[position], row)) for position in step.sites]
        if not layers:
            continue
        site, layer = max(layers, key=lambda pair: pair[1].macs)
        values: dict[str, float] = {
            "kind": kinds.index(site.kind),
            "depthwise": layer.depthwise,
            "in": layer.in_channels,
            "out": layer.out_channels,
            "stride": max(as_pair(layer.stride)),
            "kernel": max(as_pair(layer.kernel_size)),
            "weights": sum(each.weights for _, each in layers),
            "pixels": math.prod(as_pair(layer.input_size)),
        }
        for entry, value in values.items():
            found[entry][t] = value
    found["index"] = np.arange(len(steps), dtype=float)
    return found


def scaled(columns: Sequence[NDArray[np.float64]]) -> Floats:
    """Entries `(T,)` side by side, each from 0 to 1 over the walk; one that is constant is 0."""
    table = np.stack(columns, axis=1)
    low, span = table.min(axis=0), np.ptp(table, axis=0)
    return np.asarray((table - low) / np.where(span > 0, span, 1.0), np.float32)
