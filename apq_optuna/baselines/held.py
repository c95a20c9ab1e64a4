"""The network that a walk starts from: what is given of it, as a genotype."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np
from optuna.trial import BaseTrial, FrozenTrial

from apq_optuna.errors import InvalidArgumentError, SpaceError
from apq_optuna.networks import Extent, Genotypes, Site, Subnet
from apq_optuna.space import SearchSpace

Fixed: TypeAlias = Mapping[str, Any] | Subnet | BaseTrial | FrozenTrial
"""Values by parameter name, or a whole network: a subnet, or the trial that had it."""


def held_row(space: SearchSpace, fixed: Fixed | None) -> tuple[Genotypes, frozenset[int]]:
    """The largest network with what is given in it.

    Args:
        space: The space.
        fixed: What is given.

    Returns:
        `(D,)`, not canonical: what is not in use is at its largest, too, should a trial's own
        parameters bring it into use. And the columns that were given.

    Raises:
        InvalidArgumentError: A name that is no parameter, or a value that is no choice of it.
        SpaceError: A subnet that is not of the space.
    """
    row = np.asarray(space.sizes - 1, np.int32)
    if fixed is None:
        return row, frozenset()
    if isinstance(fixed, Subnet):
        fixed = space.to_params(genotype_of(space, fixed))
    elif isinstance(fixed, BaseTrial | FrozenTrial):
        fixed = fixed.params
    if not isinstance(fixed, Mapping):
        raise InvalidArgumentError(
            f"fixed={fixed!r}: must be a dict of values by parameter name, a subnet or a trial"
        )
    given = set()
    for name, value in fixed.items():
        if name not in space.column:
            near = get_close_matches(str(name), list(space.column), n=1)
            hint = f" (is {near[0]!r} meant?)" if near else ""
            raise InvalidArgumentError(f"fixed: the space has no parameter {name!r}{hint}")
        column = space.column[name]
        try:
            row[column] = space.decisions[column].index_of(value)
        except (SpaceError, TypeError):
            raise InvalidArgumentError(
                f"fixed[{name!r}]={value!r}: not one of {list(space.decisions[column].choices)}"
            ) from None
        given.add(column)
    return row, frozenset(given)


def genotype_of(space: SearchSpace, subnet: Subnet) -> Genotypes:
    """The canonical genotype `(D,)` of a subnet, found from its layers and the family's sites.

    Raises:
        SpaceError: No genotype of the space is this network.
    """
    family = space.networks
    placed = {layer.name: layer for layer in subnet.layers()}
    row = np.zeros(len(space.decisions), np.int32)
    sites = [site for site in family.sites() if site.name in placed]
    for site in sites:
        if site.needs is not None:  # the least that brings every layer there is into use
            column, least = site.needs
            row[column] = max(row[column], least)
        layer = placed[site.name]
        for width, bits in ((site.w_bits, layer.w_bits), (site.a_bits, layer.a_bits)):
            if width.column is not None and bits in width.bits:
                row[width.column] = width.bits.index(bits)
    known: set[int] = set()
    before = -1
    while before < len(known):  # a sum is solved once all but one of its terms are
        before = len(known)
        for site in sites:
            for extent, size in _sizes(site, placed[site.name].layer):
                _solve(extent, size, row, known)
    row = np.asarray(space.canonical(row[None])[0])
    if space.decode(row).identity != subnet.identity:
        raise SpaceError(f"fixed: a subnet that is not of this space, {space!r}")
    return row


def _sizes(site: Site, layer: Any) -> list[tuple[Extent, int]]:
    sizes = [(site.in_channels, layer.in_channels), (site.out_channels, layer.out_channels)]
    if site.kernel is not None:
        sizes.append((site.kernel, layer.kernel_size))
    return sizes


def _solve(extent: Extent, size: int, row: Genotypes, known: set[int]) -> None:
    """Sets the one decision of a sum that is not known yet, in place."""
    unknown = [(column, values) for column, values in extent.terms if column not in known]
    if len(unknown) != 1:
        return
    column, values = unknown[0]
    others = sum(values[row[c]] for c, values in extent.terms if c in known)
    rest = size - extent.constant - others
    if rest in values:
        row[column] = values.index(rest)
        known.add(column)
