"""`CompiledCosts`: genotypes priced by gathers from one flat table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.device import block_layers, block_sites, fixed_layers, layer_name
from apq_optuna.space import ConvLayer, SearchSpace
from apq_optuna.space.space import BIT_NAMES, Genotypes
from apq_optuna.space.subnet import NetworkSpec

if TYPE_CHECKING:
    from apq_optuna.hardware.table import CostTable

CHUNK = 2048
"""Genotypes priced at a time."""


class CompiledCosts:
    """Costs of genotypes by array gathers: one flat table per block choice, one gather per metric.

    Attributes:
        metric_names: Columns of the result.
        maxima: The largest finite total of each cost, `(m,)`: the default reference point.
        minima: The smallest total of each cost, `(m,)`.
    """

    def __init__(self, table: CostTable, space: SearchSpace) -> None:
        spec = space._network()
        self.metric_names = table.metric_names
        self.space = space
        m = len(self.metric_names)
        fixed = np.array(table.overhead[:m], float)
        for placed in fixed_layers(space):
            key = (placed.layer, placed.w_bits, placed.a_bits)
            if key in table.entries:
                fixed += np.array(table.entries[key][:m], float)
            elif not table.partial:
                raise CostTableError(
                    f"the cost table of {table.device!r} lacks the fixed layer {placed.name} of "
                    f"this space: {layer_name(*key)}; build the table for this space"
                )
        self.fixed = fixed
        sites = list(block_sites(spec))
        blocks = [site[:2] for site in sites]
        strides = np.zeros((len(space.decisions), len(blocks)), np.float32)
        flats: list[NDArray[np.float64]] = []
        self._repairs: dict[int, tuple[list[int], NDArray[np.int32]]] = {}
        self._widenings: list[tuple[list[int], NDArray[np.int32]]] = []
        offset = 0
        offsets = []
        for j, (s, b) in enumerate(blocks):
            pointwise, depthwise = _block_costs(table, spec, sites[j], m)
            # (k, c, pw_w, pw_a, dw_w, dw_a, m)
            costs = pointwise[None, :, :, :, None, None] + depthwise[:, :, None, None]
            step = 1
            names = ("kernel", "channels", *BIT_NAMES)
            columns = [space.column[f"stage{s + 1}.block{b + 1}.{name}"] for name in names]
            runnable = np.argwhere(np.isfinite(costs).all(axis=-1)).astype(np.int32)
            if not len(runnable):
                raise CostTableError(
                    f"the device {table.device!r} runs no choice of stage {s + 1}, block {b + 1}"
                )
            if len(runnable) < np.prod(costs.shape[:-1]):
                self._repairs[j] = columns, runnable
            self._widenings += _widening(columns[1:4], pointwise)
            self._widenings += _widening([*columns[:2], *columns[4:]], depthwise)
            for name, size in zip(names[::-1], costs.shape[-2::-1], strict=True):
                strides[space.column[f"stage{s + 1}.block{b + 1}.{name}"], j] = step
                step *= size
            flats.append(costs.reshape(-1, m))
            offsets.append(offset)
            offset += step
        flats.append(np.zeros((1, m)))  # what an inactive block costs
        self._strides = strides
        self._offsets = np.array(offsets, np.int32)
        self._flat = np.ascontiguousarray(np.concatenate(flats).T)
        self._nothing = offset
        kernels = [space.column[f"stage{s + 1}.block{b + 1}.kernel"] for s, b in blocks]
        self._inactive = space.inactive(np.array(kernels, np.intp))
        self._summarise(spec, blocks, flats)

    def repair(self, genotypes: Genotypes, rng: np.random.Generator) -> Genotypes:
        """`(n, D)` genotypes in which every block that has no cost is one, drawn at random, that
        has; not canonical.

        A device that runs few of the bit-widths leaves so few feasible networks that chance does
        not find them.
        """
        flat, index = self._flat[0], self._index(genotypes)
        missing = ~np.isfinite(flat.take(index))
        if not missing.any():
            return genotypes
        result = genotypes.copy()
        for block, (columns, runnable) in self._repairs.items():  # a loop over blocks only
            rows = np.flatnonzero(missing[:, block])
            drawn = runnable[rng.integers(len(runnable), size=len(rows))]
            result[rows[:, None], columns] = drawn
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
        for columns, widest in self._widenings:  # a loop over blocks only
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

    def _index(self, rows: Genotypes) -> NDArray[np.int32]:
        """`(n, D)` to `(n, blocks)`: each block's place in the flat table."""
        index = (rows.astype(np.float32) @ self._strides).astype(np.int32)
        index += self._offsets
        index[self._inactive(rows)] = self._nothing
        return index

    def _summarise(
        self, spec: NetworkSpec, blocks: list[tuple[int, int]], flats: list[NDArray[np.float64]]
    ) -> None:
        finite = [np.where(np.isfinite(f), f, np.nan) for f in flats]
        self.maxima = self.fixed + sum(np.nanmax(f, axis=0) for f in finite)
        minima = self.fixed.copy()
        for s, stage in enumerate(spec.stages):
            least = [np.nanmin(finite[j], axis=0) for j, (t, _) in enumerate(blocks) if t == s]
            minima += sum(least[: stage.depths[0]])
        self.minima = minima

    @property
    def has_gaps(self) -> bool:
        """Whether some choice of the space has no cost."""
        return bool(np.isinf(self._flat).any())

    def __call__(self, genotypes: Genotypes) -> NDArray[np.float64]:
        """`(n, D)` genotypes to `(n, m)` costs; inf where the table has no entry."""
        out = np.empty((len(genotypes), len(self.metric_names)))
        for start in range(0, len(genotypes), CHUNK):  # a chunk's arrays stay in the cache
            rows = genotypes[start : start + CHUNK]
            index = self._index(rows)
            for column, flat in enumerate(self._flat):
                flat.take(index).sum(axis=1, out=out[start : start + CHUNK, column])
        out += self.fixed
        return out


