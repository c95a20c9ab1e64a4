"""Search: hypervolume and EHVI against what they must equal, and the evolutionary engine."""

from __future__ import annotations

import itertools

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.search import (
    EvolutionOptions,
    KnownCostEHVI,
    SampledEHVI,
    budgeted_score,
    evolve,
    hypervolume,
    hypervolume_growth,
    nondominated,
)
from apq_optuna.search.evolution import Variation
from apq_optuna.space import SearchSpace

SPACE = SearchSpace.preset("digits")
seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(1, 4))
def test_nondominated_is_the_definition(seed: int, m: int) -> None:
    values = np.random.default_rng(seed).integers(0, 5, (25, m)).astype(float)
    keep = nondominated(values)
    for i, row in enumerate(values):
        dominated = ((values <= row).all(1) & (values < row).any(1)).any()
        repeated = (values[:i] == row).all(1).any()
        assert keep[i] == (not dominated and not repeated)


@given(seeds, st.integers(1, 4))
def test_hypervolume_equals_inclusion_and_exclusion(seed: int, m: int) -> None:
    values = np.random.default_rng(seed).random((5, m))
    total = 0.0
    for size in range(1, 6):
        for chosen in itertools.combinations(values, size):
            total -= (-1) ** size * np.prod(1.0 - np.max(chosen, axis=0))
    assert hypervolume(values, np.ones(m)) == pytest.approx(total)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_hypervolume_growth_is_that_of_every_beginning(m: int) -> None:
    values = np.random.default_rng(m).random((40, m)).round(1) * 1.2  # some equal, some beyond
    growth = hypervolume_growth(values, np.ones(m))
    wanted = [hypervolume(values[:n], np.ones(m)) for n in range(1, 41)]
    assert growth == pytest.approx(wanted)
    assert len(hypervolume_growth(values[:0], np.ones(m))) == 0


def test_hypervolume_equals_optunas() -> None:
    values = np.random.default_rng(0).random((60, 3))
    theirs = optuna._hypervolume.compute_hypervolume(values, np.ones(3))
    assert hypervolume(values, np.ones(3)) == pytest.approx(theirs)


