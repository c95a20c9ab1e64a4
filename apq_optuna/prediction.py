"""A finished study answers for another device or budget: no training, no images.

Accuracy does not depend on the device, so what a study has learned of it, together with the new
device's cost table, gives the front there: predicted accuracies against exact costs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study, StudyDirection

from apq_optuna._optuna import set_study_attribute, study_attribute
from apq_optuna._text import aligned
from apq_optuna.errors import InfeasibleBudgetError, InvalidArgumentError, StudyMismatchError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes, Subnet
from apq_optuna.pairs import PairStore
from apq_optuna.sampler.history import History, spread_factor
from apq_optuna.sampler.sources import surrogate_of
from apq_optuna.sampler.surrogate import clipped
from apq_optuna.search import evolve_front
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]

FEWEST_TRIALS = 5
"""Completed trials without which a study has nothing to say."""


@dataclass(frozen=True)
class PredictedFront:
    """The front on a device as a study predicts it, most accurate network first.

    Attributes:
        space: The joint space.
        genotypes: `(p, D)`.
        accuracy, spread: Predicted mean and standard deviation, `(p,)`.
        costs: `(p, m)`, exact from the table.
        metric_names: Names of the m costs.
        device: Name of the device.
        trials: Completed trials the prediction rests on.
        evaluated: Candidates that were looked at.
    """

    space: SearchSpace
    genotypes: Genotypes
    accuracy: Floats
    spread: Floats
    costs: Floats
    metric_names: tuple[str, ...]
    device: str
    trials: int
    evaluated: int

    def __len__(self) -> int:
        return len(self.genotypes)

    def subnets(self) -> list[Subnet]:
        """The networks, in order."""
        return [self.space.decode(row) for row in self.genotypes]

    def table(self, most: int = 16) -> str:
        """Up to `most` networks, evenly over the front, as aligned text."""
        header = ["accuracy", "+-", *self.metric_names, "MMACs", "layers", "mean bits"]
        rows, mean_bits = [header], self.space.mean_bits(self.genotypes)
        for i in np.unique(
            np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int)
        ):
            subnet = self.space.decode(self.genotypes[i])
            rows.append(
                [
                    f"{self.accuracy[i]:.4f}", f"{self.spread[i]:.4f}",
                    *(f"{value:.4f}" for value in self.costs[i]),
                    f"{subnet.macs / 1e6:.2f}", str(len(list(subnet.layers()))),
                    f"{mean_bits[i]:.2f}",
                ]
            )  # fmt: skip
        return aligned(rows)

    def enqueue(self, study: Study, n: int) -> int:
        """Enqueues the most accurate networks as trials of a study on this device.

        Their predictions go along as the user attributes `expected_mean` and `expected_std`.

        Args:
            study: Accuracy maximised, then these costs minimised; new, or of the same space.
            n: How many.

        Returns:
            How many of them the study did not have yet.

        Raises:
            StudyMismatchError: The study has other directions, metrics or another space; nothing
                is enqueued then.
        """
        names = ["accuracy", *self.metric_names]
        wanted = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(self.metric_names)]
        space, stored = self.space.to_dict(), study_attribute(study, "space")
        for what, theirs, ours in (
            ("directions", [d.name.lower() for d in study.directions],
             [d.name.lower() for d in wanted]),
            ("metrics", study.metric_names or names, names),
            ("space", SearchSpace.from_dict(stored or space).hash, self.space.hash),
        ):  # fmt: skip
            if theirs != ours:
                raise StudyMismatchError(
                    f"study {study.study_name!r} has {what} {theirs}, this front {ours}: enqueue "
                    "into another study"
                )
        before = len(study.get_trials(deepcopy=False))
        for i in range(min(n, len(self))):
            expected = {
                "expected_mean": float(self.accuracy[i]),
                "expected_std": float(self.spread[i]),
            }
            params = self.space.to_params(self.genotypes[i])
            study.enqueue_trial(params, user_attrs=expected, skip_if_exists=True)
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(names)
        if stored is None:
            set_study_attribute(study, "space", space)
        return len(study.get_trials(deepcopy=False)) - before


def predicted_front(
    study: Study,
    space: SearchSpace,
    costs: CostTable,
    *,
    source: PairStore | Study | Sequence[PairStore | Study] | None = None,
    budgets: Mapping[str, float] | None = None,
    seed: int = 0,
    size: int = 160,
    generations: int = 40,
) -> PredictedFront:
    """The front of a space on a device, from a study that ran on any device.

    Args:
        study: Completed trials of the same supernet, accuracy first.
        space: The supernet's joint space.
        costs: Table of the device in question.
        source: What the study's sampler had as its source: fp32 pairs, earlier studies.
        budgets: Upper limits by metric name, e.g. `{"latency_ms": 2.0}`.
        seed: Of the search.
        size: Most networks on the front.
        generations: Of the search.

    Returns:
        The front; its accuracies are predictions, its costs are the table's.

    Raises:
        StudyMismatchError: The study does not maximise accuracy first, is of another space or
            supernet than its source, or has too few trials.
        PairError: fp32 pairs of another space.
        InvalidArgumentError: A budget on a metric that the table does not have, or another
            argument that cannot be.
        InfeasibleBudgetError: No network meets the budgets.
        CostTableError: The table lacks layers of the space.
    """
    if study.directions[0] != StudyDirection.MAXIMIZE:
        raise StudyMismatchError(
            f"the first objective of study {study.study_name!r} is minimised; accuracy is "
            "maximised, and comes first"
        )
    compiled = costs.compile(space)
    if size < 2 or generations < 0:
        raise InvalidArgumentError(f"size={size}, generations={generations}: at least 2 and 0")
    limits = _limits(compiled.metric_names, compiled.minima, budgets or {}, costs.device)
    snapshot = History(space, strict=True).read(study)
    n = len(snapshot.genotypes)
    if n < FEWEST_TRIALS:
        raise StudyMismatchError(
            f"study {study.study_name!r} has {n} completed trials of this space; at least "
            f"{FEWEST_TRIALS} are needed to predict from"
        )
    sources = [] if source is None else [source] if not isinstance(source, Sequence) else [*source]
    _check_supernet(study, sources)
    surrogate = surrogate_of(space, sources, name="accuracy", index=0, maximise=True)
    surrogate.refresh(snapshot.genotypes, clipped(snapshot.values[:, 0]), snapshot.measures)

    def values(rows: Genotypes) -> Floats:
        return np.column_stack([-surrogate.predict(rows)[0], compiled(rows)])

    def violation(rows: Genotypes) -> Floats:
        priced = np.asarray(compiled(rows))
        lacking = np.asarray(~np.isfinite(priced).all(axis=1))
        excess = np.maximum(np.where(lacking[:, None], limits, priced) / limits - 1.0, 0.0)
        return np.asarray(np.where(np.isfinite(limits), excess, 0.0).sum(axis=1) + 1e3 * lacking)

    rng = np.random.default_rng(seed)
    found = evolve_front(
        space, values, violation, rng=rng, size=size, generations=generations,
        initial=np.concatenate([snapshot.genotypes, space.extreme(largest=False)]),
        constrain=lambda rows: compiled.settle(rows, rng),
    )  # fmt: skip
    if not len(found.genotypes):
        raise InfeasibleBudgetError(
            f"budgets={dict(budgets or {})}: no network that meets them on {costs.device!r} was "
            "found; raise one"
        )
    mean, std = surrogate.predict(found.genotypes)
    return PredictedFront(
        space,
        found.genotypes,
        np.clip(mean, 0.0, 1.0),
        std * spread_factor(snapshot, 0),
        found.values[:, 1:],
        tuple(compiled.metric_names),
        costs.device,
        n,
        found.evaluated,
    )


def _check_supernet(study: Study, sources: Sequence[PairStore | Study]) -> None:
    measured = (study_attribute(study, "objective") or {}).get("supernet")
    for store in sources:
        if isinstance(store, PairStore) and measured not in (None, store.supernet):
            raise StudyMismatchError(
                f"study {study.study_name!r} measured subnets of supernet {measured}, the fp32 "
                f"pairs are of {store.supernet}: give the pairs of the same one"
            )


def _limits(
    metrics: Sequence[str], minima: Floats, budgets: Mapping[str, float], device: str
) -> Floats:
    """`(m,)`: the limit of each cost, infinite where it has none."""
    limits = np.full(len(metrics), np.inf)
    for metric, limit in budgets.items():
        if metric not in metrics:
            raise InvalidArgumentError(
                f"budgets: {metric!r} is no cost of {device!r}; it has {list(metrics)}"
            )
        column = list(metrics).index(metric)
        if not limit > 0:
            raise InvalidArgumentError(f"budgets[{metric!r}]={limit}: must be positive")
        if limit < minima[column]:
            raise InfeasibleBudgetError(
                f"budgets[{metric!r}]={limit}: the cheapest network of the space takes "
                f"{minima[column]:.6g} on {device!r}; allow at least that"
            )
        limits[column] = limit
    return limits
