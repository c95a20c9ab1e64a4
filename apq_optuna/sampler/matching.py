"""What a study is to the sampler: which objectives are known, which parameters are prescribed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.logging import get_logger
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from apq_optuna._optuna import fixed_parameters, trials_of
from apq_optuna.errors import InvalidArgumentError, SpaceError, StudyMismatchError
from apq_optuna.hardware import CompiledCosts
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.arguments import meant
from apq_optuna.sampler.known import KnownFunction, KnownObjectives
from apq_optuna.space import SearchSpace

_logger = get_logger("apq_optuna.sampler")


def match_costs(
    study: Study, names: Sequence[str], compiled: CompiledCosts, space: SearchSpace
) -> list[int]:
    """Objective index of each cost; none where the study has accuracy alone.

    Raises:
        StudyMismatchError: Trials of the study use the joint space, but its objectives are not
            accuracy and the costs to minimise.
    """
    metrics = list(compiled.metric_names)
    if len(study.directions) == 1:
        return []
    reason = ""
    if study.metric_names is not None:
        lacking = [metric for metric in metrics if metric not in names]
        index = [list(names).index(metric) for metric in metrics if metric in names]
        if lacking:
            reason = (
                f"the study's metrics are {list(names)}, without {lacking[0]!r} of the cost "
                "table; use study.set_metric_names(objective.metric_names)"
            )
    else:
        index = list(range(1, 1 + len(metrics)))
        if len(study.directions) != 1 + len(metrics):
            reason = (
                f"the study has {len(study.directions)} objectives, the costs make it "
                f"{1 + len(metrics)} (accuracy, {', '.join(metrics)}): use "
                "directions=objective.directions"
            )
    for i in index if not reason else ():
        if study.directions[i] != StudyDirection.MINIMIZE:
            metric = metrics[index.index(i)]
            reason = (
                f"objective {i} ({metric}) of the study is maximised, but a cost is to be "
                "minimised: use directions=objective.directions"
            )
    if not reason:
        return index
    if joined(study, space):
        raise StudyMismatchError(reason)
    return []


def match_known(
    study: Study,
    names: Sequence[str],
    known: Mapping[str | int, KnownFunction],
    space: SearchSpace | None,
) -> dict[int, KnownFunction]:
    """The known functions by objective index.

    Raises:
        StudyMismatchError: The study has no such objective, and its trials use the joint
            space.
        InvalidArgumentError: Two functions of one objective.
    """
    functions: dict[int, KnownFunction] = {}
    for metric, function in known.items():
        index = index_of(metric, names)
        if index is not None:
            if functions.get(index, function) is not function:
                raise _twice("known", index, names)
            functions[index] = function
        elif space is None or joined(study, space):
            raise StudyMismatchError(
                f"known: the study has no objective {metric!r}, but {_listed(study, names)}"
                f"{meant(metric, names)}{_naming(metric)}"
            )
    return functions


def _twice(argument: str, index: int, names: Sequence[str]) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{argument}: objective {index} is given twice, by its index and as {names[index]!r}; "
        "leave one out"
    )


def match_budgets(
    study: Study,
    names: Sequence[str],
    budgets: Mapping[str | int, float],
    metrics: Sequence[str],
    known: KnownObjectives,
    space: SearchSpace | None,
    tell: Callable[[str], None] = _logger.warning,
) -> dict[str, float]:
    """The budgets by the name of a cost (of `metrics`), or of a known objective (of `names`).

    What may be meant for another study is no error while this one has no trial: `tell` says it.

    Raises:
        StudyMismatchError: One is of an objective that is not known, or that the study has not.
    """
    limits: dict[str, float] = {}
    for metric, limit in budgets.items():
        index = index_of(metric, names)
        name = None
        if isinstance(metric, str) and metric in metrics:
            name = metric
        elif index is not None and index in known.functions:
            name = names[index]
        elif index is not None and index in known.index:
            name = metrics[known.index.index(index)]
        if name is not None:
            limits[name] = min(limit, limits.get(name, limit))
        elif space is not None and not joined(study, space):
            tell(f"budgets: {metric!r} is not a known objective of it, and is not kept there")
        else:
            there = [*metrics, *(names[i] if study.metric_names else i for i in known.functions)]
            hint = meant(metric, there)
            if index is not None:
                hint = "; what only a trial tells is limited by a constraint"
            raise StudyMismatchError(
                f"budgets: {metric!r} is not a known objective of this study; known are {there} "
                f"of its objectives {_listed(study, names)}{hint}"
            )
    return limits


def match_reference(
    study: Study,
    names: Sequence[str],
    reference: Mapping[str | int, float],
    space: SearchSpace | None,
) -> dict[int, float]:
    """The reference point by objective index.

    Raises:
        StudyMismatchError: The study has no such objective, and its trials use the joint space.
        InvalidArgumentError: Two values of one objective.
    """
    values: dict[int, float] = {}
    for metric, value in reference.items():
        index = index_of(metric, names)
        if index is not None:
            if values.get(index, value) != value:
                raise _twice("reference", index, names)
            values[index] = float(value)
        elif space is None or joined(study, space):
            raise StudyMismatchError(
                f"reference: the study has no objective {metric!r}, but {_listed(study, names)}"
                f"{meant(metric, names)}{_naming(metric)}"
            )
    return values


def check_plain(
    study: Study,
    known: Mapping[str | int, KnownFunction],
    budgets: Mapping[str | int, float],
    reference: Mapping[str | int, float],
) -> list[int]:
    """What can be matched before a study shows its parameters: objectives that stay to predict.

    Raises:
        StudyMismatchError, InvalidArgumentError: As the functions above, before the first trial
            has cost anything.
    """
    names = names_of(study)
    functions = match_known(study, names, known, None)
    nothing = KnownObjectives(SearchSpace([]), None, [], functions, names)
    match_budgets(study, names, budgets, (), nothing, None)
    match_reference(study, names, reference, None)
    return [i for i in range(len(names)) if i not in functions]


def names_of(study: Study) -> list[str]:
    """The metrics' names by objective index; the indices where there are no names."""
    return study.metric_names or [str(i) for i in range(len(study.directions))]


