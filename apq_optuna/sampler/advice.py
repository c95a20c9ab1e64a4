"""What of a sampler's arguments does nothing in a study: said once a study, and only if certain.

Notation:
    k       known functions
    n, D    genotypes, decisions
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.logging import get_logger
from optuna.study import Study
from optuna.trial import FrozenTrial

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware import CompiledCosts
from apq_optuna.networks import Genotypes
from apq_optuna.sampler.arguments import meant
from apq_optuna.sampler.history import Snapshot
from apq_optuna.sampler.known import KnownFunction, KnownObjectives
from apq_optuna.sampler.matching import check_plain, names_of, prescribed_by
from apq_optuna.sampler.proposals import Proposer
from apq_optuna.sampler.sources import Source, completed, other_ranges, silent
from apq_optuna.search import EvolutionOptions, evolve
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]

_logger = get_logger("apq_optuna.sampler")

FEW = 3
"""Completed trials after which it is no accident that none of them is of the search space."""

SEEN = 10
"""Completed trials after which a study has shown all its parameters, and how large they get."""

WHOLE = 1 << 12
"""Up to this many genotypes a space is looked at whole."""

SEARCH = EvolutionOptions(generations=10)
"""Of a large space for the ends of a known function: half of what one proposal takes."""

APART = 0.05
"""Share by which a known value may differ from a trial's and still be called the same."""

FAR = 9.0
"""By how many times what was found its values may go beyond."""


class Advice:
    """Remembers what was said of which study.

    Args:
        space: The sampler's own space.
        known, budgets, reference, sources: Its arguments.
    """

    def __init__(
        self,
        space: SearchSpace | None,
        known: Mapping[str | int, KnownFunction],
        budgets: Mapping[str | int, float],
        reference: Mapping[str | int, float],
        sources: Sequence[Source],
    ) -> None:
        self._space, self._known, self._budgets = space, known, budgets
        self._reference, self._sources = reference, sources
        self._done: set[tuple[str, str]] = set()

    def tell(self, study: Study, text: str) -> None:
        """Warns of something, once a study."""
        if self._open(study, text):
            self._close(study, text)
            _logger.warning("study %r: %s", study.study_name, text)

    def teller(self, study: Study) -> Callable[[str], None]:
        """`tell` of one study."""
        return lambda text: self.tell(study, text)

    def _open(self, study: Study, question: str) -> bool:
        return (study.study_name, question) not in self._done

    def _close(self, study: Study, question: str) -> None:
        self._done.add((study.study_name, question))

    def unseen(self, study: Study, trial: FrozenTrial) -> None:
        """A trial is drawn at random, as no trial has shown the study's parameters yet.

        Raises:
            StudyMismatchError, InvalidArgumentError: What the study cannot obey in later trials
                either.
        """
        if self._space is not None:
            return
        predicted = check_plain(study, self._known, self._budgets, self._reference)
        self._of_sources(study, predicted)
        if self._budgets and not prescribed_by(study, trial):
            self.tell(
                study,
                "budgets: not kept before a trial has completed, as the parameters are not known; "
                "with SearchSpace.from_distributions({...}) as first argument they are",
            )

    def seen(self, study: Study, proposer: Proposer, snapshot: Snapshot) -> None:
        """A trial is about to be proposed.

        Raises:
            StudyMismatchError: A source is the study itself.
        """
        if self._space is not None and not proposer.joint:
            self._of_space(study, self._space, _not_of)
            return
        self._of_sources(study, proposer.predicted)
        if self._space is not None and self._open(study, "space"):
            seen = {name for trial in completed(study) for name in trial.params}
            # in a family's space what a held depth leaves out is in no trial, rightly
            lacking = self._space.family is None and not self._space.column.keys() <= seen
            if not len(snapshot.genotypes) or lacking:
                self._of_space(study, self._space, _lacking)
        enough = 1 if proposer.joint else SEEN
        if len(snapshot.genotypes) < enough or proposer.known.given_names:
            return
        if self._open(study, "limits"):
            self._close(study, "limits")
            unmet = _of_reference(proposer, snapshot) if len(snapshot.genotypes) >= SEEN else ()
            for text in (*_of_costs(proposer), *_of_numbers(proposer), *unmet):
                self.tell(study, text)
            if contradiction := _of_known(study, proposer):
                self.tell(study, contradiction)
            for source in self._sources if proposer.predicted else ():
                differing = isinstance(source, Study) and other_ranges(proposer.space, source)
                if differing:
                    self.tell(study, differing)

    def _of_space(
        self,
        study: Study,
        space: SearchSpace,
        text: Callable[[SearchSpace, Sequence[FrozenTrial]], str],
    ) -> None:
        if self._open(study, "space") and len(trials := completed(study)) >= FEW:
            self._close(study, "space")
            self.tell(study, text(space, trials))

    def _of_sources(self, study: Study, predicted: Sequence[int]) -> None:
        if self._sources and self._open(study, "sources"):
            for text in silent(study, self._sources, names_of(study), predicted):
                self.tell(study, text)
            self._close(study, "sources")


