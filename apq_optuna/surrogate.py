"""What a sampler believes about a space: known objectives exactly, predicted ones with a spread.

Notation:
    M       objectives of the study; k of them known, p predicted
    n       candidates
    v       oriented values: everything is minimised
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.logging import get_logger
from optuna.study import Study
from optuna.trial import TrialState

from apq_optuna._optuna import study_attribute, trials_of
from apq_optuna.errors import InvalidArgumentError, PairError, StudyMismatchError
from apq_optuna.history import History
from apq_optuna.pairs import PairStore
from apq_optuna.predictor import AccuracyPredictor, transferred
from apq_optuna.space import SearchSpace
from apq_optuna.space.space import Genotypes

Floats = NDArray[np.floating]
Source = PairStore | Study
KnownFunction = Callable[[Mapping[str, NDArray[np.generic]]], Floats]

_logger = get_logger("apq_optuna.sampler")

FULL_STEPS = 160
"""Optimiser steps of a fit from the start."""

WARM_STEPS = 12
"""Optimiser steps when a few rows were added."""

SCRATCH_HIDDEN = 128
"""Hidden units where there are no fp32 pairs: a study's few hundred rows need no more."""

FEWEST_PAIRS = 10
"""Fewer fp32 pairs than this teach nothing worth transferring."""

GROWTH = 1.3
"""A fit starts over once there are this many times the rows of the last full one."""


