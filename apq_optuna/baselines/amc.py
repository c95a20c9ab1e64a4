"""`AMCSampler`: channels layer by layer, by the agent of AMC.

He, Lin, Liu, Wang, Li, Han: "AMC: AutoML for Model Compression and Acceleration on Mobile
Devices", ECCV 2018. Constants are those of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from apq_optuna.baselines.ddpg import FEW_TRIALS, DDPGOptions, Floats
from apq_optuna.baselines.held import Fixed
from apq_optuna.baselines.walk import WalkStep, active_sites, scaled, shapes
from apq_optuna.baselines.walker import WalkSampler
from apq_optuna.errors import InvalidArgumentError, MissingCostError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace

LEAST_KEPT = 0.2
"""Least part of a layer's channels that is kept."""


class AMCSampler(WalkSampler):
    """AMC: a DDPG agent chooses the channels of one network, layer by layer, within a budget.

    >>> import apq_optuna as apq
    >>> import optuna
    >>> from apq_optuna.baselines import AMCSampler
    >>> space = apq.SearchSpace.preset("digits")
    >>> costs = apq.hardware.bitfusion_small().table(space)
    >>> sampler = AMCSampler(space, costs=costs, budgets={"latency_ms": 0.1}, seed=0)
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: space.suggest(trial).macs / 1e6, n_trials=2)
    >>> len(study.trials)
    2

    A step of the walk is a decision on channels, in the order of execution of the first layer that
    it governs; a mobile block has one, the expanded channels.

    State (section "Automated Compression with Reinforcement Learning"): index, kind of layer,
    input channels, output channels, stride, kernel, number of weights, cost removed so far, cost
    of the layers to come, both over the whole network's, last action, which is the part that was
    kept. Of several layers that follow a decision weights are summed, the rest is of the one with
    the most MACs. All are those of the network before pruning, scaled to [0, 1] over the walk.
    The cost is the first budget's, latency in place of the original's FLOPs.

    Action: the original keeps a part in [0.2, 1] of the channels, rounded up to what is allowed.
    Here equal intervals of [0, 1] stand for the choices the space has, from a fifth of the
    network's channels, or the fewest there are, to all of them: rounded up in even steps.

    Budget (section "Search Protocols", Algorithm 1): each action is lowered so far that the budget
    is met if every later step took its fewest channels, so that every episode meets it. The agent
    learns from its own actions, not from those so bounded, as released.

    Reward: the accuracy, a trial's first value, in [0, 1]. A first objective that is minimised
    counts negative.

    What is otherwise than there: by default the agent's warm-up and exploration fit a study of 60
    trials (`DDPGOptions.for_trials`); the original is `options=DDPGOptions.amc()`, for 800. An
    accuracy is what the objective returns; of channels selected by magnitude and weights
    corrected afterwards the supernet and its recalibration take care.

    What is learned is rebuilt from the study: each trial keeps its actions, and a sampler of the
    same arguments that opens a stored study goes on as the former would have. Workers may share
    one. Trials that failed or were pruned are left out, also enqueued ones of another network
    than the held one; what a trial was enqueued with is kept, within budget or not.

    Args:
        space: The joint space of a family of networks.
        costs: Costs on the device.
        budgets: Upper limits by metric name (`{"latency_ms": 2.0}`), at least one.
        fixed: The network that is pruned: values by parameter name, the largest network's at its
            widest bits for those that are not there; or a whole one as a subnet, a trial or its
            parameters, whose channels are the most that are kept. Of a few channels given by name
            each is held.
        seed: The same seed and the same trials make the same proposals.
        options: The agent's constants; by default AMC's, for 60 trials.
        least_kept: Least part of the network's channels that a layer keeps.

    Raises:
        SpaceError: A space without networks or without a choice of channels, or a subnet of
            another.
        InvalidArgumentError: No budget, or one that is of no cost, a parameter in `fixed` that is
            none or has a value that is no choice, or other arguments that cannot be meant.
        InfeasibleBudgetError: The network costs more with its fewest channels.
        CostTableError: The table lacks layers of the space.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        costs: CostTable,
        budgets: Mapping[str, float],
        fixed: Fixed | None = None,
        seed: int | None = None,
        options: DDPGOptions | None = None,
        least_kept: float = LEAST_KEPT,
    ) -> None:
        super().__init__(
            space, role="channels", costs=costs, budgets=budgets, fixed=fixed, seed=seed,
            options=options or DDPGOptions.amc().for_trials(FEW_TRIALS),
        )  # fmt: skip
        if not self.limits.budgets:
            raise InvalidArgumentError(
                f"budgets={budgets!r}: needs at least one of {list(self.limits.metrics)}"
            )
        if not 0 <= least_kept <= 1:
            raise InvalidArgumentError(f"least_kept={least_kept}: must be in [0, 1]")
        self._settings["least kept"] = float(least_kept)
        steps = _steps(space, self._row, self._columns, least_kept)
        self._begin(steps, f"{space!r} has one number of channels for every layer of the network")
        fewest = self._row.copy()
        for step in steps:
            fewest[step.column] = step.choices[0]
        self.limits.check(fewest, "every layer at its fewest channels")
        self._metric = self.limits.metrics.index(next(iter(self.limits.budgets)))
        self._whole = self._cost(self._row)
        if not np.isfinite(self._whole):
            raise InvalidArgumentError("costs: the device has no cost for the network in fixed")
        found = shapes(space, self._row, self.steps)
        entries = ("index", "kind", "in", "out", "stride", "kernel", "weights")
        self._shapes = scaled([found[entry] for entry in entries])
        self._to_come = self._costs_to_come(costs) / self._whole

    def _cost(self, row: Genotypes) -> float:
        return float(self.limits.price(row[None])[0, self._metric])

    def _costs_to_come(self, costs: CostTable) -> NDArray[np.float64]:
        """Cost of the layers after each step in the network before pruning, `(T,)`.

        A layer that two steps govern, one its inputs and one its outputs, is the first one's.
        """
        placed = {p.name: p for p in self.space.decode(self._canonical()).layers()}
        sites = self.space.networks.sites()
        own = np.zeros(len(self.steps))
        seen: set[int] = set()
        for t, step in enumerate(self.steps):
            for position in step.sites:
                layer = placed[sites[position].name]
                if position in seen:
                    continue
                seen.add(position)
                try:
                    cost = costs.cost(layer.layer, layer.w_bits, layer.a_bits)
                except MissingCostError:  # a partial table does not count it
                    continue
                own[t] += cost[self._metric] or 0.0
        return np.asarray(own[::-1].cumsum()[::-1] - own)

    def _canonical(self) -> Genotypes:
        return np.asarray(self.space.canonical(self._row[None])[0])

    def _state(self, t: int, actions: list[float], row: Genotypes) -> Floats:
        so_far = self._row.copy()
        for step in self.steps[:t]:
            so_far[step.column] = row[step.column]
        removed = 1 - self._cost(so_far) / self._whole
        last = 1.0  # nothing is pruned yet
        if t > 0:
            column = self.steps[t - 1].column
            choices = self.space.decisions[column].choices
            last = choices[row[column]] / choices[self._row[column]]
        now = np.clip([removed, self._to_come[t], last], 0.0, 1.0)
        return np.append(self._shapes[t], now.astype(np.float32))

    def _bounded(self, t: int, choice: int, row: Genotypes) -> int:
        step = self.steps[t]
        choices = [c for c in step.choices if c <= choice]
        rows = np.repeat(row[None], len(choices), axis=0)
        rows[:, step.column] = choices
        met = self.limits.met(rows)
        # the fewest always meets it, as the step before made sure; unless a trial was enqueued
        # with too much
        return choices[int(np.flatnonzero(met)[-1])] if met.any() else choices[0]

    def _reward(self, trial: FrozenTrial, value: float) -> float:
        return value


def _steps(
    space: SearchSpace, row: Genotypes, columns: Sequence[int], least_kept: float
) -> tuple[WalkStep, ...]:
    """The walk: by first governed layer."""
    found = []
    sites = active_sites(space, row)
    for column in columns:
        governed = tuple(i for i, site in sites if _shapes_channels(space, i, column))
        choices, most = space.decisions[column].choices, int(row[column])
        allowed = [c for c in range(most + 1) if choices[c] >= least_kept * choices[most]]
        first = governed[0] if governed else len(space.networks.sites())
        found.append((first, column, WalkStep(column, tuple(allowed), governed)))
    return tuple(step for *_, step in sorted(found, key=lambda each: each[:2]))


def _shapes_channels(space: SearchSpace, position: int, column: int) -> bool:
    site = space.networks.sites()[position]
    terms = (*site.in_channels.terms, *site.out_channels.terms)
    return any(own == column for own, _ in terms)
