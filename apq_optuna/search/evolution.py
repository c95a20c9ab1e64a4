"""Evolutionary search over genotype arrays, without a loop over candidates.

Notation:
    D, n    decisions; genotypes in a batch
    P       population
    G       mutation groups: decisions that belong together mutate together
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]
Score = Callable[[Genotypes], Floats]


STEP_SHARE = 0.8
"""Share of a plain space's mutated numbers that move a little instead of being redrawn."""

STEP_SIZES = (0.01, 0.2)
"""Standard deviations of such a move, as shares of the range."""


@dataclass(frozen=True)
class EvolutionOptions:
    """Settings; the defaults are the paper's (Wang et al., CVPR 2020, section 3.4).

    Attributes:
        population: P.
        generations: Rounds.
        parent_share: Share of the population that breeds.
        mutation_share: Share of the children that are mutated; the others are crossed.
        mutation_probability: Of each group in a mutated child.
    """

    population: int = 100
    generations: int = 500
    parent_share: float = 0.25
    mutation_share: float = 0.5
    mutation_probability: float = 0.1

    def __post_init__(self) -> None:
        if self.population < 2 or self.generations < 0:
            raise InvalidArgumentError(
                f"population={self.population}, generations={self.generations}: at least 2 and 0"
            )


@dataclass(frozen=True)
class EvolutionResult:
    """The last population, best first, without duplicates.

    Attributes:
        genotypes: `(P', D)`, canonical.
        scores: `(P',)`, descending.
        evaluated: Number of candidates scored.
        history: Best score after each generation, `(generations + 1,)`.
    """

    genotypes: Genotypes
    scores: Floats
    evaluated: int
    history: Floats


class Variation:
    """Mutation and crossover of a space's genotypes."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        groups: dict[str, int] = {}
        names = [decision.group or decision.name for decision in space.decisions]
        self.group = np.array([groups.setdefault(name, len(groups)) for name in names], np.intp)
        self.num_groups = len(groups)
        self.numeric = np.array([d.role in ("int", "float") for d in space.decisions], bool)

    def mutate(
        self, parents: Genotypes, probability: float, rng: np.random.Generator
    ) -> Genotypes:
        """Each group redrawn with `probability`, and at least one group of every child."""
        n = len(parents)
        hit = rng.random((n, self.num_groups)) < probability
        hit[np.arange(n), rng.integers(self.num_groups, size=n)] = True
        fresh = self.space.from_unit(rng.random(parents.shape))
        if self.numeric.any():
            near = self.numeric & (rng.random(parents.shape) < STEP_SHARE)
            fresh = np.where(near, self._step(parents, rng), fresh)
        return np.where(hit[:, self.group], fresh, parents)

    def _step(self, parents: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Every number moved a normal step, whose size is one for a child, and kept in range."""
        low, high = np.log(STEP_SIZES)
        size = np.exp(rng.uniform(low, high, (len(parents), 1)))
        step = rng.standard_normal(parents.shape) * size
        moved = np.clip(parents + np.rint(step * self.space.sizes), 0, self.space.sizes - 1)
        for column, levels in self.space.quantiles.items():
            place = self.space.decisions[column].places()[parents[:, column]]
            along = np.clip(place + step[:, column], 0.0, 1.0) * (len(levels) - 1)
            moved[:, column] = levels[np.rint(along).astype(np.intp)]
        return moved.astype(np.int32)

    @staticmethod
    def cross(mothers: Genotypes, fathers: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Each decision from either parent."""
        return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)


def evolve(
    space: SearchSpace,
    score: Score,
    *,
    rng: np.random.Generator,
    options: EvolutionOptions | None = None,
    initial: Genotypes | None = None,
    constrain: Callable[[Genotypes], Genotypes] | None = None,
) -> EvolutionResult:
    """Maximises a score.

    Parents stay in the population, and every child, mutated or crossed, competes with them.

    Args:
        space: The search space.
        score: `(n, D)` canonical genotypes to `(n,)`; infeasible ones get low scores (a violation
            turned negative leads back, -inf does not).
        rng: Randomness.
        options: Sizes and rates.
        initial: Genotypes to start from; random ones fill up the population.
        constrain: Applied to every child before it is scored, to hold decisions fixed.

    Returns:
        The last population.
    """
    options = options or EvolutionOptions()
    size = options.population
    variation = Variation(space)
    constrain = constrain or (lambda genotypes: genotypes)
    start = space.sample(size, rng)
    if initial is not None and len(initial):
        start = np.concatenate([initial, start])[: max(size, len(initial))]
    population = space.canonical(constrain(start))
    key = rng.integers(1, np.iinfo(np.int64).max, len(space.decisions), dtype=np.int64)
    scores = np.asarray(score(population), float)
    evaluated = len(population)
    population, scores = _select(population, scores, size, key)
    history = [scores[0]]
    mutants = round(size * options.mutation_share)
    crossed = size - mutants
    for _ in range(options.generations):
        elite = population[: max(2, round(size * options.parent_share))]
        one = rng.integers(len(elite), size=mutants + 2 * crossed)
        children = np.concatenate(
            [
                variation.mutate(elite[one[:mutants]], options.mutation_probability, rng),
                variation.cross(
                    elite[one[mutants : mutants + crossed]], elite[one[mutants + crossed :]], rng
                ),
            ]
        )
        children = space.canonical(constrain(children))
        child_scores = np.asarray(score(children), float)
        evaluated += len(children)
        population, scores = _select(
            np.concatenate([population, children]),
            np.concatenate([scores, child_scores]),
            size,
            key,
        )
        history.append(scores[0])
    return EvolutionResult(population, scores, evaluated, np.array(history))


def _select(
    genotypes: Genotypes, scores: Floats, size: int, key: NDArray[np.int64]
) -> tuple[Genotypes, Floats]:
    """The best distinct genotypes, best first; rows are told apart by a random 64-bit hash."""
    with np.errstate(over="ignore"):
        hashes = (genotypes * key).sum(axis=1)
    _, first = np.unique(hashes, return_index=True)
    order = first[np.argsort(-scores[first], kind="stable")[:size]]
    return genotypes[order], scores[order]


def budgeted_score(
    predict: Callable[[Genotypes], Floats],
    costs: Callable[[Genotypes], Floats],
    limits: Floats,
) -> Score:
    """The paper's objective: accuracy within limits on costs; outside, minus the violation.

    Args:
        predict: `(n, D)` to accuracy `(n,)`.
        costs: `(n, D)` to `(n, m)`.
        limits: `(m,)`, inf where a cost is free.
    """

    def score(genotypes: Genotypes) -> Floats:
        excess = costs(genotypes) / limits - 1.0
        violation = np.maximum(excess, 0.0).sum(axis=1)
        scores = np.asarray(-1.0 - violation)
        inside = ~(violation > 0)  # only what is within the limits need be predicted
        if inside.any():
            scores[inside] = predict(genotypes[inside])
        return scores

    return score
