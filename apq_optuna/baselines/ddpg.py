"""The agent of HAQ and AMC: deep deterministic policy gradient, one action a step of a walk.

Notation:
    T       steps of an episode, the same in every one
    S       entries of a state, each in [0, 1]
    n       transitions in a minibatch
    mu, Q   actor and critic; mu', Q' their targets, which follow slowly
    b       the reward's moving average

Lillicrap et al., "Continuous control with deep reinforcement learning", ICLR 2016, section 3 and
Algorithm 1, as He et al., "AMC", ECCV 2018, section "DDPG Agent", and Wang et al., "HAQ", CVPR
2019, section "Agent", changed it: the episode's one reward goes to every step of it, and a moving
average is subtracted. Constants are those of the released code.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from apq_optuna.errors import InvalidArgumentError

FEW_TRIALS = 60
"""Trials of a study where nothing is said of their number."""

SIGMA_LEFT = 0.1
"""What part of the exploration is left at the end of a study of few trials, at most."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DDPGOptions:
    """Constants of the agent; defaults are HAQ's released ones.

    Attributes:
        episodes: Trials that the search was made for.
        warmup: Episodes whose actions are uniform; learning begins at their end.
        sigma: Standard deviation of the exploration around the actor's action, in [0, 1].
        sigma_decay: Its factor an episode after the warm-up.
        updates_per_step: Updates after an episode for each of its steps.
        replay_episodes: Latest episodes that are remembered.
        batch_size: Transitions of an update.
        hidden: Widths of the two hidden layers of actor and critic.
        actor_rate, critic_rate: Learning rates of Adam.
        tau: How far the targets move towards actor and critic in an update.
        discount: Of the value of the next state.
        baseline_weight: Weight of the past in the rewards' moving average, an update.
        last_layer: Bound of the uniform initial values of the last layers.

    Raises:
        InvalidArgumentError: A constant that is out of its range.
    """

    episodes: int = 600
    warmup: int = 20
    sigma: float = 0.5
    sigma_decay: float = 0.99
    updates_per_step: int = 1
    replay_episodes: int = 128
    batch_size: int = 64
    hidden: tuple[int, int] = (300, 300)
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    tau: float = 0.01
    discount: float = 1.0
    baseline_weight: float = 0.5
    last_layer: float = 3e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        counts = ("episodes", "updates_per_step", "replay_episodes", "batch_size")
        for name in (*counts, "warmup"):
            value, least = getattr(self, name), 0 if name == "warmup" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidArgumentError(f"{name}={value!r}: a whole number of at least {least}")
        if len(self.hidden) != 2 or any(width < 1 for width in self.hidden):
            raise InvalidArgumentError(f"hidden={self.hidden}: the widths of two layers")
        for name in ("sigma", "actor_rate", "critic_rate", "last_layer"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidArgumentError(f"{name}={getattr(self, name)}: must be above 0")
        for name in ("sigma_decay", "tau", "discount", "baseline_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)}: must be in [0, 1]")

    @classmethod
    def haq(cls) -> DDPGOptions:
        """HAQ's released constants: 600 episodes, 20 of them warm-up."""
        return cls()

    @classmethod
    def amc(cls) -> DDPGOptions:
        """AMC's released constants: 800 episodes, 100 of them warm-up."""
        return cls(episodes=800, warmup=100, sigma_decay=0.95, replay_episodes=100)

    def for_trials(self, trials: int) -> DDPGOptions:
        """The same agent in a study of fewer trials than the search was made for.

        The original spends 20 to 100 trials on chance, and later ones on exploration that fades
        over hundreds; a study of 60 would end before it has begun. So where trials are fewer,
        warm-up takes at most a quarter of them, and exploration fades to a tenth within the rest,
        if it did not sooner. All else stays.

        Raises:
            InvalidArgumentError: Fewer than one trial.
        """
        if trials < 1:
            raise InvalidArgumentError(f"trials={trials}: at least 1")
        if trials >= self.episodes:
            return self
        warmup = min(self.warmup, max(1, trials // 4))
        fading = SIGMA_LEFT ** (1 / max(trials - warmup, 1))
        return replace(
            self,
            episodes=trials,
            warmup=warmup,
            sigma_decay=min(self.sigma_decay, fading),
        )


@dataclass(frozen=True)
class Episode:
    """One walk and what it was worth.

    Attributes:
        states: `(T, S) float32`, in [0, 1].
        actions: `(T,) float32`, in [0, 1].
        reward: Known at the end, and every step's.
    """

    states: Floats
    actions: Floats
    reward: float


class Agent:
    """An actor and a critic that learn from episodes, the same from the same seed and episodes.

    Args:
        state_size: S.
        options: The constants.
        seed: Of the initial weights and of the minibatches.
    """

    def __init__(self, state_size: int, options: DDPGOptions, seed: int) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)
        self.actor = Actor(state_size, options, generator)
        self.critic = Critic(state_size, options, generator)
        self._late_actor = copy.deepcopy(self.actor)
        self._late_critic = copy.deepcopy(self.critic)
        self._actor_step = _adam(self.actor, options.actor_rate)
        self._critic_step = _adam(self.critic, options.critic_rate)
        self._memory: deque[Episode] = deque(maxlen=options.replay_episodes)
        self.baseline: float | None = None
        self.episodes = 0

    @property
    def warming_up(self) -> bool:
        """Whether the next episode's actions are uniform."""
        return self.episodes < self.options.warmup

    @property
    def sigma(self) -> float:
        """Standard deviation of the exploration in the next episode."""
        since = max(self.episodes - self.options.warmup, 0)
        return self.options.sigma * self.options.sigma_decay**since

    def decide(self, state: Floats) -> float:
        """The actor's own action in a state `(S,)`."""
        with _one_thread(), torch.no_grad():
            return float(self.actor(torch.from_numpy(state)[None])[0, 0])

    def act(self, state: Floats, rng: np.random.Generator) -> float:
        """An action to try in a state `(S,)`: mu'(s) ~ TN(mu(s), sigma^2, 0, 1) (AMC)."""
        if self.warming_up:
            return float(rng.random())
        return truncated_normal(self.decide(state), self.sigma, rng)

    def learn(self, episode: Episode) -> None:
        """Remembers an episode and, after the warm-up, updates actor and critic."""
        self._memory.append(episode)
        self.episodes += 1
        if self.warming_up:
            return
        steps = len(episode.actions)
        memory = self._memory
        states = torch.from_numpy(np.stack([e.states for e in memory]))
        actions = torch.from_numpy(np.stack([e.actions for e in memory]))[..., None]
        rewards = torch.tensor([e.reward for e in memory], dtype=torch.float32)
        size = (steps * self.options.updates_per_step, self.options.batch_size)
        picked = torch.from_numpy(self._rng.integers(len(memory) * steps, size=size))
        with _one_thread():
            for which in picked:
                walk, step = which // steps, which % steps
                last = step == steps - 1
                self._update(
                    states[walk, step],
                    actions[walk, step],
                    rewards[walk, None],
                    states[walk, torch.where(last, step, step + 1)],
                    last[:, None],
                )

    def _update(
        self, state: Tensor, action: Tensor, reward: Tensor, following: Tensor, last: Tensor
    ) -> None:
        """One update from `(n, S)` states, the rest `(n, 1)`."""
        options = self.options
        mean, weight = float(reward.mean()), options.baseline_weight
        before = mean if self.baseline is None else self.baseline
        self.baseline = weight * before + (1 - weight) * mean
        with torch.no_grad():
            # y = r - b + gamma Q'(s', mu'(s')), nothing beyond the end (AMC, "DDPG Agent")
            later = self._late_critic(following, self._late_actor(following))
            target = reward - self.baseline + options.discount * later * ~last
        self._critic_step.zero_grad()
        nn.functional.mse_loss(self.critic(state, action), target).backward()
        self._critic_step.step()
        # grad J = E[dQ/da dmu/dtheta], Lillicrap et al., Algorithm 1; the critic stands still
        action = self.actor(state)
        (slope,) = torch.autograd.grad(-self.critic(state, action).mean(), action)
        self._actor_step.zero_grad()
        action.backward(slope)
        self._actor_step.step()
        # theta' <- tau theta + (1 - tau) theta', Lillicrap et al., Algorithm 1
        for late, now in ((self._late_actor, self.actor), (self._late_critic, self.critic)):
            for slow, parameter in zip(late.parameters(), now.parameters(), strict=True):
                slow.data.lerp_(parameter.data, options.tau)


class Actor(nn.Module):
    """State to an action in [0, 1]: S, hidden, hidden, 1, with ReLU and a sigmoid at the end."""

    def __init__(self, state_size: int, options: DDPGOptions, generator: torch.Generator) -> None:
        super().__init__()
        first, second = options.hidden
        self.first = _linear(state_size, first, generator)
        self.second = _linear(first, second, generator)
        self.last = _linear(second, 1, generator, options.last_layer)

    def forward(self, state: Tensor) -> Tensor:
        """`(n, S)` to `(n, 1)`."""
        x = self.second(self.first(state).relu()).relu()
        return torch.sigmoid(self.last(x))


class Critic(nn.Module):
    """State and action to a value: each through a layer of its own, summed, hidden, 1."""

    def __init__(self, state_size: int, options: DDPGOptions, generator: torch.Generator) -> None:
        super().__init__()
        first, second = options.hidden
        self.of_state = _linear(state_size, first, generator)
        self.of_action = _linear(1, first, generator)
        self.second = _linear(first, second, generator)
        self.last = _linear(second, 1, generator, options.last_layer)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """`(n, S)` and `(n, 1)` to `(n, 1)`."""
        x = (self.of_state(state) + self.of_action(action)).relu()
        value: Tensor = self.last(self.second(x).relu())
        return value


def truncated_normal(mean: float, sigma: float, rng: np.random.Generator) -> float:
    """One draw of TN(mean, sigma^2, 0, 1), by inversion; `mean` in [0, 1]."""
    low, high = ndtr((0.0 - mean) / sigma), ndtr((1.0 - mean) / sigma)
    drawn = mean + sigma * ndtri(low + (high - low) * rng.random())
    return float(np.clip(drawn, 0.0, 1.0))


def _linear(
    inputs: int, outputs: int, generator: torch.Generator, bound: float | None = None
) -> nn.Linear:
    """A linear layer whose initial values come from a generator, not from torch's global one.

    Uniform within `bound`, by default within torch's own, one over the root of the inputs.
    """
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5 if bound is None else bound
    with torch.no_grad():
        for values in layer.parameters():
            values.uniform_(-bound, bound, generator=generator)
    assert isinstance(layer, nn.Linear)
    return layer


def _adam(module: nn.Module, rate: float) -> torch.optim.Adam:
    # one pass over all weights: networks this small spend their time on calls
    return torch.optim.Adam(module.parameters(), lr=rate, fused=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for networks this small: several would wait for each other far longer.

    It also makes an agent the same on any number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
