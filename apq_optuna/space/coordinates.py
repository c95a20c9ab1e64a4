"""Genotypes as points, so that neighbouring choices are near each other.

Notation:
    C       columns: one for a number, scaled to [0, 1], and one for each choice of a category
    b       bit-width; its column is its noise, 2^-(b - b_min), and 0 where it is not in use
    K       kinds of bit-width: of depthwise layers and of others, weights and activations
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import SpaceError
from apq_optuna.networks import Genotypes
from apq_optuna.space.space import SearchSpace


class Coordinates:
    """What `features` is for a network, for a model of distances; depth has a column here.

    A quantizer's step, and with it its error, halves with every bit, so 2 and 4 bits are far apart
    and 6 and 8 all but the same.

    Attributes:
        groups: Decision of each column, `(C,)`, ascending.
        kinds: K, 0 in a space without bit-widths.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        unordered = np.array(
            [decision.role == "categorical" for decision in space.decisions], bool
        )
        bits = np.array([decision.quantization for decision in space.decisions], bool)
        width = np.where(unordered, space.sizes, 1)
        start = np.concatenate([[0], np.cumsum(width)])[:-1].astype(np.intp)
        self.groups = np.repeat(np.arange(len(width)), width)
        self._numbers = np.flatnonzero(~unordered & ~bits)
        self._categories, self._bits = np.flatnonzero(unordered), np.flatnonzero(bits)
        self._number_columns, self._category_columns = (
            start[self._numbers],
            start[self._categories],
        )
        self._bit_columns = start[self._bits]
        self._lay_numbers()
        self._measure_bits()

    def _lay_numbers(self) -> None:
        """Position of every choice of every number; logarithmic ones are spaced by ratio."""
        decisions = [self.space.decisions[c] for c in self._numbers]
        self._position = np.zeros(
            (len(decisions), max((len(d.choices) for d in decisions), default=1))
        )
        for row, decision in enumerate(decisions):
            self._position[row, : len(decision.choices)] = decision.places()

    def _measure_bits(self) -> None:
        decisions = [self.space.decisions[c] for c in self._bits]
        kind = self._kinds_of_bits()
        self.kinds = int(kind.max(initial=-1)) + 1
        least = min((decision.choices[0] for decision in decisions), default=0)
        self.least_step = 2.0 ** (2 - least) if decisions else 0.0
        """Step of the narrowest bit-width, as a share of the step of 2 bits."""
        table = np.zeros((len(decisions), max((len(d.choices) for d in decisions), default=0)))
        for row, decision in enumerate(decisions):
            table[row, : len(decision.choices)] = [2.0 ** (least - b) for b in decision.choices]
        self._noise = table
        self._of_kind = np.zeros((len(decisions), self.kinds))
        self._of_kind[np.arange(len(decisions)), kind] = 1.0

    def _kinds_of_bits(self) -> NDArray[np.intp]:
        """Kind of each bit-width, counted from 0: weights and inputs of layers that are not
        depthwise, then of those that are, as far as there are such.

        Raises:
            SpaceError: A bit-width is of no layer.
        """
        kinds: dict[int, tuple[bool, bool]] = {}
        for site in self.space.networks.sites() if len(self._bits) else ():
            for is_input, width in enumerate((site.w_bits, site.a_bits)):
                if width.column is not None:
                    kind = (site.layer.depthwise, bool(is_input))
                    kinds[width.column] = min(kind, kinds.get(width.column, kind))
        if lacking := [self.space.decisions[c].name for c in self._bits if c not in kinds]:
            raise SpaceError(f"{lacking[0]} is a bit-width of no layer")
        present = sorted(set(kinds.values()))
        return np.array([present.index(kinds[c]) for c in self._bits.tolist()], np.intp)

    def __call__(self, genotypes: Genotypes) -> NDArray[np.float64]:
        """`(n, D)` to `(n, C)`; two different categories are at distance 1."""
        out = np.zeros((len(genotypes), len(self.groups)))
        each = np.arange(len(self._numbers))
        out[:, self._number_columns] = self._position[each, genotypes[:, self._numbers]]
        chosen = self._category_columns + genotypes[:, self._categories]
        np.put_along_axis(out, chosen, 0.5**0.5, axis=1)
        if len(self._bits):
            out[:, self._bit_columns] = self._bit_noise(genotypes)
        return out

    def places(self) -> list[NDArray[np.float64] | int]:
        """Of each decision, where its choices lie `(choices,)`; of a category, how many it has.

        A bit-width has one place more, 0, for not being in use.
        """
        found: list[NDArray[np.float64] | int] = [len(d.choices) for d in self.space.decisions]
        for row, column in enumerate(self._numbers.tolist()):
            found[column] = self._position[row, : len(self.space.decisions[column].choices)]
        for row, column in enumerate(self._bits.tolist()):
            choices = len(self.space.decisions[column].choices)
            found[column] = np.append(self._noise[row, :choices], 0.0)
        return found

    def _bit_noise(self, genotypes: Genotypes) -> NDArray[np.float64]:
        rows = np.arange(len(self._bits))
        noise = self._noise[rows, genotypes[:, self._bits]]
        return noise * self.space.active(genotypes)[:, self._bits]

    def noise(self, genotypes: Genotypes) -> NDArray[np.float64]:
        """`(n, K)`: the mean of each kind's noise over those in use, in [0, 1].

        Raises:
            ValueError: The space has no bit-widths.
        """
        if not self.kinds:
            raise ValueError("noise: the space has no bit-widths")
        active = self.space.active(genotypes)[:, self._bits] @ self._of_kind
        return self._bit_noise(genotypes) @ self._of_kind / np.maximum(active, 1)
