"""`check_table`: is a cost table whole, plausible, and of use to a search over a space?

What is looked at: coverage (layers and bit-widths the space needs), monotonicity (more channels,
larger kernels and more bits should not cost less), and oddities: costs of 0, entries far from
others of their kind, networks of an unlikely latency, widths that cost the same, wide spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.costs import Key, layer_name
from apq_optuna.hardware.entries import Pairs, fixed_layers, fixed_widths, searched_layers
from apq_optuna.hardware.tables.table import CostTable
from apq_optuna.networks import ConvLayer
from apq_optuna.space import SearchSpace

TOLERANCE = 0.01
"""A larger layer may cost so much less, and the spread of both, before it counts as cheaper."""

ODD_FACTOR = 2.5
"""An entry is odd when it is so many times above, or below, both its neighbours in channels."""

FIXED_FACTOR = 10.0
"""A fixed layer may cost so much more or less for a MAC than any searched one."""

PLAUSIBLE_MS = (1e-3, 6e4)
SAME_COST = 0.98
WIDE_SPREAD = 0.1
EXAMPLES = 3


@dataclass
class TableCheck:
    """What was found.

    Attributes:
        errors: Why a search over the space cannot use the table.
        warnings: What is probably a mistake.
        notes: What is worth knowing.
        covered, needed: Entries of searched layers that are there, and that the space has.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    covered: int = 0
    needed: int = 0

    @property
    def usable(self) -> bool:
        """Whether a search can use the table."""
        return not self.errors

    def __str__(self) -> str:
        lines = [f"coverage: {self.covered} of {self.needed} searched entries"]
        for level in ("errors", "warnings", "notes"):
            lines += [f"{level[:-1]}: {text}" for text in getattr(self, level)]
        if self.errors:
            lines.append("this space cannot be searched with the table")
        return "\n".join(lines)


def check_table(table: CostTable, space: SearchSpace) -> TableCheck:
    """Checks a table against a joint space.

    Args:
        table: The table, of whatever origin.
        space: The joint space of a network family.

    Returns:
        What was found; `str` of it is a line each.

    Raises:
        SpaceError: A plain space, which has no layers.
    """
    check = TableCheck()
    layers = searched_layers(space)
    _coverage(check, table, space, layers)
    if len(table.metric_names) == 1:
        check.notes.append("no energies: latency is the only cost")
    there = [layer for layer in layers if _any(table, layer, layers)]
    for column, metric in enumerate(table.metric_names):
        _monotonicity(check, table, space, there, column, metric)
    _oddities(check, table, there)
    _fixed(check, table, space)
    _bits(check, table, space, there)
    _spreads(check, table)
    if check.usable:
        _networks(check, table, space)
    return check


# ---------------------------------------------------------------------- coverage


def _coverage(check: TableCheck, table: CostTable, space: SearchSpace, layers: Pairs) -> None:
    wanted = [(layer, w, a) for layer, pairs in layers.items() for w, a in pairs]
    check.needed = len(wanted)
    missing = [key for key in wanted if key not in table.entries]
    check.covered = check.needed - len(missing)
    absent = [layer for layer in layers if not _any(table, layer, layers)]
    if absent:
        check.errors.append(
            f"{len(absent)} of {len(layers)} searched layers are in no entry: "
            + _examples([layer_name(layer, *layers[layer][-1]) for layer in absent])
        )
    lacking: list[str] = []
    for placed in fixed_layers(space):
        key = (placed.layer, placed.w_bits, placed.a_bits)
        if key not in table.entries:
            lacking.append(f"{placed.name} ({layer_name(*key)})")
    if lacking and table.partial:
        check.notes.append(f"a partial table: not counted are {'; '.join(lacking)}")
    elif lacking:
        check.errors.append(f"fixed layers are in no entry: {'; '.join(lacking)}")
    holes = [key for key in missing if key[0] not in set(absent)]
    if holes:
        widths = sorted({f"W{w}A{a}" for _, w, a in holes})
        check.notes.append(
            f"{len(holes)} pairs of a layer and bit-widths are in no entry ({_examples(widths)}): "
            "no network with them is proposed"
        )
    if not absent:
        try:
            table.compile(space)
        except CostTableError as error:
            if not check.errors:
                check.errors.append(str(error))
    known = set(layers) | {placed.layer for placed in fixed_layers(space)}
    if unused := sum(layer not in known for layer, _, _ in table.entries):
        check.notes.append(f"{unused} entries are of layers that the space does not have")


def _any(table: CostTable, layer: ConvLayer, layers: Pairs) -> bool:
    return any((layer, w, a) in table.entries for w, a in layers[layer])


# ---------------------------------------------------------------------- monotonicity


