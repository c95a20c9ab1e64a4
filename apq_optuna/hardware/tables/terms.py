"""The terms that a network's cost is a sum of: tables, with an axis for each of some decisions.

Notation:
    m       costs
    s       distinct sizes of a layer
    w, a    bit-widths of its weights and of its input

Layers that the same decisions decide are one term, and small terms that share decisions are one,
too. A layer whose sizes are sums over many decisions has one axis of distinct sizes instead: a
product over the decisions would be too large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.costs import Priced, layer_name
from apq_optuna.hardware.tables.sums import Sums
from apq_optuna.networks import Needs, Site
from apq_optuna.space import SearchSpace

LARGEST_PRODUCT = 1 << 14
"""Most entries of a table with an axis for each decision."""

LARGEST_GROUP = 1 << 18
"""Most of one whose decisions belong together: nothing else shares them, so it stays alone."""

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
    sums: Sums | None = None


def fixed_costs(table: Priced, sites: Sequence[Site], m: int) -> Floats:
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
        costs = costs[Sums(site)(rows)].reshape(*choices, *costs.shape[1:])
    else:
        columns, sums = [None], Sums(site)
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


def alike_as_one(terms: Sequence[Term]) -> list[Term]:
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


def fused(terms: Sequence[Term], groups: Sequence[str]) -> list[Term]:
    """Small terms that share decisions as one: fewer gathers.

    Args:
        terms: The terms.
        groups: Of the decisions, by column.
    """
    found: list[Term] = []
    for term in terms:
        for j, other in enumerate(found):
            shared = set(other.columns) & set(term.columns)
            if not shared or other.needs != term.needs or other.sums or term.sums:
                continue
            columns = sorted(c for c in {*other.columns, *term.columns} if c is not None)
            size = dict(zip(term.columns, term.costs.shape, strict=False))
            size |= dict(zip(other.columns, other.costs.shape, strict=False))
            together = len({groups[c] for c in columns}) == 1 and groups[columns[0]]
            most = LARGEST_GROUP if together else LARGEST_PRODUCT
            if math.prod(size[c] for c in columns) <= most:
                costs = _spread(other, columns) + _spread(term, columns)
                found[j] = Term(other.name, term.needs, tuple(columns), costs)
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


def uses_of(terms: Sequence[Term]) -> dict[int, int]:
    """How many terms each decision decides."""
    uses: dict[int, int] = {}
    for term in terms:
        summed = term.sums.site.columns if term.sums else ()
        for column in (*term.columns, *summed):
            if column is not None:
                uses[column] = uses.get(column, 0) + 1
    return uses


def with_own_widths(terms: Sequence[Term]) -> list[Term]:
    """Terms with a pair of widths that is theirs alone."""
    uses = uses_of(terms)
    return [t for t in terms if t.bits and not t.sums and all(uses[c] == 1 for c in t.bits)]


def widening(term: Term) -> list[tuple[list[int], NDArray[np.int32]]]:
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
