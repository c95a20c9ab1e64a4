"""`CompiledCosts`: genotypes priced by gathers from one flat table.

Notation:
    D, n    decisions; genotypes in a batch, `(n, D)`
    m       costs
    T       terms, tables whose sum a network costs: see `terms`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.costs import Priced
from apq_optuna.hardware.tables.sums import Sums, SumsTogether
from apq_optuna.hardware.tables.terms import (
    Floats,
    Term,
    alike_as_one,
    fixed_costs,
    fused,
    site_term,
    uses_of,
    widening,
    with_own_widths,
)
from apq_optuna.networks import Genotypes
from apq_optuna.space import Inactivity, SearchSpace

CHUNK = 2048
"""Genotypes priced at a time."""


class _Gap:
    """What of a term a device can run, for choices that it cannot.

    Notation:
        o       combinations of the decisions that are the term's alone, or of all of them where
                none is shared
    """

    def __init__(self, term: Term, uses: dict[int, int]) -> None:
        self._columns, self._sums = term.columns, term.sums
        own = [i for i, c in enumerate(term.columns) if c is not None and uses[c] == 1]
        held = [i for i in range(len(term.columns)) if i not in own]
        runs: NDArray[np.bool_] = np.asarray(np.isfinite(term.costs).all(axis=-1))
        sizes = [runs.shape[i] for i in own]
        self._own, self._held = own, held
        self._runs = runs.transpose(*held, *own).reshape(*(runs.shape[i] for i in held), -1)
        self._choices = np.indices(sizes).reshape(len(own), math.prod(sizes)).T.astype(np.int32)
        self._all = np.argwhere(runs).astype(np.int32)

    def redraw(
        self, genotypes: Genotypes, rows: NDArray[np.intp], rng: np.random.Generator
    ) -> None:
        """Sets the decisions of some rows to ones that have a cost, in place."""
        if not self._held:
            self._set(genotypes, rows, range(len(self._columns)), self._all, rng)
            return
        places = []
        for i in self._held:
            column = self._columns[i]
            if column is not None:
                places.append(genotypes[rows, column])
            elif self._sums is not None:
                places.append(self._sums(genotypes[rows]))
        runs = self._runs[tuple(places)]  # (rows, o)
        chosen = (rng.random(runs.shape) * runs).argmax(axis=1)
        works = runs[np.arange(len(rows)), chosen]
        for k, i in enumerate(self._own):
            genotypes[rows[works], self._columns[i]] = self._choices[chosen[works], k]
        if not works.all():  # what is shared has to change, too
            free = [i for i, column in enumerate(self._columns) if column is not None]
            self._set(genotypes, rows[~works], free, self._all, rng)

    def _set(
        self, genotypes: Genotypes, rows: NDArray[np.intp], axes: Sequence[int],
        runnable: Genotypes, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        drawn = runnable[rng.integers(len(runnable), size=len(rows))]
        for axis in axes:
            genotypes[rows, self._columns[axis]] = drawn[:, axis]


class CompiledCosts:
    """Costs of genotypes by array gathers: one flat table, a gather per term and metric.

    Attributes:
        metric_names: Columns of the result.
        maxima: A bound on the total of each cost, `(m,)`: the default reference point.
        minima: What every network costs at least, `(m,)`.
    """

    def __init__(self, table: Priced, space: SearchSpace) -> None:
        self.metric_names = table.metric_names
        self.space = space
        m = len(self.metric_names)
        sites = space.networks.sites()
        self.fixed = fixed_costs(table, [site for site in sites if not site.searched], m)
        alike = alike_as_one([site_term(table, site, space) for site in sites if site.searched])
        self._widenings = [found for term in with_own_widths(alike) for found in widening(term)]
        terms = fused(alike, [decision.group for decision in space.decisions])
        for term in terms:
            if not np.isfinite(term.costs).all(axis=-1).any():
                raise CostTableError(f"the device {table.device!r} runs no choice of {term.name}")
        self._lay(terms, m)
        self._summarise(terms)
        uses = uses_of(terms)
        self._gaps = {
            j: _Gap(term, uses) for j, term in enumerate(terms) if np.isinf(term.costs).any()
        }

    def _lay(self, terms: Sequence[Term], m: int) -> None:
        """One flat table, and each decision's stride in each term's part of it."""
        strides = np.zeros((len(self.space.decisions), len(terms)), np.float32)
        sums: list[tuple[int, Sums, int]] = []
        offset, offsets, flats = 0, [], []
        for j, term in enumerate(terms):
            step = 1
            for column, size in zip(term.columns[::-1], term.costs.shape[-2::-1], strict=True):
                if column is None:
                    assert term.sums is not None
                    sums.append((j, term.sums, step))
                else:
                    strides[column, j] = step
                step *= size
            flats.append(term.costs.reshape(-1, m))
            offsets.append(offset)
            offset += step
        flats.append(np.zeros((1, m)))  # what is not in use costs
        self._strides = strides
        self._summed = np.array([j for j, _, _ in sums], np.intp)
        self._sums = SumsTogether([one for _, one, _ in sums], [step for _, _, step in sums])
        self._offsets = np.array(offsets, np.int32)
        self._flat = np.ascontiguousarray(np.concatenate(flats).T)
        self._nothing = offset
        self._inactive = Inactivity.of([term.needs for term in terms])

    def _summarise(self, terms: Sequence[Term]) -> None:
        finite = [np.where(np.isfinite(t.costs), t.costs, np.nan) for t in terms]
        flat = [costs.reshape(-1, costs.shape[-1]) for costs in finite]
        self.maxima = self.fixed + sum(np.nanmax(costs, axis=0) for costs in flat)
        always = [c for c, t in zip(flat, terms, strict=True) if t.needs is None]
        self.minima = self.fixed + sum(np.nanmin(costs, axis=0) for costs in always)

    # ------------------------------------------------------------------ what a device cannot run

    @property
    def has_gaps(self) -> bool:
        """Whether some choice of the space has no cost."""
        return bool(self._gaps)

    def repair(self, genotypes: Genotypes, rng: np.random.Generator) -> Genotypes:
        """`(n, D)` genotypes in which every term that has no cost is one, drawn at random, that
        has; not canonical.

        A device that runs few of the bit-widths leaves so few feasible networks that chance does
        not find them. What a term shares with others is changed only where nothing else helps, so
        that one round is mostly enough; a few more follow.
        """
        result = genotypes
        for _ in range(10):
            missing = ~np.isfinite(self._flat[0].take(self._index(result)))
            if not missing.any():
                return result
            result = result.copy() if result is genotypes else result
            for j in np.flatnonzero(missing.any(axis=0)).tolist():  # a loop over terms only
                self._gaps[j].redraw(result, np.flatnonzero(missing[:, j]), rng)
        return result

    @property
    def has_free_bits(self) -> bool:
        """Whether some layer costs exactly the same at a wider bit-width."""
        return bool(self._widenings)

    def widen(self, genotypes: Genotypes) -> Genotypes:
        """`(n, D)` genotypes with every bit-width at the widest that costs exactly the same.

        A device that runs 4 bits as 8 gives nothing for them, and they only lose accuracy.
        """
        if not self._widenings:
            return genotypes
        result = genotypes.copy()
        for columns, widest in self._widenings:  # a loop over terms only
            chosen = widest[tuple(genotypes[:, columns].T)]
            result[:, columns[-2:]] = chosen
        return result

    def settle(self, genotypes: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Genotypes the device can run, at no narrower bits than their cost buys.

        See `repair` and `widen`.
        """
        if self.has_gaps:
            genotypes = self.repair(genotypes, rng)
        return self.space.canonical(self.widen(genotypes)) if self._widenings else genotypes

    # ------------------------------------------------------------------ pricing

    def _index(self, rows: Genotypes) -> NDArray[np.int32]:
        """`(n, D)` to `(n, T)`: each term's place in the flat table."""
        index = (rows.astype(np.float32) @ self._strides).astype(np.int32)
        index += self._offsets
        if len(self._summed):
            index[:, self._summed] += self._sums(rows)
        index[self._inactive(rows)] = self._nothing
        return index

    def __call__(self, genotypes: Genotypes) -> Floats:
        """`(n, D)` genotypes to `(n, m)` costs; inf where the table has no entry."""
        out = np.empty((len(genotypes), len(self.metric_names)))
        for start in range(0, len(genotypes), CHUNK):  # a chunk's arrays stay in the cache
            rows = genotypes[start : start + CHUNK]
            index = self._index(rows)
            for column, flat in enumerate(self._flat):
                flat.take(index).sum(axis=1, out=out[start : start + CHUNK, column])
        out += self.fixed
        return out
