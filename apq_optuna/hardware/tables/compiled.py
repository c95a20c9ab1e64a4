"""`CompiledCosts`: genotypes priced by gathers from one flat table.

Notation:
    D, n    decisions; genotypes in a batch, `(n, D)`
    m       costs
    T       terms: tables whose sum a network costs; layers that the same decisions decide are one
            term, and small terms that share decisions are one, too
    s       distinct sizes of a layer
    w, a    bit-widths of its weights and of its input

Most terms have an axis for each of their decisions. A layer whose sizes are sums over many
decisions has one axis of distinct sizes instead: a product over the decisions would be too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.costs import Priced, layer_name
from apq_optuna.networks import Genotypes, Needs, Site
from apq_optuna.space import Inactivity, SearchSpace

CHUNK = 2048
"""Genotypes priced at a time."""

LARGEST_PRODUCT = 1 << 14
"""Most entries of a table with an axis for each decision."""

Floats = NDArray[np.float64]


@dataclass
class Term:
    """A table that one entry of is paid for each network.

    Attributes:
        name: Of its layers, for messages.
        needs: When it is paid; None is always.
        columns: The decision of each axis, in order; the axis of `sums` is None.
        costs: `(axes..., m)`, inf where the device has no cost.
        bits: Columns of weight and input widths, its last two axes, where both are choices.
        sums: The sites' sizes, where one axis is of distinct sizes.
    """

    name: str
    needs: Needs | None
    columns: tuple[int | None, ...]
    costs: Floats
    bits: tuple[int, int] | None = None
    sums: _Sums | None = None


class _Sums:
    """Places of genotypes among the distinct sizes of a site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        sizes = site.distinct()
        self._base = sizes.max(axis=0) + 1
        self._codes = np.sort(self._code(sizes))  # ascending as `distinct` is

    def _code(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        code = sizes[:, 0].copy()
        for column in range(1, sizes.shape[1]):
            code = code * self._base[column] + sizes[:, column]
        return code

    def __call__(self, genotypes: Genotypes) -> NDArray[np.int64]:
        """`(n, D)` to `(n,)` in [0, s)."""
        return np.searchsorted(self._codes, self._code(self.site.sizes(genotypes)))


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
        self.fixed = _fixed_costs(table, [site for site in sites if not site.searched], m)
        alike = _alike([site_term(table, site, space) for site in sites if site.searched])
        self._widenings = [found for term in _owners(alike) for found in _widening(term)]
        self._terms = _fused(alike)
        for term in self._terms:
            if not np.isfinite(term.costs).all(axis=-1).any():
                raise CostTableError(f"the device {table.device!r} runs no choice of {term.name}")
        self._lay(m)
        self._summarise()

    def _lay(self, m: int) -> None:
        """One flat table, and each decision's stride in each term's part of it."""
        strides = np.zeros((len(self.space.decisions), len(self._terms)), np.float32)
        self._sums: list[tuple[int, int, _Sums]] = []
        offset, offsets, flats = 0, [], []
        for j, term in enumerate(self._terms):
            step = 1
            for column, size in zip(term.columns[::-1], term.costs.shape[-2::-1], strict=True):
                if column is None:
                    assert term.sums is not None
                    self._sums.append((j, step, term.sums))
                else:
                    strides[column, j] = step
                step *= size
            flats.append(term.costs.reshape(-1, m))
            offsets.append(offset)
            offset += step
        flats.append(np.zeros((1, m)))  # what is not in use costs
        self._strides = strides
        self._offsets = np.array(offsets, np.int32)
        self._flat = np.ascontiguousarray(np.concatenate(flats).T)
        self._nothing = offset
        self._inactive = Inactivity.of([term.needs for term in self._terms])

    def _summarise(self) -> None:
        finite = [np.where(np.isfinite(t.costs), t.costs, np.nan) for t in self._terms]
        flat = [costs.reshape(-1, costs.shape[-1]) for costs in finite]
        self.maxima = self.fixed + sum(np.nanmax(costs, axis=0) for costs in flat)
        always = [c for c, t in zip(flat, self._terms, strict=True) if t.needs is None]
        self.minima = self.fixed + sum(np.nanmin(costs, axis=0) for costs in always)

    # ------------------------------------------------------------------ what a device cannot run

    @property
    def has_gaps(self) -> bool:
        """Whether some choice of the space has no cost."""
        return bool(np.isinf(self._flat).any())

    def repair(self, genotypes: Genotypes, rng: np.random.Generator) -> Genotypes:
        """`(n, D)` genotypes in which every term that has no cost is one, drawn at random, that
        has; not canonical.

        A device that runs few of the bit-widths leaves so few feasible networks that chance does
        not find them. What is drawn for one layer may be another's, so this goes on a few times.
        """
        result = genotypes
        for _ in range(4):
            missing = ~np.isfinite(self._flat[0].take(self._index(result)))
            if not missing.any():
                return result
            result = result.copy() if result is genotypes else result
            for j in np.flatnonzero(missing.any(axis=0)).tolist():  # a loop over terms only
                self._redraw(self._terms[j], result, np.flatnonzero(missing[:, j]), rng)
        return result

    def _redraw(
        self, term: Term, genotypes: Genotypes, rows: NDArray[np.intp], rng: np.random.Generator
    ) -> None:
        """Sets a term's decisions to ones that it has a cost for, in place."""
        runs = np.isfinite(term.costs).all(axis=-1)
        columns = [column for column in term.columns if column is not None]
        if term.sums is None:
            runnable = np.argwhere(runs).astype(np.int32)
            drawn = runnable[rng.integers(len(runnable), size=len(rows))]
            genotypes[rows[:, None], columns] = drawn
            return
        axis = term.columns.index(None)  # sizes stay as they are: only the widths are redrawn
        for row, place in zip(rows, term.sums(genotypes[rows]), strict=True):
            widths = np.argwhere(runs.take(place, axis))
            if len(widths) and columns:
                genotypes[row, columns] = widths[rng.integers(len(widths))]

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
        for j, step, sums in self._sums:
            index[:, j] += (sums(rows) * step).astype(np.int32)
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


# ---------------------------------------------------------------------- terms


def _fixed_costs(table: Priced, sites: Sequence[Site], m: int) -> Floats:
    """`(m,)`: what every network costs."""
    fixed = np.array(table.overhead[:m], float)
    for site in sites:
        key = (site.layer, site.w_bits.bits[0], site.a_bits.bits[0])
        if key in table.entries:
            fixed += np.array(table.entries[key][:m], float)
        elif not table.partial:
            raise CostTableError(
                f"the cost table of {table.device!r} lacks the fixed layer {site.name} of "
                f"this space: {layer_name(*key)}; build the table for this space"
            )
    return fixed


def site_term(table: Priced, site: Site, space: SearchSpace) -> Term:
    """The costs of one layer, for every choice.

    Raises:
        CostTableError: The table has no entry for one of its sizes at any bit-width.
    """
    m = len(table.metric_names)
    sizes = site.distinct()
    costs = np.stack([_size_costs(table, site, row, m) for row in sizes])  # (s, w, a, m)
    choices = space.sizes[list(site.columns)].tolist()
    columns: list[int | None] = list(site.columns)
    sums = None
    if math.prod(choices) * costs[0].size <= LARGEST_PRODUCT * m:
        rows = np.zeros((math.prod(choices), len(space.decisions)), np.int32)
        if choices:
            rows[:, list(site.columns)] = np.indices(choices).reshape(len(choices), -1).T
        costs = costs[_Sums(site)(rows)].reshape(*choices, *costs.shape[1:])
    else:
        columns, sums = [None], _Sums(site)
    w, a = site.w_bits.column, site.a_bits.column
    if w is not None and w == a:  # one width for both operands
        costs = np.moveaxis(np.diagonal(costs, axis1=-3, axis2=-2), -1, -2)
        return Term(site.name, site.needs, (*columns, w), costs, sums=sums)
    for column, axis in ((w, -3), (a, -2)):
        if column is None:
            costs = costs.take([0], axis)
    kept = [axis for axis, column in ((-3, w), (-2, a)) if column is None]
    costs = costs.squeeze(tuple(kept))
    widths = tuple(column for column in (w, a) if column is not None)
    both = (w, a) if w is not None and a is not None else None
    return Term(site.name, site.needs, (*columns, *widths), costs, both, sums)


def _size_costs(table: Priced, site: Site, sizes: NDArray[np.int64], m: int) -> Floats:
    """`(w, a, m)` costs of a layer at one of its sizes, inf where missing."""
    layer, missing = site.layer_of(sizes), (math.inf,) * m
    costs = np.array(
        [
            [table.entries.get((layer, w, a), missing)[:m] for a in site.a_bits.bits]
            for w in site.w_bits.bits
        ],
        float,
    )
    if np.isinf(costs).all():
        widest = layer_name(layer, site.w_bits.bits[-1], site.a_bits.bits[-1])
        raise CostTableError(
            f"the cost table of {table.device!r} lacks {widest} and every other bit-width of it; "
            "add it, or build the table for this space"
        )
    return costs


def _alike(terms: Sequence[Term]) -> list[Term]:
    """Terms that the same decisions decide, added up."""
    found: dict[object, Term] = {}
    for term in terms:
        key = (term.columns, term.needs, term.bits, id(term.sums) if term.sums else None)
        if key in found:
            first = found[key]
            costs = first.costs + term.costs
            found[key] = Term(first.name, first.needs, first.columns, costs, first.bits)
        else:
            found[key] = term
    return list(found.values())


def _fused(terms: Sequence[Term]) -> list[Term]:
    """Small terms that share decisions as one: fewer gathers."""
    found: list[Term] = []
    for term in terms:
        for j, other in enumerate(found):
            shared = set(other.columns) & set(term.columns)
            if not shared or other.needs != term.needs or other.sums or term.sums:
                continue
            columns = tuple(dict.fromkeys((*term.columns, *other.columns)))
            size = dict(zip(term.columns, term.costs.shape, strict=False))
            size |= dict(zip(other.columns, other.costs.shape, strict=False))
            if math.prod(size[c] for c in columns) <= LARGEST_PRODUCT:
                costs = _spread(other, columns) + _spread(term, columns)
                found[j] = Term(other.name, term.needs, columns, costs)
                break
        else:
            found.append(term)
    return found


def _spread(term: Term, columns: Sequence[int | None]) -> Floats:
    """A term's costs with an axis, of length 1 where it has none, for each of the columns."""
    ordered = [c for c in columns if c in term.columns]
    axes = [term.columns.index(c) for c in ordered]
    costs = term.costs.transpose(*axes, term.costs.ndim - 1)
    return np.expand_dims(costs, [i for i, c in enumerate(columns) if c not in term.columns])


def _owners(terms: Sequence[Term]) -> list[Term]:
    """Terms with a pair of widths that is theirs alone."""
    uses: dict[int, int] = {}
    for term in terms:
        for column in term.columns:
            if column is not None:
                uses[column] = uses.get(column, 0) + 1
    return [t for t in terms if t.bits and not t.sums and all(uses[c] == 1 for c in t.bits)]


def _widening(term: Term) -> list[tuple[list[int], NDArray[np.int32]]]:
    """For every choice the widest bits of the same cost; nothing where no choice has wider ones.

    Returns:
        At most one (columns, `(..., w, a, 2)`), the axes in the order of the columns.
    """
    columns = [column for column in term.columns if column is not None]
    w, a, m = term.costs.shape[-3:]
    flat = term.costs.reshape(-1, w * a, m)
    same = (flat[:, :, None] == flat[:, None]).all(axis=-1)  # (rows, pair, other)
    same &= np.asarray(np.isfinite(flat).all(axis=-1))[:, :, None]
    i, j = np.divmod(np.arange(w * a), a)
    # only pairs that are at least as wide in both operands; the widest of those
    wider = (i[None] >= i[:, None]) & (j[None] >= j[:, None])
    same |= np.eye(w * a, dtype=bool)
    best = np.where(same & wider, i + j, -1).argmax(axis=-1)
    if (best == np.arange(w * a)).all():
        return []
    widest = np.stack([i[best], j[best]], axis=-1).astype(np.int32)
    return [(columns, widest.reshape(*term.costs.shape[:-1], 2))]
