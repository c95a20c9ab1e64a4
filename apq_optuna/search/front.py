"""A whole Pareto front at once, of objectives that are all computed: no trial is run.

Notation:
    D, n    decisions; genotypes in a batch
    m       objectives, all minimised
    P       size of the archive: the best front found so far
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_optuna.networks import Genotypes
from apq_optuna.search.evolution import EvolutionOptions, Variation, evolve
from apq_optuna.search.pareto import nondominated
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]

TO_FEASIBLE = EvolutionOptions(generations=60)


@dataclass(frozen=True)
class FrontResult:
    """A front without duplicates, ordered by the first objective.

    Attributes:
        genotypes: `(p, D)`, canonical; p may be 0.
        values: `(p, m)`.
        evaluated: Number of candidates looked at.
    """

    genotypes: Genotypes
    values: Floats
    evaluated: int


def evolve_front(
    space: SearchSpace,
    values: Callable[[Genotypes], Floats],
    violation: Callable[[Genotypes], Floats],
    *,
    rng: np.random.Generator,
    size: int = 160,
    generations: int = 40,
    initial: Genotypes | None = None,
    constrain: Callable[[Genotypes], Genotypes] | None = None,
) -> FrontResult:
    """Searches for the feasible front of known objectives.

    The archive breeds: half of each generation's children are mutated and half crossed; they and
    the archive compete, and of more than P nondominated ones those in the emptiest places stay
    (crowding distance, Deb et al., 2002).

    Args:
        space: The search space.
        values: `(n, D)` to `(n, m)`; asked about feasible candidates only.
        violation: `(n, D)` to `(n,)`: 0 where feasible, else by how much not.
        rng: Randomness.
        size: P, and the children of a generation.
        generations: Rounds.
        initial: Genotypes to start from, beside random ones.
        constrain: Applied to every candidate.
    """
    constrain = constrain or (lambda rows: rows)
    variation = Variation(space)
    start = space.sample(4 * size, rng)
    if initial is not None and len(initial):
        start = np.concatenate([initial, start])
    start = space.canonical(constrain(start))
    evaluated = len(start)
    start = start[violation(start) == 0]
    if not len(start):
        found = evolve(
            space, lambda rows: -violation(rows), rng=rng, options=TO_FEASIBLE,
            constrain=constrain,
        )  # fmt: skip
        start, evaluated = found.genotypes[found.scores == 0], evaluated + found.evaluated
    archive, scores = _best(start, values(start), size)
    for _ in range(generations if len(archive) else 0):
        one, two = rng.integers(len(archive), size=(2, size))
        half = size // 2
        children = np.concatenate(
            [
                variation.mutate(archive[one[:half]], 0.1, rng),
                variation.cross(archive[one[half:]], archive[two[half:]], rng),
            ]
        )
        children = space.canonical(constrain(children))
        evaluated += len(children)
        children = children[violation(children) == 0]
        if len(children):
            archive, scores = _best(
                np.concatenate([archive, children]),
                np.concatenate([scores, values(children)]),
                size,
            )
    order = np.argsort(scores[:, 0], kind="stable") if len(archive) else np.zeros(0, np.intp)
    return FrontResult(archive[order], scores[order], evaluated)


def _best(genotypes: Genotypes, values: Floats, size: int) -> tuple[Genotypes, Floats]:
    """The nondominated rows; of more than `size`, the least crowded."""
    kept = nondominated(values)
    genotypes, values = genotypes[kept], values[kept]
    if len(values) > size:
        chosen = np.sort(np.argsort(-_crowding(values), kind="stable")[:size])
        genotypes, values = genotypes[chosen], values[chosen]
    return genotypes, values


def _crowding(values: Floats) -> Floats:
    """Distance between each row's neighbours, summed over objectives, `(n,)`; ends are infinite.

    Ranges are of the rows given.
    """
    total = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        gap = np.full(len(column), np.inf)
        gap[1:-1] = (ordered[2:] - ordered[:-2]) / max(ordered[-1] - ordered[0], 1e-300)
        total[order] += gap
    return total
