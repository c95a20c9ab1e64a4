"""What a sampler is given: read, and refused where it cannot be meant."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from optuna.study import Study

from apq_optuna.errors import InfeasibleBudgetError, InvalidArgumentError
from apq_optuna.hardware import CompiledCosts
from apq_optuna.sampler.sources import Source, completed, is_pairs, shared_parameters
from apq_optuna.space import SearchSpace

Numbers: TypeAlias = Mapping[str, float] | Mapping[int, float] | Mapping[str | int, float]
"""By metric name or objective index."""


def metric_key(argument: str, metric: object) -> str | int:
    """A metric's name, or an objective's index as Python's integer.

    Raises:
        InvalidArgumentError: It is neither.
    """
    if isinstance(metric, str):
        return metric
    try:
        return operator.index(metric)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgumentError(
            f"{argument}: {metric!r} is neither the name of a metric nor an objective's index"
        ) from None


def numbers(argument: str, given: Numbers | None) -> dict[str | int, float]:
    """Finite numbers by metric name or objective index.

    Raises:
        InvalidArgumentError: A value is none.
    """
    found: dict[str | int, float] = {}
    for metric, value in (given or {}).items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InvalidArgumentError(
                f"{argument}[{metric!r}]={value!r}: must be a finite number"
            )
        found[metric_key(argument, metric)] = number
    return found


def check_budgets(
    budgets: Mapping[str | int, float],
    known: Mapping[str | int, object],
    compiled: CompiledCosts | None,
) -> None:
    """Refuses budgets on what cannot be known, or that a cost cannot meet.

    Raises:
        InvalidArgumentError: Not a known objective.
        InfeasibleBudgetError: No configuration is that cheap.
    """
    names = compiled.metric_names if compiled else ()
    by_index = any(isinstance(metric, int) for metric in known)
    for metric, limit in budgets.items():
        # a name may be that of a function known by its index, and an index that of a name: the
        # study will tell
        possible = by_index if isinstance(metric, str) else bool(known or names)
        if metric not in names and metric not in known and not possible:
            raise InvalidArgumentError(
                f"budgets: {metric!r} is not a known objective; known are {[*names, *known]}"
            )
        if compiled is not None and isinstance(metric, str) and metric in names:
            least = float(compiled.minima[names.index(metric)])
            if limit < least:
                raise InfeasibleBudgetError(
                    f"budgets[{metric!r}]={limit}: the cheapest configuration of the space "
                    f"takes {least:.6g}; allow at least that"
                )


def check_sources(sources: Sequence[Source], space: SearchSpace | None) -> None:
    """Refuses what no source can be.

    Raises:
        InvalidArgumentError: Neither fp32 pairs nor a study, or pairs without the space.
        PairError: Pairs of another space.
        StudyMismatchError: A study that shares no parameter with the space.
    """
    for source in sources:
        if is_pairs(source):
            if space is None:
                raise InvalidArgumentError("source: fp32 pairs need the search space they are of")
            source.check_space(space)
        elif not isinstance(source, Study):
            raise InvalidArgumentError(
                f"source={source!r}: give a PairStore, an Optuna study, or a list of both"
            )
        elif space is not None and completed(source):
            shared_parameters(space, source)
