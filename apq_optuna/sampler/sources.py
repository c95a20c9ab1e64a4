"""What is known before a study starts: fp32 pairs, and trials of earlier studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.logging import get_logger
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from apq_optuna._optuna import study_attribute, study_key, trials_of
from apq_optuna.errors import SpaceError, StudyMismatchError
from apq_optuna.sampler.surrogate import Surrogate
from apq_optuna.sampler.trends import Earlier
from apq_optuna.space import SearchSpace

if TYPE_CHECKING:
    from apq_optuna.pairs import PairStore

Source: TypeAlias = "PairStore | Study"

_logger = get_logger("apq_optuna.sampler")

FEWEST_PAIRS = 10
"""Fewer fp32 pairs than this teach nothing worth transferring."""

FEWEST_QUANTIZED = 50
"""Fewer quantized pairs than this are not asked: they would mislead later more than help first."""


def is_pairs(source: object) -> TypeGuard[PairStore]:
    """Whether a source holds fp32 pairs; asked without loading the database's packages."""
    return hasattr(source, "fp32_scorer")


def surrogate_of(
    space: SearchSpace,
    sources: Sequence[Source],
    *,
    name: str,
    index: int,
    maximise: bool,
    measured: Mapping[str, object] | None = None,
    tell: Callable[[str], None] = _logger.warning,
) -> Surrogate:
    """The surrogate of one objective, with what other sources know of it.

    Args:
        space: The search space.
        sources: fp32 pairs, whose predictor is transferred, and earlier studies.
        name, index: Of the objective.
        maximise: Its direction.
        measured: What the study's values are measured with, where that is known: its supernet and
            data split, by the names that `Objective` gives them.
        tell: Called with a message where there are too few pairs.

    Raises:
        PairError: Pairs of another space.
        StudyMismatchError: A study without trials in this space.
    """
    fp32 = calibrated = None
    measured = dict(measured or {})
    for source in sources:
        if is_pairs(source):
            measured = {"supernet": source.supernet, "data split": source.split} | measured
            pairs = source.load()
            if len(pairs) >= FEWEST_PAIRS:
                fp32 = source.fp32_scorer(space, pairs)
                calibrated = calibrated_rows(space, source)
                continue
            tell(
                f"source: {len(pairs)} fp32 pairs of supernet {source.supernet} in {source.url}, "
                "too few to transfer from; was `collect` run with this database?"
            )
    earlier = [
        found
        for source in sources
        if isinstance(source, Study)
        and (found := earlier_rows(space, source, name, index, maximise, measured)) is not None
    ]
    return Surrogate(space, fp32=fp32, calibrated=calibrated, earlier=earlier, maximise=maximise)


def calibrated_rows(space: SearchSpace, source: PairStore) -> Earlier | None:
    """Quantized pairs of a space, calibrated and not finetuned; None where there are too few."""
    pairs = source.quantized(space).load()
    if len(pairs) < FEWEST_QUANTIZED:
        return None
    return Earlier(space, pairs.genotypes, pairs.accuracies)


def earlier_rows(
    space: SearchSpace,
    study: Study,
    name: str,
    index: int,
    maximise: bool,
    measured: Mapping[str, object] | None = None,
) -> Earlier | None:
    """Earlier trials in the part of the space that a study shares with it.

    The objective is the one of the same name; where either has no names, the one in the same
    place. None where there is neither, or no trial within the space.

    Raises:
        StudyMismatchError: A study that shares no parameter.
    """
    trials = completed(study)
    column = _column(study, name, index)
    if not trials or column is None:
        return None
    shared = shared_parameters(space, study)
    distributions = space.distributions()
    part = space
    if len(shared) < len(space.decisions):
        part = SearchSpace.from_distributions(
            {d.name: distributions[d.name] for d in space.decisions if d.name in shared}
        )
    rows, values = [], []
    for trial in trials:
        try:
            rows.append(part.from_params(trial.params, fill=True))
        except SpaceError:
            continue
        values.append(trial.values[column])
    if not rows:
        return None
    genotypes = np.stack(rows)
    if part is not space:
        # canonical in the whole space, as the rows that it will be asked about: a shallow
        # network's inactive decisions have one encoding; an unknown depth counts as the largest
        columns = [space.column[decision.name] for decision in part.decisions]
        whole = np.tile((space.sizes - 1).astype(np.int32), (len(genotypes), 1))
        whole[:, columns] = genotypes
        genotypes = space.canonical(whole)[:, columns]
    found = np.array(values, float)
    named = name in (study.metric_names or ())
    turned = (study.directions[column] == StudyDirection.MAXIMIZE) != maximise
    if turned and not named:  # an error there, an accuracy here: what is good there is good here
        found = -found
    conditions = study_attribute(study, "objective") or {}
    alike = index == column == 0 and all(
        conditions.get(what) is not None and conditions[what] == (measured or {}).get(what)
        for what in ("supernet", "data split")
    )
    return Earlier(part, genotypes, found, comparable=alike)


def _column(study: Study, name: str, index: int) -> int | None:
    """Which objective of an earlier study is meant; None for none."""
    names = study.metric_names
    if names and not name.isdigit():  # a study without names calls its objectives by their place
        return names.index(name) if name in names else None
    return index if index < len(study.directions) else None


