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
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from apq_optuna._optuna import fixed_parameters, trials_of
from apq_optuna.errors import SpaceError, StudyMismatchError
from apq_optuna.hardware import CompiledCosts
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.known import KnownFunction
from apq_optuna.space import SearchSpace


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
    """
    functions = {}
    for metric, function in known.items():
        index = metric if isinstance(metric, int) else -1
        if isinstance(metric, str) and metric in names:
            index = list(names).index(metric)
        if 0 <= index < len(names):
            functions[index] = function
        elif space is None or joined(study, space):
            raise StudyMismatchError(
                f"known: the study has no objective {metric!r}, but {list(names)}; "
                "use study.set_metric_names"
            )
    return functions


def fixed_columns(space: SearchSpace, study: Study, trial: FrozenTrial) -> dict[int, int]:
    """Columns whose choice an enqueued trial or a partially fixed sampler prescribes."""
    prescribed = fixed_parameters(trial)
    prescribed |= getattr(study.sampler, "_fixed_params", {})
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
