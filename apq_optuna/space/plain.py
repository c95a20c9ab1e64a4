"""Plain parameters as decisions: floats and wide integers become grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from apq_optuna.errors import SpaceError
from apq_optuna.networks import MAX_LEVELS, Decision

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def decision_from_distribution(name: str, distribution: BaseDistribution) -> Decision:
    """A plain parameter as a decision; floats and wide integers become grids.

    Raises:
        SpaceError: A distribution of a kind Optuna does not have today.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return Decision(name, tuple(distribution.choices), "categorical")
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise SpaceError(f"parameter {name!r} has unknown distribution {distribution!r}")
    low, high, log, step = distribution.low, distribution.high, distribution.log, distribution.step
    role = "float" if isinstance(distribution, FloatDistribution) else "int"
    if low == high:
        return Decision(name, (low,), role, low=low, high=high, log=log, step=step)
    # by quotients: the range itself may be more than a float holds
    count = MAX_LEVELS + 1 if step is None else min(high / step - low / step, 2.0 * MAX_LEVELS)
    if round(count) + 1 <= MAX_LEVELS:  # every value is a level of its own
        size = step or 1
        exact = (
            low + i * size if role == "int" else min(low + i * size, high)
            for i in range(round(count) + 1)
        )
        return Decision(name, tuple(exact), role, low=low, high=high, log=log, step=step)
    blank = Decision(
        name, tuple(range(MAX_LEVELS)), role, "", None, low, high, log, step, grid=True
    )  # fmt: skip
    centres = blank.at((np.arange(MAX_LEVELS) + 0.5) / MAX_LEVELS).tolist()
    if role == "int":  # near the low end of a log range several cells round to one value
        levels = tuple(dict.fromkeys(centres))
        if len(levels) < MAX_LEVELS:
            return Decision(name, levels, role, low=low, high=high, log=log, step=step)
    return Decision(name, tuple(centres), role, "", None, low, high, log, step, grid=True)
