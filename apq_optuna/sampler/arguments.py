"""What a sampler is given: read, and refused where it cannot be meant."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from reprlib import repr as short
from typing import Any, TypeAlias

from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from apq_optuna.errors import InfeasibleBudgetError, InvalidArgumentError
from apq_optuna.hardware import CompiledCosts
from apq_optuna.sampler.sources import Source, completed, is_pairs, shared_parameters
from apq_optuna.space import SearchSpace

Numbers: TypeAlias = Mapping[str, float] | Mapping[int, float] | Mapping[str | int, float]
"""By metric name or objective index."""


def check_kinds(
    space: object,
    costs: object,
    n_startup_trials: object,
    constraints_func: object,
    independent_sampler: object,
    seed: object,
) -> None:
    """Refuses arguments of another kind here, where the call is, and not in the first trial.

    Raises:
        InvalidArgumentError: Not what the argument takes, or a table without its space.
    """
    if space is not None and not isinstance(space, SearchSpace):
        hint = "SearchSpace.from_distributions(...) makes one of Optuna's distributions"
        raise InvalidArgumentError(f"space={short(space)}: must be a SearchSpace; {hint}")
    if costs is not None and space is None:
        raise InvalidArgumentError("costs: a cost table needs the search space it prices")
    if costs is not None and not hasattr(costs, "compile"):
        hint = "device.table(space) makes one, CostTable.load(path) reads one"
        raise InvalidArgumentError(f"costs={short(costs)}: must be a cost table; {hint}")
    if n_startup_trials is not None:
        try:
            enough = operator.index(n_startup_trials) >= 1  # type: ignore[arg-type]
        except TypeError:
            raise InvalidArgumentError(
                f"n_startup_trials={n_startup_trials!r}: must be a whole number"
            ) from None
        if not enough:
            raise InvalidArgumentError(f"n_startup_trials={n_startup_trials}: at least 1")
    if constraints_func is not None and not callable(constraints_func):
        raise InvalidArgumentError(
            f"constraints_func={constraints_func!r}: must be a function of a finished trial"
        )
    if independent_sampler is not None and not isinstance(independent_sampler, BaseSampler):
        raise InvalidArgumentError(
            f"independent_sampler={independent_sampler!r}: must be a sampler itself, as "
            "TPESampler() is, not its class"
        )
    if seed is not None:
        try:
            natural = operator.index(seed) >= 0  # type: ignore[arg-type]
        except TypeError:
            natural = False
        if not natural:
            raise InvalidArgumentError(f"seed={seed!r}: must be a whole number, not negative")


def meant(metric: str | int, names: Iterable[object]) -> str:
    """What of `names` a metric may have been meant for, as the end of a message."""
    near = get_close_matches(str(metric), [n for n in names if isinstance(n, str)], n=1)
    return f" (is {near[0]!r} meant?)" if near and near[0] != metric else ""


def _by_metric(argument: str, given: object, example: str) -> Mapping[Any, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidArgumentError(
            f"{argument}={short(given)}: must be a dict by the name of a metric or an objective's "
            f"index, as {example}"
        )
    return given


def functions(
    argument: str, given: Mapping[str | int, Callable[..., Any]] | None
) -> dict[str | int, Callable[..., Any]]:
    """Functions by metric name or objective index.

    Raises:
        InvalidArgumentError: No dict, or of what is no function.
    """
    found = {}
    example = "{1: lambda params: params['width'] * 4}"
    for metric, function in _by_metric(argument, given, example).items():
        if not callable(function):
            raise InvalidArgumentError(
                f"{argument}[{metric!r}]={function!r}: must be a function of a dict of parameter "
                "arrays"
            )
        found[metric_key(argument, metric)] = function
    return found


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
        InvalidArgumentError: No dict, or a value is no such number.
    """
    found: dict[str | int, float] = {}
    for metric, value in _by_metric(argument, given, "{1: 4096}").items():
        try:
            number = math.nan if isinstance(value, str) else float(value)
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
                f"{meant(metric, [*names, *known])}"
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
            hint = "; not its trials, but the study itself" * isinstance(source, FrozenTrial)
            hint = hint or "; optuna.load_study opens one by its name" * isinstance(source, str)
            raise InvalidArgumentError(
                f"source={short(source)}: give a PairStore, an Optuna study, or a list of both"
                f"{hint}"
            )
        elif space is not None and completed(source):
            shared_parameters(space, source)


def checked(
    function: Callable[[FrozenTrial], Sequence[float]], untold: Callable[[str], None]
) -> Callable[[FrozenTrial], Sequence[float]]:
    """A `constraints_func` whose answer is looked at.

    Args:
        function: The user's.
        untold: Called with a message where the answer is empty.

    Returns:
        A function that raises `InvalidArgumentError` where the answer is no sequence.
    """

    def call(trial: FrozenTrial) -> Sequence[float]:
        values = function(trial)
        try:
            number = len(values)
        except TypeError:
            raise InvalidArgumentError(
                f"constraints_func returned {values!r} for trial {trial.number}: return a "
                "sequence of numbers, none above 0 where the trial is feasible"
            ) from None
        if not number:
            untold(
                "constraints_func returned no values: such a trial has no constraints, and is "
                "infeasible where others have some"
            )
        return values

    return call
