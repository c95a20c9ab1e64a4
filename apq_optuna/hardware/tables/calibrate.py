"""Whole networks that a table is corrected by: which ones, and the correction they allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware.costs import Report
from apq_optuna.hardware.devices.device import Device
from apq_optuna.hardware.tables.correction import fit_correction
from apq_optuna.hardware.tables.table import CostTable
from apq_optuna.networks import Subnet
from apq_optuna.space import SearchSpace

if TYPE_CHECKING:
    from apq_optuna.supernet import SubnetModule


def random_networks(space: SearchSpace, n: int, seed: int = 0) -> list[Subnet]:
    """n random networks of a space, every choice uniform; the draw depends on the seed alone."""
    rows = space.sample(n, np.random.default_rng([seed, 20]))
    return [space.decode(row) for row in rows]


def calibration_networks(
    table: CostTable, space: SearchSpace, k: int, seed: int = 0
) -> list[Subnet]:
    """k networks worth measuring: random ones, spread evenly from cheap to dear.

    Raises:
        InvalidArgumentError: k below 1, or no network that the device runs was found.
    """
    if k < 1:
        raise InvalidArgumentError(f"k={k}: at least one network is measured")
    rng = np.random.default_rng([seed, 21])
    compiled = table.compile(space)
    rows = compiled.repair(space.sample(50 * k, rng), rng)
    rows = rows[np.isfinite(compiled(rows)).all(axis=1)]
    if not len(rows):
        raise InvalidArgumentError(
            f"k={k}: {table.device!r} runs none of {50 * k} random networks"
        )
    rows = rows[np.argsort(compiled(rows)[:, 0], kind="stable")]
    places = (np.arange(k) + 0.5) / k * len(rows)
    return [space.decode(rows[int(place)]) for place in places]


def correct(
    table: CostTable,
    device: Device,
    subnets: Iterable[Subnet],
    *,
    network: Callable[[Subnet], SubnetModule] | None = None,
    report: Report | None = None,
) -> CostTable:
    """The table corrected by what the device takes for a few whole networks.

    Args:
        table: Sums of the device's layers.
        device: Runs the networks.
        subnets: The networks, at least one.
        network: Makes a subnet's quantized module, for families whose wiring only modules know;
            without, the device runs what the subnets say.
        report: Told how much of the measuring is done.

    Raises:
        MissingCostError: The device runs no whole networks, or the table lacks a layer of one.
        InvalidArgumentError: No networks.
    """
    subnets = list(subnets)
    if network is None:
        found = device.measure(subnets, report=report)
    else:
        found = device.measure_networks([network(subnet) for subnet in subnets], report=report)
    measured = [m.latency_ms for m in found]
    summed = [table.network_cost(subnet.layers())[0] for subnet in subnets]
    return table.corrected(fit_correction(summed, measured))
