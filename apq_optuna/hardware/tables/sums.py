"""Sizes that are sums over many decisions, as after concatenations: their places in tables.

Notation:
    D, n    decisions; genotypes in a batch
    s       distinct sizes of a site
    S       sites looked up together
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import Genotypes, Site

Choices = NDArray[np.int64]
"""What each choice of a decision adds."""

LARGEST_LOOKUP = 1 << 20
"""Most entries of a table from codes to places."""

LARGEST_EXACT = 1 << 24
"""Integers up to here are exact in float32, in which matrices are multiplied."""


class Sums:
    """Places of genotypes among the distinct sizes of a site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.sizes = site.distinct()
        self._base = self.sizes.max(axis=0) + 1
        self._codes = np.sort(self._code(self.sizes))  # ascending as `distinct` is

    def _code(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        code = sizes[:, 0].copy()
        for column in range(1, sizes.shape[1]):
            code = code * self._base[column] + sizes[:, column]
        return code

    def __call__(self, genotypes: Genotypes) -> NDArray[np.int64]:
        """`(n, D)` to `(n,)` in [0, s)."""
        return np.searchsorted(self._codes, self._code(self.site.sizes(genotypes)))


class _Code:
    """A site's sizes as one small number, a sum of what each decision's choice adds.

    Each extent counts in the largest unit that all its steps are multiples of.
    """

    def __init__(self, sums: Sums) -> None:
        self.sums = sums
        self.adds: dict[int, Choices] = {}  # by column
        low, unit, strides, stride = [], [], [], 1
        for extent in sums.site.extents:
            terms = [(column, np.array(values, np.int64)) for column, values in extent.terms]
            smallest = extent.constant + sum(int(values.min()) for _, values in terms)
            steps = [values - values.min() for _, values in terms]
            each = math.gcd(*(int(step) for values in steps for step in values)) or 1
            for (column, _), values in zip(terms, steps, strict=True):
                before = self.adds.get(column, np.zeros(len(values), np.int64))
                self.adds[column] = before + stride * (values // each)
            low.append(smallest)
            unit.append(each)
            strides.append(stride)
            stride *= 1 + sum(int(values.max()) for values in steps) // each
        self.entries = stride
        self._low, self._unit, self._strides = map(np.array, (low, unit, strides))

    def lookup(self) -> NDArray[np.int32]:
        """`(entries,)`: the place of each code."""
        places = np.zeros(self.entries, np.int32)
        codes = ((self.sums.sizes - self._low) // self._unit) @ self._strides
        places[codes] = np.arange(len(codes))
        return places


class SumsTogether:
    """Places of many sites' sizes: one product of matrices, and one lookup.

    Args:
        sums: The sites.
        strides: What a place of each is multiplied by.
    """

    def __init__(self, sums: Sequence[Sums], strides: Sequence[int]) -> None:
        codes = [_Code(one) for one in sums]
        fits = [code.entries <= LARGEST_LOOKUP for code in codes]
        self.together = np.flatnonzero(fits)
        self._others = [
            (j, one, stride)
            for j, (one, stride, fit) in enumerate(zip(sums, strides, fits, strict=True))
            if not fit
        ]
        chosen = [codes[j] for j in self.together]
        steps = [strides[j] for j in self.together.tolist()]
        lookups = [code.lookup() * step for code, step in zip(chosen, steps, strict=True)]
        ends = np.cumsum([0, *map(len, lookups)])
        self._lookup = np.concatenate([*lookups, np.zeros(0, np.int32)]).astype(np.int32)
        self._lay([code.adds for code in chosen], ends[:-1])

    def _lay(self, adds: Sequence[Mapping[int, Choices]], starts: Choices) -> None:
        """The matrix: a row for each decision that adds in equal steps, else one for each choice
        but the first."""
        constant = np.array(starts, np.int64)
        even: list[tuple[int, Choices]] = []
        most: list[int] = []
        uneven: list[tuple[int, int, Choices]] = []
        for column in sorted({column for one in adds for column in one}):
            choices = max(len(one[column]) for one in adds if column in one)
            nothing = np.zeros(choices, np.int64)
            added = np.stack([one.get(column, nothing) for one in adds], axis=1)
            constant += added[0]
            added = added - added[0]
            if (added == np.arange(choices)[:, None] * added[min(1, choices - 1)]).all():
                even.append((column, added[min(1, choices - 1)]))
                most.append(choices - 1)
            else:
                uneven += [(column, k, added[k]) for k in range(1, choices)]
        self._even = np.array([column for column, _ in even], np.intp)
        self._uneven = np.array([column for column, _, _ in uneven], np.intp)
        self._choice = np.array([k for _, k, _ in uneven], np.int32)
        rows = [row for _, row in even] + [row for _, _, row in uneven]
        matrix = np.array(rows, np.int64).reshape(len(rows), len(adds))
        times = np.array(most + [1] * len(uneven), np.int64)
        largest = (np.abs(matrix) * times[:, None]).sum(axis=0).max(initial=0)
        self._matrix = matrix.astype(np.float32 if largest < LARGEST_EXACT else np.float64)
        self._constant = constant

    def __call__(self, genotypes: Genotypes) -> NDArray[np.int32]:
        """`(n, D)` to `(n, S)`: places times strides, in the order of the sites."""
        found = np.empty((len(genotypes), len(self.together) + len(self._others)), np.int32)
        kind = self._matrix.dtype
        told = [genotypes[:, self._even].astype(kind)]
        if len(self._uneven):
            told.append((genotypes[:, self._uneven] == self._choice).astype(kind))
        features = told[0] if len(told) == 1 else np.concatenate(told, axis=1)
        codes = (features @ self._matrix).astype(np.int64)
        codes += self._constant
        found[:, self.together] = self._lookup.take(codes)
        for j, sums, stride in self._others:  # a loop over layers of very many sizes only
            found[:, j] = sums(genotypes) * stride
        return found