def completed(study: Study) -> list[FrozenTrial]:
    """Completed trials that have parameters and values."""
    return [
        trial
        for trial in trials_of(study)
        if trial.state == TrialState.COMPLETE and trial.params and trial.values is not None
    ]


def shared_parameters(space: SearchSpace, study: Study) -> set[str]:
    """Parameters of the space that some trial of a study has, all with the space's distribution.

    In a plain space another range is enough: a value that both have means the same.

    Raises:
        StudyMismatchError: There are none.
    """
    distributions = space.distributions()
    seen, other = set(), set()
    for trial in completed(study):
        for name, distribution in trial.distributions.items():
            if name in distributions:
                seen.add(name)
                ours = distributions[name]
                if ours != distribution and not (
                    space.family is None and _alike(ours, distribution)
                ):
                    other.add(name)
    if seen - other:
        return seen - other
    theirs = sorted({name for trial in completed(study)[:100] for name in trial.params})
    differing = f"; distributions of {sorted(other)[:5]} differ" if other else ""
    raise StudyMismatchError(
        f"source: study {study.study_name!r} shares no parameter with this search space: it has "
        f"{theirs[:5]}, the space {list(distributions)[:5]}{differing}; leave it out, or name "
        "and bound the parameters alike"
    )


def _alike(one: BaseDistribution, other: BaseDistribution) -> bool:
    """Whether values of two distributions may be the same: numbers, or some of the choices."""
    kinds = (CategoricalDistribution, IntDistribution, FloatDistribution)
    if not any(isinstance(one, kind) and isinstance(other, kind) for kind in kinds):
        return False
    if isinstance(one, CategoricalDistribution) and isinstance(other, CategoricalDistribution):
        return any(choice in one.choices for choice in other.choices)
    assert isinstance(one, IntDistribution | FloatDistribution)
    assert isinstance(other, IntDistribution | FloatDistribution)
    return max(one.low, other.low) <= min(one.high, other.high)


def _within(space: SearchSpace, name: str, value: object) -> bool:
    """Whether a parameter of the space takes a value."""
    try:
        space.decisions[space.column[name]].index_of(value)
    except (SpaceError, TypeError):
        return False
    return True


def same_study(one: Study, other: Study) -> bool:
    """Whether two studies are one, if opened twice."""
    here, there = study_key(one), study_key(other)
    return here == there or bool(there[-1] and here[1:] == there[1:])


def silent(
    study: Study, sources: Sequence[Source], names: Sequence[str], predicted: Sequence[int]
) -> Iterator[str]:
    """Why sources teach nothing in a study, whatever its parameters are; one message each.

    Args:
        study: The study.
        sources: Its sources.
        names: Of its objectives.
        predicted: Indices of those that are predicted.

    Raises:
        StudyMismatchError: A source is the study itself.
    """
    if sources and not predicted:
        yield "source: every objective is known, so there is nothing to learn from a source"
        return
    wanted = [names[i] if study.metric_names else i for i in predicted]
    for source in sources:
        if not isinstance(source, Study):
            continue
        if same_study(study, source):
            raise StudyMismatchError(
                f"source: {source.study_name!r} is this study; its own trials are learned from "
                "without it"
            )
        if not completed(source):
            yield (
                f"source: study {source.study_name!r} has no completed trial with parameters; "
                "nothing is learned from it"
            )
        elif all(_column(source, names[i], i) is None for i in predicted):
            theirs: list[object] = [*(source.metric_names or range(len(source.directions)))]
            yield (
                f"source: study {source.study_name!r} has objectives {theirs}, of which none is "
                f"predicted here: {wanted}; nothing is learned from it. Objectives of one name, "
                "or without names in one place, are taken for the same (study.set_metric_names)"
            )


def other_ranges(space: SearchSpace, source: Study) -> str | None:
    """What is said where an earlier study's parameters have other values than a plain space's."""
    trials = completed(source)
    if space.family is not None or not trials:
        return None
    ours = space.distributions()
    shared = shared_parameters(space, source)
    apart: dict[str, BaseDistribution] = {}
    outside: dict[str, int] = {}
    for trial in trials:
        beyond = set()
        for name, distribution in trial.distributions.items():
            if name in ours and name not in shared:
                apart[name] = distribution
            elif name in shared and not _within(space, name, trial.params[name]):
                beyond.add(name)
        if beyond:
            outside[min(beyond)] = outside.get(min(beyond), 0) + 1
    said = []
    if apart:
        name, distribution = next(iter(apart.items()))
        others = len(apart) - 1
        said.append(
            f"teaches nothing of {name}, which is {distribution} there, {ours[name]} here"
            + (f" (nor of {sorted(apart.keys() - {name})[:5]})" if others else "")
        )
    if outside:
        name = max(outside, key=lambda name: outside[name])
        said.append(
            f"has {sum(outside.values())} of {len(trials)} trials outside this one's ranges, most "
            f"by {name}, which is {ours[name]} here: nothing is learned from them"
        )
    return f"source: study {source.study_name!r} {'; it '.join(said)}" if said else None
