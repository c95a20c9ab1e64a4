"""Pareto fronts and hypervolume. Everything is minimised here; callers flip what they maximise.

Notation:
    values      `(n, m)`, finite
    reference   `(m,)`; only points below it in every objective have volume
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def nondominated(values: Floats) -> NDArray[np.bool_]:
    """Which rows no other row dominates, `(n,) bool`; of equal rows the first is kept."""
    keep = np.zeros(len(values), bool)
    rest = np.lexsort(values.T[::-1])
    ordered = values[rest]
    # in lexicographic order a row can only be dominated by an earlier one, so the first of those
    # left is of the front: one pass for each row of the front, over ever fewer rows
    while len(rest):
        keep[rest[0]] = True
        left = (ordered < ordered[0]).any(axis=1)
        rest, ordered = rest[left], ordered[left]
    return keep


def hypervolume(values: Floats, reference: Floats) -> float:
    """Volume between the front and the reference point.

    Exact for any number of objectives: sweeps one objective and sums slices of the others.
    """
    values = np.asarray(values, float)
    reference = np.asarray(reference, float)
    values = values[(values < reference).all(axis=1)]
    if not len(values):
        return 0.0
    return _volume(values[nondominated(values)], reference)


def hypervolume_growth(values: Floats, reference: Floats) -> Floats:
    """Hypervolume of the first 1, 2, ... rows, `(n,)`.

    Each row adds its own box, less what the front before it covers of that.
    """
    values, reference = np.asarray(values, float), np.asarray(reference, float)
    gains = np.zeros(len(values))
    front = np.zeros((0, values.shape[1]))
    for n in np.flatnonzero((values < reference).all(axis=1)):
        if (front <= values[n]).all(axis=1).any():
            continue
        gains[n] = np.prod(reference - values[n]) - hypervolume(
            np.maximum(front, values[n]), reference
        )
        front = np.concatenate([front[(front < values[n]).any(axis=1)], values[n : n + 1]])
    return np.cumsum(gains)


def _volume(front: Floats, reference: Floats) -> float:
    if front.shape[1] == 1:
        return float(reference[0] - front.min())
    order = np.argsort(front[:, -1], kind="stable")
    front = front[order]
    if front.shape[1] == 2:
        width = np.minimum.accumulate(front[:, 0])
        heights = np.append(front[1:, 1], reference[1]) - front[:, 1]
        return float(((reference[0] - width) * heights).sum())
    total = 0.0
    edges = np.append(front[:, -1], reference[-1])
    for k in range(len(front)):
        depth = edges[k + 1] - edges[k]
        if depth > 0:
            below = front[: k + 1, :-1]
            total += depth * _volume(below[nondominated(below)], reference[:-1])
    return total
