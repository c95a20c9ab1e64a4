"""What a cost table of a space holds: layers and the bit-widths they may have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from apq_optuna.networks import ConvLayer, PlacedLayer, Site, Width
from apq_optuna.space import SearchSpace

Pairs = dict[ConvLayer, list[tuple[int, int]]]
"""Each layer with its (w_bits, a_bits)."""


def fixed_layers(space: SearchSpace) -> list[PlacedLayer]:
    """The layers every network has, at the widths they always have, in order."""
    return [
        PlacedLayer(site.name, site.layer, site.w_bits.bits[0], site.a_bits.bits[0], False)
        for site in space.networks.sites()
        if not site.searched
    ]


def searched_layers(space: SearchSpace, bits: Sequence[int] | None = None) -> Pairs:
    """Every distinct layer that some network has where something is a choice, with its widths.

    Args:
        space: A family's space.
        bits: Widths of a choice are left out unless they are among these; by default none is.
    """
    return _pairs((site for site in space.networks.sites() if site.searched), bits)


def needed_entries(space: SearchSpace, bits: Sequence[int] | None = None) -> Pairs:
    """What a table for a space holds, as far as `bits` go.

    Widths that are the same in every network are there whatever `bits` are.
    """
    sites = space.networks.sites()
    return _pairs(sorted(sites, key=lambda site: not site.searched), bits)


def fixed_widths(space: SearchSpace) -> set[int]:
    """Every width that some layer always has."""
    widths = (w for site in space.networks.sites() for w in (site.w_bits, site.a_bits))
    return {width.bits[0] for width in widths if width.column is None}


def _pairs(sites: Iterable[Site], bits: Sequence[int] | None) -> Pairs:
    def allowed(width: Width) -> list[int]:
        if bits is None or width.column is None:
            return list(width.bits)
        return [b for b in width.bits if b in bits]

    found: dict[ConvLayer, dict[tuple[int, int], None]] = {}
    for site in sites:
        pairs = [(w, a) for w in allowed(site.w_bits) for a in allowed(site.a_bits)]
        if site.w_bits.column is not None and site.w_bits.column == site.a_bits.column:
            pairs = [(w, a) for w, a in pairs if w == a]
        for layer in site.layers():
            found.setdefault(layer, {}).update(dict.fromkeys(pairs))
    return {layer: list(pairs) for layer, pairs in found.items()}
