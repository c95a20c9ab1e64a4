"""The traced family: networks that are a given model with fewer channels and bits.

What a trace of a torch model found, as a value: its layers in execution order, and groups of
channels that stay together. No torch here.

Notation:
    C       channels of a group in the whole model
    c       channels of it that a network keeps
    root    the layer that a group is named after; its channels number the group's
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import SpaceError
from apq_optuna.networks.decisions import Decision
from apq_optuna.networks.family import Extent, Genotypes, Site, Step, Subnet, Width
from apq_optuna.networks.layers import FLOAT_BITS, ConvLayer, PlacedLayer

Run = tuple[int, int, int, int]
"""(start, root, count, repeat): from `start` on, `repeat` channels for each of `count` of the
root's from `root` on."""


@dataclass(frozen=True)
class Member:
    """A dimension of a weight that a group of channels lies along.

    Attributes:
        path: Dotted name of a module, or of a parameter that is no module's own.
        side: `in` or `out` channels of a module, `both` where they are the same (depthwise
            convolutions, norms), or `dimN` of a parameter.
        size: Channels there in the whole model, of other groups too.
        runs: Which of them are whose.
    """

    path: str
    side: str
    size: int
    runs: tuple[Run, ...]

    @property
    def covered(self) -> int:
        """Channels there that belong to the group."""
        return sum(count * repeat for _, _, count, repeat in self.runs)

    def roots(self) -> NDArray[np.int64]:
        """`(size,)`: the root's channel of each; -1 where it is of another group."""
        found = np.full(self.size, -1, np.int64)
        for start, root, count, repeat in self.runs:
            found[start : start + count * repeat] = np.repeat(
                np.arange(root, root + count), repeat
            )
        return found


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that stay together, as one decision.

    Attributes:
        name: Dotted name of the root.
        channels: C.
        choices: How many may be kept, ascending, the last being C.
        parts: Equal parts of the C, one behind the other, of which as many are kept each: grouped
            convolutions and splits need that.
        members: Where the channels are.
    """

    name: str
    channels: int
    choices: tuple[int, ...]
    parts: int
    members: tuple[Member, ...]

    def kept(self, member: Member, channels: int) -> int:
        """How many of a member's channels are left where `channels` of C are."""
        return member.covered * channels // self.channels


@dataclass(frozen=True)
class TracedLayer:
    """A layer of the model at one of its calls.

    Attributes:
        name: What `Subnet.layers()` calls it: its module's, with the number of the call behind it
            from the second on.
        module: Dotted name of its module; empty where it is none (a function of a parameter).
        layer: In the whole model.
        signed: Whether its input can be negative.
        fixed: Its width where that is no choice, else 0.
        norm: Dotted name of the BatchNorm that is folded into it, or empty.
    """

    name: str
    module: str
    layer: ConvLayer
    signed: bool = True
    fixed: int = 0
    norm: str = ""


