"""Stages and blocks of the mobile family."""

from __future__ import annotations

from dataclasses import dataclass

from apq_optuna.networks.layers import ConvLayer, PlacedLayer


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

    def __post_init__(self) -> None:
        for name in ("depths", "kernels", "expansion"):  # a list would do, but not as a key
            object.__setattr__(self, name, tuple(getattr(self, name)))


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
