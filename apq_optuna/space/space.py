"""`SearchSpace`: one ordered list of decisions, and genotypes as rows of choice indices.

Notation:
    D   decisions; a genotype is `(D,) int32`, columns in `distributions()` order
    n   genotypes in a batch, `(n, D)`
    F   feature columns: the architecture's first, the quantization's after
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import SpaceError
from apq_optuna.networks import (
    Decision,
    Family,
    Genotypes,
    Subnet,
    check_family,
    preset_family,
    read_family,
)
from apq_optuna.space.activity import Activity
from apq_optuna.space.features import FeatureMap, Features
from apq_optuna.space.plain import decision_from_distribution

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

QUANTILES = 1024


class SearchSpace:
    """All joint choices of a network, or any plain dictionary of Optuna distributions.

    Args:
        decisions: The parameters, in order.
        family: The family of networks that the decisions describe; None for a plain space.
    """

    def __init__(self, decisions: Sequence[Decision], family: Family | None = None) -> None:
        if len({decision.name for decision in decisions}) != len(decisions):
            raise SpaceError("two decisions of a space have the same name")
        self.decisions = tuple(decisions)
        self.family = family
        self.column = {decision.name: d for d, decision in enumerate(decisions)}
        self.sizes = np.array([len(decision.choices) for decision in decisions], np.int32)
        self.quantiles = {
            column: np.abs(np.linspace(0, 1, QUANTILES)[:, None] - decision.places()).argmin(
                axis=1
            )
            for column, decision in enumerate(decisions)
            if decision.log and not decision.grid and len(decision.choices) > 2
        }
        """Choice at each of many positions along a logarithmic decision with exact values."""
        self._places = [_places(decision) for decision in self.decisions]
        self.activity = Activity(self.decisions)
        self._features = FeatureMap(self.decisions, self.activity)
        self.num_features, self.architecture_features = (
            self._features.width,
            self._features.architecture,
        )

    # ------------------------------------------------------------------ construction

    @classmethod
    def preset(
        cls,
        name: str,
        *,
        image_size: int | None = None,
        in_channels: int | None = None,
        num_classes: int | None = None,
        bits: tuple[int, ...] | None = None,
    ) -> SearchSpace:
        """A preset's joint space (`digits`, `cifar10`, `imagenet`), fitted to one's images."""
        return cls.from_family(
            preset_family(
                name,
                image_size=image_size,
                in_channels=in_channels,
                num_classes=num_classes,
                bits=bits,
            )
        )

    @classmethod
    def from_family(cls, family: Family) -> SearchSpace:
        """The joint space over architecture, channels and bit-widths of a family of networks."""
        check_family(family)
        return cls(family.decisions(), family)

    from_network = from_family
    """The former name."""

    @classmethod
    def from_distributions(cls, distributions: Mapping[str, BaseDistribution]) -> SearchSpace:
        """A plain space: floats and wide integers become grids of at most 1,024 levels."""
        return cls([decision_from_distribution(n, d) for n, d in distributions.items()])

    # ------------------------------------------------------------------ description

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter's Optuna distribution, in column order, inactive ones included."""
        return {decision.name: decision.distribution() for decision in self.decisions}

    def to_dict(self) -> dict[str, Any]:
        """The family of networks in plain JSON types.

        Raises:
            SpaceError: The space is a plain one, which has no networks.
        """
        return self.networks.to_dict()

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> SearchSpace:
        """The inverse of `to_dict`.

        Raises:
            SpaceError: Not the description of a family that is known here.
        """
        return cls.from_family(read_family(description))

    @cached_property
    def hash(self) -> str:
        """Identity of the whole space, 16 hexadecimal digits."""
        family = None if self.family is None else self.family.to_dict()
        return _digest([family, [_describe(decision) for decision in self.decisions]])

    @property
    def architecture_hash(self) -> str:
        """Identity of the space without bit-widths: spaces that share it share fp32 pairs."""
        return self.hash if self.family is None else _digest(self.family.architecture())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        name = self.family.name if self.family else "plain"
        return f"SearchSpace({name}, {len(self.decisions)} decisions, hash={self.hash})"

    @property
    def networks(self) -> Family:
        """The family of networks.

        Raises:
            SpaceError: The space is a plain one, which has none.
        """
        if self.family is None:
            raise SpaceError("this is a plain search space; it describes no network")
        return self.family

    @property
    def network(self) -> Family | None:
        """The former name of `family`."""
        return self.family

    @property
    def bits(self) -> tuple[int, ...]:
        """Every bit-width that some decision has, ascending."""
        return tuple(sorted({b for d in self.decisions if d.quantization for b in d.choices}))

    # ------------------------------------------------------------------ activity

    def active(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """Which decisions are in use, `(n, D) bool`: not those of layers that are not there."""
        return self.activity.active(genotypes)

    def canonical(self, genotypes: Genotypes) -> Genotypes:
        """Inactive decisions set to their first choice, so that equal networks are equal rows."""
        return self.activity.canonical(genotypes)

    # ------------------------------------------------------------------ genotypes

    def sample(self, n: int, rng: np.random.Generator) -> Genotypes:
        """`(n, D)` genotypes, every choice uniform, canonical."""
        if n < 0:
            raise SpaceError(f"n={n}: the number of genotypes cannot be negative")
        return self.canonical(self.from_unit(rng.random((n, len(self.decisions)))))

    def from_unit(self, draws: NDArray[np.floating]) -> Genotypes:
        """`(n, D)` positions in [0, 1] on each parameter's own scale, as choice indices."""
        rows = np.minimum((draws * self.sizes).astype(np.int32), self.sizes - 1)
        for column, levels in self.quantiles.items():
            rows[:, column] = levels[
                np.minimum(draws[:, column] * len(levels), len(levels) - 1).astype(np.intp)
            ]
        return np.asarray(rows)

    def extreme(self, *, largest: bool, bits: int | None = None) -> Genotypes:
        """The largest or smallest genotype, `(1, D)`, bit-widths at the widest or at `bits`."""
        row = np.array([size - 1 if largest else 0 for size in self.sizes], np.int32)
        for column, decision in enumerate(self.decisions):
            if decision.quantization:
                wide = len(decision.choices) - 1
                row[column] = wide if bits is None else decision.index_of(bits)
        return self.canonical(row[None])

    def to_params(
        self,
        genotype: Genotypes,
        rng: np.random.Generator | None = None,
        *,
        inner: NDArray[np.floating] | None = None,
    ) -> dict[str, Any]:
        """One genotype `(D,)` as Optuna parameters, active decisions only.

        Args:
            genotype: The row.
            rng: Draws the values of floats and wide integers inside their grid cells; by default
                they are the middle.
            inner: Positions inside the cells, `(D,)` in [0, 1], instead of drawing them.
        """
        active = self.active(genotype[None])[0]
        if inner is None and rng is not None:
            inner = rng.random(len(genotype))
        places = [None] * len(genotype) if inner is None else inner.tolist()
        return {
            decision.name: decision.value_of(int(index), place)
            for decision, index, on, place in zip(
                self.decisions, genotype, active, places, strict=True
            )
            if on
        }

    def from_params(self, params: Mapping[str, Any], *, fill: bool = False) -> Genotypes:
        """Optuna parameters as one canonical genotype `(D,)`; others' parameters are ignored.

        Missing inactive decisions take the canonical choice; with `fill`, missing decisions of a
        plain space take their middle one.

        Raises:
            SpaceError: An active decision is missing, or a value is not one of its choices.
        """
        row = np.zeros(len(self.decisions), np.int32)
        missing = np.zeros(len(self.decisions), bool)
        for column, decision in enumerate(self.decisions):
            if decision.name in params:
                value = params[decision.name]
                try:
                    row[column] = self._places[column][value]
                except (KeyError, TypeError):  # in a cell, near a level, not hashable, or wrong
                    row[column] = decision.index_of(value)
            else:
                missing[column] = True
        if fill and self.family is None:
            row[missing] = self.sizes[missing] // 2
            return row
        lacking = missing & self.active(row[None])[0]
        if lacking.any():
            names = [self.decisions[c].name for c in np.flatnonzero(lacking)[:5]]
            raise SpaceError(f"parameters of the search space are missing: {', '.join(names)}")
        return np.asarray(self.canonical(row[None])[0])

    def suggest(self, trial: BaseTrial) -> Subnet:
        """Suggests every active decision from a trial, define-by-run, and reads the network."""
        family = self.networks
        row = np.zeros(len(self.decisions), np.int32)
        for column, (decision, needs) in enumerate(
            zip(self.decisions, self.activity.needs, strict=True)
        ):
            if needs is None or row[needs[0]] >= needs[1]:
                row[column] = decision.index_of(self._suggest(trial, decision))
        return family.decode(row)

    @staticmethod
    def _suggest(trial: BaseTrial, decision: Decision) -> Any:
        from optuna.distributions import IntDistribution

        distribution = decision.distribution()
        if isinstance(distribution, IntDistribution):
            low, high, step = distribution.low, distribution.high, distribution.step
            return trial.suggest_int(decision.name, low, high, step=step)
        return trial.suggest_categorical(decision.name, decision.choices)

    def decode(self, genotype: Genotypes) -> Subnet:
        """One genotype `(D,)` as a network."""
        return self.networks.decode(genotype)

    def mean_bits(self, genotypes: Genotypes) -> NDArray[np.float64]:
        """`(n,)`: the mean of the bit-widths in use; NaN where there are none."""
        columns = np.flatnonzero([decision.quantization for decision in self.decisions])
        widths = np.zeros((len(columns), int(self.sizes[columns].max(initial=1))))
        for row, column in enumerate(columns):
            widths[row, : self.sizes[column]] = self.decisions[column].choices
        chosen = widths[np.arange(len(columns)), genotypes[:, columns]]
        active = self.active(genotypes)[:, columns]
        count = active.sum(axis=1)
        total = (chosen * active).sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    # ------------------------------------------------------------------ features

    def feature_indices(self, genotypes: Genotypes) -> NDArray[np.int64]:
        """The set one-hot columns of each genotype, `(n, D)`; `num_features` means none."""
        return self._features.indices(genotypes)

    def features(self, genotypes: Genotypes) -> Features:
        """`(n, F) float32`: one-hot columns, what is not in use zero, numbers scaled to [0, 1].

        See `FeatureMap`.
        """
        return self._features(genotypes)

    @property
    def one_hot(self) -> bool:
        """Whether every feature is a one-hot column, so that `feature_indices` says it all."""
        return self._features.one_hot


def _describe(decision: Decision) -> list[Any]:
    return [
        decision.name,
        decision.role,
        [decision.low, decision.high, decision.step, decision.log]
        if decision.grid
        else [repr(choice) for choice in decision.choices],
    ]


def _digest(description: object) -> str:
    text = json.dumps(description, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _places(decision: Decision) -> dict[Any, int]:
    """The index of every choice that can be looked up; none of a range, whose values lie between.

    Of choices that are equal, such as 1 and True, the first.
    """
    if decision.grid or decision.role == "float":
        return {}
    places: dict[Any, int] = {}
    for index, choice in enumerate(decision.choices):
        with suppress(TypeError):
            places.setdefault(choice, index)
    return places
