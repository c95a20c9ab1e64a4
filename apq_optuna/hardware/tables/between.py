"""Sizes between measured ones: a layer behind a concatenation has too many to measure them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from apq_optuna.hardware.costs import Cost, Key, layer_name
from apq_optuna.networks import FLOAT_BITS, ConvLayer, as_pair
from apq_optuna.space import SearchSpace

if TYPE_CHECKING:
    from apq_optuna.hardware.devices.device import Device
    from apq_optuna.hardware.tables.table import CostTable

MOST_SIZES = 16
"""Distinct sizes of a layer that are all measured."""

Neighbours = tuple[ConvLayer, ConvLayer, float]
"""Two measured layers, and how far from the first to the second a layer lies."""


def interpolated_sizes(space: SearchSpace) -> dict[ConvLayer, Neighbours]:
    """Layers that are not measured, and between which ones they lie.

    Of a site with more than `MOST_SIZES` sizes, as many are measured, spread evenly over its input
    channels, the ends among them; a layer that some other site needs measured is measured.
    """
    measured: set[ConvLayer] = set()
    rows: list[list[ConvLayer]] = []
    for site in space.networks.sites():
        layers = site.layers()
        if len(layers) <= MOST_SIZES:
            measured.update(layers)
            continue
        by_outputs: dict[object, list[ConvLayer]] = {}
        for layer in layers:
            by_outputs.setdefault(replace(layer, in_channels=1, groups=1), []).append(layer)
        most = max(2, MOST_SIZES // len(by_outputs))
        for row in by_outputs.values():
            row.sort(key=lambda layer: layer.in_channels)
            kept = np.unique(np.linspace(0, len(row) - 1, most).round().astype(int))
            measured.update(row[k] for k in kept)
            rows.append(row)
    found: dict[ConvLayer, Neighbours] = {}
    for row in rows:
        there = [k for k, layer in enumerate(row) if layer in measured]
        for k, layer in enumerate(row):
            if layer in measured:
                continue
            low = row[max(t for t in there if t < k)]
            high = row[min(t for t in there if t > k)]
            share = (layer.in_channels - low.in_channels) / (high.in_channels - low.in_channels)
            found[layer] = (low, high, share)
    return found


def interpolated(
    entries: Mapping[Key, Cost], between: Mapping[ConvLayer, Neighbours],
    needed: Mapping[ConvLayer, Sequence[tuple[int, int]]],
) -> dict[Key, Cost]:  # fmt: skip
    """Costs of the layers between measured ones, linear in their input channels."""
    found: dict[Key, Cost] = {}
    for layer, (low, high, share) in between.items():
        for w, a in needed[layer]:
            first, second = entries[low, w, a], entries[high, w, a]
            ms = (1 - share) * first[0] + share * second[0]
            energies = first[1], second[1]
            mj = None
            if energies[0] is not None and energies[1] is not None:
                mj = (1 - share) * energies[0] + share * energies[1]
            found[layer, w, a] = (ms, mj)
    return found


def measured_errors(
    table: CostTable, device: Device, space: SearchSpace, count: int, *, seed: int = 0
) -> list[tuple[str, float]]:
    """How far off interpolated latencies are from measured ones.

    Args:
        table: With interpolated layers.
        device: What measures; as many rounds as for a table.
        space: Of the table.
        count: Layers to measure, drawn at random, each at one pair of widths.
        seed: Of the draw.

    Returns:
        (layer, share by which the table is above what was measured), none where nothing of the
        table is interpolated.
    """
    between = interpolated_sizes(space)
    keys = [key for key in table.entries if key[0] in between]
    if not keys or "interpolated" not in table.provenance:
        return []
    drawn = np.random.default_rng(seed).permutation(len(keys))[:count]
    found: list[tuple[str, float]] = []
    for layer, w, a in (keys[k] for k in drawn):
        runs = [device.costs(layer, [executed(device, w, a)])[0][0] for _ in range(device.rounds)]
        off = table.entries[layer, w, a][0] / float(np.median(runs)) - 1
        found.append((layer_name(layer, w, a), off))
    return found


def executed(device: Device, w_bits: int, a_bits: int) -> tuple[int, int]:
    """The widths that a layer runs at; one that stays float, at the widest where there is none."""
    widest = max(device.bits)
    w, a = (
        widest if width == FLOAT_BITS and FLOAT_BITS not in device.bits else width
        for width in (w_bits, a_bits)
    )
    return device.executes(w, a)


def layer_text(layer: ConvLayer) -> str:
    """A layer on a line, as a table's provenance names those that are interpolated."""
    height, width = as_pair(layer.input_size)
    kernel = "x".join(map(str, as_pair(layer.kernel_size)))
    return f"{layer.in_channels} to {layer.out_channels}, {kernel}, {height}x{width}"
