"""`SearchSpace`: one ordered list of decisions, and genotypes as rows of choice indices.

Notation:
    D   decisions; a genotype is `(D,) int32`, columns in `distributions()` order
    n   genotypes in a batch, `(n, D)`
    F   feature columns: the architecture's first, the quantization's after
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import SpaceError
from apq_optuna.space.decisions import Decision, decision_from_distribution
from apq_optuna.space.presets import network_spec
from apq_optuna.space.subnet import FLOAT_BITS, Block, NetworkSpec, Subnet, stage_input_size

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

Genotypes = NDArray[np.int32]
Features = NDArray[np.float32]

QUANTILES = 1024

BIT_NAMES = ("pw_w_bits", "pw_a_bits", "dw_w_bits", "dw_a_bits")


@dataclasses.dataclass(frozen=True)
class Inactivity:
    """Tells whether some columns of genotypes are out of use; from `SearchSpace.inactive`."""

    width: int
    positions: NDArray[np.intp]
    governing: NDArray[np.intp]
    thresholds: NDArray[np.int32]

    def __call__(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """`(n, D)` to `(n, width) bool`."""
        mask = np.zeros((len(genotypes), self.width), bool)
        if len(self.positions):
            mask[:, self.positions] = genotypes[:, self.governing] < self.thresholds
        return mask


class SearchSpace:
    """All joint choices of a network, or any plain dictionary of Optuna distributions.

    Args:
        decisions: The parameters, in order.
        network: The family the decisions describe; None for a plain space.
    """

    def __init__(self, decisions: Sequence[Decision], network: NetworkSpec | None = None) -> None:
        if len({decision.name for decision in decisions}) != len(decisions):
            raise SpaceError("two decisions of a space have the same name")
        self.decisions = tuple(decisions)
        self.network = network
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
        self._index_activity()
        self._index_features()

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
        return cls.from_network(
            network_spec(
                name,
                image_size=image_size,
                in_channels=in_channels,
                num_classes=num_classes,
                bits=bits,
            )
        )

    @classmethod
    def from_network(cls, spec: NetworkSpec) -> SearchSpace:
        """The joint space over architecture, channels and bit-widths of a network family."""
        decisions: list[Decision] = []
        for s, stage in enumerate(spec.stages):
            if len(stage.depths) > 1:
                decisions.append(Decision(f"stage{s + 1}.depth", stage.depths, "depth", s))
            for b in range(stage.depths[-1]):
                name = f"stage{s + 1}.block{b + 1}"
                channels = spec.channel_choices(s, b)
                decisions.append(Decision(f"{name}.kernel", stage.kernels, "kernel", s, b))
                decisions.append(Decision(f"{name}.channels", channels, "channels", s, b))
                decisions += [
                    Decision(f"{name}.{bit}", spec.bits, "bits", s, b) for bit in BIT_NAMES
                ]
        return cls(decisions, spec)

    @classmethod
    def from_distributions(cls, distributions: Mapping[str, BaseDistribution]) -> SearchSpace:
        """A plain space: floats and wide integers become grids of at most 1,024 levels."""
        return cls([decision_from_distribution(n, d) for n, d in distributions.items()])

    # ------------------------------------------------------------------ description

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter's Optuna distribution, in column order, inactive blocks included."""
        return {decision.name: decision.distribution() for decision in self.decisions}

    def to_dict(self) -> dict[str, Any]:
        """The network family as plain JSON types.

        Raises:
            SpaceError: The space is a plain one, which has no network.
        """
        return dataclasses.asdict(self._network())

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> SearchSpace:
        """The inverse of `to_dict`.

        Raises:
            SpaceError: The description does not have the fields of a network family.
        """
        from apq_optuna.space.subnet import StageSpec

        try:
            stages = tuple(
                StageSpec(
                    stage["out_channels"],
                    stage["stride"],
                    tuple(stage["depths"]),
                    tuple(stage["kernels"]),
                    tuple(stage["expansion"]),
                )
                for stage in description["stages"]
            )
            fields = dict(description) | {"stages": stages, "bits": tuple(description["bits"])}
            return cls.from_network(NetworkSpec(**fields))
        except (KeyError, TypeError) as error:
            raise SpaceError(f"not the description of a network family: {error}") from error

    @cached_property
    def hash(self) -> str:
        """Identity of the whole space, 16 hexadecimal digits."""
        network = None if self.network is None else dataclasses.asdict(self.network)
        return _digest([network, [_describe(decision) for decision in self.decisions]])

    @property
    def architecture_hash(self) -> str:
        """Identity of the space without bit-widths: spaces that share it share fp32 pairs."""
        if self.network is None:
            return self.hash
        return _digest(dataclasses.asdict(dataclasses.replace(self.network, bits=(8,))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        name = self.network.name if self.network else "plain"
        return f"SearchSpace({name}, {len(self.decisions)} decisions, hash={self.hash})"

    def _network(self) -> NetworkSpec:
        if self.network is None:
            raise SpaceError("this is a plain search space; it describes no network")
        return self.network

    # ------------------------------------------------------------------ activity

    def _index_activity(self) -> None:
        """For every decision: the depth column that governs it, and the block it belongs to."""
        depth_column = {d.stage: self.column[d.name] for d in self.decisions if d.role == "depth"}
        governed = [
            (c, depth_column[d.stage], d.block)
            for c, d in enumerate(self.decisions)
            if d.block >= 0 and d.stage in depth_column
        ]
        # A decision of block b is active while the depth index exceeds the last index whose depth
        # is at most b; blocks below the smallest depth are always active and stay out of the list.
        self._governed: list[tuple[int, int, int]] = []
        for column, depth, block in governed:
            threshold = sum(value <= block for value in self.decisions[depth].choices)
            if threshold > 0:
                self._governed.append((column, depth, threshold))
        self._governed_columns = np.array([g[0] for g in self._governed], np.intp)
        self._governing = np.array([g[1] for g in self._governed], np.intp)
        self._thresholds = np.array([g[2] for g in self._governed], np.int32)

    def active(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """Which decisions are in use, `(n, D) bool`: not those beyond their stage's depth."""
        mask = np.ones(genotypes.shape, bool)
        if len(self._governed_columns):
            mask[:, self._governed_columns] = genotypes[:, self._governing] >= self._thresholds
        return mask

    def inactive(self, columns: NDArray[np.intp]) -> Inactivity:
        """A function from `(n, D)` genotypes to `(n, len(columns))`: which columns are not in use.

        For hot paths that look at a few columns: `active` looks at all.
        """
        rule = {g[0]: g[1:] for g in self._governed}
        positions = np.array([i for i, c in enumerate(columns) if int(c) in rule], np.intp)
        governing = np.array([rule[int(columns[i])][0] for i in positions], np.intp)
        thresholds = np.array([rule[int(columns[i])][1] for i in positions], np.int32)
        return Inactivity(len(columns), positions, governing, thresholds)

    def canonical(self, genotypes: Genotypes) -> Genotypes:
        """Inactive decisions set to their first choice, so that equal networks are equal rows."""
        result = np.array(genotypes, np.int32)
        if len(self._governed_columns):
            inactive = result[:, self._governing] < self._thresholds
            columns = result[:, self._governed_columns]
            columns[inactive] = 0
            result[:, self._governed_columns] = columns
        return result

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
        self, genotype: Genotypes, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """One genotype `(D,)` as Optuna parameters, active decisions only.

        With `rng`, values of floats and wide integers are drawn inside their grid cell.
        """
        active = self.active(genotype[None])[0]
        return {
            decision.name: decision.value_of(int(index), rng)
            for decision, index, on in zip(self.decisions, genotype, active, strict=True)
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
                row[column] = decision.index_of(params[decision.name])
            else:
                missing[column] = True
        if fill and self.network is None:
            row[missing] = self.sizes[missing] // 2
            return row
        lacking = missing & self.active(row[None])[0]
        if lacking.any():
            names = [self.decisions[c].name for c in np.flatnonzero(lacking)[:5]]
            raise SpaceError(f"parameters of the search space are missing: {', '.join(names)}")
        return np.asarray(self.canonical(row[None])[0])

    def suggest(self, trial: BaseTrial) -> Subnet:
        """Suggests every active decision from a trial, define-by-run, and reads the network."""
        network = self._network()
        params: dict[str, Any] = {}
        depths = {s: stage.depths[0] for s, stage in enumerate(network.stages)}
        for decision in self.decisions:
            if decision.block >= depths[decision.stage]:
                continue
            value = self._suggest(trial, decision)
            params[decision.name] = value
            if decision.role == "depth":
                depths[decision.stage] = value
        return self.decode(self.from_params(params))

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
        network = self._network()
        value = {
            decision.name: decision.choices[index]
            for decision, index in zip(self.decisions, genotype.tolist(), strict=True)
        }
        blocks: list[Block] = []
        for s, stage in enumerate(network.stages):
            size = stage_input_size(network, s)
            for b in range(value.get(f"stage{s + 1}.depth", stage.depths[0])):
                name = f"stage{s + 1}.block{b + 1}"
                block = Block(
                    name,
                    s,
                    b,
                    network.block_inputs(s, b),
                    value[f"{name}.channels"],
                    stage.out_channels,
                    value[f"{name}.kernel"],
                    stage.stride if b == 0 else 1,
                    size,
                    *(value[f"{name}.{bit}"] for bit in BIT_NAMES),
                )
                blocks.append(block)
                size = block.output_size
        return Subnet(network, tuple(blocks))

    # ------------------------------------------------------------------ features

    def _index_features(self) -> None:
        """Assigns a feature column to every (decision, choice), architecture columns first."""
        width = int(self.sizes.max(initial=1))
        columns = np.full((len(self.decisions), width), -1, np.int64)
        scaled: list[tuple[int, int]] = []
        cursor = 0
        for quantization in (False, True):
            for row, decision in enumerate(self.decisions):
                if decision.quantization != quantization or decision.role == "depth":
                    continue
                if decision.scaled:
                    scaled.append((row, cursor))
                    cursor += 1
                    continue
                for choice, value in enumerate(decision.choices):
                    if quantization and value == FLOAT_BITS:
                        continue
                    columns[row, choice] = cursor
                    cursor += 1
            if not quantization:
                self.architecture_features = cursor
        self.num_features = cursor
        columns[columns < 0] = cursor
        self._feature_table = columns.ravel()
        self._feature_offset = np.arange(len(self.decisions)) * width
        self._scaled_rows = np.array([s[0] for s in scaled], np.intp)
        self._scaled_columns = np.array([s[1] for s in scaled], np.intp)

    def feature_indices(self, genotypes: Genotypes) -> NDArray[np.int64]:
        """The set one-hot columns of each genotype, `(n, D)`; `num_features` means none."""
        columns: NDArray[np.int64] = self._feature_table[genotypes + self._feature_offset]
        if len(self._governed_columns):
            inactive = genotypes[:, self._governing] < self._thresholds
            governed = columns[:, self._governed_columns]
            governed[inactive] = self.num_features
            columns[:, self._governed_columns] = governed
        return columns

    def features(self, genotypes: Genotypes) -> Features:
        """`(n, F) float32`: one-hot columns, inactive blocks all zeros, numbers scaled to [0, 1].

        Depth has no columns of its own: a missing block's zeros express it. 32 bits is no column
        set, so a network without quantization has an all-zero quantization part.
        """
        out = np.zeros((len(genotypes), self.num_features + 1), np.float32)
        np.put_along_axis(out, self.feature_indices(genotypes), 1.0, axis=1)
        if len(self._scaled_rows):
            levels = np.maximum(self.sizes[self._scaled_rows] - 1, 1)
            out[:, self._scaled_columns] = genotypes[:, self._scaled_rows] / levels
        return out[:, :-1]

    @property
    def one_hot(self) -> bool:
        """Whether every feature is a one-hot column, so that `feature_indices` says it all."""
        return len(self._scaled_rows) == 0


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
