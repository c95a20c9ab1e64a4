"""The family protocol: all that the rest of the package knows of the networks it searches.

Notation:
    D, n    decisions; genotypes in a batch, `(n, D) int32`, rows of choice indices
    site    a layer that some network of the family has
    s       distinct sizes of a site

From the sites alone follow cost tables and their compilation, MACs, quantization noise, the
entries that a table needs, and pictures of networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import SpaceError
from apq_optuna.networks.decisions import Decision
from apq_optuna.networks.layers import ConvLayer, PlacedLayer, as_pair

Genotypes = NDArray[np.int32]

Needs = tuple[int, int]
"""(column, index): in use while the genotype's choice in that column is at least the index."""


@dataclass(frozen=True)
class Extent:
    """A size of a layer: a constant, and what each of some decisions adds to it.

    The input of a layer after a concatenation is a sum over many decisions.

    Attributes:
        constant: What is there in every network.
        terms: (column, what each of the decision's choices adds).
    """

    constant: int = 0
    terms: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        """One term a decision: what it adds in two places (`cat([x, x])`) is added up."""
        merged: dict[int, tuple[int, ...]] = {}
        for column, values in self.terms:
            before = merged.get(column, (0,) * len(values))
            merged[column] = tuple(a + b for a, b in zip(before, values, strict=True))
        object.__setattr__(self, "terms", tuple(merged.items()))

    def __call__(self, genotypes: Genotypes) -> NDArray[np.int64]:
        """`(n, D)` genotypes to `(n,)` sizes."""
        total = np.full(len(genotypes), self.constant, np.int64)
        for column, values in self.terms:
            total += np.array(values, np.int64)[genotypes[:, column]]
        return total


@dataclass(frozen=True)
class Width:
    """A bit-width: a decision's, or the same in every network.

    Attributes:
        bits: The widths there are, ascending; one where it is fixed.
        column: Of the decision; None where it is fixed.
    """

    bits: tuple[int, ...]
    column: int | None = None


@dataclass(frozen=True)
class Site:
    """A layer that some network of a family has: where it is, and what decides its shape.

    Attributes:
        name: The name of the layer in `Subnet.layers()`.
        kind: What the family calls layers of this sort, for sums over them.
        layer: One layer it can be; channels, kernel and padding follow the extents, and so do
            groups where there are as many as input channels.
        in_channels, out_channels, kernel: Of the others; `kernel` is the side of a square kernel,
            None where the kernel is `layer`'s.
        w_bits, a_bits: Of weights and input.
        needs: When it is in use; None is always.
    """

    name: str
    kind: str
    layer: ConvLayer
    in_channels: Extent
    out_channels: Extent
    w_bits: Width
    a_bits: Width
    kernel: Extent | None = None
    needs: Needs | None = None

    @classmethod
    def fixed(cls, placed: PlacedLayer, kind: str = "fixed") -> Site:
        """The site of a layer that is the same in every network."""
        layer = placed.layer
        return cls(
            placed.name, kind, layer, Extent(layer.in_channels), Extent(layer.out_channels),
            Width((placed.w_bits,)), Width((placed.a_bits,)),
        )  # fmt: skip

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Input channels, output channels and, where it is a choice, the kernel."""
        kernel = () if self.kernel is None else (self.kernel,)
        return (self.in_channels, self.out_channels, *kernel)

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns that decide the shape, the kernel's first, each once."""
        found = (column for extent in reversed(self.extents) for column, _ in extent.terms)
        return tuple(dict.fromkeys(found))

    @property
    def bit_columns(self) -> tuple[int, ...]:
        """Columns of the weights' and of the input's width, where they are choices."""
        columns = (self.w_bits.column, self.a_bits.column)
        return tuple(dict.fromkeys(column for column in columns if column is not None))

    @property
    def searched(self) -> bool:
        """Whether something about the layer is a choice."""
        return bool(self.columns or self.bit_columns)

    def sizes(self, genotypes: Genotypes) -> NDArray[np.int64]:
        """`(n, D)` genotypes to `(n, k)`: a column for each of `extents`."""
        return np.stack([extent(genotypes) for extent in self.extents], axis=1)

    def distinct(self) -> NDArray[np.int64]:
        """The sizes it can have, `(s, k)`, each once, ascending.

        Built decision by decision, so that a sum over many of them is never a product.
        """
        found = np.array([[extent.constant for extent in self.extents]], np.int64)
        for column in self.columns:
            added = [dict(extent.terms).get(column, (0,)) for extent in self.extents]
            choices = max(map(len, added))
            steps = np.stack([np.broadcast_to(values, choices) for values in added], axis=1)
            found = np.unique((found[:, None] + steps).reshape(-1, found.shape[1]), axis=0)
        return found

    def layer_of(self, sizes: NDArray[np.int64]) -> ConvLayer:
        """The layer at one row of sizes, `(k,)`."""
        inputs, outputs, *kernel = sizes.tolist()
        layer = self.layer
        follows = layer.groups > 1 and layer.groups == layer.in_channels
        groups = inputs if follows else layer.groups
        changed = replace(layer, in_channels=inputs, out_channels=outputs, groups=groups)
        if not kernel:
            return changed
        dilation = as_pair(layer.dilation)[0]
        padding = dilation * (kernel[0] - 1) // 2
        return replace(changed, kernel_size=kernel[0], padding=padding)

    def layers(self) -> list[ConvLayer]:
        """Every layer it can be, in the order of `distinct`."""
        return [self.layer_of(row) for row in self.distinct()]


