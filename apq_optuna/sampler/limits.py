"""Hard limits: budgets on what is known, and what the device runs.

Notation:
    n       candidates
    row     a genotype; a grid decision's choice is a cell of its range
    inner   position inside each cell, `(n, D)` in [0, 1]; what is proposed is a value, not a cell
    J       positions of a cell that are priced where its middle breaks a budget
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InfeasibleBudgetError
from apq_optuna.hardware.tables.compiled import CompiledCosts
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.known import KnownObjectives
from apq_optuna.search import EvolutionOptions, evolve
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]
Constrain = Callable[[Genotypes], Genotypes]
Taken = Callable[[Genotypes], NDArray[np.bool_]]

UNKNOWN_COST = 1e6

CORNERS = 16
"""J: all low, all high, and corners at random; what a size allows of a cell is at one of them."""

NARROWING = 64
"""Values tried inside a cell: from anywhere in it towards the one that is within the budgets."""

POINTS, ROUNDS, SPREADING = 256, 80, 4
"""Of the search for values where no corner of a cell is within the budgets, and how often what it
found is then spread over the other parameters."""


class Limits:
    """Budgets and prices of one study, seen through one space.

    Args:
        space: The search space.
        known: Objectives computed from genotypes.
        priced: The compiled cost table of a joint space.
        budgets: Upper limits by the name of a cost or of a known objective.
    """

    def __init__(
        self,
        space: SearchSpace,
        known: KnownObjectives,
        priced: CompiledCosts | None,
        budgets: Mapping[str, float],
    ) -> None:
        self.space, self.known, self.priced, self.budgets = space, known, priced, budgets
        self._grid = np.array([decision.grid for decision in space.decisions], bool)
        names = {known.names[i] for i in known.functions}
        self._inside = bool(self._grid.any()) and bool(names & budgets.keys())
        corners = np.random.default_rng(0).integers(0, 2, (CORNERS, len(space.decisions)))
        corners[0], corners[1] = 0, 1
        self._corners = corners.astype(float)
        self._found: dict[bytes, Floats] = {}

    def begin(self, known: KnownObjectives) -> None:
        """Turns to another trial: what is known once its own parameters are prescribed."""
        self.known = known
        self._found = {}

    def violation(self, rows: Genotypes) -> Floats:
        """By how much candidates break the budgets or lack a cost, `(n,)`; 0 is feasible.

        A cell counts with whichever of its values is nearest.
        """
        total = self._at(rows, None)
        over = np.flatnonzero(total > 0) if self._inside else ()
        if len(over):
            total[over] = np.minimum(total[over], self._of_corners(rows[over]).min(axis=1))
        return total

    def _of_corners(self, rows: Genotypes) -> Floats:
        """`(n, J)`."""
        several = np.repeat(rows, CORNERS, axis=0)
        inner = np.tile(self._corners, (len(rows), 1))
        return self._at(several, inner).reshape(len(rows), CORNERS)

    def _at(self, rows: Genotypes, inner: Floats | None) -> Floats:
        total = np.zeros(len(rows))
        costs, columns = self._columns(rows, inner)
        if costs is not None:
            total += UNKNOWN_COST * ~np.isfinite(costs).all(axis=1)
        for metric, limit in self.budgets.items():
            if metric in columns:
                unbounded = np.isposinf(columns[metric])
                value = np.where(unbounded, limit, columns[metric])
                total += np.maximum(value - limit, 0.0) / max(abs(limit), 1e-12)
                total += UNKNOWN_COST * unbounded
        return total

    def _columns(
        self, rows: Genotypes, inner: Floats | None
    ) -> tuple[Floats | None, dict[str, Floats]]:
        """The table's costs `(n, k)`, and with what functions say, `(n,)` each, by name."""
        columns: dict[str, Floats] = {}
        costs = None
        if self.priced is not None:
            costs = self.priced(rows)
            columns = dict(zip(self.priced.metric_names, costs.T, strict=True))
        if self.known.functions:
            values = self.known(rows, inner)
            columns |= {self.known.names[i]: values[:, c] for c, i in enumerate(self.known.index)}
        return costs, columns

    def _said(self, row: Genotypes) -> str:
        """What a row costs of what is limited, for a message."""
        _, columns = self._columns(row[None], self._base(row)[None])
        return ", ".join(f"{m!r}: {columns[m][0]:.6g}" for m in self.budgets if m in columns)

    # ------------------------------------------------------------------ inside the cells

    def place(self, row: Genotypes, rng: np.random.Generator) -> Floats:
        """Where in its cells a row `(D,)` is tried: at random, but within the budgets, `(D,)`."""
        anywhere = rng.random((NARROWING, len(row)))
        if not self._inside:
            return np.asarray(anywhere[0])
        base = self._base(row)
        share = np.concatenate(
            [np.ones(NARROWING // 4), np.geomspace(0.5, 1e-9, 3 * NARROWING // 4)]
        )
        share[-1] = 0.0
        inner = base + share[:, None] * (anywhere - base)
        allowed = self._at(np.tile(row, (NARROWING, 1)), inner) <= 0
        return np.asarray(inner[int(allowed.argmax())] if allowed.any() else base)

    def _base(self, row: Genotypes) -> Floats:
        """The position of a cell that breaks the budgets least."""
        middle = np.full((1, len(row)), 0.5)
        found = self._found.get(row.tobytes(), middle[0])[None]
        positions = np.concatenate([middle, found, self._corners])
        return np.asarray(
            positions[self._at(np.tile(row, (len(positions), 1)), positions).argmin()]
        )

    def inner(self, rows: Genotypes) -> Floats:
        """Where in their cells rows `(n, D)` were found to be within the budgets, `(n, D)`.

        The middle where that was not looked for.
        """
        middle = np.full(rows.shape[1], 0.5)
        return np.array([self._found.get(row.tobytes(), middle) for row in rows])

    def _search_inside(self, constrain: Constrain, rng: np.random.Generator) -> Genotypes:
        """Rows that have a value within the budgets somewhere in their cells; maybe none.

        A search over values instead of cells, with steps of every size.
        """
        space = self.space
        levels = space.sizes.astype(float)

        def split(points: Floats) -> tuple[Genotypes, Floats]:
            rows = np.minimum((points * levels).astype(np.int32), space.sizes - 1)
            return constrain(rows), points * levels - rows

        points = rng.random((POINTS, len(levels)))
        scores = self._at(*split(points))
        for _ in range(ROUNDS):
            if (scores <= 0).sum() >= POINTS // 4:
                break
            order = np.argsort(scores, kind="stable")[: POINTS // 4]
            points, scores = points[order], scores[order]
            parents = points[rng.integers(len(points), size=POINTS)]
            size = np.exp(rng.uniform(np.log(1e-10), 0.0, (POINTS, 1)))
            step = size * rng.standard_normal(parents.shape) * (rng.random(parents.shape) < 0.5)
            children = np.clip(parents + step, 0.0, 1.0 - 1e-12)
            points = np.concatenate([points, children])
            scores = np.concatenate([scores, self._at(*split(children))])
        points = points[scores <= 0]
        for _ in range(SPREADING if len(points) else 0):  # what the budgets do not touch is free
            parents = points[rng.integers(len(points), size=POINTS)]
            redrawn = rng.random(parents.shape) < 0.5
            children = np.where(redrawn, rng.random(parents.shape), parents)
            points = np.concatenate([points, children[self._at(*split(children)) <= 0]])
        rows, inner = split(points)
        self._found = {row.tobytes(): place for row, place in zip(rows, inner, strict=True)}
        return np.unique(rows, axis=0)

    # ------------------------------------------------------------------ nothing feasible yet

    def search(self, constrain: Constrain, taken: Taken, rng: np.random.Generator) -> Genotypes:
        """Genotypes within the budgets, found by minimising their violation.

        Raises:
            InfeasibleBudgetError: None was found.
        """
        space = self.space

        def score(rows: Genotypes) -> Floats:
            return -self.violation(rows) - 0.5 * taken(rows)

        if np.prod(space.sizes.astype(float)) <= 1 << 16:  # a small space is looked at whole
            grid = (
                np.indices(tuple(space.sizes.tolist()))
                .reshape(len(space.sizes), -1)
                .T.astype(np.int32)
            )
            rows = np.unique(space.canonical(constrain(grid)), axis=0)
            scores = score(rows)
        else:
            options = EvolutionOptions(generations=60)
            result = evolve(space, score, rng=rng, options=options, constrain=constrain)
            rows, scores = result.genotypes, result.scores
        if (scores == 0).any():
            return np.asarray(rows[scores == 0])
        inside = self.violation(rows) == 0
        if inside.any():  # everything feasible was tried: once more is all that is left
            return np.asarray(rows[inside])
        if self._inside and len(found := self._search_inside(constrain, rng)):
            return found
        probe = np.stack([np.zeros_like(space.sizes), space.sizes - 1]).astype(np.int32)
        others = set(self.known.given_names) - space.column.keys()
        held = (constrain(probe) != probe).any() or bool(others and self.known.functions)
        if held and scores.max() > -UNKNOWN_COST:  # the trial's own parameters break the budget
            warnings.warn(
                f"budgets={dict(self.budgets)}: the parameters that this trial fixes allow no "
                "configuration that meets them; it is the nearest",
                stacklevel=2,
            )
            return np.asarray(rows[np.argsort(-scores, kind="stable")[:1]])
        raise InfeasibleBudgetError(
            f"budgets={dict(self.budgets)}: no configuration that meets all was found; raise one "
            f"(the nearest found takes {self._said(rows[int(np.argmax(scores))])})"
            if self.budgets
            else "the device runs no configuration with the parameters that this trial fixes"
        )
