"""`WalkSampler`: an Optuna sampler whose trials are the episodes of a DDPG agent.

Notation:
    D       decisions of the space; a genotype is `(D,) int32`
    T, S    steps of a walk; entries of a state
"""

from __future__ import annotations

import json
import math
import operator
import threading
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from apq_optuna._optuna import (
    fixed_parameters,
    set_study_attribute,
    set_trial_attribute,
    study_attribute,
    study_key,
    trial_attribute,
    trials_of,
    whole_study,
)
from apq_optuna.baselines.ddpg import Agent, DDPGOptions, Episode, Floats
from apq_optuna.baselines.held import Fixed, held_row
from apq_optuna.baselines.limits import Limits
from apq_optuna.baselines.walk import WalkStep, walked_columns
from apq_optuna.errors import InvalidArgumentError, SpaceError, StudyMismatchError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace

ACTIONS = "actions"
"""System attribute of a trial: the agent's actions, before a budget changed what came of them."""

SETTINGS = "baseline"
"""System attribute of a study: which sampler walks it, and how."""


@dataclass
class _Walked:
    """What a study's trials taught: a function of the seed and of them, in order of their ends.

    Attributes:
        agent: What learned.
        learned: Numbers of the completed trials it has seen, in order.
        checked: Numbers of finished trials whose parameters are of the space.
    """

    agent: Agent
    learned: list[int] = field(default_factory=list)
    checked: set[int] = field(default_factory=set)