class KnownObjectives:
    """Objectives computed exactly from genotypes.

    Args:
        space: The search space.
        table: A compiled cost table, or None.
        functions: By objective index: a function of parameter arrays.
        table_index: Objective index of each of the table's columns.
        names: Metric names by objective index, for messages.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: Callable[[Genotypes], Floats] | None,
        table_index: Sequence[int],
        functions: Mapping[int, KnownFunction],
        names: Sequence[str],
    ) -> None:
        self.space, self.table, self.functions, self.names = space, table, functions, names
        self.index = [*table_index, *functions]
        self._choices = [
            np.array(d.choices) if len({type(c) for c in d.choices}) == 1
            else np.array(d.choices, object)
            for d in space.decisions
        ]  # fmt: skip

    def __call__(self, genotypes: Genotypes) -> Floats:
        """`(n, D)` to `(n, k)`, columns in the order of `index`.

        Raises:
            InvalidArgumentError: A function returns another shape, or NaN.
        """
        parts: list[Floats] = []
        if self.table is not None:
            parts.append(self.table(genotypes))
        if self.functions:
            params = {
                d.name: choices[genotypes[:, c]]
                for c, (d, choices) in enumerate(
                    zip(self.space.decisions, self._choices, strict=True)
                )
            }
            for index, function in self.functions.items():
                value = np.asarray(function(params), float)
                if value.shape != (len(genotypes),):
                    raise InvalidArgumentError(
                        f"known[{self.names[index]!r}] returned shape {value.shape} for "
                        f"{len(genotypes)} configurations; expected ({len(genotypes)},)"
                    )
                if np.isnan(value).any():
                    raise InvalidArgumentError(f"known[{self.names[index]!r}] returned NaN")
                parts.append(value[:, None])
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(genotypes), 0))


class Surrogate:
    """The predictor of one objective, refitted as rows come in.

    Args:
        space: The search space.
        base: An fp32 predictor to transfer from; None starts from nothing.
        replay: Features and targets behind `base`, replayed while it is finetuned.
        extra: Features and targets from other studies, trained on like the study's own.
        seed: Of weights, bags and batches.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        base: AccuracyPredictor | None = None,
        replay: tuple[Floats, Floats] | None = None,
        extra: tuple[Floats, Floats] | None = None,
        seed: int = 0,
    ) -> None:
        self.space, self.base, self.replay, self.extra, self.seed = (
            space,
            base,
            replay,
            extra,
            seed,
        )
        self.predictor: AccuracyPredictor | None = None
        self._rows = 0
        self._full_rows = 0

    def refresh(self, genotypes: Genotypes, targets: Floats) -> AccuracyPredictor:
        """The predictor after `(n, D)` rows with finite targets `(n,)`; n may be 0."""
        x, y = self.space.features(genotypes), np.asarray(targets, float)
        if self.extra is not None:
            x, y = np.concatenate([x, self.extra[0]]), np.concatenate([y, self.extra[1]])
        if self.predictor is None or (len(y) != self._rows and len(y) >= GROWTH * self._full_rows):
            self.predictor = self._start(x, y)
            self._full_rows = len(y)
        elif len(y) != self._rows:
            self.predictor.update(x, y, replay=self.replay, steps=WARM_STEPS, learning_rate=5e-4)
        self._rows = len(y)
        return self.predictor

    def _start(self, x: Floats, y: Floats) -> AccuracyPredictor:
        if self.base is not None:
            predictor = transferred(self.base)
            predictor.generator.manual_seed(self.seed)
            if len(y):
                predictor.update(x, y, replay=self.replay, steps=FULL_STEPS)
            return predictor
        predictor = AccuracyPredictor(
            self.space.num_features,
            self.space.architecture_features,
            hidden=SCRATCH_HIDDEN,
            seed=self.seed,
        )
        if len(y):
            predictor.fit(x, y, epochs=max(1, FULL_STEPS // max(1, -(-len(y) // 128))))
        return predictor


def surrogate_of(
    space: SearchSpace, sources: Sequence[Source], *, name: str, index: int, seed: int
) -> Surrogate:
    """The surrogate of one objective, with what other sources know of it.

    Args:
        space: The joint space.
        sources: fp32 pairs, which are transferred from, and earlier studies, which are trained on.
        name, index: Of the objective.
        seed: Of weights, bags and batches.

    Raises:
        PairError: Pairs of another space, or a study that measured another supernet.
        StudyMismatchError: A study without a trial in this space.
    """
    base, replay = None, None
    extra: list[tuple[Floats, Floats]] = []
    supernets = {source.supernet for source in sources if isinstance(source, PairStore)}
    for source in sources:
        if isinstance(source, PairStore):
            pairs = source.load()
            if len(pairs) >= FEWEST_PAIRS:
                base = source.fp32_predictor(space, pairs)
                replay = (source.features(space, pairs), pairs.accuracies)
            else:
                _logger.warning(
                    "source: %d fp32 pairs of supernet %s in %s, too few to transfer from; was "
                    "`collect` run with this database?", len(pairs), source.supernet, source.url,
                )  # fmt: skip
            continue
        theirs = (study_attribute(source, "objective") or {}).get("supernet")
        if theirs and supernets and theirs not in supernets:
            raise PairError(
                f"source: study {source.study_name!r} measured supernet {theirs}, the pairs are "
                f"of {', '.join(supernets)}; its accuracies do not apply"
            )
        extra += _rows_of(source, space, name, index)
    joined = None
    if extra:
        joined = np.concatenate([x for x, _ in extra]), np.concatenate([y for _, y in extra])
    return Surrogate(space, base=base, replay=replay, extra=joined, seed=seed)


def _rows_of(
    source: Study, space: SearchSpace, name: str, index: int
) -> list[tuple[Floats, Floats]]:
    """Features and values of an earlier study's trials in this space; none of an empty one."""
    snapshot = History(space, strict=False).read(source)
    names = source.metric_names
    column = names.index(name) if names and name in names else index
    finished = sum(trial.state == TrialState.COMPLETE for trial in trials_of(source))
    if not finished:
        return []
    if not len(snapshot.values) or column >= snapshot.values.shape[1]:
        raise StudyMismatchError(
            f"source: none of the {finished} completed trials of study {source.study_name!r} has "
            f"the parameters of this search space and objective {name!r}; leave it out"
        )
    return [(space.features(snapshot.genotypes), clipped(snapshot.values[:, column]))]


def clipped(values: Floats) -> Floats:
    """Infinite values brought to just beyond the finite ones."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros_like(values)
    low, high = finite.min(), finite.max()
    margin = max(high - low, abs(high), 1e-6) * 0.1
    return np.clip(values, low - margin, high + margin)


def space_filling(space: SearchSpace, n: int, rng: np.random.Generator) -> Genotypes:
    """`(n, D)` genotypes that also reach the corners: all small, all large, all bits low or high.

    Uniform choices for many decisions all look alike on average. Each row leans towards the low or
    the high end, its architecture and its bit-widths separately.
    """
    quantization = np.array([decision.quantization for decision in space.decisions])
    lean = np.exp(rng.uniform(-2.0, 2.0, (n, 2)))
    exponent = np.where(quantization, lean[:, 1:], lean[:, :1])
    draws = rng.random((n, len(space.decisions))) ** exponent
    categorical = np.array([d.role == "categorical" for d in space.decisions], bool)
    draws[:, categorical] = rng.random((n, int(categorical.sum())))
    return space.canonical(np.minimum((draws * space.sizes).astype(np.int32), space.sizes - 1))


def farthest(space: SearchSpace, candidates: Genotypes, tried: Genotypes) -> NDArray[np.intp]:
    """Candidates in order of their distance to what was tried, farthest first.

    Distance is the mean over decisions of the difference of choice indices, scaled to [0, 1].
    """
    if not len(tried):
        return np.arange(len(candidates))
    scale = np.maximum(space.sizes - 1, 1).astype(np.float32)
    a, b = candidates / scale, tried / scale
    nearest = np.full(len(a), np.inf)
    for start in range(0, len(b), 64):
        distance = np.abs(a[:, None] - b[None, start : start + 64]).mean(axis=2)
        nearest = np.minimum(nearest, distance.min(axis=1))
    return np.argsort(-nearest, kind="stable")
