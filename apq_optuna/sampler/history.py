"""A study's trials as arrays, read once and then only what is new."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from apq_optuna._optuna import (
    confirmed_values,
    constraints_of,
    study_attribute,
    trial_attribute,
    trials_of,
)
from apq_optuna.errors import SpaceError, StudyMismatchError
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace

STALE_SECONDS = 6 * 3600.0
"""A running trial that started longer ago than this is taken for dead: not every storage has a
heartbeat to tell."""


@dataclass(frozen=True)
class Snapshot:
    """What a study knows about a space at one moment.

    Attributes:
        genotypes: Of the completed trials, `(n, D)`.
        values: Of the completed trials, `(n, M)`, as stored; the first one is the mean of all
            its measurements where a trial was measured again.
        measures: How many trials' worth of measurements the first value is the mean of, `(n,)`.
        predicted: Mean and unscaled spread predicted before each completed trial, `(n, 2)`; NaN
            where none was.
        constraints: Values set through `Trial.set_constraint` or a `constraints_func` by name,
            `(n,)` each; at most 0 is feasible, NaN where a trial has none.
        tried: Genotypes not to be proposed again: finished in whatever state, or running.
        running: Genotypes of running trials, `(r, D)`.
    """

    genotypes: Genotypes
    values: NDArray[np.float64]
    measures: NDArray[np.float64]
    predicted: NDArray[np.float64]
    constraints: dict[str, NDArray[np.float64]]
    tried: Genotypes
    running: Genotypes

    @property
    def violation(self) -> NDArray[np.float64]:
        """Sum of each completed trial's constraint values above 0, `(n,)`.

        Where others have such, a trial without any is as bad as can be, as it is to Optuna.
        """
        total = np.zeros(len(self.genotypes))
        if not self.constraints:
            return total
        for values in self.constraints.values():
            total += np.maximum(np.nan_to_num(values, nan=0.0, posinf=np.inf), 0.0)
        untold = np.isnan(np.column_stack(list(self.constraints.values()))).all(axis=1)
        return np.where(untold, np.inf, total)

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Which completed trials break no constraint, `(n,) bool`."""
        return self.violation <= 0


class History:
    """Reads a study's trials incrementally as genotypes of one space.

    Args:
        space: The space; trials that have none of its parameters are left out, in a family's also
            those that lack some.
        strict: Whether the space is the sampler's own. In a family's, a parameter with another
            distribution is an error; in a plain one its range may follow from other parameters.
    """

    def __init__(self, space: SearchSpace, *, strict: bool) -> None:
        self.space = space
        self.strict = strict
        self._fixed = strict and space.family is not None
        self._distributions = space.distributions()
        self._seen: set[int] = set()
        self._numbers: list[int] = []
        self._rows: list[Genotypes] = []
        self._values: list[list[float]] = []
        self._predicted: list[list[float]] = []
        self._constraints: list[dict[str, float]] = []
        self._other: list[Genotypes] = []

    def read(self, study: Study, *, but: int = -1) -> Snapshot:
        """The state of the study now; trial number `but` is left out."""
        running: list[Genotypes] = []
        for trial in trials_of(study):
            if trial.number in self._seen or trial.number == but:
                continue
            if not trial.state.is_finished():
                row = self._claimed(trial)
                if row is not None:
                    running.append(row)
                continue
            self._seen.add(trial.number)
            row = self._row(trial)
            if row is None and trial.state != TrialState.COMPLETE:
                row = self._claim_of(trial)  # it ended before all its parameters were suggested
            if row is None:
                continue
            if trial.state == TrialState.COMPLETE and trial.values is not None:
                self._rows.append(row)
                self._numbers.append(trial.number)
                self._values.append(trial.values)
                self._constraints.append(constraints_of(trial))
                self._predicted.append(trial_attribute(trial, "raw_prediction") or [np.nan] * 2)
            else:
                self._other.append(row)
        width = len(self.space.decisions)
        values = np.array(self._values, float).reshape(len(self._rows), len(study.directions))
        measures = np.ones(len(values))
        again = confirmed_values(study) if len(values) else {}
        # a trial may be the mean of several, and noise is counted in trials
        each = int((study_attribute(study, "objective") or {}).get("repeats", 1)) if again else 1
        for place in [i for i, number in enumerate(self._numbers) if number in again]:
            more = again[self._numbers[place]]
            total = each * values[place, 0] + sum(more)
            values[place, 0] = total / (each + len(more))
            measures[place] = (each + len(more)) / each
        return Snapshot(
            _stack(self._rows, width),
            values,
            measures,
            np.array(self._predicted, float).reshape(len(self._rows), 2),
            self._constraint_columns(),
            _stack([*self._rows, *self._other, *running], width),
            _stack(running, width),
        )

    def _constraint_columns(self) -> dict[str, NDArray[np.float64]]:
        names = dict.fromkeys(name for each in self._constraints for name in each)
        return {
            name: np.array([each.get(name, np.nan) for each in self._constraints], float)
            for name in names
        }

    def _row(self, trial: FrozenTrial) -> Genotypes | None:
        for name, distribution in trial.distributions.items() if self._fixed else ():
            if self._distributions.get(name, distribution) != distribution:
                raise StudyMismatchError(
                    f"trial {trial.number} has {name} as {distribution}, the search space has "
                    f"{self._distributions[name]}: this study is of another space; use "
                    "another study_name"
                )
        # in a plain space a parameter may be conditional, and is not in every trial
        fill = (
            self.space.family is None
            and trial.state == TrialState.COMPLETE
            and not self.space.column.keys().isdisjoint(trial.params)
        )
        try:
            return self.space.from_params(trial.params, fill=fill)
        except SpaceError:
            return None

    def _claimed(self, trial: FrozenTrial) -> Genotypes | None:
        """A running trial's genotype, from its claim: it shows parameters only one by one."""
        started = trial.datetime_start
        if started is not None:
            age = (type(started).now(started.tzinfo) - started).total_seconds()
            if age > STALE_SECONDS:
                return None
        row = self._claim_of(trial)
        # one whose parameters were all prescribed was never proposed
        return self._row(trial) if row is None and trial.params else row

    def _claim_of(self, trial: FrozenTrial) -> Genotypes | None:
        return claimed_row(trial, self.space)