@dataclass(frozen=True)
class TracedFamily:
    """A model as a family of networks.

    Attributes:
        name: What it is called in messages.
        input_shape: (channels, height, width) of an image.
        num_classes: Classes of the data.
        bits: Widths there are, ascending.
        groups: Searched groups of channels, in the order of their roots.
        traced: The layers in execution order.
        writes_input: Whether the model writes to the images it is given.
        channels_last: Whether the model works on images laid out channels last, in which it
            convolves faster; one that calls `view` on them does not.
        notes: What a trace had to say: what stays whole, and why. Not part of the value.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    bits: tuple[int, ...]
    groups: tuple[ChannelGroup, ...]
    traced: tuple[TracedLayer, ...]
    writes_input: bool = False
    channels_last: bool = True
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.bits or any(not (2 <= b <= 8 or b == FLOAT_BITS) for b in self.bits):
            raise SpaceError(f"bits={self.bits}: allowed are 2 to 8, and 32 for float")
        if list(self.bits) != sorted(set(self.bits)):
            raise SpaceError(f"bits={self.bits}: must be ascending and distinct")

    # ------------------------------------------------------------------ the protocol

    def decisions(self) -> tuple[Decision, ...]:
        """Channels of each group beside its root, and two widths of each searched layer."""
        return self._decisions

    def sites(self) -> tuple[Site, ...]:
        """The layers in execution order."""
        return self._sites

    def decode(self, genotype: Genotypes) -> TracedSubnet:
        """One genotype `(D,)` as a network."""
        row = genotype.tolist()
        column = self._columns
        channels = tuple(
            group.choices[row[column[f"{group.name}.channels"]]] for group in self.groups
        )
        bits = tuple(
            (self.bits[row[column[f"{name}.w_bits"]]], self.bits[row[column[f"{name}.a_bits"]]])
            for name in self.searched
        )
        return TracedSubnet(self, channels, bits)

    def to_dict(self) -> dict[str, Any]:
        """The family in JSON types."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "notes"}
        found["groups"] = [asdict(group) for group in self.groups]
        found["traced"] = [asdict(layer) for layer in self.traced]
        return {"family": "traced", **found}

    def architecture(self) -> dict[str, Any]:
        """`to_dict` without bit-widths."""
        found = self.to_dict() | {"bits": []}
        for layer in found["traced"]:
            layer["fixed"] = 0
        return found

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> TracedFamily:
        """The inverse of `to_dict`.

        Raises:
            SpaceError: Not such a description.
        """
        try:
            return cls(
                str(description["name"]),
                _triple(description["input_shape"]),
                int(description["num_classes"]),
                tuple(description["bits"]),
                tuple(_group(group) for group in description["groups"]),
                tuple(_layer(layer) for layer in description["traced"]),
                bool(description.get("writes_input", False)),
                bool(description.get("channels_last", True)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SpaceError(f"not the description of a traced model: {error}") from error

    def subnet(self, description: Mapping[str, Any]) -> TracedSubnet:
        """The network that `TracedSubnet.to_dict` described.

        Raises:
            SpaceError: Not such a description.
        """
        try:
            channels = tuple(description["channels"][group.name] for group in self.groups)
            bits = tuple(tuple(description["bits"][name]) for name in self.searched)
        except (KeyError, TypeError) as error:
            raise SpaceError(f"not the description of a network: {error}") from error
        for group, count in zip(self.groups, channels, strict=True):
            if count not in group.choices:
                raise SpaceError(
                    f"{group.name}.channels={count!r} is not one of {list(group.choices)}"
                )
        if any(len(pair) != 2 for pair in bits):
            raise SpaceError("not the description of a network: two widths a layer")
        return TracedSubnet(self, channels, bits)

    # ------------------------------------------------------------------ worked out once

    @cached_property
    def searched(self) -> tuple[str, ...]:
        """Modules whose widths are choices, in the order of their first calls."""
        return tuple(dict.fromkeys(t.module for t in self.traced if t.module and not t.fixed))

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {decision.name: c for c, decision in enumerate(self._decisions)}

    @cached_property
    def _decisions(self) -> tuple[Decision, ...]:
        groups = {group.name: group for group in self.groups}
        found: list[Decision] = []
        for name in dict.fromkeys(t.module for t in self.traced if t.module):
            if name in groups:
                found.append(Decision(f"{name}.channels", groups[name].choices, "channels", name))
            if name in self.searched:
                found += [
                    Decision(f"{name}.{bits}", self.bits, "bits", name)
                    for bits in ("w_bits", "a_bits")
                ]
        return tuple(found)

    @cached_property
    def ends(self) -> dict[tuple[str, str], list[tuple[int, Member]]]:
        """(position of a group, member) of everything that lies along a module's `in` or `out`."""
        found: dict[tuple[str, str], list[tuple[int, Member]]] = {}
        for g, group in enumerate(self.groups):
            for member in group.members:
                for side in ("in", "out") if member.side == "both" else (member.side,):
                    found.setdefault((member.path, side), []).append((g, member))
        return found

    def extent(self, module: str, side: str, whole: int) -> Extent:
        """How many channels a module has at its `in` or `out`; `whole` in the model."""
        terms, covered = [], 0
        for g, member in self.ends.get((module, side), ()):
            group = self.groups[g]
            covered += member.covered
            values = tuple(group.kept(member, c) for c in group.choices)
            terms.append((self._columns[f"{group.name}.channels"], values))
        return Extent(whole - covered, tuple(terms))

    @cached_property
    def _sites(self) -> tuple[Site, ...]:
        found = []
        for t in self.traced:
            inputs, outputs = (
                self.extent(t.module, "in", t.layer.in_channels),
                self.extent(t.module, "out", t.layer.out_channels),
            )
            w_bits = a_bits = Width((t.fixed or FLOAT_BITS,))
            if t.module in self.searched and not t.fixed:
                w_bits, a_bits = (
                    Width(self.bits, self._columns[f"{t.module}.{bits}"])
                    for bits in ("w_bits", "a_bits")
                )
            kind = "linear" if t.layer.linear else "convolution"
            found.append(Site(t.name, kind, t.layer, inputs, outputs, w_bits, a_bits))
        return tuple(found)


@dataclass(frozen=True)
class TracedSubnet(Subnet):
    """One network: the model with so many channels and such widths.

    Attributes:
        spec: The family it belongs to.
        channels: Of each of `spec.groups`.
        bits: (weights, input) of each of `spec.searched`.
    """

    spec: TracedFamily
    channels: tuple[int, ...]
    bits: tuple[tuple[int, int], ...]

    @property
    def family(self) -> TracedFamily:
        """The family it belongs to."""
        return self.spec

    def layers(self) -> Iterator[PlacedLayer]:
        """Every layer in execution order, one that is called twice two times."""
        spec = self.spec
        row = np.zeros((1, len(spec.decisions())), np.int32)
        for group, channels in zip(spec.groups, self.channels, strict=True):
            row[0, spec._columns[f"{group.name}.channels"]] = group.choices.index(channels)
        widths = dict(zip(spec.searched, self.bits, strict=True))
        for traced, site in zip(spec.traced, spec.sites(), strict=True):
            layer = site.layer_of(site.sizes(row)[0]) if site.columns else traced.layer
            fixed = traced.fixed or FLOAT_BITS
            w_bits, a_bits = widths.get(traced.module, (fixed, fixed))
            yield PlacedLayer(traced.name, layer, w_bits, a_bits, site.searched)

    def steps(self) -> tuple[Step, ...]:
        """Not known: a model of one's own is wired by its own code.

        Raises:
            SpaceError: Always.
        """
        raise SpaceError(
            f"{self.spec.name}: the wiring of a traced model is its own code: no device runs its "
            "networks whole"
        )

    def with_bits(self, bits: int) -> TracedSubnet:
        """The same channels with one bit-width for every searched layer."""
        return replace(self, bits=((int(bits), int(bits)),) * len(self.bits))

    def to_dict(self) -> dict[str, Any]:
        """Channels and widths by name, in JSON types."""
        names = (group.name for group in self.spec.groups)
        return {
            "channels": dict(zip(names, self.channels, strict=True)),
            "bits": {n: list(b) for n, b in zip(self.spec.searched, self.bits, strict=True)},
        }

    @property
    def identity(self) -> str:
        """A text that two networks share only if they are the same."""
        return repr((self.spec.name, list(self.layers())))


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (int(value) for value in values)
    return channels, height, width


def _group(description: Mapping[str, Any]) -> ChannelGroup:
    members = tuple(
        Member(m["path"], m["side"], m["size"], tuple(_run(run) for run in m["runs"]))
        for m in description["members"]
    )
    return ChannelGroup(**dict(description) | {
        "choices": tuple(description["choices"]), "members": members,
    })  # fmt: skip


def _run(values: Sequence[int]) -> Run:
    start, root, count, repeat = (int(value) for value in values)
    return start, root, count, repeat


def _layer(description: Mapping[str, Any]) -> TracedLayer:
    return TracedLayer(**dict(description) | {"layer": ConvLayer(**description["layer"])})