def _not_of(space: SearchSpace, trials: Sequence[FrozenTrial]) -> str:
    theirs = sorted({name for trial in trials for name in trial.params})
    return (
        f"space: none of {len(trials)} completed trials has a parameter of the search space: they "
        f"have {theirs[:5]}, it has {list(space.column)[:5]}{_alike(space, theirs)}; until one "
        "does, the space, costs, known objectives, budgets and sources do nothing"
    )


def _lacking(space: SearchSpace, trials: Sequence[FrozenTrial]) -> str:
    theirs = {name for trial in trials for name in trial.params}
    never = [name for name in space.column if name not in theirs]
    others = sorted(theirs - space.column.keys())
    why = "all its parameters, with values that it has"
    if never and space.family is None:
        beside = f" (but {others[:5]}, which it has not)" if others else ""
        return (
            f"space: none of {len(trials)} completed trials has its parameter {never[0]!r}{beside}"
            f"{_alike(space, others)}, so nothing is learned of it; a search space holds what "
            "trials suggest, or is left out"
        )
    return (
        f"space: none of {len(trials)} completed trials has {why}, so nothing is learned from "
        "them; a search space holds what every trial suggests, or is left out"
    )


def _alike(space: SearchSpace, theirs: Sequence[str]) -> str:
    return next((hint for name in space.column if (hint := meant(name, theirs))), "")


def _of_costs(proposer: Proposer) -> Iterator[str]:
    """A cost table that is neither an objective nor a limit."""
    if proposer.priced is not None and len(proposer.signs) == 1 and not proposer.limits.budgets:
        costs = " and ".join(proposer.priced.metric_names)
        yield (
            f"costs: the study has one objective, and there are no budgets: {costs} decide "
            "nothing; they may be further objectives, or have budgets"
        )


def _of_numbers(proposer: Proposer) -> Iterator[str]:
    """Budgets that every configuration meets, and a reference that none reaches."""
    limits, reference = proposer.limits.budgets, proposer.reference
    ends = ends_of(proposer.known, proposer.priced) if limits or reference else {}
    for metric, limit in limits.items():
        if metric in ends and limit >= ends[metric].high + ends[metric].margin:
            yield (
                f"budgets[{metric!r}]={limit:g} excludes nothing: the largest "
                f"{ends[metric].found} is {ends[metric].high:.6g}; is it in another unit?"
            )
    names = dict(enumerate(proposer.known.names))
    if isinstance(proposer.known.table, CompiledCosts):  # its names, if the study has none
        names |= dict(zip(proposer.known.index, proposer.known.table.metric_names, strict=False))
    for i, value in reference.items():
        end = ends.get(names[i], Ends(-np.inf, np.inf))
        less = proposer.signs[i] > 0
        if value <= end.low - end.margin if less else value >= end.high + end.margin:
            yield (
                f"reference[{names[i]!r}]={value:g} is better than any configuration, so that "
                f"none counts: the best {end.found} is {end.low if less else end.high:.6g}, and a "
                "reference is worse than what is wanted"
            )