def spread_factor(snapshot: Snapshot, objective: int) -> float:
    """By how much proposals were further off than the predictor's spread said.

    Proposals are chosen for being predicted well, so their errors are larger than those of
    held-out rows. Root mean square of the latest standardised errors, with five that fit.
    """
    mean, std = snapshot.predicted.T
    error = snapshot.values[:, objective] - mean
    known = np.flatnonzero(np.isfinite(error) & np.isfinite(std))[-30:]
    squared = np.minimum((error[known] / np.maximum(std[known], 1e-9)) ** 2, 16.0)
    return float(np.sqrt((squared.sum() + 5.0) / (len(known) + 5.0)))


def claim_of(space: SearchSpace, row: Genotypes) -> dict[str, object]:
    """What a trial's attribute says of the genotype that its worker is about to try.

    In a plain space also the values: it may be inferred, and another when the next worker asks.
    """
    claim: dict[str, object] = {"space": space.hash, "row": row.tolist()}
    if space.family is None:
        plain = (bool, int, float, str, type(None))
        values = space.to_params(row)
        claim["params"] = {name: v for name, v in values.items() if isinstance(v, plain)}
    return claim


def claimed_row(trial: FrozenTrial, space: SearchSpace) -> Genotypes | None:
    """The genotype a trial claims in this space; None where it claims none that fits."""
    claim = trial_attribute(trial, "claim")
    if not isinstance(claim, dict):
        return None
    if claim.get("space") == space.hash:
        return np.array(claim["row"], np.int32)
    params = claim.get("params") or {}
    if space.family is not None or not params.keys() & space.column.keys():
        return None
    try:
        return space.from_params(params, fill=True)
    except (SpaceError, TypeError):
        return None


def claims(trial: FrozenTrial, name: str) -> bool:
    """Whether a parameter of a trial was proposed jointly with others, in whatever plain space."""
    claim = trial_attribute(trial, "claim")
    return isinstance(claim, dict) and name in (claim.get("params") or {})


def _stack(rows: list[Genotypes], width: int) -> Genotypes:
    return np.stack(rows) if rows else np.zeros((0, width), np.int32)


class ParameterUnion:
    """Every parameter that completed trials of a study had, conditional ones included.

    A range that changed between trials is the widest; a parameter that became another kind is left
    out.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._found: dict[str, BaseDistribution] = {}
        self._other: set[str] = set()

    def read(self, study: Study) -> dict[str, BaseDistribution]:
        """Parameters by name, in the order they were first seen."""
        for trial in trials_of(study):
            if trial.state != TrialState.COMPLETE or trial.number in self._seen:
                continue
            self._seen.add(trial.number)
            for name, distribution in trial.distributions.items():
                known = self._found.setdefault(name, distribution)
                if known is not distribution and known != distribution:
                    wider = widest(known, distribution)
                    if wider is None:
                        self._other.add(name)
                    else:
                        self._found[name] = wider
        return {n: d for n, d in self._found.items() if n not in self._other}


def widest(one: BaseDistribution, other: BaseDistribution) -> BaseDistribution | None:
    """The range of numbers that holds both; None where they are of different kinds."""
    if isinstance(one, FloatDistribution) and isinstance(other, FloatDistribution):
        low, high = min(one.low, other.low), max(one.high, other.high)
        if one.log != other.log:
            return None
        step = one.step if one.step == other.step else None
        if step is not None:
            apart = (one.low - other.low) / step
            step = step if abs(apart - round(apart)) < 1e-9 else None
        return FloatDistribution(low, high, log=one.log, step=step)
    if isinstance(one, IntDistribution) and isinstance(other, IntDistribution):
        low, high = min(one.low, other.low), max(one.high, other.high)
        if one.log != other.log:
            return None
        step = math.gcd(one.step, other.step, one.low - other.low)
        return IntDistribution(low, high, log=one.log, step=step)
    return None


class RowSet:
    """Membership of genotype rows, by hash, for whole batches at once."""

    def __init__(self, rows: Genotypes) -> None:
        width = rows.shape[1]
        seed = int.from_bytes(hashlib.sha256(str(width).encode()).digest()[:4], "little")
        low, high = 1, np.iinfo(np.int64).max
        self._key = np.random.default_rng(seed).integers(low, high, width, dtype=np.int64)
        self._hashes = np.unique(self._hash(rows))

    def _hash(self, rows: Genotypes) -> NDArray[np.int64]:
        with np.errstate(over="ignore"):
            return np.asarray(rows @ self._key)

    def contains(self, rows: Genotypes) -> NDArray[np.bool_]:
        """Which of `(n, D)` rows are in the set, `(n,) bool`."""
        if not len(self._hashes):
            return np.zeros(len(rows), bool)
        asked = self._hash(rows)
        place = np.minimum(np.searchsorted(self._hashes, asked), len(self._hashes) - 1)
        return np.asarray(self._hashes[place] == asked)
