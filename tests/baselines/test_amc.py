"""Channels layer by layer: the walk, the bounded action, learning, studies, errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import create_trial

import apq_optuna as apq
from apq_optuna._optuna import trial_attribute
from apq_optuna.baselines import AMCSampler, DDPGOptions, HAQSampler
from apq_optuna.data import ImageData
from apq_optuna.errors import (
    InfeasibleBudgetError,
    InvalidArgumentError,
    SpaceError,
    StudyMismatchError,
)
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
OBJECTIVE = closeness(SPACE, "channels", 2)
NAMES = [d.name for d in SPACE.decisions if d.role == "channels"]
COLUMNS = [SPACE.column[name] for name in NAMES]
LOOSE = {"latency_ms": 9.0}

CHAIN = SearchSpace.from_family(Chain(length=4, widths=(8, 16, 24, 32)))
CHAIN_COSTS = apq.hardware.bitfusion_small().table(CHAIN)
CHAIN_COMPILED = CHAIN_COSTS.compile(CHAIN)


def fewest_of(space: SearchSpace) -> Genotypes:
    row = space.extreme(largest=True)
    row[:, [c for c, d in enumerate(space.decisions) if d.role == "channels"]] = 0
    return row


FEWEST = fewest_of(SPACE)


def rows_of(study: optuna.Study, space: SearchSpace = SPACE) -> Genotypes:
    return np.stack([space.from_params(trial.params) for trial in study.trials])


def amc(**options: Any) -> AMCSampler:
    return AMCSampler(SPACE, **({"costs": COSTS, "budgets": LOOSE, "options": QUICK} | options))


# ---------------------------------------------------------------------- the walk


def test_a_step_for_every_choice_of_channels() -> None:
    sampler = amc()
    assert [SPACE.decisions[step.column].name for step in sampler.steps] == NAMES
    assert [len(step.sites) for step in sampler.steps] == [3] * 6


def test_states_know_what_was_removed_and_what_is_to_come() -> None:
    sampler = amc(seed=0)
    study = walked(sampler, OBJECTIVE, 1)
    episode = sampler.episode(study, study.trials[0])
    assert episode is not None and episode.states.shape == (6, 10)
    assert episode.states.min() >= 0 and episode.states.max() <= 1
    row, whole = rows_of(study)[0], COMPILED(LARGEST)[0, 0]
    for t in range(6):
        so_far = LARGEST[0].copy()
        so_far[COLUMNS[:t]] = row[COLUMNS[:t]]
        removed = 1 - COMPILED(so_far[None])[0, 0] / whole
        assert episode.states[t, 7] == pytest.approx(removed, abs=1e-6)
        later = [
            COSTS.cost(placed.layer, placed.w_bits, placed.a_bits)[0]
            for placed in SPACE.decode(LARGEST[0]).layers()
            if any(placed.name.startswith(name[: -len("channels")]) for name in NAMES[t + 1 :])
        ]
        assert episode.states[t, 8] == pytest.approx(sum(later) / whole, abs=1e-6)
    kept = [study.trials[0].params[n] / SPACE.to_params(LARGEST[0])[n] for n in NAMES]
    np.testing.assert_allclose(episode.states[:, 9], [1.0, *kept[:-1]], rtol=1e-6)


def test_least_kept_leaves_out_the_narrowest() -> None:
    choices = SPACE.decisions[COLUMNS[-1]].choices
    sampler = amc(least_kept=0.5)
    allowed = [choices[c] for c in sampler.steps[-1].choices]
    assert allowed == [c for c in choices if c >= choices[-1] / 2] != list(choices)


# ---------------------------------------------------------------------- the bounded action


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.floats(0.0, 1.1))
def test_every_network_meets_the_budget(seed: int, place: float) -> None:
    """Of both families, channels in a concatenation included; and of no more than needed."""
    for space, costs, compiled in (
        (SPACE, COSTS, COMPILED),
        (CHAIN, CHAIN_COSTS, CHAIN_COMPILED),
    ):
        low = compiled(fewest_of(space))[0, 0]
        high = compiled(space.extreme(largest=True))[0, 0]
        limit = float(low + place * (high - low))
        sampler = AMCSampler(
            space, costs=costs, budgets={"latency_ms": limit}, seed=seed, options=QUICK
        )
        study = walked(sampler, closeness(space, "channels", 1), 2)
        rows = rows_of(study, space)
        assert compiled(rows)[:, 0].max() <= limit
        for trial, row in zip(study.trials, rows, strict=True):
            actions = trial_attribute(trial, "actions")
            so_far = fewest_of(space)[0]
            for step, action in zip(sampler.steps, actions, strict=True):
                wider = so_far.copy()
                wider[step.column] = row[step.column] + 1
                so_far[step.column] = row[step.column]
                # what was asked for, or one more would be too much
                asked = row[step.column] == step.at(action)
                assert asked or compiled(wider[None])[0, 0] > limit


def test_a_budget_that_binds_nothing_changes_no_action() -> None:
    whole = float(COMPILED(LARGEST)[0, 0])
    exact = walked(amc(seed=3, budgets={"latency_ms": whole}), OBJECTIVE, 6)
    study = walked(amc(seed=3), OBJECTIVE, 6)
    assert params_of(study) == params_of(exact)
    sampler = amc()
    for trial, row in zip(study.trials, rows_of(study), strict=True):
        actions = trial_attribute(trial, "actions")
        assert [s.at(a) for s, a in zip(sampler.steps, actions, strict=True)] == [
            row[c] for c in COLUMNS
        ]


# ---------------------------------------------------------------------- learning


def test_it_learns_better_than_by_chance() -> None:
    """Alternately all channels and the fewest are best: 0.5 is chance."""

    def objective(trial: optuna.Trial) -> float:
        SPACE.suggest(trial)
        row = SPACE.from_params(trial.params)
        part = row[COLUMNS] / (SPACE.sizes[COLUMNS] - 1)
        return float(np.mean(np.where(np.arange(6) < 3, part, 1 - part)))

    def late(options: DDPGOptions, seed: int) -> float:
        study = walked(amc(seed=seed, options=options), objective, 32)
        return float(np.mean([trial.value for trial in study.trials[-8:]]))

    patient = replace(SMALL, actor_rate=5e-4, updates_per_step=3)
    learned = [late(patient, seed) for seed in range(3)]
    chance = [late(CHANCE, seed) for seed in range(3)]
    assert np.median(learned) > np.median(chance) + 0.1


def test_the_reward_is_the_accuracy() -> None:
    sampler = amc()
    trial = create_trial(
        params=SPACE.to_params(LARGEST[0]), distributions=SPACE.distributions(), value=0.7
    )
    for direction, expected in (("maximize", 0.7), ("minimize", -0.7)):
        episode = sampler.episode(optuna.create_study(direction=direction), trial)
        assert episode is not None and episode.reward == pytest.approx(expected)


# ---------------------------------------------------------------------- what is held


def test_only_channels_change_and_bits_are_the_widest() -> None:
    fixed = {"stage2.depth": 1, NAMES[0]: 16}
    study = walked(amc(seed=0, fixed=fixed), OBJECTIVE, 5)
    for trial in study.trials:
        assert trial.params["stage2.depth"] == 1 and trial.params[NAMES[0]] == 16
        assert {v for n, v in trial.params.items() if n.endswith("bits")} == {8}
        assert NAMES[3] not in trial.params
    assert len({trial.params[NAMES[1]] for trial in study.trials}) > 1


def test_a_whole_network_is_pruned_from_its_own_channels() -> None:
    row = LARGEST[0].copy()
    row[COLUMNS] = [1, 2, 3, 2, 1, 2]
    row[SPACE.column["stage1.block1.dw_a_bits"]] = 0
    sampler = amc(fixed=SPACE.decode(row), seed=0)
    assert [step.choices[-1] for step in sampler.steps] == [1, 2, 3, 2, 1, 2]
    rows = rows_of(walked(sampler, OBJECTIVE, 5))
    assert (rows <= row).all()
    rows[:, COLUMNS] = row[COLUMNS]
    assert (rows == row).all()


def test_what_amc_prunes_haq_quantizes() -> None:
    """The sequential pipeline: each takes the other's best trial as its network."""
    pruned = walked(amc(seed=0, budgets={"latency_ms": 0.15}), OBJECTIVE, 4).best_trial
    sampler = HAQSampler(SPACE, fixed=pruned, costs=COSTS, budgets={"latency_ms": 0.1},
                         seed=0, options=QUICK)  # fmt: skip
    for trial in walked(sampler, OBJECTIVE, 3).trials:
        assert all(trial.params[name] == pruned.params[name] for name in NAMES)
    assert len(sampler.steps) == 24