def _of_reference(proposer: Proposer, snapshot: Snapshot) -> Iterator[str]:
    """A reference that no trial has been better than, in an objective that only trials tell."""
    for i, value in proposer.reference.items():
        if i in proposer.predicted:
            best = float(np.nanmin(proposer.signs[i] * snapshot.values[:, i])) * proposer.signs[i]
            if proposer.signs[i] * (best - value) >= 0:
                yield (
                    f"reference[{proposer.known.names[i]!r}]={value:g}: none of "
                    f"{len(snapshot.values)} completed trials is better, so none counts; the best "
                    f"is {best:.6g}, and a reference is worse than what is wanted"
                )


def _of_known(study: Study, proposer: Proposer) -> str | None:
    """A function that says otherwise than every one of the latest trials that it can price."""
    trials = completed(study)[-SEEN:]
    for i, function in proposer.known.functions.items():
        apart = []
        for trial in trials:
            with suppress(Exception), np.errstate(all="ignore"):
                params = {name: np.array([value]) for name, value in trial.params.items()}
                told = float(np.asarray(function(params), float).reshape(())[()])
                apart.append((told, float(trial.values[i])))
        far = [abs(a - b) > APART * max(abs(a), abs(b)) for a, b in apart]
        if len(far) >= FEW and all(far):
            told, measured = apart[-1]
            return (
                f"known[{proposer.known.names[i]!r}] contradicts all of the last {len(far)} "
                f"trials, where it says {told:.6g} of the latest and its value is {measured:.6g}: "
                "what is known is taken for exact; is it in another unit, or of another objective?"
            )
    return None


@dataclass(frozen=True)
class Ends:
    """Values between which all configurations are.

    Attributes:
        low, high: The least and the largest, or bounds of them.
        margin: How far beyond them others may be.
    """

    low: float
    high: float
    margin: float = 0.0

    @property
    def found(self) -> str:
        """How a message calls the configurations they are of."""
        return "of those looked at" if self.margin else "of all"


def ends_of(known: KnownObjectives, priced: CompiledCosts | None) -> dict[str, Ends]:
    """By the name of a cost or of a known objective.

    Bounds of what a table prices. Of functions those of a small space, looked at whole; of a large
    one what a search finds, with a wide margin: wrong units are to be told, and nothing else. A
    function that some of it makes raise has none.
    """
    ends: dict[str, Ends] = {}
    if priced is not None:
        bounds = zip(priced.metric_names, priced.minima, priced.maxima, strict=True)
        ends = {metric: Ends(float(low), float(high)) for metric, low, high in bounds}
    for column, i in enumerate(known.index):
        if i in known.functions:
            with suppress(InvalidArgumentError), np.errstate(all="ignore"):
                ends[known.names[i]] = _ends_of_function(known, column)
    return ends


def _ends_of_function(known: KnownObjectives, column: int) -> Ends:
    space = known.space
    grid = any(decision.grid for decision in space.decisions)
    if not grid and np.prod(space.sizes.astype(float)) <= WHOLE:
        shape = tuple(space.sizes.tolist())
        rows = np.indices(shape).reshape(len(shape), -1).T.astype(np.int32)
        values = known(np.unique(space.canonical(rows), axis=0))[:, column]
        return Ends(float(values.min()), float(values.max()))

    def largest(sign: float) -> float:
        def score(rows: Genotypes) -> Floats:
            """`(n,)`: the best of the middle and two corners of a row's cells."""
            corners = [np.full(rows.shape, at) for at in (0.0, 1.0)] if grid else []
            values = [known(rows, inner)[:, column] for inner in (None, *corners)]
            return np.asarray((sign * np.stack(values)).max(axis=0))

        ends = np.stack([np.zeros_like(space.sizes), space.sizes - 1])
        found = evolve(space, score, rng=np.random.default_rng(0), options=SEARCH, initial=ends)
        return float(found.scores[0])

    high, low = largest(1.0), -largest(-1.0)
    return Ends(low, high, max(FAR * (high - low), 1e-12 * abs(high)))
