"""Bit-widths layer by layer: the walk, the budget, learning, studies, errors."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import apq_optuna as apq
from apq_optuna._optuna import study_attribute, trial_attribute
from apq_optuna.baselines import AMCSampler, DDPGOptions, HAQSampler
from apq_optuna.baselines.held import genotype_of
from apq_optuna.baselines.walk import WalkStep
from apq_optuna.data import ImageData
from apq_optuna.errors import (
    InfeasibleBudgetError,
    InvalidArgumentError,
    SpaceError,
    StudyMismatchError,
)
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet
from tests.baselines.helpers import (
    CHANCE,
    QUICK,
    SMALL,
    closeness,
    learned_by,
    one_thread,
    params_of,
    walked,
    weights_of,
)
from tests.conftest import FAST
from tests.families.chain import Chain

SPACE = SearchSpace.preset("digits")
COSTS = apq.hardware.bitfusion_small().table(SPACE)
COMPILED = COSTS.compile(SPACE)
LARGEST = SPACE.extreme(largest=True)
LOWEST = SPACE.extreme(largest=True, bits=2)
OBJECTIVE = closeness(SPACE, "bits", 1)
NAMES = [d.name for d in SPACE.decisions if d.role == "bits"]


def rows_of(study: optuna.Study) -> Genotypes:
    return np.stack([SPACE.from_params(trial.params) for trial in study.trials])


# ---------------------------------------------------------------------- the walk


def test_equal_intervals_are_the_published_rounding() -> None:
    bits = np.arange(1, 9)
    step = WalkStep(0, tuple(range(8)), ())
    for action in np.linspace(1e-4, 0.9999, 200):
        published = round((bits[-1] + 0.5 - (bits[0] - 0.5)) * action + bits[0] - 0.5)
        assert bits[step.at(action)] == published
    assert bits[step.at(1.0)] == 8
    assert [step.at(step.action_of(choice)) for choice in range(8)] == list(range(8))


def test_a_step_for_every_width_weights_before_inputs() -> None:
    sampler = HAQSampler(SPACE)
    assert [SPACE.decisions[step.column].name for step in sampler.steps] == NAMES
    assert [step.operand for step in sampler.steps[:4]] == [1, 0, 1, 0]
    assert [len(step.sites) for step in sampler.steps[:4]] == [2, 2, 1, 1]


def test_a_layer_that_is_not_there_has_no_step() -> None:
    sampler = HAQSampler(SPACE, fixed={"stage1.depth": 1, "stage3.depth": 1})
    assert len(sampler.steps) == 4 * 4
    study = walked(sampler, OBJECTIVE, 2)
    assert all(SPACE.suggest(optuna.trial.FixedTrial(t.params)).depths == (1, 2, 1) for t in study.trials)  # noqa: E501  # fmt: skip


def test_states_are_scaled_and_know_the_last_action() -> None:
    sampler = HAQSampler(SPACE, seed=0, options=QUICK)
    study = walked(sampler, OBJECTIVE, 1)
    episode = sampler.episode(study, study.trials[0])
    assert episode is not None and episode.states.shape == (24, 10)
    assert episode.states.min() == 0 and episode.states.max() == 1
    widths = [trial_width(study.trials[0], name) / 8 for name in NAMES]
    np.testing.assert_allclose(episode.states[:, 8], [1.0, *widths[:-1]])
    np.testing.assert_array_equal(episode.states[:, 9], [1, 0] * 12)


def trial_width(trial: optuna.trial.FrozenTrial, name: str) -> int:
    return int(trial.params[name])


def test_another_family_is_walked_by_its_sites() -> None:
    space = SearchSpace.from_family(Chain(bits=(2, 4, 8)))
    study = walked(HAQSampler(space, seed=0, options=QUICK), closeness(space, "bits", 1), 6)
    assert {trial.params["conv1.width"] for trial in study.trials} == {24}
    assert len({trial.params["conv1.weights"] for trial in study.trials}) > 1


# ---------------------------------------------------------------------- the budget


def within_plainly(row: Genotypes, limit: float) -> Genotypes:
    """A second, plain computation of what the budget makes of a network."""
    row = row.copy()
    columns = [SPACE.column[name] for name in NAMES]
    while True:
        for weights, inputs in reversed(list(zip(columns[::2], columns[1::2], strict=True))):
            for column in (inputs, weights):
                if COMPILED(row[None])[0, 0] <= limit:
                    return row
                row[column] = max(row[column] - 1, 0)


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.floats(0.0, 1.1))
def test_every_network_meets_the_budget(seed: int, place: float) -> None:
    low, high = COMPILED(LOWEST)[0, 0], COMPILED(LARGEST)[0, 0]
    limit = float(low + place * (high - low))
    bound = HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": limit}, seed=seed, options=QUICK)
    free = HAQSampler(SPACE, seed=seed, options=QUICK)
    study = walked(bound, OBJECTIVE, 2)
    assert COMPILED(rows_of(study))[:, 0].max() <= limit
    for row, wished in zip(rows_of(study), rows_of(walked(free, OBJECTIVE, 2)), strict=True):
        np.testing.assert_array_equal(row, within_plainly(wished, limit))


def test_all_budgets_hold_at_once() -> None:
    budgets = {"latency_ms": 0.12, "energy_mj": 0.1}
    sampler = HAQSampler(SPACE, costs=COSTS, budgets=budgets, seed=0, options=QUICK)
    prices = COMPILED(rows_of(walked(sampler, OBJECTIVE, 6)))
    assert (prices <= np.array([0.12, 0.1])).all()


def test_a_budget_that_binds_nothing_changes_no_action() -> None:
    free = walked(HAQSampler(SPACE, seed=3, options=QUICK), OBJECTIVE, 6)
    loose = HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": 9.0}, seed=3, options=QUICK)
    assert params_of(walked(loose, OBJECTIVE, 6)) == params_of(free)


# ---------------------------------------------------------------------- learning


def test_it_learns_better_than_by_chance() -> None:
    """The optimum has weights at their widest and inputs at their lowest: 0.5 is chance."""

    def objective(trial: optuna.Trial) -> float:
        SPACE.suggest(trial)
        weights, inputs = ([trial.params[n] for n in NAMES[i::2]] for i in (0, 1))
        return float(np.mean(weights) - np.mean(inputs) + 6) / 12

    def late(options: DDPGOptions, seed: int) -> float:
        study = walked(HAQSampler(SPACE, seed=seed, options=options), objective, 24)
        return float(np.mean([trial.value for trial in study.trials[-6:]]))

    learned = [late(replace(SMALL, updates_per_step=1), seed) for seed in range(3)]
    chance = [late(CHANCE, seed) for seed in range(3)]
    assert np.median(learned) > np.median(chance) + 0.1


def test_the_reward_is_the_accuracy_lost_in_percent() -> None:
    sampler = HAQSampler(SPACE, seed=0, options=QUICK)
    study = optuna.create_study(direction="maximize")
    params = SPACE.to_params(LARGEST[0])
    for attributes, expected in (({"fp32_accuracy": 0.75}, -0.5), ({}, 7.0)):
        trial = create_trial(
            params=params, distributions=SPACE.distributions(), value=0.7, user_attrs=attributes
        )
        episode = sampler.episode(study, trial)
        assert episode is not None and episode.reward == pytest.approx(expected)
    errors = optuna.create_study(direction="minimize")
    episode = sampler.episode(errors, trial)
    assert episode is not None and episode.reward == pytest.approx(-7.0)


# ---------------------------------------------------------------------- what is held


def test_what_is_fixed_stays_and_the_rest_is_the_largest() -> None:
    fixed = {"stage1.block1.kernel": 3, "stage1.block1.pw_w_bits": 8}
    study = walked(HAQSampler(SPACE, fixed=fixed, seed=0, options=QUICK), OBJECTIVE, 5)
    largest = SPACE.to_params(LARGEST[0])
    for trial in study.trials:
        held = {n: v for n, v in trial.params.items() if n not in NAMES or n in fixed}
        assert held == {n: v for n, v in (largest | fixed).items() if n in held}
        assert len(held) == len(largest) - len(NAMES) + 1


def test_a_whole_network_is_held_but_for_its_bits() -> None:
    row = SPACE.sample(1, np.random.default_rng(5))[0]
    params = SPACE.to_params(row)
    trial = create_trial(params=params, distributions={
        name: d for name, d in SPACE.distributions().items() if name in params
    }, value=0.0)  # fmt: skip
    walks = [
        params_of(walked(HAQSampler(SPACE, fixed=fixed, seed=0, options=QUICK), OBJECTIVE, 5))
        for fixed in (params, SPACE.decode(row), trial, {n: v for n, v in params.items() if n not in NAMES})  # noqa: E501
    ]  # fmt: skip
    assert walks[0] == walks[1] == walks[2] == walks[3]
    assert all({n: p[n] for n in p if n not in NAMES} == {n: params[n] for n in p if n not in NAMES} for p in walks[0])  # noqa: E501  # fmt: skip
    assert len({p[n] for p in walks[0] for n in p if n in NAMES}) > 1


@given(st.integers(0, 10**6), st.sampled_from([SPACE, SearchSpace.from_family(Chain(length=4))]))
def test_a_subnet_is_found_in_its_space(seed: int, space: SearchSpace) -> None:
    row = space.sample(1, np.random.default_rng(seed))[0]
    np.testing.assert_array_equal(genotype_of(space, space.decode(row)), row)


# ---------------------------------------------------------------------- studies


def test_a_stored_study_goes_on_as_one_that_never_stopped(url: str) -> None:
    space = SearchSpace.from_family(Chain(bits=(2, 4, 8)))
    costs = apq.hardware.bitfusion_small().table(space)
    limit = float(costs.compile(space)(space.extreme(largest=True, bits=4))[0, 0])
    objective = closeness(space, "bits", 1)

    def sampler() -> HAQSampler:
        return HAQSampler(space, costs=costs, budgets={"latency_ms": limit}, seed=1, options=QUICK)

    whole = walked(sampler(), objective, 7)
    study = optuna.create_study(storage=url, study_name="s", direction="maximize")
    for trials in (2, 2, 3):  # the first two end within the warm-up
        walked(sampler(), objective, trials, study)
        study = optuna.load_study(study_name="s", storage=url)
    assert params_of(study) == params_of(whole)
    agents = [learned_by(sampler(), each) for each in (whole, study)]
    assert all(np.array_equal(a, b) for a, b in zip(*map(weights_of, agents), strict=True))


def test_a_pickled_sampler_goes_on() -> None:
    whole = walked(HAQSampler(SPACE, seed=1, options=QUICK), OBJECTIVE, 6)
    sampler = HAQSampler(SPACE, seed=1, options=QUICK)
    study = walked(sampler, OBJECTIVE, 4)
    walked(pickle.loads(pickle.dumps(sampler)), OBJECTIVE, 2, study)
    assert params_of(study) == params_of(whole)


def test_the_agent_follows_from_the_trials_in_whichever_order_they_end() -> None:
    sampler = HAQSampler(SPACE, seed=1, options=QUICK)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(3):
        batch = [study.ask(SPACE.distributions()) for _ in range(3)]
        for trial in reversed(batch):
            study.tell(trial, float(trial.number % 4))
    again = learned_by(HAQSampler(SPACE, seed=1, options=QUICK), study)
    watched = learned_by(sampler, study)
    assert watched.episodes == 9
    assert all(np.array_equal(a, b) for a, b in zip(*map(weights_of, (watched, again)), strict=True))  # noqa: E501  # fmt: skip


def test_threads_share_a_sampler() -> None:
    sampler = HAQSampler(SPACE, seed=1, options=QUICK)
    study = walked(sampler, OBJECTIVE, 8, n_jobs=2)
    assert learned_by(sampler, study).episodes == 8


def test_failed_and_pruned_trials_are_skipped() -> None:
    def stops(trial: optuna.Trial) -> float:
        value = OBJECTIVE(trial)
        if trial.number == 1:
            raise RuntimeError("stopped amid an episode")
        if trial.number == 2:
            raise optuna.TrialPruned
        return float("inf") if trial.number == 3 else value

    sampler = HAQSampler(SPACE, seed=1, options=QUICK)
    study = walked(sampler, stops, 7, catch=(RuntimeError,))
    assert [t.state for t in study.trials[:3]] == [
        TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED
    ]  # fmt: skip
    assert learned_by(sampler, study).episodes == 4


def test_enqueued_trials_are_kept_and_learned_from() -> None:
    sampler = HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": 0.12}, seed=1, options=QUICK)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    whole = SPACE.to_params(LARGEST[0])
    study.enqueue_trial(whole)  # above the budget, and all the same wanted
    study.enqueue_trial({NAMES[0]: 8, NAMES[23]: 8})
    study.enqueue_trial({"stage1.depth": 1})  # another network: no episode of this walk
    study.add_trial(create_trial(params=whole, distributions=SPACE.distributions(), value=0.9))
    walked(sampler, OBJECTIVE, 4, study)
    done = {tuple(sorted(t.system_attrs.get("fixed_params", {}))): t for t in study.trials}
    assert study.trials[0].params == whole
    second = done[tuple(sorted((NAMES[0], NAMES[23])))]
    assert (second.params[NAMES[0]], second.params[NAMES[23]]) == (8, 8)
    assert COMPILED(SPACE.from_params(second.params)[None])[0, 0] <= 0.12
    assert trial_attribute(second, "actions")[0] == 0.875
    other = done[("stage1.depth",)]
    assert other.params["stage1.depth"] == 1 and sampler.episode(study, other) is None
    episode = sampler.episode(study, study.trials[3])  # was never walked
    assert episode is not None and set(episode.actions.tolist()) == {0.875}
    assert learned_by(sampler, study).episodes == len(study.trials) - 1


def test_an_objective_of_several_values(digits: ImageData) -> None:
    tiny = replace(FAST, steps=1, calibration_images=32)
    objective = apq.Objective(OnceForAllNet(SPACE), digits, COSTS, finetune=tiny, images=64)
    study = optuna.create_study(directions=objective.directions)
    study.set_metric_names(objective.metric_names)
    sampler = HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": 0.1}, seed=0, options=QUICK)
    with one_thread():
        walked(sampler, objective, 2, study)
    assert all(trial.values[1] <= 0.1 + 1e-12 for trial in study.trials)
    episode = sampler.episode(study, study.trials[0])
    lost = study.trials[0].values[0] - study.trials[0].user_attrs["fp32_accuracy"]
    assert episode is not None and episode.reward == pytest.approx(10 * lost)


def test_a_study_is_walked_by_one_kind_of_settings() -> None:
    study = walked(HAQSampler(SPACE, seed=0, options=QUICK), OBJECTIVE, 1)
    assert study_attribute(study, "baseline")["sampler"] == "HAQSampler"
    walked(HAQSampler(SPACE, seed=7, options=QUICK), OBJECTIVE, 1, study)  # another worker
    others = [
        (HAQSampler(SPACE, seed=0, options=SMALL), "option warmup 3, now 8"),
        (HAQSampler(SPACE, fixed={"stage1.depth": 1}, options=QUICK), "fixed stage1.depth 2, now 1"),  # noqa: E501
        (HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": 0.1}, options=QUICK), "budget"),
        (AMCSampler(SPACE, costs=COSTS, budgets={"latency_ms": 0.1}), "walked by HAQSampler"),
    ]  # fmt: skip
    for other, message in others:
        with pytest.raises(StudyMismatchError, match=message):
            walked(other, OBJECTIVE, 1, study)


def test_parameters_outside_the_space_are_refused() -> None:
    sampler = HAQSampler(SPACE, seed=0, options=QUICK)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    with pytest.raises(StudyMismatchError, match="'rate', which is no parameter"):
        study.optimize(lambda trial: trial.suggest_float("rate", 0, 1), n_trials=1)
    with pytest.raises(StudyMismatchError, match=r"use space\.suggest"):
        study.optimize(lambda trial: trial.suggest_int("stage1.depth", 5, 6), n_trials=1)
    for name, distribution, value in (
        ("rate", FloatDistribution(0, 1), 0.5),
        ("stage1.depth", IntDistribution(1, 9), 5),
    ):
        study = optuna.create_study(direction="maximize")
        study.add_trial(
            create_trial(params={name: value}, distributions={name: distribution}, value=1.0)
        )
        with pytest.raises(StudyMismatchError, match="another space"):
            walked(sampler, OBJECTIVE, 1, study)


# ---------------------------------------------------------------------- errors


def test_a_budget_below_reach_is_refused_with_what_can_be_reached() -> None:
    free = HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": 1e3})
    least = COMPILED(free._least[None])[0, 0]
    assert least <= COMPILED(LOWEST)[0, 0]
    with pytest.raises(InfeasibleBudgetError, match=f"{least:.6g}"):
        HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": least * 0.999})
    HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": float(least)})
    pinned = {"stage3.block2.pw_w_bits": 8}
    with pytest.raises(InfeasibleBudgetError):
        HAQSampler(SPACE, costs=COSTS, budgets={"latency_ms": float(least)}, fixed=pinned)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budgets": {"latency": 1.0}, "costs": COSTS}, InvalidArgumentError, "latency_ms"),
        ({"budgets": {"latency_ms": 1.0}}, InvalidArgumentError, "need costs"),
        ({"budgets": {"latency_ms": "1"}, "costs": COSTS}, InvalidArgumentError, "finite number"),
        ({"budgets": 2.0, "costs": COSTS}, InvalidArgumentError, "a dict by metric name"),
        ({"costs": 2.0}, InvalidArgumentError, "a cost table"),
        ({"fixed": {"stage1.dept": 1}}, InvalidArgumentError, "'stage1.depth' meant"),
        ({"fixed": {"stage1.depth": 9}}, InvalidArgumentError, r"not one of \[1, 2\]"),
        ({"fixed": {"stage1.depth": None}}, InvalidArgumentError, "not one of"),
        ({"fixed": 3}, InvalidArgumentError, "fixed=3"),
        ({"seed": -1}, InvalidArgumentError, "seed=-1"),
        ({"options": {"warmup": 3}}, InvalidArgumentError, "DDPGOptions"),
        ({"space": "digits"}, InvalidArgumentError, "a SearchSpace"),
        ({"space": SearchSpace.from_distributions({"x": IntDistribution(1, 3)})}, SpaceError, "plain"),  # noqa: E501
        ({"space": SearchSpace.preset("digits", bits=(8,))}, SpaceError, "one bit-width"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"space": SPACE} | arguments
    with pytest.raises(error, match=message):
        HAQSampler(given.pop("space"), **given)


def test_a_subnet_of_another_space_is_refused() -> None:
    other = SearchSpace.preset("digits", bits=(3, 5))
    with pytest.raises(SpaceError, match="not of this space"):
        HAQSampler(SPACE, fixed=other.decode(other.extreme(largest=True)[0]))


def test_widths_that_the_device_does_not_run_are_not_proposed() -> None:
    entries = {key: cost for key, cost in COSTS.entries.items() if 2 not in key[1:]}
    table = CostTable(entries, device="no two bits")
    least = table.compile(SPACE)(SPACE.extreme(largest=True, bits=4))[0, 0]
    with pytest.raises(InfeasibleBudgetError, match=f"{least:.6g}"):
        HAQSampler(SPACE, costs=table, budgets={"latency_ms": 0.01})
    sampler = HAQSampler(SPACE, costs=table, budgets={"latency_ms": 0.12}, options=QUICK)
    study = walked(sampler, OBJECTIVE, 4)
    assert {t.params[name] for t in study.trials for name in NAMES} <= {4, 6, 8}


def test_a_device_whose_lowest_widths_are_not_its_cheapest() -> None:
    """BitFusion with a small array: 4 bits are quicker than 2 for the smallest network."""
    space = apq.SearchSpace.preset("digits")
    costs = apq.hardware.bitfusion_small().table(space)
    smallest = space.to_params(space.extreme(largest=False)[0])
    price = costs.compile(space)
    at = {bits: float(price(space.extreme(largest=False, bits=bits))[0, 0]) for bits in (2, 4)}
    assert at[4] < at[2]
    limit = 0.5 * (at[2] + at[4])
    sampler = HAQSampler(space, costs=costs, budgets={"latency_ms": limit}, fixed=smallest, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: float(space.suggest(trial).bitops), n_trials=6)
    for trial in study.trials:
        assert float(price(space.from_params(trial.params)[None])[0, 0]) <= limit
