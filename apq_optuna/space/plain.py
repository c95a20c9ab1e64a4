"""Plain parameters as decisions: floats and wide integers become grids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    count = MAX_LEVELS + 1 if step is None else round((high - low) / step) + 1
    if count <= MAX_LEVELS:  # every value is a level of its own
        size = step or 1
        exact = (
            low + i * size if role == "int" else min(low + i * size, high) for i in range(count)
        )
        return Decision(name, tuple(exact), role, low=low, high=high, log=log, step=step)
    blank = Decision(
        name, tuple(range(MAX_LEVELS)), role, "", None, low, high, log, step, grid=True
    )  # fmt: skip
    centres: Any = (blank.value_of(i, _CENTRE) for i in range(MAX_LEVELS))
    if role == "int":  # near the low end of a log range several cells round to one value
        levels = tuple(dict.fromkeys(centres))
        if len(levels) < MAX_LEVELS:
            return Decision(name, levels, role, low=low, high=high, log=log, step=step)
        centres = levels
    return Decision(name, tuple(centres), role, "", None, low, high, log, step, grid=True)


class _Centre(np.random.Generator):
    """Stands in for a generator where the middle of every cell is wanted."""

    def random(self, *args: Any, **kwargs: Any) -> Any:
        return 0.5


_CENTRE = _Centre(np.random.PCG64(0))
