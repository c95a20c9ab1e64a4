"""A finished study answers for another device: the front, its costs, and what is enqueued."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

import apq_optuna as apq
from apq_optuna._optuna import set_study_attribute
from apq_optuna.errors import (
    InfeasibleBudgetError,
    InvalidArgumentError,
    StudyMismatchError,
)
from apq_optuna.hardware import CostTable, bitserial
from apq_optuna.networks import Genotypes
from apq_optuna.prediction import PredictedFront, predicted_front
from apq_optuna.report import remember, stored_space
from apq_optuna.search import evolve_front, hypervolume, nondominated

SPACE = apq.SearchSpace.preset("digits")


def truth(subnet: apq.Subnet) -> float:
    """A made-up accuracy that grows with size and bits: what a study would have measured."""
    return float(1 - 0.5 * np.exp(-subnet.macs / 1e5) - 2e4 / subnet.bitops**0.75)


@pytest.fixture(scope="module")
def study() -> optuna.Study:
    created = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0)
    )

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        subnet = SPACE.suggest(trial)
        return truth(subnet), float(subnet.macs)

    created.optimize(objective, n_trials=60)
    return created


def test_the_front_is_a_front_within_the_budget(study: optuna.Study) -> None:
    table = bitserial().table(SPACE)
    compiled = table.compile(SPACE)
    limit = float(np.median(compiled(SPACE.sample(500, np.random.default_rng(0)))[:, 0]))
    front = predicted_front(study, SPACE, table, budgets={"latency_ms": limit})
    assert len(front) > 10 and front.trials == 60
    assert (front.costs <= limit).all()
    np.testing.assert_allclose(front.costs, compiled(front.genotypes))
    assert nondominated(np.column_stack([-front.accuracy, front.costs])).all()
    assert (np.diff(front.accuracy) <= 0).all() and (front.spread > 0).all()
    assert len(np.unique(front.genotypes, axis=0)) == len(front)
    assert len(front.table(5).splitlines()) == 6


def test_it_has_learned_from_the_studys_values(study: optuna.Study) -> None:
    """The truth of its front beats that of a front from the same trials with values shuffled."""
    shuffled = optuna.create_study(directions=["maximize", "minimize"])
    order = np.random.default_rng(0).permutation(len(study.trials))
    for trial, other in zip(study.trials, order, strict=True):
        shuffled.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=study.trials[other].values,
            )
        )
    table = bitserial().table(SPACE)
    fronts = [predicted_front(each, SPACE, table) for each in (study, shuffled)]
    reference = np.array([0.0, float(table.compile(SPACE).maxima[0])])

    def volume(front: PredictedFront) -> float:
        accuracy = np.array([truth(subnet) for subnet in front.subnets()])
        return hypervolume(np.column_stack([-accuracy, front.costs]), reference)

    assert volume(fronts[0]) > 1.02 * volume(fronts[1])


def test_the_same_seed_gives_the_same_front(study: optuna.Study) -> None:
    table = bitserial().table(SPACE)
    fronts = [predicted_front(study, SPACE, table, seed=s, generations=5) for s in (0, 0, 1)]
    np.testing.assert_array_equal(fronts[0].genotypes, fronts[1].genotypes)
    assert not np.array_equal(fronts[0].genotypes, fronts[2].genotypes)


def test_a_device_of_8_bits_alone_gets_8_bits(
    study: optuna.Study, digits_costs: CostTable
) -> None:
    only_8 = {k: v for k, v in digits_costs.entries.items() if k[1:] == (8, 8)}
    front = predicted_front(study, SPACE, CostTable(only_8, device="int8"), generations=5)
    same = {k: digits_costs.entries[k[0], 8, 8] for k in digits_costs.entries}
    alike = predicted_front(study, SPACE, CostTable(same, device="same"), generations=5)
    for found in (front, alike):
        assert len(found) and np.isfinite(found.costs).all()
        for subnet in found.subnets():
            assert {placed.w_bits for placed in subnet.layers()} == {8}


def test_the_top_is_enqueued_once(study: optuna.Study) -> None:
    front = predicted_front(study, SPACE, bitserial().table(SPACE), generations=5)
    target = optuna.create_study(directions=["maximize", "minimize"])
    assert front.enqueue(target, 3) == 3
    assert front.enqueue(target, 4) == 1
    assert target.metric_names == ["accuracy", "latency_ms"]

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        return truth(SPACE.suggest(trial)), 1.0

    target.optimize(objective, n_trials=3)
    for i, trial in enumerate(target.trials[:3]):
        np.testing.assert_array_equal(SPACE.from_params(trial.params), front.genotypes[i])
        assert trial.user_attrs["expected_mean"] == front.accuracy[i]


def test_nothing_is_enqueued_into_a_study_of_something_else(study: optuna.Study) -> None:
    front = predicted_front(study, SPACE, bitserial().table(SPACE), generations=2)
    three = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    other_way = optuna.create_study(directions=["minimize", "minimize"])
    named = optuna.create_study(directions=["maximize", "minimize"])
    named.set_metric_names(["accuracy", "energy_mj"])
    elsewhere = optuna.create_study(directions=["maximize", "minimize"])
    remember(elsewhere, apq.SearchSpace.preset("cifar10"))
    for target, what in (
        (three, "directions"), (other_way, "directions"), (named, "metrics"),
        (elsewhere, "space"),
    ):  # fmt: skip
        with pytest.raises(StudyMismatchError, match=f"has {what} .* enqueue into another study"):
            front.enqueue(target, 2)
        assert not target.trials
    assert stored_space(elsewhere) == apq.SearchSpace.preset("cifar10")


def test_pairs_of_another_supernet_are_refused(
    study: optuna.Study, supernet: apq.OnceForAllNet, url: str
) -> None:
    set_study_attribute(study, "objective", {"supernet": "another"})
    store = apq.PairStore(url, supernet=supernet)
    with pytest.raises(StudyMismatchError, match="subnets of supernet another, the fp32 pairs"):
        predicted_front(study, SPACE, bitserial().table(SPACE), source=store)
    set_study_attribute(study, "objective", None)


def test_what_cannot_be_answered_says_why(study: optuna.Study, digits_costs: CostTable) -> None:
    table = bitserial().table(SPACE)
    with pytest.raises(InvalidArgumentError, match=r"'energy_mj' is no cost of 'bitserial'"):
        predicted_front(study, SPACE, table, budgets={"energy_mj": 1.0})
    with pytest.raises(InfeasibleBudgetError, match="the cheapest network of the space takes"):
        predicted_front(study, SPACE, table, budgets={"latency_ms": 1e-9})
    with pytest.raises(InvalidArgumentError, match="must be positive"):
        predicted_front(study, SPACE, table, budgets={"latency_ms": -1.0})
    young = optuna.create_study(directions=["maximize", "minimize"])
    with pytest.raises(StudyMismatchError, match="0 completed trials of this space; at least 5"):
        predicted_front(young, SPACE, table)
    upside_down = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(StudyMismatchError, match="is minimised; accuracy is maximised"):
        predicted_front(upside_down, SPACE, table)


# ---------------------------------------------------------------------- the search of the front


def test_a_known_front_is_found() -> None:
    """Two sums of choices with weights of their own: the best trade-offs of a small space."""
    space = apq.SearchSpace.from_distributions(
        {f"x{i}": optuna.distributions.IntDistribution(0, 3) for i in range(6)}
    )
    weights = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])

    def values(rows: Genotypes) -> np.ndarray:
        return np.column_stack([rows @ weights, ((3 - rows) ** 2) @ weights[::-1]])

    grid = np.indices((4,) * 6).reshape(6, -1).T.astype(np.int32)
    whole = values(grid)
    reference = whole.max(axis=0) + 1
    found = evolve_front(
        space, values, lambda rows: np.zeros(len(rows)), rng=np.random.default_rng(0)
    )
    best = hypervolume(whole[nondominated(whole)], reference)
    assert hypervolume(found.values, reference) > 0.995 * best
    np.testing.assert_allclose(values(found.genotypes), found.values)
    assert len(found.genotypes) <= 160


def test_a_narrow_feasible_region_is_reached() -> None:
    space = apq.SearchSpace.from_distributions(
        {f"x{i}": optuna.distributions.IntDistribution(0, 9) for i in range(12)}
    )

    def violation(rows: Genotypes) -> np.ndarray:
        return np.maximum(rows.sum(axis=1) - 4.0, 0.0)

    def values(rows: Genotypes) -> np.ndarray:
        assert (violation(rows) == 0).all()  # nothing else is asked about
        return np.column_stack([-rows[:, 0], rows.sum(axis=1)]).astype(float)

    found = evolve_front(space, values, violation, rng=np.random.default_rng(0))
    assert len(found.genotypes) >= 3 and found.values[:, 0].min() <= -3
    never = evolve_front(
        space, values, lambda rows: np.ones(len(rows)), rng=np.random.default_rng(0)
    )
    assert len(never.genotypes) == 0