# ---------------------------------------------------------------------- studies


def test_a_stored_study_goes_on_as_one_that_never_stopped(url: str) -> None:
    limit = float(CHAIN_COMPILED(CHAIN.extreme(largest=True))[0, 0] / 2)
    objective = closeness(CHAIN, "channels", 1)

    def sampler() -> AMCSampler:
        return AMCSampler(
            CHAIN, costs=CHAIN_COSTS, budgets={"latency_ms": limit}, seed=1, options=QUICK
        )

    whole = walked(sampler(), objective, 7)
    study = optuna.create_study(storage=url, study_name="s", direction="maximize")
    for trials in (2, 2, 3):
        walked(sampler(), objective, trials, study)
        study = optuna.load_study(study_name="s", storage=url)
    assert params_of(study) == params_of(whole)
    agents = [learned_by(sampler(), each) for each in (whole, study)]
    assert all(np.array_equal(a, b) for a, b in zip(*map(weights_of, agents), strict=True))


def test_failed_trials_are_skipped_and_enqueued_ones_kept() -> None:
    def stops(trial: optuna.Trial) -> float:
        value = OBJECTIVE(trial)
        if trial.number == 2:
            raise RuntimeError("stopped amid an episode")
        return value

    budget = {"latency_ms": 0.13}
    sampler = amc(seed=1, budgets=budget)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(SPACE.to_params(LARGEST[0]))  # above the budget, and all the same wanted
    last = SPACE.to_params(LARGEST[0])[NAMES[-1]]
    study.enqueue_trial({NAMES[-1]: last})
    walked(sampler, stops, 5, study, catch=(RuntimeError,))
    assert study.trials[0].params == SPACE.to_params(LARGEST[0])
    assert study.trials[1].params[NAMES[-1]] == last
    # steps before a prescribed one know what it will take
    assert COMPILED(rows_of(study)[1:])[:, 0].max() <= budget["latency_ms"]
    assert learned_by(sampler, study).episodes == 4
    episode = sampler.episode(study, study.trials[0])  # was never walked
    assert episode is not None
    sizes = [len(step.choices) for step in sampler.steps]
    np.testing.assert_allclose(episode.actions, [(k - 0.5) / k for k in sizes], rtol=1e-6)


