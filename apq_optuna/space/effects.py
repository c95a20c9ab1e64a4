"""Genotypes as features of main effects: what each decision does by itself.

Notation:
    m       choices of a decision, at most `GRID` of them where there are more
    k       kernel of its choices, `(m, m)`: Matern 5/2 of length `LENGTH` for a number scaled to
            [0, 1], 1 for equal categories and 0 for others
    F       features of all decisions

A main effect sums to 0 over the choices, or it would be told from a constant by nothing: k is
centred. Its eigenvectors, each scaled by the root of its eigenvalue, are features whose inner
product is k again; the first is all but linear, the second all but quadratic, and so on. With few
choices they are as many as the choices less one, and of a range the first `ORDER` hold 99 parts in
a hundred. So a sum of one-dimensional kernels over all decisions (Durrande, Ginsbourger and
Roustant, 2012) is one product of matrices, and features are looked up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import Genotypes
from apq_optuna.space.coordinates import Coordinates
from apq_optuna.space.space import SearchSpace

Floats = NDArray[np.floating]

LENGTH = 1.0
"""Of a number's kernel: effects are smooth, and mostly go one way or have one best place."""

ORDER = 4
GRID = 65
DENSE = 0.4
LEAST = 1e-6
"""Share of the largest eigenvalue below which one is rounding."""


class Effects:
    """Features of main effects, by look-up.

    Their squares have mean 1 in total: the inner product of two rows of features is a kernel whose
    variance, over uniform choices, is 1.

    Attributes:
        groups: Decision of each feature, `(F,)`, counted from 0 and ascending.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        places = Coordinates(space).places()
        features = [_features(place) for place in places]
        varying = [d for d, each in enumerate(features) if each.shape[1]]
        self._decisions = np.array(varying, np.intp)
        self._bits = np.array([space.decisions[d].quantization for d in varying], bool)
        self._sizes = space.sizes[self._decisions]
        self._rows = max((len(features[d]) for d in varying), default=1)
        self._order = max((features[d].shape[1] for d in varying), default=1)
        table = np.zeros((len(varying), self._rows, self._order))
        used = np.zeros((len(varying), self._order), bool)
        for i, d in enumerate(varying):
            table[i, : len(features[d]), : features[d].shape[1]] = features[d]
            used[i, : features[d].shape[1]] = True
        table /= max(len(varying), 1) ** 0.5
        # products over thousands of rows are what features are for: half the memory
        self._table = table.reshape(-1, self._order).astype(np.float32)
        self._first = self._rows * np.arange(len(varying))
        # leaving out what is 0 for all costs a copy, and pays where that is most
        self._used = np.flatnonzero(used.ravel()) if used.sum() < DENSE * used.size else None
        groups = np.repeat(np.arange(len(varying)), self._order)
        self.groups = groups if self._used is None else groups[self._used]

    def __call__(self, genotypes: Genotypes) -> Floats:
        """`(n, D)` to `(n, F)`, float32."""
        index = genotypes[:, self._decisions]
        if self._bits.any():  # one that is not in use has a place of its own, behind the choices
            active = self.space.active(genotypes)[:, self._decisions]
            index = np.where(self._bits & ~active, self._sizes, index)
        found = self._table.take(index + self._first, axis=0)
        found = found.reshape(len(index), len(self._decisions) * self._order)
        return np.asarray(found if self._used is None else found[:, self._used])


def _features(place: Floats | int) -> Floats:
    """Of one decision's choices, `(choices, f)`: of their places, or of so many categories."""
    if isinstance(place, int):
        kernel, grid = np.eye(place), np.arange(place)
        order = place
    else:
        apart = 5.0**0.5 * np.abs(place[:, None] - place[None]) / LENGTH
        kernel = (1.0 + apart + apart**2 / 3.0) * np.exp(-apart)
        grid = np.linspace(0, len(place) - 1, min(len(place), GRID)).round().astype(int)
        order = ORDER
    if len(kernel) < 2:
        return np.zeros((len(kernel), 0))
    inner = kernel[np.ix_(grid, grid)]
    means = inner.mean(axis=0)
    values, vectors = np.linalg.eigh(inner - means - means[:, None] + means.mean())
    kept = np.argsort(-values)[:order]
    kept = kept[values[kept] > LEAST * max(float(values.max()), LEAST)]
    cross = kernel[:, grid]
    cross = cross - cross.mean(axis=1, keepdims=True) - means + means.mean()
    found = cross @ vectors[:, kept] / np.sqrt(values[kept])
    return np.asarray(found / max(float((found**2).sum(axis=1).mean()), 1e-12) ** 0.5)
