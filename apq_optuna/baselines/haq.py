"""`HAQSampler`: bit-widths layer by layer, by the agent of HAQ.

Wang, Liu, Lin, Lin, Han: "HAQ: Hardware-Aware Automated Quantization with Mixed Precision", CVPR
2019. Constants are those of the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from apq_optuna.baselines.ddpg import FEW_TRIALS, DDPGOptions, Floats
from apq_optuna.baselines.held import Fixed
from apq_optuna.baselines.walk import WalkStep, active_sites, layer_at, scaled, shapes
from apq_optuna.baselines.walker import WalkSampler
from apq_optuna.errors import MissingCostError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes, Site, Width
from apq_optuna.space import SearchSpace

REWARD_SCALE = 0.1
"""lambda of the reward, of accuracies in percent."""


class HAQSampler(WalkSampler):
    """HAQ: a DDPG agent chooses the bit-widths of one network, weights and inputs, layer by layer.

    >>> import apq_optuna as apq
    >>> import optuna
    >>> from apq_optuna.baselines import HAQSampler
    >>> space = apq.SearchSpace.preset("digits")
    >>> costs = apq.hardware.bitfusion_small().table(space)
    >>> sampler = HAQSampler(space, costs=costs, budgets={"latency_ms": 0.1}, seed=0)
    >>> study = optuna.create_study(direction="maximize", sampler=sampler)
    >>> study.optimize(lambda trial: space.suggest(trial).bitops / 1e8, n_trials=2)
    >>> len(study.trials)
    2

    A step of the walk is a decision on bits, in the order of execution of the first layer that it
    governs, weights before inputs. Of a mobile block both pointwise layers share theirs, so a
    block has four steps: pointwise weights, pointwise inputs, depthwise weights, depthwise inputs.

    State (section "Observation"): depthwise or not, input channels, output channels, stride,
    kernel, number of weights, input pixels, index, last action over the largest bit-width, weights
    or inputs. Of several layers that share a decision weights are summed, the rest is of the one
    with the most MACs. All are scaled to [0, 1] over the walk.

    Action (section "Action Space"): equal intervals of [0, 1] for the widths there are, so where
    these are b_min to b_max without gaps round((b_max - b_min + 1) a + b_min - 0.5).

    Budget (section "Direct Hardware Feedback"): as long as the walk's network is above it, go from
    the last step to the first and take one width off each, so off the inputs before the weights
    of a layer. Where the lowest widths are not the cheapest and too costly, layers get the
    cheapest ones, again from the last. The agent learns from its own actions, not from those so
    changed, as released.

    Reward (section "Reward Function"): 0.1 (accuracy - accuracy before quantization), in percent,
    from a trial's first value, in [0, 1], and its user attribute `fp32_accuracy`, 0 where it has
    none: a constant does not matter, as the agent subtracts its moving average. A first objective
    that is minimised counts negative.

    What is otherwise than there: by default the agent's warm-up and exploration fit a study of 60
    trials (`DDPGOptions.for_trials`); the original is `options=DDPGOptions.haq()`, for 600.
    First and last layer are held at 8 bits by families whose widths there are no choice; elsewhere
    `fixed` holds them. An accuracy is what the objective returns, whatever it finetunes.

    What is learned is rebuilt from the study: each trial keeps its actions, and a sampler of the
    same arguments that opens a stored study goes on as the former would have. Workers may share
    one. Trials that failed or were pruned are left out, also enqueued ones of another network
    than the held one; what a trial was enqueued with is kept, within budget or not.

    Args:
        space: The joint space of a family of networks.
        costs: Costs on the device; needed for `budgets`.
        budgets: Upper limits by metric name (`{"latency_ms": 2.0}`). By default none.
        fixed: The network that is quantized: values by parameter name, the largest network's for
            those that are not there; or a whole one as a subnet, a trial or its parameters, whose
            bit-widths do not count. Of a few bit-widths given by name each is held.
        seed: The same seed and the same trials make the same proposals.
        options: The agent's constants; by default HAQ's, for 60 trials.

    Raises:
        SpaceError: A space without networks or without a choice of bits, or a subnet of another.
        InvalidArgumentError: A budget that is of no cost, a parameter in `fixed` that is none or
            has a value that is no choice, or other arguments that cannot be meant.
        InfeasibleBudgetError: The network costs more at its cheapest widths.
        CostTableError: The table lacks layers of the space.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        costs: CostTable | None = None,
        budgets: Mapping[str, float] | None = None,
        fixed: Fixed | None = None,
        seed: int | None = None,
        options: DDPGOptions | None = None,
    ) -> None:
        super().__init__(
            space, role="bits", costs=costs, budgets=budgets, fixed=fixed, seed=seed,
            options=options or DDPGOptions.haq().for_trials(FEW_TRIALS),
        )  # fmt: skip
        steps = _steps(space, self._row, self._columns, costs)
        self._begin(steps, f"{space!r} has one bit-width for every layer of the network")
        self._least = self._cheapest(steps)
        self.limits.check(self._least, "every bit-width at its cheapest")
        found = shapes(space, self._row, self.steps)
        entries = ("depthwise", "in", "out", "stride", "kernel", "weights", "pixels", "index")
        self._shapes = scaled([found[entry] for entry in entries])

    def _state(self, t: int, actions: list[float], row: Genotypes) -> Floats:
        last = 1.0  # nothing is quantized yet
        if t > 0:
            step = self.steps[t - 1]
            choices = self.space.decisions[step.column].choices
            last = choices[step.at(actions[t - 1])] / self.space.bits[-1]
        return np.append(self._shapes[t], np.array([last, self.steps[t].operand], np.float32))

    def _finished(self, row: Genotypes, free: list[WalkStep]) -> Genotypes:
        row = row.copy()
        while not self.limits.met(row[None])[0]:
            lowered = False
            for step in reversed(free):
                lower = step.below(int(row[step.column]))
                if lower is None:
                    continue
                row[step.column], lowered = lower, True
                if self.limits.met(row[None])[0]:
                    return row
            if not lowered:
                break
        for step in reversed(free):  # on this device the lowest widths are not the cheapest
            if self.limits.met(row[None])[0]:
                break
            row[step.column] = self._least[step.column]
        return row  # above the budget only by what the trial was enqueued with

    def _cheapest(self, steps: Sequence[WalkStep]) -> Genotypes:
        """The network at the widths that cost least, `(D,)`.

        Mostly the lowest ones; some devices are slower there than with somewhat more. Found
        decision by decision, budgeted metrics relative to their limits, until none changes.
        """
        row = self._row.copy()
        for step in steps:
            row[step.column] = step.choices[0]
        if not self.limits.budgets:
            return row
        for _ in range(len(steps)):
            before = row.copy()
            for step in steps:
                tried = np.repeat(row[None], len(step.choices), axis=0)
                tried[:, step.column] = step.choices
                row[step.column] = step.choices[int(self.limits.share(tried).argmin())]
            if (row == before).all():
                break
        return row

    def _reward(self, trial: FrozenTrial, value: float) -> float:
        before = trial.user_attrs.get("fp32_accuracy", 0.0)
        return REWARD_SCALE * 100 * (value - float(before))  # R = lambda (acc_quant - acc_origin)