def test_an_objective_of_several_values(digits: ImageData) -> None:
    tiny = replace(FAST, steps=1, calibration_images=32)
    objective = apq.Objective(OnceForAllNet(SPACE), digits, COSTS, finetune=tiny, images=64)
    study = optuna.create_study(directions=objective.directions)
    sampler = amc(seed=0, budgets={"energy_mj": 0.1})
    with one_thread():
        walked(sampler, objective, 1, study)
    assert study.trials[0].values[2] <= 0.1 + 1e-12
    episode = sampler.episode(study, study.trials[0])
    assert episode is not None and episode.reward == study.trials[0].values[0]


def test_a_study_is_walked_by_one_kind_of_settings() -> None:
    study = walked(amc(seed=0), OBJECTIVE, 1)
    walked(amc(seed=7), OBJECTIVE, 1, study)
    others = [
        (amc(options=replace(QUICK, tau=0.5)), "option tau 0.01, now 0.5"),
        (amc(budgets={"latency_ms": 0.15}), r"budget latency_ms 9\.0, now 0\.15"),
        (amc(least_kept=0.5), "least kept"),
        (HAQSampler(SPACE), "walked by AMCSampler"),
    ]
    for other, message in others:
        with pytest.raises(StudyMismatchError, match=message):
            walked(other, OBJECTIVE, 1, study)


# ---------------------------------------------------------------------- errors


def test_a_budget_below_reach_is_refused_with_what_can_be_reached() -> None:
    least = COMPILED(FEWEST)[0, 0]
    with pytest.raises(InfeasibleBudgetError, match=f"{least:.6g}"):
        amc(budgets={"latency_ms": least * 0.999})
    amc(budgets={"latency_ms": float(least)})
    with pytest.raises(InfeasibleBudgetError):
        amc(budgets={"latency_ms": float(least)}, least_kept=0.8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budgets": {"latency": 1.0}}, InvalidArgumentError, "'latency_ms' meant"),
        ({"budgets": {}}, InvalidArgumentError, "at least one of"),
        ({"costs": None}, InvalidArgumentError, "need costs"),
        ({"fixed": {"depth": 1}}, InvalidArgumentError, "no parameter 'depth'"),
        ({"fixed": {"stage1.depth": 9}}, InvalidArgumentError, r"not one of \[1, 2\]"),
        ({"least_kept": 2.0}, InvalidArgumentError, "least_kept=2.0"),
        ({"seed": 1.5}, InvalidArgumentError, "seed=1.5"),
        ({"fixed": dict.fromkeys(NAMES, 8) | {n: SPACE.decisions[c].choices[0] for n, c in zip(NAMES, COLUMNS, strict=True)}}, SpaceError, "nothing to choose"),  # noqa: E501
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        amc(**arguments)


def test_a_space_without_channels_is_refused() -> None:
    plain = SearchSpace([d for d in SPACE.decisions if d.role != "channels"], family=SPACE.family)
    with pytest.raises(SpaceError, match="no channels decisions"):
        AMCSampler(plain, costs=COSTS, budgets=LOOSE)
