"""Small agents and problems with known optima, for the walks of HAQ and AMC."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import Trial

from apq_optuna.baselines.ddpg import Agent, DDPGOptions
from apq_optuna.baselines.walker import WalkSampler
from apq_optuna.space import SearchSpace

SMALL = DDPGOptions(
    episodes=40, warmup=8, sigma_decay=0.92, hidden=(48, 48), batch_size=32, actor_rate=3e-3,
    critic_rate=1e-2, tau=0.1, updates_per_step=2,
)  # fmt: skip
"""Learns in a few dozen trials what the original constants need hundreds for."""

CHANCE = DDPGOptions(warmup=10_000, hidden=(8, 8))
"""Never learns: uniform actions."""

QUICK = DDPGOptions(warmup=3, hidden=(8, 8), batch_size=8)
"""Soon acts on its own, whether it learned something or not."""


def closeness(space: SearchSpace, role: str, target: int) -> Callable[[Trial], float]:
    """An accuracy that is 1 where every decision of a role takes choice `target`."""

    def objective(trial: Trial) -> float:
        space.suggest(trial)
        distances = [
            abs(d.index_of(trial.params[d.name]) - min(target, len(d.choices) - 1))
            / max(len(d.choices) - 1, 1)
            for d in space.decisions
            if d.role == role and d.name in trial.params
        ]
        return 1 - float(np.mean(distances))

    return objective


def walked(
    sampler: WalkSampler,
    objective: Callable[[Trial], Any],
    trials: int,
    study: optuna.Study | None = None,
    **options: Any,
) -> optuna.Study:
    """A study after some trials."""
    if study is None:
        study = optuna.create_study(direction="maximize", sampler=sampler)
    study.sampler = sampler
    study.optimize(objective, n_trials=trials, **options)
    return study


def params_of(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def weights_of(agent: Agent) -> list[Any]:
    modules = (agent.actor, agent.critic)
    return [p.detach().numpy() for module in modules for p in module.parameters()]


def learned_by(sampler: WalkSampler, study: optuna.Study) -> Agent:
    """The agent after all trials there are."""
    return sampler._taught(study, but=-1)


@contextmanager
def one_thread() -> Iterator[None]:
    """What finetunes a network of a few channels on one thread is not kept waiting by others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