def _steps(
    space: SearchSpace, row: Genotypes, columns: Sequence[int], costs: CostTable | None
) -> tuple[WalkStep, ...]:
    """The walk: by first governed layer, weights before inputs."""
    found: list[tuple[Any, WalkStep]] = []
    sites = active_sites(space, row)
    for column in columns:
        weights = [i for i, site in sites if site.w_bits.column == column]
        inputs = [i for i, site in sites if site.a_bits.column == column]
        governed = tuple(sorted({*weights, *inputs}))
        operand = 0.5 if weights and inputs else 1.0 if weights else 0.0
        choices: Sequence[int] = range(len(space.decisions[column].choices))
        if costs is not None:
            ruled = [(i, site) for i, site in sites if i in governed]
            runs = [c for c in choices if all(_runs(costs, s, row, column, c) for _, s in ruled)]
            choices = runs or choices
        step = WalkStep(column, tuple(choices), governed, operand)
        first = governed[0] if governed else len(space.networks.sites())
        found.append(((first, -operand, column), step))
    return tuple(step for _, step in sorted(found, key=lambda pair: pair[0]))


def _runs(costs: CostTable, site: Site, row: Genotypes, column: int, choice: int) -> bool:
    """Whether the device runs a layer at a width of a decision, beside some width of the other."""

    def widths(width: Width) -> tuple[int, ...]:
        return (width.bits[choice],) if width.column == column else width.bits

    layer = layer_at(site, row)
    for w_bits in widths(site.w_bits):
        for a_bits in widths(site.a_bits):
            try:
                costs.cost(layer, w_bits, a_bits)
            except MissingCostError:
                continue
            return True
    return False
