"""What one genotype means as a network: layers with shapes, channels and bit-widths.

The network family is MobileNet-style (Cai et al., ICLR 2020; Wang et al., CVPR 2020): a stem, one
fixed depthwise-separable block, stages of inverted residual blocks, a last 1x1 convolution and a
classifier. Only the inverted residual blocks are searched; everything else is fixed at
`FIXED_BITS`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from apq_optuna.errors import SpaceError

FIXED_BITS = 8
"""Bit-width of the stem, the first block, the last convolution and the classifier."""

FLOAT_BITS = 32
"""The width that stands for "not quantized"."""

Size = int | tuple[int, int]


def as_pair(size: Size) -> tuple[int, int]:
    """An int or a (height, width) pair as a pair."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclass(frozen=True, order=True)
class ConvLayer:
    """One convolution or linear layer: the unit of cost.

    Attributes:
        in_channels: Input channels (features of a linear layer).
        out_channels: Output channels.
        input_size: Height and width of the input, before padding; an int when square.
        kernel_size: Kernel height and width; an int when square.
        stride, padding, dilation: As in `torch.nn.Conv2d`; ints when the same on both axes.
        groups: 1 is dense, `in_channels` is depthwise.
        linear: A linear layer, which is a 1x1 convolution on one pixel.
    """

    in_channels: int
    out_channels: int
    input_size: Size
    kernel_size: Size
    stride: Size
    padding: Size
    groups: int
    dilation: Size = 1
    linear: bool = False

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        sizes = zip(
            as_pair(self.input_size), as_pair(self.kernel_size), as_pair(self.stride),
            as_pair(self.padding), as_pair(self.dilation), strict=True,
        )  # fmt: skip
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return height, width

    @property
    def weights(self) -> int:
        """Number of weights, biases not counted."""
        return (
            self.out_channels
            * (self.in_channels // self.groups)
            * math.prod(as_pair(self.kernel_size))
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return self.weights * math.prod(self.output_size)

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved on its own."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels


@dataclass(frozen=True)
class PlacedLayer:
    """A layer of a network with its name there and its bit-widths (`a_bits` is its input's)."""

    name: str
    layer: ConvLayer
    w_bits: int
    a_bits: int


@dataclass(frozen=True)
class StageSpec:
    """One stage of the network family.

    Attributes:
        out_channels: Output channels of every block of the stage.
        stride: Stride of the stage's first block.
        depths: Allowed numbers of blocks, ascending.
        kernels: Allowed depthwise kernel sizes, odd, ascending.
        expansion: Lowest and highest expanded channels, as multiples of the block's input
            channels.
    """

    out_channels: int
    stride: int
    depths: tuple[int, ...]
    kernels: tuple[int, ...] = (3, 5, 7)
    expansion: tuple[int, int] = (4, 6)


@dataclass(frozen=True)
class NetworkSpec:
    """A family of networks: everything that is fixed, and the choices that are not.

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


@dataclass(frozen=True)
class Block:
    """One inverted residual block as chosen: shape and policy.

    `pw_*` are the bit-widths of both pointwise layers, `dw_*` of the depthwise one.
    """

    name: str
    stage: int
    index: int
    in_channels: int
    channels: int
    out_channels: int
    kernel: int
    stride: int
    input_size: int
    pw_w_bits: int
    pw_a_bits: int
    dw_w_bits: int
    dw_a_bits: int

    @property
    def output_size(self) -> int:
        """Side of the output, in pixels."""
        return (self.input_size - 1) // self.stride + 1

    @property
    def residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def layers(self) -> tuple[PlacedLayer, PlacedLayer, PlacedLayer]:
        """Expand, depthwise and project layers, in order."""
        n, c = self.input_size, self.channels
        expand = ConvLayer(self.in_channels, c, n, 1, 1, 0, 1)
        depthwise = ConvLayer(c, c, n, self.kernel, self.stride, self.kernel // 2, c)
        project = ConvLayer(c, self.out_channels, self.output_size, 1, 1, 0, 1)
        return (
            PlacedLayer(f"{self.name}.expand", expand, self.pw_w_bits, self.pw_a_bits),
            PlacedLayer(f"{self.name}.depthwise", depthwise, self.dw_w_bits, self.dw_a_bits),
            PlacedLayer(f"{self.name}.project", project, self.pw_w_bits, self.pw_a_bits),
        )


def stem_layers(spec: NetworkSpec) -> tuple[PlacedLayer, PlacedLayer, PlacedLayer]:
    """The fixed layers before the searched stages: stem, first depthwise, first pointwise."""
    stem = ConvLayer(
        spec.in_channels, spec.stem_channels, spec.image_size, 3, spec.stem_stride, 1, 1
    )
    size, channels = stem.output_size[0], spec.stem_channels
    return (
        PlacedLayer("stem", stem, FIXED_BITS, FIXED_BITS),
        PlacedLayer(
            "first.depthwise", ConvLayer(channels, channels, size, 3, 1, 1, channels),
            FIXED_BITS, FIXED_BITS,
        ),
        PlacedLayer(
            "first.project", ConvLayer(channels, spec.first_channels, size, 1, 1, 0, 1),
            FIXED_BITS, FIXED_BITS,
        ),
    )  # fmt: skip


def tail_layers(spec: NetworkSpec) -> tuple[PlacedLayer, PlacedLayer]:
    """The fixed layers after the searched stages: last convolution and classifier."""
    size = stage_input_size(spec, len(spec.stages))
    last = ConvLayer(spec.stages[-1].out_channels, spec.last_channels, size, 1, 1, 0, 1)
    classifier = ConvLayer(spec.last_channels, spec.num_classes, 1, 1, 1, 0, 1, linear=True)
    return (
        PlacedLayer("last", last, FIXED_BITS, FIXED_BITS),
        PlacedLayer("classifier", classifier, FIXED_BITS, FIXED_BITS),
    )


def stage_input_size(spec: NetworkSpec, stage: int) -> int:
    """Side in pixels of the input of a stage (counted from 0); one past the end is the output."""
    size = (spec.image_size - 1) // spec.stem_stride + 1
    for done in spec.stages[:stage]:
        size = (size - 1) // done.stride + 1
    return size


@dataclass(frozen=True)
class Subnet:
    """One network of the family: its active blocks in order.

    Attributes:
        spec: The family it belongs to.
        blocks: The active blocks.
    """

    spec: NetworkSpec
    blocks: tuple[Block, ...]

    def layers(self) -> Iterator[PlacedLayer]:
        """Every convolution and linear layer in execution order, fixed ones included."""
        yield from stem_layers(self.spec)
        for block in self.blocks:
            yield from block.layers()
        yield from tail_layers(self.spec)

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

    def with_bits(self, bits: int) -> "Subnet":
        """The same architecture with one bit-width for every searched layer."""
        blocks = tuple(
            replace(b, pw_w_bits=bits, pw_a_bits=bits, dw_w_bits=bits, dw_a_bits=bits)
            for b in self.blocks
        )
        return replace(self, blocks=blocks)

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of active blocks of each stage."""
        return tuple(
            sum(block.stage == stage for block in self.blocks)
            for stage in range(len(self.spec.stages))
        )
