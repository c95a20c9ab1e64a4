"""The mobile family: inverted residual blocks (Cai et al., ICLR 2020; Wang et al., CVPR 2020).

A stem, one fixed depthwise-separable block, stages of inverted residual blocks, a last 1x1
convolution and a classifier. Only the inverted residual blocks are searched; everything else is
fixed at `FIXED_BITS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from apq_optuna.errors import SpaceError
from apq_optuna.networks.blocks import Block, StageSpec
from apq_optuna.networks.decisions import Decision
from apq_optuna.networks.family import Extent, Genotypes, Needs, Site, Step, Subnet, Width
from apq_optuna.networks.layers import FLOAT_BITS, ConvLayer, PlacedLayer, as_whole

FIXED_BITS = 8
"""Bit-width of the stem, the first block, the last convolution and the classifier."""

BIT_NAMES = ("pw_w_bits", "pw_a_bits", "dw_w_bits", "dw_a_bits")
"""Of a block: both pointwise layers and the depthwise one, weights and inputs."""


@dataclass(frozen=True)
class MobileFamily:
    """The family: everything that is fixed, and the choices that are not.

    Attributes:
        name: Name of the preset the family started from.
        image_size: Side of the square input, in pixels.
        in_channels, num_classes: Of the data.
        stem_channels, stem_stride: Of the first 3x3 convolution.
        first_channels: Output of the fixed first block.
        stages: The searched stages.
        last_channels: Output of the last 1x1 convolution.
        bits: Allowed bit-widths, ascending; 32 is float.
        channel_step: Step between the allowed expanded channels.
    """

    name: str
    image_size: int
    in_channels: int
    num_classes: int
    stem_channels: int
    stem_stride: int
    first_channels: int
    stages: tuple[StageSpec, ...]
    last_channels: int
    bits: tuple[int, ...]
    channel_step: int = 8

    def __post_init__(self) -> None:
        for name in ("bits", "stages"):  # a list would do, but not as a key
            object.__setattr__(self, name, tuple(getattr(self, name)))
        whole = ("in_channels", "num_classes", "image_size", "first_channels", "last_channels")
        for name in whole:
            object.__setattr__(self, name, whole_or_refused(name, getattr(self, name)))
        widths = tuple(whole_or_refused("bits", width) for width in self.bits)
        object.__setattr__(self, "bits", widths)
        if self.num_classes < 2:
            raise SpaceError(f"num_classes={self.num_classes}: a classifier needs at least 2")
        if self.image_size < 4:
            raise SpaceError(f"image_size={self.image_size}: at least 4 pixels are needed")
        if not self.bits or any(not (2 <= b <= 8 or b == FLOAT_BITS) for b in self.bits):
            raise SpaceError(f"bits={self.bits}: allowed are 2 to 8, and 32 for float")
        if list(self.bits) != sorted(set(self.bits)):
            raise SpaceError(f"bits={self.bits}: must be ascending and distinct")

    def channel_choices(self, stage: int, block: int) -> tuple[int, ...]:
        """Expanded channels allowed in a block (stage and block counted from 0)."""
        low, high = self.stages[stage].expansion
        inputs = self.block_inputs(stage, block)
        step = self.channel_step
        first = -(-low * inputs // step) * step
        return tuple(range(first, max(high * inputs, first) + 1, step))

    def block_inputs(self, stage: int, block: int) -> int:
        """Input channels of a block (stage and block counted from 0)."""
        if block > 0:
            return self.stages[stage].out_channels
        return self.stages[stage - 1].out_channels if stage > 0 else self.first_channels

    def hand_made(self) -> tuple[MobileFamily, ...]:
        """Families of a single network each, its bits alone a choice, from large to small.

        Like MobileNetV2 (Sandler et al., CVPR 2018) they have the smallest kernel and one
        expansion throughout: the largest there is at middle depths, then the smallest there, then
        the smallest at the least depths.
        """

        def shaped(depth: float, expansion: int) -> MobileFamily:
            stages = tuple(
                replace(
                    stage, kernels=stage.kernels[:1],
                    depths=(stage.depths[int(depth * len(stage.depths))],),
                    expansion=(stage.expansion[expansion],) * 2,
                )
                for stage in self.stages
            )  # fmt: skip
            return replace(self, stages=stages)

        return shaped(0.5, 1), shaped(0.5, 0), shaped(0.0, 0)

    # ------------------------------------------------------------------ the protocol

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return (self.in_channels, self.image_size, self.image_size)

    def decisions(self) -> tuple[Decision, ...]:
        """Depth of each stage, and kernel, channels and four bit-widths of each block."""
        return _decisions(self)

    def sites(self) -> tuple[Site, ...]:
        """Every layer that some network has, in execution order."""
        return _sites(self)

    def decode(self, genotype: Genotypes) -> MobileSubnet:
        """One genotype `(D,)` as a network."""
        value = {
            decision.name: decision.choices[index]
            for decision, index in zip(self.decisions(), genotype.tolist(), strict=True)
        }
        blocks = []
        for s, b, size, stride in _blocks(self):
            stage, name = self.stages[s], _block_name(s, b)
            if b >= value.get(f"stage{s + 1}.depth", stage.depths[0]):
                continue
            blocks.append(
                Block(
                    name, s, b, self.block_inputs(s, b), value[f"{name}.channels"],
                    stage.out_channels, value[f"{name}.kernel"], stride, size,
                    *(value[f"{name}.{bit}"] for bit in BIT_NAMES),
                )
            )  # fmt: skip
        return MobileSubnet(self, tuple(blocks))

    def to_dict(self) -> dict[str, Any]:
        """The family in JSON types."""
        return asdict(self)

    def architecture(self) -> dict[str, Any]:
        """`to_dict` without bit-widths."""
        return asdict(replace(self, bits=(8,)))

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> MobileFamily:
        """The inverse of `to_dict`.

        Raises:
            SpaceError: The description does not have the fields of the family.
        """
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
            fields.pop("family", None)
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise SpaceError(f"not the description of a network family: {error}") from error

    def subnet(self, description: Mapping[str, Any]) -> MobileSubnet:
        """The network that `MobileSubnet.to_dict` described.

        Raises:
            SpaceError: Not such a description.
        """
        try:
            return MobileSubnet(self, tuple(Block(**block) for block in description["blocks"]))
        except (KeyError, TypeError) as error:
            raise SpaceError(f"not the description of a network: {error}") from error


def stem_layers(family: MobileFamily) -> tuple[PlacedLayer, PlacedLayer, PlacedLayer]:
    """The fixed layers before the searched stages: stem, first depthwise, first pointwise."""
    stem = ConvLayer(
        family.in_channels, family.stem_channels, family.image_size, 3, family.stem_stride, 1, 1
    )
    size, channels = stem.output_size[0], family.stem_channels
    return (
        PlacedLayer("stem", stem, FIXED_BITS, FIXED_BITS, searched=False),
        PlacedLayer(
            "first.depthwise", ConvLayer(channels, channels, size, 3, 1, 1, channels),
            FIXED_BITS, FIXED_BITS, searched=False,
        ),
        PlacedLayer(
            "first.project", ConvLayer(channels, family.first_channels, size, 1, 1, 0, 1),
            FIXED_BITS, FIXED_BITS, searched=False,
        ),
    )  # fmt: skip


def tail_layers(family: MobileFamily) -> tuple[PlacedLayer, PlacedLayer]:
    """The fixed layers after the searched stages: last convolution and classifier."""
    size = stage_input_size(family, len(family.stages))
    last = ConvLayer(family.stages[-1].out_channels, family.last_channels, size, 1, 1, 0, 1)
    classifier = ConvLayer(family.last_channels, family.num_classes, 1, 1, 1, 0, 1, linear=True)
    return (
        PlacedLayer("last", last, FIXED_BITS, FIXED_BITS, searched=False),
        PlacedLayer("classifier", classifier, FIXED_BITS, FIXED_BITS, searched=False),
    )


def stage_input_size(family: MobileFamily, stage: int) -> int:
    """Side in pixels of the input of a stage (counted from 0); one past the end is the output."""
    size = (family.image_size - 1) // family.stem_stride + 1
    for done in family.stages[:stage]:
        size = (size - 1) // done.stride + 1
    return size


@dataclass(frozen=True)
class MobileSubnet(Subnet):
    """One network of the family: its active blocks in order.

    Attributes:
        spec: The family it belongs to.
        blocks: The active blocks.
    """

    spec: MobileFamily
    blocks: tuple[Block, ...]

    @property
    def family(self) -> MobileFamily:
        """The family it belongs to."""
        return self.spec

    def layers(self) -> Iterator[PlacedLayer]:
        """Every convolution and linear layer in execution order, fixed ones included."""
        yield from stem_layers(self.spec)
        for block in self.blocks:
            yield from block.layers()
        yield from tail_layers(self.spec)

    def steps(self) -> tuple[Step, ...]:
        """Layers in a row; a residual block's input is added to its output."""
        found: list[Step] = []
        layer = -1

        def apply(source: int, *, relu: bool) -> int:
            nonlocal layer
            layer += 1
            found.append(Step("layer", (source,), layer, relu))
            return len(found) - 1

        x = apply(apply(apply(-1, relu=True), relu=True), relu=False)
        for block in self.blocks:
            y = apply(apply(apply(x, relu=True), relu=True), relu=False)
            if block.residual:
                found.append(Step("add", (x, y)))
                y += 1
            x = y
        found.append(Step("mean", (apply(x, relu=True),)))
        apply(len(found) - 1, relu=False)
        return tuple(found)

    def with_bits(self, bits: int) -> MobileSubnet:
        """The same architecture with one bit-width for every searched layer."""
        bits = whole_or_refused("bits", bits)
        blocks = tuple(
            replace(b, pw_w_bits=bits, pw_a_bits=bits, dw_w_bits=bits, dw_a_bits=bits)
            for b in self.blocks
        )
        return replace(self, blocks=blocks)

    def to_dict(self) -> dict[str, Any]:
        """The blocks in JSON types."""
        return {"blocks": [asdict(block) for block in self.blocks]}

    @property
    def identity(self) -> str:
        """A text that two networks share only if they are the same."""
        # finetuning is seeded by it: another text would measure every known network anew
        return repr([(block.name, block) for block in self.blocks])

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of active blocks of each stage."""
        return tuple(
            sum(block.stage == stage for block in self.blocks)
            for stage in range(len(self.spec.stages))
        )


# ---------------------------------------------------------------------- decisions and sites


def _blocks(family: MobileFamily) -> Iterator[tuple[int, int, int, int]]:
    """(stage, block, input side, stride) of every block that some network has, in order."""
    for s, stage in enumerate(family.stages):
        size = stage_input_size(family, s)
        for b in range(stage.depths[-1]):
            stride = stage.stride if b == 0 else 1
            yield s, b, size, stride
            size = (size - 1) // stride + 1


def _block_name(stage: int, block: int) -> str:
    return f"stage{stage + 1}.block{block + 1}"


def _needs(stage: StageSpec, block: int) -> int:
    """The least depth index at which a block is in use; 0 where it always is."""
    return sum(depth <= block for depth in stage.depths)


@lru_cache(maxsize=64)
def _decisions(family: MobileFamily) -> tuple[Decision, ...]:
    found: list[Decision] = []
    for s, stage in enumerate(family.stages):
        depth = f"stage{s + 1}.depth"
        if len(stage.depths) > 1:
            found.append(Decision(depth, stage.depths, "depth"))
        for b in range(stage.depths[-1]):
            name, least = _block_name(s, b), _needs(stage, b)
            parts = [("kernel", stage.kernels, "kernel")]
            parts.append(("channels", family.channel_choices(s, b), "channels"))
            parts += [(bit, family.bits, "bits") for bit in BIT_NAMES]
            found += [
                Decision(f"{name}.{part}", choices, role, name, (depth, least) if least else None)
                for part, choices, role in parts
            ]
    return tuple(found)


@lru_cache(maxsize=64)
def _sites(family: MobileFamily) -> tuple[Site, ...]:
    column = {decision.name: c for c, decision in enumerate(family.decisions())}
    found = [Site.fixed(placed) for placed in stem_layers(family)]
    for s, b, size, stride in _blocks(family):
        stage, name, least = family.stages[s], _block_name(s, b), _needs(family.stages[s], b)
        choices = family.channel_choices(s, b)
        needs: Needs | None = (column[f"stage{s + 1}.depth"], least) if least else None
        pw_w, pw_a, dw_w, dw_a = (Width(family.bits, column[f"{name}.{bit}"]) for bit in BIT_NAMES)
        channels = Extent(0, ((column[f"{name}.channels"], choices),))
        kernel = Extent(0, ((column[f"{name}.kernel"], stage.kernels),))
        inputs, outputs = Extent(family.block_inputs(s, b)), Extent(stage.out_channels)
        block = Block(
            name, s, b, inputs.constant, choices[-1], outputs.constant, stage.kernels[-1], stride,
            size, *[FIXED_BITS] * 4,
        )  # fmt: skip
        expand, depthwise, project = block.layers()
        found += [
            Site(expand.name, "expand", expand.layer, inputs, channels, pw_w, pw_a, needs=needs),
            Site(
                depthwise.name, "depthwise", depthwise.layer, channels, channels, dw_w, dw_a,
                kernel=kernel, needs=needs,
            ),
            Site(
                project.name, "project", project.layer, channels, outputs, pw_w, pw_a,
                needs=needs,
            ),
        ]  # fmt: skip
    return (*found, *(Site.fixed(placed) for placed in tail_layers(family)))


def whole_or_refused(name: str, value: Any) -> int:
    """A whole number of any kind as Python's: it goes into hashes, caches and files.

    Raises:
        SpaceError: It is none.
    """
    try:
        return as_whole(value)
    except TypeError:
        raise SpaceError(f"{name}={value!r}: not a whole number") from None
