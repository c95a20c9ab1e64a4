"""Objectives that need no trial: computed exactly from genotypes.

Notation:
    k   known objectives
    n   candidates
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]
KnownFunction = Callable[[Mapping[str, NDArray[np.generic]]], Floats]


class KnownObjectives:
    """Objectives computed exactly from genotypes.

    Args:
        space: The search space.
        table: A compiled cost table, or None.
        functions: By objective index: a function of parameter arrays.
        table_index: Objective index of each of the table's columns.
        names: Metric names by objective index, for messages.
        constants: Parameters of one value, which are no decisions, by name.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: Callable[[Genotypes], Floats] | None,
        table_index: Sequence[int],
        functions: Mapping[int, KnownFunction],
        names: Sequence[str],
        constants: Mapping[str, object] | None = None,
    ) -> None:
        self.space, self.table, self.functions, self.names = space, table, functions, names
        self.index = [*table_index, *functions]
        self.constants = dict(constants or {})
        self.given_names: tuple[str, ...] = ()
        self._choices = [_array(d.choices) for d in space.decisions]

    def given(self, values: Mapping[str, object]) -> KnownObjectives:
        """The same for a trial that has some parameters prescribed, also such as are no decisions.

        A prescribed value is priced itself, not the middle of the grid cell it lies in.
        """
        if not values:
            return self
        mine = copy.copy(self)
        kinds = {d.name: {"float": float, "int": int}.get(d.role) for d in self.space.decisions}
        mine.constants = self.constants | {
            name: kind(value) if (kind := kinds.get(name)) else value
            for name, value in values.items()
        }
        mine.given_names = tuple(values)
        return mine

    def __call__(self, genotypes: Genotypes, inner: Floats | None = None) -> Floats:
        """`(n, D)` to `(n, k)`, columns in the order of `index`.

        Args:
            genotypes: The rows.
            inner: Positions in the cells of ranges, `(n, D)` in [0, 1]; by default the middle.
                What is no number there, as at the end of a range, is infinite.

        Raises:
            InvalidArgumentError: A function raises, or returns another shape, or NaN.
        """
        parts: list[Floats] = []
        if not len(genotypes):
            return np.zeros((0, len(self.index)))
        if self.table is not None:
            parts.append(self.table(genotypes))
        if self.functions:
            params = {}
            for c, (d, choices) in enumerate(
                zip(self.space.decisions, self._choices, strict=True)
            ):
                if d.grid and inner is not None:
                    params[d.name] = d.at((genotypes[:, c] + inner[:, c]) / len(choices))
                else:
                    params[d.name] = choices[genotypes[:, c]]
            for name, value in self.constants.items():
                params[name] = np.repeat(_array([value]), len(genotypes))
            for index, function in self.functions.items():
                value = self._value(index, function, params, edge=inner is not None)
                if value.shape != (len(genotypes),):
                    raise InvalidArgumentError(
                        f"known[{self.names[index]!r}] returned shape {value.shape} for "
                        f"{len(genotypes)} configurations; expected ({len(genotypes)},)"
                    )
                if np.isnan(value).any():
                    raise InvalidArgumentError(f"known[{self.names[index]!r}] returned NaN")
                parts.append(value[:, None])
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(genotypes), 0))

    def _value(
        self,
        index: int,
        function: KnownFunction,
        params: Mapping[str, NDArray[np.generic]],
        *,
        edge: bool,
    ) -> Floats:
        try:
            value = np.asarray(function(params), float)
            return np.where(np.isnan(value), np.inf, value) if edge else value
        except Exception as error:
            if edge:  # it takes the middles of these cells, or has said that it does not
                return np.full(len(next(iter(params.values()))), np.inf)
            raise InvalidArgumentError(
                f"known[{self.names[index]!r}] raised {type(error).__name__}: {error}; it is "
                f"given arrays of {sorted(params)[:5]}, to return one value for each element"
            ) from error


def _array(choices: Sequence[object]) -> NDArray[np.generic]:
    """`(k,)`: numbers or strings where all are of one such type, else objects."""
    kinds = {type(choice) for choice in choices}
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        return np.array(choices)
    found = np.empty(len(choices), object)
    for i, choice in enumerate(choices):  # a tuple stays one choice, of whatever length
        found[i] = choice
    return found