def index_of(metric: str | int, names: Sequence[str]) -> int | None:
    """Objective index of a metric's name or index; None where there is none."""
    if isinstance(metric, str):
        return list(names).index(metric) if metric in names else None
    return int(metric) if 0 <= metric < len(names) else None


def _listed(study: Study, names: Sequence[str]) -> str:
    """The objectives as they may be written: by name if they have such, and by index."""
    indices = list(range(len(names)))
    return f"{list(names)} (or {indices})" if study.metric_names else str(indices)


def _naming(metric: str | int) -> str:
    """How a study's objectives get the names that were meant."""
    return "; use study.set_metric_names" if isinstance(metric, str) else ""


def prescribed_by(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """What an enqueued trial or a partially fixed sampler prescribes, by parameter name."""
    return fixed_parameters(trial) | dict(getattr(study.sampler, "_fixed_params", {}))


def fixed_columns(space: SearchSpace, prescribed: Mapping[str, Any]) -> dict[int, int]:
    """Columns whose choice is prescribed."""
    fixed = {}
    for name, value in prescribed.items():
        if name in space.column:
            column = space.column[name]
            try:
                fixed[column] = space.decisions[column].index_of(value)
            except (SpaceError, TypeError):
                continue
    return fixed


def joined(study: Study, space: SearchSpace) -> bool:
    """Whether some trial of the study has parameters of the joint space."""
    return any(space.column.keys() & trial.params.keys() for trial in trials_of(study))


def uses_space(study: Study, space: SearchSpace) -> bool:
    """Whether a study's trials have parameters of the joint space; a new study might."""
    names = space.column.keys()
    seen = False
    for trial in trials_of(study):
        if trial.params:
            if names & trial.params.keys():
                return True
            seen = True
    return not seen


def constants_of(distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Parameters of one value: not searched, but known functions may read them."""
    constants: dict[str, Any] = {}
    for name, d in distributions.items():
        if d.single() and isinstance(d, CategoricalDistribution):
            constants[name] = d.choices[0]
        elif d.single() and isinstance(d, IntDistribution | FloatDistribution):
            constants[name] = d.low
    return constants


def holder(fixed: dict[int, int]) -> Callable[[Genotypes], Genotypes]:
    """A function that sets prescribed columns in every genotype."""
    if not fixed:
        return lambda rows: rows
    columns, choices = list(fixed), list(fixed.values())

    def hold(rows: Genotypes) -> Genotypes:
        rows = rows.copy()
        rows[:, columns] = choices
        return rows

    return hold