def _monotonicity(
    check: TableCheck, table: CostTable, space: SearchSpace, layers: Sequence[ConvLayer],
    column: int, metric: str,
) -> None:  # fmt: skip
    bits = sorted({*space.bits, *fixed_widths(space)})
    for what, series in (
        ("more channels", _channel_series(layers)),
        ("a larger kernel", _kernel_series(layers)),
    ):
        keys = (
            ((small, w, a), (large, w, a))
            for each in series for small, large in pairwise(each) for w in bits for a in bits
        )  # fmt: skip
        _compare(check, table, keys, column, metric, what)
    _compare(check, table, _bit_steps(layers, bits), column, metric, "more bits")


def _compare(
    check: TableCheck, table: CostTable, keys: Iterator[tuple[Key, Key]], column: int,
    metric: str, what: str,
) -> None:  # fmt: skip
    """Counts the steps up that cost less, beyond tolerance and spread."""
    compared, cheaper = 0, []
    for small, large in keys:
        if small not in table.entries or large not in table.entries:
            continue
        compared += 1
        low, high = table.entries[small][column], table.entries[large][column]
        assert low is not None and high is not None
        noise = (table.spreads.get(small, 0.0) + table.spreads.get(large, 0.0)) * (column == 0)
        if high < low * (1 - TOLERANCE) - 2 * noise:
            cheaper.append((high / low, small, large))
    if cheaper:
        ratio, small, large = min(cheaper, key=lambda found: found[0])
        text = (
            f"{metric}: {what} cost less in {len(cheaper)} of {compared} steps, the most from "
            f"{layer_name(*small)} to {layer_name(*large)} (x{ratio:.2f})"
        )
        common = len(cheaper) > 0.05 * compared
        if common:
            text += "; real devices do that at some widths: look with `hardware show`"
        (check.warnings if common else check.notes).append(text)


def _series(
    layers: Sequence[ConvLayer],
    same: Callable[[ConvLayer], Hashable],
    size: Callable[[ConvLayer], int],
) -> Iterator[list[ConvLayer]]:
    """Layers that are the same but for their size, ascending."""
    groups: dict[Hashable, list[ConvLayer]] = {}
    for layer in layers:
        groups.setdefault(same(layer), []).append(layer)
    for group in groups.values():
        yield sorted(group, key=size)


def _channel_series(layers: Sequence[ConvLayer]) -> Iterator[list[ConvLayer]]:
    depthwise = [layer for layer in layers if layer.depthwise]
    dense = [layer for layer in layers if not layer.depthwise]

    def but_both(layer: ConvLayer) -> Hashable:
        return replace(layer, in_channels=1, out_channels=1, groups=1)

    yield from _series(depthwise, but_both, lambda layer: layer.in_channels)
    yield from _series(
        dense, lambda layer: replace(layer, out_channels=1), lambda layer: layer.out_channels
    )
    yield from _series(
        dense, lambda layer: replace(layer, in_channels=1), lambda layer: layer.in_channels
    )


def _kernel_series(layers: Sequence[ConvLayer]) -> Iterator[list[ConvLayer]]:
    def but_kernel(layer: ConvLayer) -> Hashable:
        return replace(layer, kernel_size=1, padding=0), layer.output_size

    yield from _series(layers, but_kernel, lambda layer: int(np.prod(layer.kernel_size)))


def _bit_steps(layers: Sequence[ConvLayer], bits: Sequence[int]) -> Iterator[tuple[Key, Key]]:
    for layer in layers:
        for other in bits:
            for low, high in pairwise(bits):
                yield (layer, low, other), (layer, high, other)
                yield (layer, other, low), (layer, other, high)


# ---------------------------------------------------------------------- oddities


def _oddities(check: TableCheck, table: CostTable, layers: Sequence[ConvLayer]) -> None:
    wanted = set(layers)
    kinds: dict[tuple[bool, int, int], list[Key]] = {}
    for key in table.entries:
        if key[0] in wanted:
            kinds.setdefault((key[0].depthwise, key[1], key[2]), []).append(key)
    for column, metric in enumerate(table.metric_names):
        free = [key for keys in kinds.values() for key in keys
                if not _cost(table, key, column)]  # fmt: skip
        if free:
            check.warnings.append(
                f"{metric} is 0 in {len(free)} entries: "
                + _examples([layer_name(*key) for key in free])
            )
        if odd := _spikes(table, layers, [pair for _, *pair in kinds], column):
            check.warnings.append(
                f"{metric}: {len(odd)} entries are far from both their neighbours in channels: "
                + _examples([f"{layer_name(*key)} (x{factor:.2g})" for factor, key in odd])
            )


def _fixed(check: TableCheck, table: CostTable, space: SearchSpace) -> None:
    """Fixed layers have no neighbours: their cost for a MAC against that of all others."""
    fixed = {(p.layer, p.w_bits, p.a_bits): p.name for p in fixed_layers(space)}
    for column, metric in enumerate(table.metric_names):
        rates = {key: _cost(table, key, column) / max(key[0].macs, 1) for key in table.entries}
        others = [rate for key, rate in rates.items() if key not in fixed]
        if not others:
            continue
        low, high = min(others) / FIXED_FACTOR, max(others) * FIXED_FACTOR
        for key, name in fixed.items():
            if key in rates and not low <= rates[key] <= high:
                check.warnings.append(
                    f"{metric} of the fixed layer {name} ({layer_name(*key)}) is "
                    f"{table.entries[key][column]:.4g}: for its MACs far from all searched layers"
                )


