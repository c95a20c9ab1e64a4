"""What is known before a study starts: fp32 pairs, and trials of earlier studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from optuna.logging import get_logger
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from apq_optuna._optuna import trials_of
from apq_optuna.errors import SpaceError, StudyMismatchError
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.surrogate import Surrogate, clipped
from apq_optuna.space import SearchSpace

if TYPE_CHECKING:
    from apq_optuna.pairs import PairStore

Floats = NDArray[np.floating]
Source: TypeAlias = "PairStore | Study"

_logger = get_logger("apq_optuna.sampler")

FEWEST_PAIRS = 10
"""Fewer fp32 pairs than this teach nothing worth transferring."""


def is_pairs(source: object) -> TypeGuard[PairStore]:
    """Whether a source holds fp32 pairs; asked without loading the database's packages."""
    return hasattr(source, "fp32_scorer")


def surrogate_of(
    space: SearchSpace, sources: Sequence[Source], *, name: str, index: int, maximise: bool
) -> Surrogate:
    """The surrogate of one objective, with what other sources know of it.

    Args:
        space: The search space.
        sources: fp32 pairs, whose predictor is transferred, and earlier studies.
        name, index: Of the objective.
        maximise: Its direction.

    Raises:
        PairError: Pairs of another space.
        StudyMismatchError: A study without trials in this space, or without this objective.
    """
    fp32 = None
    for source in sources:
        if is_pairs(source):
            pairs = source.load()
            if len(pairs) >= FEWEST_PAIRS:
                fp32 = source.fp32_scorer(space, pairs)
                continue
            _logger.warning(
                "source: %d fp32 pairs of supernet %s in %s, too few to transfer from; was "
                "`collect` run with this database?", len(pairs), source.supernet, source.url,
            )  # fmt: skip
    studies = [source for source in sources if isinstance(source, Study)]
    return Surrogate(
        space, fp32=fp32, source=earlier_rows(space, studies, name, index), maximise=maximise
    )


def earlier_rows(
    space: SearchSpace, studies: Sequence[Study], name: str, index: int
) -> tuple[SearchSpace, Genotypes, Floats] | None:
    """Earlier trials in the part of the space that all studies share with it; None if no trials.

    Raises:
        StudyMismatchError: A study that shares nothing, or lacks the objective.
    """
    found: list[tuple[list[FrozenTrial], int, Study]] = []
    shared = {decision.name for decision in space.decisions}
    for study in studies:
        trials = completed(study)
        if not trials:
            continue
        names = study.metric_names
        column = names.index(name) if names and name in names else index
        if column >= len(study.directions):
            raise StudyMismatchError(
                f"source: study {study.study_name!r} has {len(study.directions)} objectives, none "
                f"of them {name!r}; leave it out"
            )
        shared &= shared_parameters(space, study)
        found.append((trials, column, study))
    if not found:
        return None
    if not shared:
        raise StudyMismatchError(
            "source: the studies "
            + ", ".join(repr(study.study_name) for _, _, study in found)
            + " have no parameter in common; give one of them"
        )
    distributions = space.distributions()
    part = space
    if len(shared) < len(space.decisions):
        part = SearchSpace.from_distributions(
            {d.name: distributions[d.name] for d in space.decisions if d.name in shared}
        )
    rows, values = [], []
    for trials, column, _ in found:
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
    return part, genotypes, clipped(np.array(values, float))


def completed(study: Study) -> list[FrozenTrial]:
    """Completed trials that have parameters and values."""
    return [
        trial
        for trial in trials_of(study)
        if trial.state == TrialState.COMPLETE and trial.params and trial.values is not None
    ]


def shared_parameters(space: SearchSpace, study: Study) -> set[str]:
    """Parameters of the space that some trial of a study has, all with the space's distribution.

    Raises:
        StudyMismatchError: There are none.
    """
    distributions = space.distributions()
    seen, other = set(), set()
    for trial in completed(study):
        for name, distribution in trial.distributions.items():
            if name in distributions:
                seen.add(name)
                if distributions[name] != distribution:
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