def front(seed: int, costs: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng, rng.random(12), rng.random((12, costs))


@given(seeds, st.integers(0, 2))
def test_ehvi_at_zero_spread_is_the_hypervolume_gain(seed: int, m: int) -> None:
    rng, accuracy, costs = front(seed, m)
    reference = np.full(m, 0.9)
    ehvi = KnownCostEHVI(accuracy, costs, reference_accuracy=0.2, reference_costs=reference)
    mean, candidates = rng.random(8), rng.random((8, m))
    points = np.column_stack([-accuracy, costs])
    limit = np.concatenate([[-0.2], reference])
    before = hypervolume(points, limit)
    gains = [
        hypervolume(np.vstack([points, [-a, *c]]), limit) - before
        for a, c in zip(mean, candidates, strict=True)
    ]
    np.testing.assert_allclose(ehvi(mean, np.zeros(8), candidates), gains, atol=1e-12)


@pytest.mark.parametrize("m", [0, 1, 2])
def test_ehvi_equals_monte_carlo(m: int) -> None:
    rng, accuracy, costs = front(3, m)
    accuracy *= 0.7
    reference = np.ones(m)
    ehvi = KnownCostEHVI(accuracy, costs, reference_accuracy=0.1, reference_costs=reference)
    mean, std, candidates = rng.random(4), rng.uniform(0.05, 0.3, 4), rng.random((4, m)) * 0.6
    points, limit = np.column_stack([-accuracy, costs]), np.concatenate([[-0.1], reference])
    before = hypervolume(points, limit)
    for i, exact in enumerate(ehvi(mean, std, candidates)):
        draws = mean[i] + std[i] * rng.standard_normal(4000)
        gains = [
            hypervolume(np.vstack([points, [-a, *candidates[i]]]), limit) - before for a in draws
        ]
        error = 4 * np.std(gains) / np.sqrt(len(gains)) + 1e-9
        assert exact == pytest.approx(np.mean(gains), abs=error)


def test_ehvi_of_an_empty_front_and_of_an_infeasible_candidate() -> None:
    ehvi = KnownCostEHVI(
        np.zeros(0), np.zeros((0, 2)), reference_accuracy=0.1, reference_costs=np.array([2.0, 4.0])
    )
    costs = np.array([[1.0, 1.0], [np.inf, 1.0]])
    gains = ehvi(np.full(2, 0.6), np.zeros(2), costs)
    np.testing.assert_allclose(gains, [0.5 * 1.0 * 3.0, 0.0])
    with pytest.raises(InvalidArgumentError, match="3 known costs"):
        KnownCostEHVI(
            np.zeros(0), np.zeros((0, 3)), reference_accuracy=0, reference_costs=np.ones(3)
        )


def test_sampled_ehvi_orders_like_the_exact_one() -> None:
    rng, accuracy, costs = front(5, 2)
    limit = np.array([-0.0, 1.0, 1.0])
    exact = KnownCostEHVI(accuracy, costs, reference_accuracy=0.0, reference_costs=limit[1:])
    sampled = SampledEHVI(
        np.column_stack([-accuracy, costs]), limit, rng, directions=2000, outcomes=64
    )
    mean, std, candidates = rng.random(200), np.full(200, 0.1), rng.random((200, 2))
    first = exact(mean, std, candidates)
    second = sampled(
        np.column_stack([-mean, candidates]), np.column_stack([std, np.zeros((200, 2))])
    )
    assert np.corrcoef(first, second)[0, 1] > 0.97


# ---------------------------------------------------------------------- evolution


def test_crossover_children_reach_the_population(monkeypatch: pytest.MonkeyPatch) -> None:
    """With mutation off, only crossover can make anything new; the released APQ code drops it."""
    born: list[np.ndarray] = []
    original = Variation.cross

    def recorded(mothers: np.ndarray, fathers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        children = original(mothers, fathers, rng)
        born.append(SPACE.canonical(children))
        return children

    monkeypatch.setattr(Variation, "cross", staticmethod(recorded))
    rng = np.random.default_rng(0)
    start = SPACE.sample(40, rng)
    target = SPACE.sample(1, rng)

    def score(rows: np.ndarray) -> np.ndarray:
        return -(rows != target).sum(axis=1).astype(float)

    options = EvolutionOptions(population=40, generations=15, mutation_share=0.0)
    result = evolve(SPACE, score, rng=rng, options=options, initial=start)
    children = {row.tobytes() for batch in born for row in batch}
    parents = {row.tobytes() for row in start}
    survivors = {row.tobytes() for row in result.genotypes}
    assert survivors & children - parents
    assert result.scores[0] > score(start).max()


def test_mutated_children_reach_the_population() -> None:
    rng = np.random.default_rng(1)
    start = np.repeat(SPACE.extreme(largest=False), 20, axis=0)
    options = EvolutionOptions(population=20, generations=0)
    weight = np.arange(len(SPACE.decisions))

    def score(rows: np.ndarray) -> np.ndarray:
        return np.asarray((rows * weight).sum(axis=1), float)

    before = evolve(SPACE, score, rng=rng, options=options, initial=start).scores[0]
    options = EvolutionOptions(population=20, generations=40, mutation_share=1.0)
    after = evolve(SPACE, score, rng=rng, options=options, initial=start).scores[0]
    assert before == score(start)[0]
    assert after > before + 0.5 * (score(SPACE.extreme(largest=True))[0] - before)


def test_the_population_has_no_duplicates_and_is_sorted() -> None:
    result = evolve(
        SPACE, lambda rows: rows.sum(axis=1).astype(float), rng=np.random.default_rng(0),
        options=EvolutionOptions(generations=30),
    )  # fmt: skip
    assert len(np.unique(result.genotypes, axis=0)) == len(result.genotypes)
    assert (np.diff(result.scores) <= 0).all()
    assert (np.diff(result.history) >= 0).all()


def test_a_budget_is_met(digits_costs: object) -> None:
    costs = digits_costs.compile(SPACE)  # type: ignore[attr-defined]
    limit = np.array([0.03, np.inf])
    score = budgeted_score(lambda rows: rows.mean(axis=1) / 10, costs, limit)
    options = EvolutionOptions(generations=60)
    result = evolve(SPACE, score, rng=np.random.default_rng(0), options=options)
    best = result.genotypes[:5]
    assert (costs(best)[:, 0] <= 0.03).all()
    assert (costs(SPACE.extreme(largest=True))[:, 0] > 0.03).all()


def test_fixed_decisions_stay_fixed() -> None:
    column = SPACE.column["stage2.depth"]

    def hold(rows: np.ndarray) -> np.ndarray:
        rows = rows.copy()
        rows[:, column] = 1
        return rows

    result = evolve(
        SPACE, lambda rows: -rows[:, column].astype(float), rng=np.random.default_rng(0),
        options=EvolutionOptions(generations=5), constrain=hold,
    )  # fmt: skip
    assert (result.genotypes[:, column] == 1).all()