def _block_costs(
    table: CostTable, spec: NetworkSpec, site: tuple[int, int, int, int], m: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Costs of every choice of one block.

    Returns:
        Both pointwise layers, `(channels, w, a, m)`; the depthwise, `(kernels, channels, w, a,
        m)`.
    """
    stage, bits = spec.stages[site[0]], spec.bits
    channels = spec.channel_choices(*site[:2])
    pointwise = np.empty((len(channels), len(bits), len(bits), m))
    depthwise = np.empty((len(stage.kernels), *pointwise.shape))
    for k, kernel in enumerate(stage.kernels):
        for c, width in enumerate(channels):
            expand, dw, project = block_layers(spec, site, width, kernel)
            depthwise[k, c] = _layer_costs(table, dw, bits, m)
            if k == 0:
                pointwise[c] = _layer_costs(table, expand, bits, m) + _layer_costs(
                    table, project, bits, m
                )
    return pointwise, depthwise


def _widening(
    columns: list[int], costs: NDArray[np.float64]
) -> list[tuple[list[int], NDArray[np.int32]]]:
    """For every choice the widest bits of the same cost; nothing where no choice has wider ones.

    Args:
        columns: Of the genotype, in the order of the axes of `costs` but the last.
        costs: `(..., w, a, m)`.
    """
    w, a, m = costs.shape[-3:]
    flat = costs.reshape(-1, w * a, m)
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
    return [(columns, widest.reshape(*costs.shape[:-1], 2))]


def _layer_costs(
    table: CostTable, layer: ConvLayer, bits: tuple[int, ...], m: int
) -> NDArray[np.float64]:
    """`(w, a, m)` costs of a layer, inf where missing."""
    missing = (math.inf,) * m
    costs = np.array(
        [[table.entries.get((layer, w, a), missing)[:m] for a in bits] for w in bits], float
    )
    if np.isinf(costs).all():
        raise CostTableError(
            f"the cost table of {table.device!r} lacks "
            f"{layer_name(layer, bits[-1], bits[-1])} and every other bit-width of it; add it, "
            "or build the table for this space"
        )
    return costs
