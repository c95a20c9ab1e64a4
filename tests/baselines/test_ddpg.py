"""The agent by itself: exploration, learning, determinism, constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apq_optuna.baselines import DDPGOptions
from apq_optuna.baselines.ddpg import Agent, Episode, truncated_normal
from apq_optuna.errors import InvalidArgumentError
from tests.baselines.helpers import CHANCE, SMALL, weights_of


def states_of(steps: int) -> np.ndarray:
    """Steps that an agent can tell apart, `(steps, 2)`."""
    place = np.linspace(0, 1, steps, dtype=np.float32)
    return np.stack([place, 1 - place], axis=1)


def play(options: DDPGOptions, best: np.ndarray, seed: int, episodes: int) -> tuple[Agent, list]:
    """Episodes whose reward is how near the actions are to the best ones."""
    rng = np.random.default_rng(seed)
    states = states_of(len(best))
    agent = Agent(2, options, seed)
    rewards = []
    for _ in range(episodes):
        actions = np.array([agent.act(state, rng) for state in states], np.float32)
        rewards.append(-10 * float(np.mean((actions - best) ** 2)))
        agent.learn(Episode(states, actions, rewards[-1]))
    return agent, rewards


def test_one_step_is_a_bandit_whose_best_action_is_found() -> None:
    patient = replace(SMALL, actor_rate=5e-4, hidden=(32, 32))
    for best in (0.8, 0.3):
        found = [
            play(patient, np.array([best]), seed, 70)[0].decide(states_of(1)[0])
            for seed in range(3)
        ]
        assert abs(np.median(found) - best) < 0.15


def test_several_steps_are_learned_better_than_by_chance() -> None:
    best = np.array([0.9, 0.2, 0.7, 0.1])
    learned = [np.mean(play(SMALL, best, seed, 28)[1][-8:]) for seed in range(3)]
    chance = [np.mean(play(CHANCE, best, seed, 28)[1][-8:]) for seed in range(3)]
    assert np.median(learned) > np.median(chance) / 2  # rewards are negative


def test_the_original_constants_learn_too() -> None:
    best = np.array([0.9])
    agent, rewards = play(replace(DDPGOptions.haq(), hidden=(64, 64)), best, 0, 250)
    assert np.mean(rewards[-50:]) > np.mean(rewards[:20])
    assert agent.sigma == pytest.approx(0.5 * 0.99**230)


def test_the_same_seed_and_episodes_make_the_same_agent() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _ = play(SMALL, np.array([0.3, 0.6]), 4, 14)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn from the global one
    torch.manual_seed(2)
    two, _ = play(SMALL, np.array([0.3, 0.6]), 4, 14)
    other, _ = play(SMALL, np.array([0.3, 0.6]), 5, 14)
    assert all(np.array_equal(a, b) for a, b in zip(*map(weights_of, (one, two)), strict=True))
    assert not np.array_equal(weights_of(one)[0], weights_of(other)[0])


def test_nothing_follows_a_walk_of_one_step() -> None:
    """Reduction: with one step the discount does not matter, and y = r - b."""
    far, _ = play(SMALL, np.array([0.3]), 0, 20)
    near, _ = play(replace(SMALL, discount=0.0), np.array([0.3]), 0, 20)
    assert all(np.array_equal(a, b) for a, b in zip(*map(weights_of, (far, near)), strict=True))


def test_a_constant_added_to_every_reward_changes_nothing() -> None:
    def agent(shift: float) -> Agent:
        made, rng = Agent(2, replace(SMALL, warmup=0), 0), np.random.default_rng(0)
        for _ in range(6):
            actions = rng.random(2).astype(np.float32)
            made.learn(Episode(states_of(2), actions, float(actions.sum()) + shift))
        return made

    plain, shifted = agent(0.0), agent(64.0)
    assert shifted.baseline == pytest.approx(plain.baseline + 64, abs=1e-3)
    for a, b in zip(*map(weights_of, (plain, shifted)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_the_targets_follow_slowly() -> None:
    agent, _ = play(replace(SMALL, tau=0.0, warmup=2), np.array([0.3]), 0, 6)
    fresh = Agent(2, SMALL, 0)
    late = [p.detach().numpy() for p in agent._late_actor.parameters()]
    assert all(np.array_equal(a, b) for a, b in zip(late, weights_of(fresh), strict=False))
    whole, _ = play(replace(SMALL, tau=1.0, warmup=2), np.array([0.3]), 0, 6)
    late = [p.detach().numpy() for p in whole._late_actor.parameters()]
    assert all(np.array_equal(a, b) for a, b in zip(late, weights_of(whole), strict=False))


def test_only_the_latest_episodes_are_remembered() -> None:
    agent, _ = play(replace(SMALL, replay_episodes=3), np.array([0.3]), 0, 12)
    assert len(agent._memory) == 3 and agent.episodes == 12


@given(st.floats(0, 1), st.floats(1e-4, 50), st.integers(0, 99))
def test_exploration_stays_within_bounds(mean: float, sigma: float, seed: int) -> None:
    assert 0 <= truncated_normal(mean, sigma, np.random.default_rng(seed)) <= 1


def test_exploration_is_a_truncated_normal() -> None:
    rng = np.random.default_rng(0)
    narrow = np.array([truncated_normal(0.5, 0.05, rng) for _ in range(4000)])
    assert narrow.mean() == pytest.approx(0.5, abs=0.01)
    assert narrow.std() == pytest.approx(0.05, rel=0.1)
    half = np.array([truncated_normal(0.0, 0.05, rng) for _ in range(4000)])  # a half normal
    assert half.mean() == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.1)
    wide = np.array([truncated_normal(0.2, 100.0, rng) for _ in range(4000)])  # uniform
    assert wide.mean() == pytest.approx(0.5, abs=0.02)
    assert wide.std() == pytest.approx(12**-0.5, rel=0.05)


def test_the_released_constants() -> None:
    haq, amc = DDPGOptions.haq(), DDPGOptions.amc()
    assert (haq.episodes, haq.warmup, haq.sigma_decay, haq.replay_episodes) == (600, 20, 0.99, 128)
    assert (amc.episodes, amc.warmup, amc.sigma_decay, amc.replay_episodes) == (
        800,
        100,
        0.95,
        100,
    )
    assert (haq.actor_rate, haq.critic_rate, haq.tau, haq.batch_size) == (1e-4, 1e-3, 0.01, 64)
    agent = Agent(10, haq, 0)
    sizes = [tuple(p.shape) for p in agent.actor.parameters()]
    assert sizes == [(300, 10), (300,), (300, 300), (300,), (1, 300), (1,)]
    assert abs(weights_of(agent)[4]).max() <= 3e-3


@given(st.integers(1, 1000))
def test_few_trials_leave_time_to_learn(trials: int) -> None:
    for original in (DDPGOptions.haq(), DDPGOptions.amc()):
        few = original.for_trials(trials)
        assert few.warmup <= min(original.warmup, max(1, trials // 4))
        assert few.sigma_decay <= original.sigma_decay
        assert few == original or few.episodes == trials
        if 1 < trials < original.episodes:
            assert few.sigma_decay ** (trials - few.warmup) <= 0.1 + 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup": -1},
        {"batch_size": 0},
        {"updates_per_step": 1.5},
        {"sigma": 0.0},
        {"tau": 1.5},
        {"hidden": (300,)},
        {"actor_rate": float("nan")},
    ],
    ids=str,
)
def test_constants_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        DDPGOptions(**wrong)
    with pytest.raises(InvalidArgumentError, match="trials=0"):
        DDPGOptions.haq().for_trials(0)