@dataclass(frozen=True)
class Step:
    """One operation of a network, in execution order.

    Attributes:
        operation: `layer`, `add` (of two tensors), `concat` (of their channels), or `mean` (over
            pixels).
        inputs: Positions of the steps whose outputs it takes; -1 is the image.
        layer: Position in `Subnet.layers()`, of a `layer`.
        relu: Whether a ReLU follows.
    """

    operation: str
    inputs: tuple[int, ...]
    layer: int = -1
    relu: bool = False


class Subnet(ABC):
    """One network of a family: a value from which a module can be built."""

    @property
    @abstractmethod
    def family(self) -> Family:
        """The family it belongs to."""

    @abstractmethod
    def layers(self) -> Iterator[PlacedLayer]:
        """Every convolution and linear layer in execution order, fixed ones included."""

    @abstractmethod
    def steps(self) -> tuple[Step, ...]:
        """How the layers are wired, the last step being the logits."""

    @abstractmethod
    def with_bits(self, bits: int) -> Self:
        """The same architecture with one bit-width wherever a width is a choice."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The network in JSON types; the inverse of `Family.subnet`."""

    @property
    def identity(self) -> str:
        """A text that two networks share only if they are the same."""
        return repr(list(self.layers()))

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return sum(placed.layer.macs for placed in self.layers())

    @property
    def bitops(self) -> int:
        """MACs weighted by both operands' bit-widths, the usual hardware-free cost."""
        return sum(p.layer.macs * p.w_bits * p.a_bits for p in self.layers())

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights at their bit-widths."""
        return sum(p.layer.weights * p.w_bits for p in self.layers()) / 8


class Family(Protocol):
    """All that the rest of the package knows of the networks it searches.

    A family is a value: equal descriptions are equal families, and it needs no weights.
    """

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""

    @property
    def num_classes(self) -> int:
        """Classes of the data."""

    def decisions(self) -> tuple[Decision, ...]:
        """The parameters in column order; one that others need comes before them."""

    def sites(self) -> tuple[Site, ...]:
        """Every layer that some network has, in execution order."""

    def decode(self, genotype: Genotypes) -> Subnet:
        """One canonical genotype `(D,)` as a network; its layers bear the sites' names."""

    def to_dict(self) -> dict[str, Any]:
        """The family in JSON types: what a study and a checkpoint keep of it.

        All but the mobile family name their reader in `families.FAMILIES` as `"family"`.
        """

    def architecture(self) -> dict[str, Any]:
        """`to_dict` without bit-widths: families that share it share fp32 pairs."""

    def subnet(self, description: Mapping[str, Any]) -> Subnet:
        """The network that `Subnet.to_dict` described.

        Raises:
            SpaceError: The description is of no network of the family.
        """


def check_family(family: Family) -> None:
    """Whether decisions and sites of a family fit together.

    Raises:
        SpaceError: A site's sizes or widths are not those of the decisions that they follow, or it
            divides its channels into groups that do not divide them.
    """
    choices = [decision.choices for decision in family.decisions()]
    for site in family.sites():
        for width in (site.w_bits, site.a_bits):
            if width.column is not None and tuple(width.bits) != tuple(choices[width.column]):
                raise SpaceError(
                    f"{site.name} has widths {list(width.bits)}, its decision "
                    f"{list(choices[width.column])}"
                )
            if width.column is None and len(width.bits) != 1:
                raise SpaceError(f"{site.name} has widths {list(width.bits)} and no decision")
        for extent in site.extents:
            for column, values in extent.terms:
                if len(values) != len(choices[column]):
                    raise SpaceError(
                        f"{site.name} has {len(values)} sizes for the {len(choices[column])} "
                        f"choices of {family.decisions()[column].name}"
                    )
        for layer in site.layers():
            if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
                raise SpaceError(
                    f"{site.name}: {layer.groups} groups do not divide {layer.in_channels} and "
                    f"{layer.out_channels} channels"
                )