def _cost(table: CostTable, key: Key, column: int) -> float:
    value = table.entries[key][column]
    assert value is not None
    return float(value)


def _spikes(
    table: CostTable, layers: Sequence[ConvLayer], pairs: Sequence[Sequence[int]], column: int
) -> list[tuple[float, Key]]:
    """(factor, entry), the farthest first, of those far above or below both their neighbours.

    Cliffs and plateaus of real devices are steps; a spike is a slip of the pen or of the clock.
    """
    odd: dict[Key, float] = {}
    for series in _channel_series(layers):
        for w, a in dict.fromkeys((w, a) for w, a in pairs):
            keys = [(layer, w, a) for layer in series if (layer, w, a) in table.entries]
            costs = np.array([_cost(table, key, column) for key in keys])
            if len(costs) < 3 or not costs.min() > 0:
                continue
            beside = np.stack([costs[:-2], costs[2:]])
            up, down = costs[1:-1] / beside.max(axis=0), costs[1:-1] / beside.min(axis=0)
            factor = np.where(up > ODD_FACTOR, up, np.where(down < 1 / ODD_FACTOR, down, 1.0))
            odd |= {keys[i + 1]: float(factor[i]) for i in np.flatnonzero(factor != 1.0)}
            for end, near in ((0, 1), (-1, -2)):  # one neighbour only, so more of it is asked
                factor_of = float(costs[end] / costs[near])
                if not 1 / ODD_FACTOR**2 < factor_of < ODD_FACTOR**2:
                    odd[keys[end]] = factor_of
    return sorted(((f, key) for key, f in odd.items()), key=lambda found: -abs(np.log(found[0])))


def _bits(
    check: TableCheck, table: CostTable, space: SearchSpace, layers: Sequence[ConvLayer]
) -> None:
    """Widths that cost what the next wider one does: a search gains nothing from them."""
    for low, high in pairwise(space.bits):
        for column, metric in enumerate(table.metric_names):
            ratios = [
                _cost(table, (layer, low, low), column) / _cost(table, (layer, high, high), column)
                for layer in layers
                if (layer, low, low) in table.entries
                and table.entries.get((layer, high, high), (0.0, 0.0))[column]
            ]
            middle = float(np.median(ratios)) if ratios else 0.0
            if middle > SAME_COST:
                alike = middle < 1 / SAME_COST
                text = (
                    f"{metric}: {low} bits cost {'what' if alike else 'more than'} {high} do "
                    f"(median x{middle:.2f}), so they only lose accuracy"
                )
                (check.notes if alike else check.warnings).append(text)


def _spreads(check: TableCheck, table: CostTable) -> None:
    if not table.spreads:
        return
    relative = np.array(
        [spread / max(table.entries[key][0], 1e-12) for key, spread in table.spreads.items()]
    )
    wide = int((relative > WIDE_SPREAD).sum())
    text = f"spread of measured latencies: median {np.median(relative):.1%}"
    if wide:
        text += f", above {WIDE_SPREAD:.0%} in {wide} of {len(relative)} entries"
    target = check.warnings if wide > 0.2 * len(relative) else check.notes
    target.append(
        text + (": measure again on an idle machine" if target is check.warnings else "")
    )


def _networks(check: TableCheck, table: CostTable, space: SearchSpace) -> None:
    """Whole networks: their latencies, and whether energy says anything that latency does not."""
    compiled = table.compile(space)
    costs = compiled(space.sample(1000, np.random.default_rng(0)))
    costs = np.asarray(costs[np.isfinite(costs).all(axis=1)])
    low, high = float(compiled.minima[0]), float(compiled.maxima[0])
    check.notes.append(f"networks take {low:.4g} to {high:.4g} ms")
    if high < PLAUSIBLE_MS[0] or low > PLAUSIBLE_MS[1]:
        check.warnings.append(
            f"networks of {low:.4g} to {high:.4g} ms are unlikely: is the unit ms?"
        )
    if len(costs) > 10 and costs.shape[1] == 2 and (costs.max(axis=0) > costs.min(axis=0)).all():
        ranks = costs.argsort(axis=0).argsort(axis=0)
        together = float(np.asarray(np.corrcoef(ranks.T))[0, 1])
        if together > 0.999:
            check.notes.append(
                f"energy ranks networks as latency does (rank correlation {together:.4f})"
            )


def _examples(names: Sequence[str]) -> str:
    more = len(names) - EXAMPLES
    return "; ".join(names[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")
