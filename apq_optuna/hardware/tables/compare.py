"""Two devices over one space: where they agree, and where the same networks differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_optuna._text import aligned
from apq_optuna.errors import CostTableError, InvalidArgumentError
from apq_optuna.hardware.costs import METRIC_NAMES
from apq_optuna.hardware.devices.device import Device
from apq_optuna.hardware.entries import fixed_widths, searched_layers
from apq_optuna.hardware.tables.table import CostTable
from apq_optuna.networks import ConvLayer, Extent, Site, as_pair
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]

DECODED = 200
"""Networks taken apart for the shares of the kinds of layers."""

FINEST = 160
"""Most widths a layer is priced at on a device that can price any."""


@dataclass(frozen=True)
class Comparison:
    """Latencies of the same networks on two devices.

    Attributes:
        names: Of the devices.
        latencies: `(2, n)`, ms, of networks that both run.
        mean_bits: Of their searched layers, `(n,)`.
        rank_correlation: Spearman's, of the latencies.
        kinds: Kinds of layers that the family has, those that are the same in every network last.
        shares: Mean share of the latency of each kind, `(2, len(kinds))`.
        bit_gain: Median latency at the narrowest bit-width over the widest, depthwise layers and
            others, `(2, 2)`; NaN where a device does not run them.
        bits: The narrowest and widest bit-width.
    """

    names: tuple[str, str]
    latencies: Floats
    mean_bits: Floats
    rank_correlation: float
    kinds: tuple[str, ...]
    shares: Floats
    bit_gain: Floats
    bits: tuple[int, int]

    def __str__(self) -> str:
        low, high = self.bits
        rows = [["", *self.names]]
        middle = np.median(self.latencies, axis=1)
        rows.append(["median network, ms", *(f"{value:.4g}" for value in middle)])
        spread = self.latencies.max(axis=1) / self.latencies.min(axis=1)
        rows.append(["slowest / fastest", *(f"{value:.2f}" for value in spread)])
        for j, kind in enumerate(self.kinds):
            rows.append([f"share of {kind} layers", *(f"{v:.0%}" for v in self.shares[:, j])])
        for j, kind in enumerate(("depthwise", "other")):
            label = f"{kind} layers, W{low}A{low} / W{high}A{high}"
            rows.append([label, *(f"{value:.2f}" for value in self.bit_gain[:, j])])
        n = self.latencies.shape[1]
        last = f"rank correlation of {n} random networks: {self.rank_correlation:.3f}"
        return f"{aligned(rows, left=1)}\n{last}"


def compare_tables(
    tables: tuple[CostTable, CostTable], space: SearchSpace, n: int = 2000, seed: int = 0
) -> Comparison:
    """Prices n random networks on both.

    Raises:
        CostTableError: A table lacks layers of the space, or no network runs on both.
        InvalidArgumentError: n below 2.
    """
    if n < 2:
        raise InvalidArgumentError(f"n={n}: at least 2 networks are compared")
    compiled = [table.compile(space) for table in tables]
    rng = np.random.default_rng(seed)
    rows = space.sample(n, rng)
    for each in compiled:
        rows = each.repair(rows, rng)
    latencies = np.stack([each(rows)[:, 0] for each in compiled])
    both = np.isfinite(latencies).all(axis=0)
    if both.sum() < 2:
        raise CostTableError("no network of the space runs on both devices")
    rows, latencies = rows[both], latencies[:, both]
    widths = space.bits or tuple(sorted(fixed_widths(space)))
    from scipy.stats import spearmanr  # slow to import, and for this alone

    correlation = float(spearmanr(*latencies).statistic)
    return Comparison(
        (tables[0].device, tables[1].device),
        latencies,
        space.mean_bits(rows),
        correlation,
        kinds_of(space),
        np.stack([_shares(table, space, rows[:DECODED]) for table in tables]),
        np.stack([_bit_gain(table, space) for table in tables]),
        (widths[0], widths[-1]),
    )


def kinds_of(space: SearchSpace) -> tuple[str, ...]:
    """Kinds of layers in the order a network has them, those that nothing decides last."""
    sites = space.networks.sites()
    return tuple(dict.fromkeys(s.kind for s in sorted(sites, key=lambda s: not s.searched)))


def _shares(table: CostTable, space: SearchSpace, rows: NDArray[np.int32]) -> Floats:
    kinds = kinds_of(space)
    place = {site.name: kinds.index(site.kind) for site in space.networks.sites()}
    total = np.zeros(len(kinds))
    for row in rows:
        for placed in space.decode(row).layers():
            cost = table.entries.get((placed.layer, placed.w_bits, placed.a_bits))
            total[place[placed.name]] += cost[0] if cost else 0.0
    return np.asarray(total / max(total.sum(), 1e-300))


def _bit_gain(table: CostTable, space: SearchSpace) -> Floats:
    widths = space.bits or tuple(sorted(fixed_widths(space)))
    low, high = widths[0], widths[-1]
    ratios: tuple[list[float], list[float]] = ([], [])
    for layer in searched_layers(space):
        narrow = table.entries.get((layer, low, low))
        wide = table.entries.get((layer, high, high))
        if narrow and wide and wide[0] > 0:
            ratios[not layer.depthwise].append(narrow[0] / wide[0])
    return np.array([np.median(found) if found else np.nan for found in ratios])


# ---------------------------------------------------------------------- one layer


@dataclass(frozen=True)
class LayerCosts:
    """Costs of one searched layer over its channels and bit-widths.

    Attributes:
        name: Of the layer, as in `Subnet.layers()`.
        device: Name of the device.
        channels: Of the decision that its channels follow, `(c,)`.
        bits: Bit-widths, `(b,)`.
        costs: `(b, b, c, m)` by weight and activation bits; NaN where there is none.
        metric_names: Names of the m costs.
        kernel: Side of the kernel, or its longer one.
        elastic: Whether the kernel is a choice.
    """

    name: str
    device: str
    channels: NDArray[np.int64]
    bits: tuple[int, ...]
    costs: Floats
    metric_names: tuple[str, ...]
    kernel: int
    elastic: bool


def telling_layer(space: SearchSpace) -> str:
    """The layer to look at first: the last that every network has, a depthwise one if there is.

    Raises:
        InvalidArgumentError: No layer of the space is searched.
    """
    found = [site for site in space.networks.sites() if site.searched]
    always = [site for site in found if site.needs is None] or found
    if not always:
        raise InvalidArgumentError("layer: this space has no searched layer")
    return ([site for site in always if site.layer.depthwise] or always)[-1].name


def layer_costs(
    source: CostTable | Device, space: SearchSpace, name: str, kernel: int | None = None
) -> LayerCosts:
    """What a layer costs at every width: a table's entries, or more finely from a device.

    Args:
        source: A table, or a device that computes its costs.
        space: The joint space.
        name: Of the layer.
        kernel: Where that is a choice; by default the largest.

    Raises:
        InvalidArgumentError: The space has no such layer or kernel.
        CostTableError: The table has no entry for it.
    """
    sites = {site.name: site for site in space.networks.sites() if site.searched}
    if name not in sites:
        first, last = (list(sites) or ["none"])[0], (list(sites) or ["none"])[-1]
        kinds = [kind for kind in kinds_of(space) if any(s.kind == kind for s in sites.values())]
        raise InvalidArgumentError(
            f"layer={name!r}: choose from {first} to {last} ({', '.join(kinds)})"
        )
    site = sites[name]
    bits = tuple(sorted({*site.w_bits.bits, *site.a_bits.bits}))
    kernel = _kernel(site, kernel)
    price = _pricing(source, bits)
    columns = [c for extent in (site.out_channels, site.in_channels) for c, _ in extent.terms]
    if not columns:
        raise InvalidArgumentError(f"layer={name!r}: its channels are no choice")
    column = columns[0]
    choices = space.decisions[column].choices
    channels = np.array(choices)
    if isinstance(source, Device):
        step = max(1, (choices[-1] - choices[0]) // FINEST)
        channels = np.arange(choices[0], choices[-1] + 1, step)
    layers = []
    for width in channels.tolist():
        sizes = [_along(extent, column, width, choices) for extent in site.extents[:2]]
        kernels = [kernel] if site.kernel is not None else []
        layers.append(site.layer_of(np.array([*sizes, *kernels], np.int64)))
    costs = np.stack([price(layer) for layer in layers], axis=2)
    owner = source.device if isinstance(source, CostTable) else source.name
    if not np.isfinite(costs).any():
        raise CostTableError(f"the cost table of {owner!r} has no entry for {name}")
    kept = int(np.isfinite(costs).any(axis=(0, 1, 2)).sum())
    return LayerCosts(
        name, owner, channels, bits, costs[..., :kept], METRIC_NAMES[:kept], kernel,
        site.kernel is not None,
    )  # fmt: skip


def _kernel(site: Site, kernel: int | None) -> int:
    """The kernel asked for, by default the largest there is."""
    allowed = [max(as_pair(site.layer.kernel_size))]
    if site.kernel is not None:
        allowed = np.unique(site.distinct()[:, 2]).tolist()
    if kernel is not None and kernel not in allowed:
        raise InvalidArgumentError(f"kernel={kernel}: {site.name} has {allowed}")
    return allowed[-1] if kernel is None else kernel


def _along(extent: Extent, column: int, width: int, choices: Sequence[int]) -> int:
    """A size where one decision is at `width`, also between its choices, others at the largest."""
    total = extent.constant
    for c, values in extent.terms:
        total += round(float(np.interp(width, choices, values))) if c == column else values[-1]
    return total


def _pricing(source: CostTable | Device, bits: tuple[int, ...]) -> Callable[[ConvLayer], Floats]:
    """A function from a layer to its costs, `(b, b, 2)`, NaN where there is none."""

    def of_table(layer: ConvLayer) -> Floats:
        assert isinstance(source, CostTable)
        found = [[source.entries.get((layer, w, a), (np.nan, None)) for a in bits] for w in bits]
        return np.array(found, float)

    def of_device(layer: ConvLayer) -> Floats:
        assert isinstance(source, Device)
        out = np.full((len(bits), len(bits), 2), np.nan)
        runs = [(i, j) for i, w in enumerate(bits) for j, a in enumerate(bits)
                if w in source.bits and a in source.bits]  # fmt: skip
        asked = [source.executes(bits[i], bits[j]) for i, j in runs]
        distinct = list(dict.fromkeys(asked))
        costs = dict(zip(distinct, source.costs(layer, distinct), strict=True))
        for (i, j), pair in zip(runs, asked, strict=True):
            out[i, j] = np.array(costs[pair], float)
        return out

    return of_table if isinstance(source, CostTable) else of_device
