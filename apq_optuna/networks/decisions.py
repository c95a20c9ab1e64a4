"""Decisions: single parameters of a space, and how they become Optuna distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import SpaceError
from apq_optuna.networks.layers import as_whole

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_LEVELS = 1024
"""Finest grid a float or a wide integer is searched on."""

EXACT_INTEGERS = 2.0**53
"""Up to this size a float holds every integer."""

ONE_HOT_LEVELS = 16
"""Numbers with at most this many levels get a feature column per level, wider ones one column."""


@dataclass(frozen=True)
class Decision:
    """One Optuna parameter of a space.

    Attributes:
        name: Parameter name (`stage2.block1.kernel`).
        choices: Its values in order; for a float or wide integer, the centres of its grid cells.
        role: `depth`, `kernel`, `channels`, `bits` in a network's space; `categorical`, `int` or
            `float` in a plain one.
        group: Decisions of one group belong together and mutate together (a layer's, a block's);
            empty is a group of its own.
        needs: (name, index) of the decision that governs this one, which is in use while the
            other's choice is at least that index; None is always. What governs is always in use.
        low, high, log, step: Range of a plain `int` or `float`.
        grid: Whether `choices` are cells of a range rather than exact values.
    """

    name: str
    choices: tuple[Any, ...]
    role: str
    group: str = ""
    needs: tuple[str, int] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    grid: bool = False

    def __post_init__(self) -> None:
        if self.quantization and any(type(width) is not int for width in self.choices):
            try:
                widths = tuple(as_whole(width) for width in self.choices)
            except TypeError:
                raise SpaceError(
                    f"{self.name} has widths {list(self.choices)}: not all are whole numbers"
                ) from None
            object.__setattr__(self, "choices", widths)

    @property
    def quantization(self) -> bool:
        """Whether this decision is a bit-width."""
        return self.role == "bits"

    @property
    def scaled(self) -> bool:
        """Whether its feature is one scaled column rather than one-hot columns."""
        return self.role in ("int", "float") and len(self.choices) > ONE_HOT_LEVELS

    def places(self) -> NDArray[np.float64]:
        """Position of each choice on the parameter's own scale, in [0, 1]."""
        place = np.arange(len(self.choices), dtype=float)
        if self.log and not self.grid:
            place = np.log(np.array(self.choices, float) / self.choices[0])
        return place / max(float(place[-1]), 1e-12)

    def distribution(self) -> BaseDistribution:
        """The Optuna distribution of this parameter."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.role == "float":
            return FloatDistribution(self.low, self.high, log=self.log, step=self.step)
        if self.role == "int":
            return IntDistribution(
                int(self.low), int(self.high), log=self.log, step=int(self.step or 1)
            )
        if self.role != "categorical" and (step := uniform_step(self.choices)):
            return IntDistribution(self.choices[0], self.choices[-1], step=step)
        return CategoricalDistribution(self.choices)

    def index_of(self, value: Any) -> int:
        """Index of the choice that a parameter value is, or the grid cell it falls in.

        Raises:
            SpaceError: The value is not one of the choices.
        """
        if self.role == "float" or self.grid:
            if not self.low <= value <= self.high:
                raise SpaceError(f"{self.name}={value!r} is outside [{self.low}, {self.high}]")
            if len(self.choices) == 1:
                return 0
            position = _unit(float(value), self.low, self.high, self.log) * len(self.choices)
            if not self.grid:  # a stepped float: its levels are exact values
                position = (value - self.low) / (self.step or 1.0) + 0.5
            return min(int(position), len(self.choices) - 1)
        if self.role == "int" and self.low <= value <= self.high:
            # on a wide log range not every value is a level: the nearest one stands for it
            return int(np.abs(np.array(self.choices, float) - value).argmin())
        for index, choice in enumerate(self.choices):
            # nan is a legal categorical choice and differs from itself
            if choice == value or (choice != choice and value != value):
                return index
        raise SpaceError(f"{self.name}={value!r} is not one of {list(self.choices)}")

    def value_of(self, index: int, inner: float | None = None) -> Any:
        """The parameter value of a choice; with `inner`, at that position inside its grid cell."""
        if not self.grid or inner is None:
            return self.choices[index]
        return self.at(np.array([(index + inner) / len(self.choices)])).tolist()[0]

    def at(self, positions: NDArray[np.floating]) -> NDArray[Any]:
        """Values at positions `(n,)` in [0, 1] along the range of a plain number, on its steps.

        float64, int64, or Python's integers where those of a float are no longer exact.
        """
        low, high = float(self.low), float(self.high)
        if self.log:  # by the logs of both ends: their ratio may be more than a float holds
            values = np.exp(np.log(low) + positions * (np.log(high) - np.log(low)))
        elif np.isfinite(high - low):
            values = low + positions * (high - low)
        else:
            values = low * (1.0 - positions) + high * positions
        values = np.clip(values, low, high)
        step = self.step or (1 if self.role == "int" else None)
        if step is None:
            return np.asarray(values)
        values = np.minimum(low + np.rint(values / step - low / step) * step, high)
        if self.role == "float":
            return np.asarray(values)
        if max(abs(low), abs(high)) < EXACT_INTEGERS:
            return np.asarray(values, np.int64)
        first, last, size = int(self.low), int(self.high), int(step)
        exact = np.empty(len(values), object)
        exact[:] = [min(max(first + (int(v) - first) // size * size, first), last) for v in values]
        return exact


def uniform_step(values: tuple[Any, ...]) -> int | None:
    """The common difference of ascending integers, or None if there is none."""
    if not all(isinstance(value, int) for value in values):
        return None
    if len(values) == 1:
        return 1
    step = values[1] - values[0]
    return step if list(values) == list(range(values[0], values[-1] + 1, step)) else None


def _unit(value: float, low: float, high: float, log: bool) -> float:
    if high <= low:
        return 0.0
    if log:
        return float((np.log(value) - np.log(low)) / (np.log(high) - np.log(low)))
    if np.isfinite(high - low):
        return (value - low) / (high - low)
    return (value / 2 - low / 2) / (high / 2 - low / 2)
