"""Budgets of a walk: read and refused where they cannot be meant; which networks meet them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InfeasibleBudgetError, InvalidArgumentError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace


class Limits:
    """A device's costs and upper limits of some.

    Args:
        space: The space.
        costs: Its costs; None limits nothing.
        budgets: Limits by metric name.

    Raises:
        InvalidArgumentError: No cost table, or budgets that are of none of its metrics, no finite
            numbers, or without a table.
        CostTableError: The table lacks layers of the space.
    """

    def __init__(
        self, space: SearchSpace, costs: CostTable | None, budgets: Mapping[str, float] | None
    ) -> None:
        if costs is not None and not hasattr(costs, "compile"):
            raise InvalidArgumentError(
                f"costs={costs!r}: must be a cost table; device.table(space) makes one"
            )
        if budgets is not None and not isinstance(budgets, Mapping):
            raise InvalidArgumentError(
                f"budgets={budgets!r}: must be a dict by metric name, as {{'latency_ms': 2.0}}"
            )
        if budgets and costs is None:
            raise InvalidArgumentError(f"budgets={dict(budgets)}: need costs, which they limit")
        self._space = space
        self._compiled = None if costs is None else costs.compile(space)
        self.metrics = self._compiled.metric_names if self._compiled is not None else ()
        self.budgets = {name: self._checked(name, v) for name, v in (budgets or {}).items()}
        self._limits = np.array([self.budgets.get(name, np.inf) for name in self.metrics])

    def _checked(self, name: str, value: float) -> float:
        if name not in self.metrics:
            near = get_close_matches(str(name), self.metrics, n=1)
            hint = f" (is {near[0]!r} meant?)" if near else ""
            raise InvalidArgumentError(
                f"budgets: {name!r} is not a cost of the table, which has "
                f"{list(self.metrics)}{hint}"
            )
        try:
            number = math.nan if isinstance(value, str | bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InvalidArgumentError(f"budgets[{name!r}]={value!r}: must be a finite number")
        return number

    def price(self, rows: Genotypes) -> NDArray[np.float64]:
        """`(n, D)` genotypes, canonical or not, to `(n, m)` costs; no column without a table."""
        if self._compiled is None:
            return np.zeros((len(rows), 0))
        return np.asarray(self._compiled(self._space.canonical(rows)))

    def met(self, rows: Genotypes) -> NDArray[np.bool_]:
        """Which of `(n, D)` genotypes the device runs within every budget, `(n,) bool`."""
        prices = self.price(rows)
        return np.asarray((np.isfinite(prices) & (prices <= self._limits)).all(axis=1))

    def share(self, rows: Genotypes) -> NDArray[np.float64]:
        """The largest share of a budget that `(n, D)` genotypes take, `(n,)`, infinite where the
        device does not run one."""
        shares = self.price(rows) / self._limits
        return np.where(np.isfinite(shares).all(axis=1), shares.max(axis=1, initial=0.0), np.inf)

    def check(self, cheapest: Genotypes, what: str) -> None:
        """Whether the cheapest network within reach meets every budget.

        Args:
            cheapest: `(D,)`.
            what: What within reach means, for the message.

        Raises:
            InvalidArgumentError: The device does not run it.
            InfeasibleBudgetError: It costs more.
        """
        for metric, price in zip(self.metrics, self.price(cheapest[None])[0], strict=True):
            if not math.isfinite(price):
                raise InvalidArgumentError(
                    f"costs: the device has no {metric} for the network with {what}"
                )
            if metric in self.budgets and self.budgets[metric] < price:
                raise InfeasibleBudgetError(
                    f"budgets[{metric!r}]={self.budgets[metric]}: with {what} it is still "
                    f"{price:.6g}; allow at least that, or hold a smaller network in fixed"
                )