class WalkSampler(BaseSampler):
    """A DDPG agent that walks through the decisions of one role; all others are held.

    Args:
        space: The joint space of a family of networks.
        role: Role of the decisions that the agent takes.
        costs, budgets: What limits it; see `Limits`.
        fixed: What is held; see `held_row`. A whole network, one that has a value for every
            decision that the agent would take, says where it starts; of part of them, a value
            is held.
        seed: Of the agent and of its exploration.
        options: The agent's constants.

    Raises:
        SpaceError: A space without networks, or a subnet of another one.
        InvalidArgumentError: Arguments of another kind.
        CostTableError: The table lacks layers of the space.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        role: str,
        costs: CostTable | None,
        budgets: Mapping[str, float] | None,
        fixed: Fixed | None,
        seed: int | None,
        options: DDPGOptions,
    ) -> None:
        if not isinstance(space, SearchSpace):
            raise InvalidArgumentError(f"space={space!r}: must be a SearchSpace")
        if not isinstance(options, DDPGOptions):
            raise InvalidArgumentError(f"options={options!r}: must be DDPGOptions")
        if space.family is None:
            raise SpaceError("space: a plain search space describes no networks to walk through")
        if not any(decision.role == role for decision in space.decisions):
            raise SpaceError(
                f"space: {space!r} has no {role} decisions; there is nothing to choose"
            )
        self.space = space
        self.options = options
        self.limits = Limits(space, costs, budgets)
        self._row, given = held_row(space, fixed)
        walked = walked_columns(space, self._row, role)
        self.whole = set(walked) <= given
        pinned = frozenset() if self.whole else given
        self._columns = [column for column in walked if column not in pinned]
        self.steps: tuple[WalkStep, ...] = ()
        digest = None if costs is None else costs.digest
        self._settings = {
            "sampler": type(self).__name__,
            "space": space.hash,
            "cost table": digest,
            **{f"budget {name}": value for name, value in self.limits.budgets.items()},
            **{f"option {name}": value for name, value in asdict(options).items()},
        }
        self._entropy = np.random.SeedSequence(_natural(seed)).entropy
        # another than the exploration's: `n_jobs` reseeds that before each trial
        self._agent_seed = int(np.random.SeedSequence(self._entropy).generate_state(1)[0])
        self._reset()

    def _begin(self, steps: tuple[WalkStep, ...], nothing: str) -> None:
        """Sets the steps, of those decisions that have more than one choice."""
        self.steps = tuple(step for step in steps if len(step.choices) > 1)
        if not self.steps:
            raise SpaceError(f"space: {nothing}; there is nothing to choose")
        held = self._row.copy()
        held[[step.column for step in self.steps]] = 0
        self._held = np.asarray(self.space.canonical(held[None])[0])
        names = self.space.to_params(self._held)
        walked = {self.space.decisions[step.column].name for step in self.steps}
        fixed = {f"fixed {name}": v for name, v in names.items() if name not in walked}
        self._settings = json.loads(json.dumps(self._settings | fixed))

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._studies: dict[Any, _Walked] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_studies")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # ------------------------------------------------------------------ what a baseline defines

    @abstractmethod
    def _state(self, t: int, actions: list[float], row: Genotypes) -> Floats:
        """The state `(S,)` before step t; earlier steps' actions, and what came of them in row."""

    @abstractmethod
    def _reward(self, trial: FrozenTrial, value: float) -> float:
        """What a trial's first value is worth, larger being better."""

    def _bounded(self, t: int, choice: int, row: Genotypes) -> int:
        """What a budget allows of step t's choice; in row later free steps are at their least."""
        return choice

    def _finished(self, row: Genotypes, free: list[WalkStep]) -> Genotypes:
        """What the budget makes of a walk's genotype; only `free` steps may change."""
        return row

    # ------------------------------------------------------------------ Optuna's interface

    def reseed_rng(self) -> None:
        """New randomness for the exploration; what the agent has learned stays."""
        self._entropy = np.random.SeedSequence().entropy

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One walk.

        Raises:
            StudyMismatchError: The study is walked by a sampler of other settings, or its trials
                have parameters that the space has not.
        """
        study = whole_study(study)
        with self._lock:
            self._enter(study)
            agent = self._taught(study, but=trial.number)
            rng = np.random.default_rng(
                np.random.SeedSequence(self._entropy, spawn_key=(trial.number,))
            )
            actions, row = self._walk(agent, rng, self._prescribed(study, trial))
            set_trial_attribute(study, trial, ACTIONS, actions)
        return {
            decision.name: decision.value_of(int(index))
            for decision, index in zip(self.space.decisions, row, strict=True)
            if decision.name in search_space
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Always refuses: every parameter of the space is part of the walk.

        Raises:
            StudyMismatchError: A parameter that the space has not, or of another distribution.
        """
        if param_name not in self.space.column:
            raise StudyMismatchError(
                f"trial {trial.number} suggests {param_name!r}, which is no parameter of the "
                f"search space: {type(self).__name__} proposes networks alone"
            )
        own = self.space.distributions()[param_name]
        raise StudyMismatchError(
            f"trial {trial.number} suggests {param_name!r} from {param_distribution}, in the "
            f"search space it is {own}; use space.suggest(trial)"
        )

    # ------------------------------------------------------------------ a walk

    def _prescribed(self, study: Study, trial: FrozenTrial) -> dict[int, int]:
        """Columns that an enqueued trial or a partially fixed sampler prescribes."""
        given = fixed_parameters(trial) | dict(getattr(study.sampler, "_fixed_params", {}))
        found = {}
        for name, value in given.items():
            if name in self.space.column:
                column = self.space.column[name]
                try:
                    found[column] = self.space.decisions[column].index_of(value)
                except (SpaceError, TypeError):
                    continue  # Optuna tells what it thinks of it
        return found

    def _walk(
        self, agent: Agent, rng: np.random.Generator, prescribed: Mapping[int, int]
    ) -> tuple[list[float], Genotypes]:
        """The agent's actions and the genotype `(D,)` that came of them."""
        row = self._row.copy()
        for step in self.steps:
            row[step.column] = step.choices[0]
        for column, choice in prescribed.items():
            row[column] = choice
        actions: list[float] = []
        for t, step in enumerate(self.steps):
            if step.column in prescribed:
                actions.append(step.action_of(prescribed[step.column]))
                continue
            state = self._state(t, actions, row)
            actions.append(agent.act(state, rng))
            row[step.column] = self._bounded(t, step.at(actions[-1]), row)
        free = [step for step in self.steps if step.column not in prescribed]
        return actions, self._finished(row, free)

    def episode(self, study: Study, trial: FrozenTrial) -> Episode | None:
        """A completed trial as an episode; None where it says nothing of this walk.

        That is a trial of another network than the held one, or without a finite value. Actions
        of a trial that was not walked are the middles of the intervals of its choices.
        """
        value = trial.values[0] if trial.values else math.nan
        try:
            row = self.space.from_params(trial.params)
        except SpaceError:
            return None
        columns = [step.column for step in self.steps]
        rest = row.copy()
        rest[columns] = 0
        if not math.isfinite(value) or not np.array_equal(rest, self._held):
            return None
        actions = trial_attribute(trial, ACTIONS)
        if not isinstance(actions, list) or len(actions) != len(self.steps):
            actions = [step.action_of(int(row[step.column])) for step in self.steps]
        states = [self._state(t, actions[:t], row) for t in range(len(self.steps))]
        if study.directions[0] == StudyDirection.MINIMIZE:
            value = -value
        reward = self._reward(trial, value)
        return Episode(np.stack(states), np.array(actions, np.float32), reward)

    # ------------------------------------------------------------------ a study

    def _enter(self, study: Study) -> None:
        """Makes a new study this sampler's, and refuses one that is another's."""
        stored = study_attribute(study, SETTINGS)
        if stored is None:
            set_study_attribute(study, SETTINGS, self._settings)
            return
        names = dict.fromkeys([*stored, *self._settings])
        other = [
            f"{name} {stored.get(name)!r}, now {self._settings.get(name)!r}"
            for name in names
            if stored.get(name) != self._settings.get(name)
        ]
        if other:
            more = f" and {len(other) - 5} more" if len(other) > 5 else ""
            raise StudyMismatchError(
                f"the study {study.study_name!r} is walked by {stored.get('sampler')} with other "
                f"settings: {'; '.join(other[:5])}{more}. Use another study_name"
            )

    def _taught(self, study: Study, *, but: int) -> Agent:
        """The agent after all completed trials of a study, in the order in which they ended.

        That order is the same for who watched them and for who reads them later, so a sampler
        made anew goes on as the former would have. Raises where a trial is not of the space.
        """
        trials = [t for t in trials_of(study) if t.number != but and t.state.is_finished()]
        done = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=_ended)
        numbers = [trial.number for trial in done]
        key = study_key(study)
        walked = self._studies.get(key)
        if walked is None or numbers[: len(walked.learned)] != walked.learned:
            size = len(self._state(0, [], self._row))
            walked = _Walked(Agent(size, self.options, self._agent_seed))
        for trial in trials:
            if trial.number not in walked.checked:
                self._check(trial)
                walked.checked.add(trial.number)
        for trial in done[len(walked.learned) :]:
            episode = self.episode(study, trial)
            if episode is not None:
                walked.agent.learn(episode)
            walked.learned.append(trial.number)
        self._studies = {key: walked}
        return walked.agent

    def _check(self, trial: FrozenTrial) -> None:
        for name, distribution in trial.distributions.items():
            column = self.space.column.get(name)
            if column is None:
                raise StudyMismatchError(
                    f"trial {trial.number} has a parameter {name!r}, which the search space has "
                    "not: this study is of another space; use another study_name"
                )
            own = self.space.decisions[column].distribution()
            if distribution != own:
                raise StudyMismatchError(
                    f"trial {trial.number} has {name} as {distribution}, the search space has "
                    f"{own}: this study is of another space; use another study_name"
                )


def _ended(trial: FrozenTrial) -> tuple[float, int]:
    ended = trial.datetime_complete
    return (0.0 if ended is None else ended.timestamp(), trial.number)


def _natural(seed: int | None) -> int | None:
    if seed is None:
        return None
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise InvalidArgumentError(f"seed={seed!r}: must be a whole number, not negative")
    return number
