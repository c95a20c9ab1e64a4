"""A bit-serial array: cost linear in every bit, of the kind used for MobileNetV2 by HAQ (Wang et
al., CVPR 2019).

An array of 16 x 16 outputs, 256-bit dot products and 1,024-deep buffers. The equations approximate
their reference: most layers exactly, the rest well under 1 %, single ones by up to 7 %. They give
cycles and no energy, so energy is no objective on this device.

A depthwise layer goes 16 channels at a time, as a convolution of 16 outputs with kb =
ceil(16 K^2 / 256). Any other grouped convolution costs what its groups do, one after another, each
a dense convolution of its channels. A dilation costs nothing: the taps are as many.

Notation (one operand is M wide and a bits, the other N wide and w bits):
    M, N        outputs along the two sides of the array: pixels and output channels
    kb          256-bit words of one dot product, ceil(K^2 IC / 256)  (K^2 is height x width)
    T, nt       tiles of 16 along M and N
    e           columns of weight bits, nt * w
    nch         times the buffer is refilled
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.costs import Cost, bit_widths, positive, whole_number
from apq_optuna.hardware.devices.device import Device
from apq_optuna.networks import ConvLayer, as_pair

SIDE, WORD, DEPTH = 16, 256, 1024
"""Outputs on a side of the array, bits of a dot product, words in a buffer."""


@dataclass(frozen=True)
class BitSerial(Device):
    """The array.

    Attributes:
        batch: Images at a time; latencies are of the whole batch.
        frequency_hz: Clock. The equations give cycles; the clock is an assumption to be stated.
    """

    batch: int = 1
    frequency_hz: float = 200e6
    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    name: str = "bitserial"

    def __post_init__(self) -> None:
        normal = {
            "batch": whole_number("batch", self.batch),
            "bits": bit_widths(self.bits, range(1, 9)),
            "frequency_hz": positive("frequency_hz", self.frequency_hz),
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    def provenance(self) -> dict[str, Any]:
        """The model and its parameters."""
        parameters = {"batch": self.batch, "frequency_hz": self.frequency_hz}
        return {
            "model": "bit-serial",
            "depthwise": "kb = ceil(16 K^2 / 256)",  # it was 1 whatever the kernel
            "parameters": parameters,
            "latency": "of a whole batch",
        }

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        """(latency in ms of a batch, None); raises what `cycles` does."""
        return self.cycles(layer, w_bits, a_bits) / self.frequency_hz * 1e3, None

    def cycles(self, layer: ConvLayer, w_bits: int, a_bits: int) -> int:
        """Clock cycles of one layer for a batch.

        Raises:
            MissingCostError: Bits other than 1 to 8.
            CostTableError: The layer has no output.
        """
        w_bits, a_bits = self.check_bits(w_bits, a_bits)
        height, width = layer.output_size
        if height < 1 or width < 1:
            raise CostTableError(f"{layer} has no output: its input is smaller than its kernel")
        pixels = height * width
        kernel = math.prod(as_pair(layer.kernel_size))
        if layer.linear:  # a batch of up to 16 rows is one tile
            rows = SIDE * math.ceil(pixels * self.batch / SIDE)
            words = math.ceil(layer.in_channels / WORD)
            return _layer(rows, layer.out_channels, words, w_bits, a_bits)
        if layer.depthwise:
            groups = math.ceil(layer.in_channels / SIDE)
            words = math.ceil(SIDE * kernel / WORD)
            return self.batch * groups * _layer(pixels, SIDE, words, w_bits, a_bits)
        words = math.ceil(kernel * (layer.in_channels // layer.groups) / WORD)
        outputs = layer.out_channels // layer.groups
        return self.batch * layer.groups * _layer(pixels, outputs, words, w_bits, a_bits)


def bitserial(batch: int = 1, *, frequency_hz: float = 200e6) -> BitSerial:
    """A bit-serial array (cost linear in every bit), any batch; no energy."""
    return BitSerial(batch=batch, frequency_hz=frequency_hz)


def _layer(pixels: int, outputs: int, words: int, w: int, a: int) -> int:
    """The better way round: pixels along M, or output channels."""
    return min(_major(pixels, outputs, words, a, w), _major(outputs, pixels, words, w, a))


def _major(m: int, n: int, kb: int, a: int, w: int) -> int:
    """Cycles with M held: the longer of computing and fetching, which overlap."""
    tiles, nt = math.ceil(m / SIDE), math.ceil(n / SIDE)
    e = nt * w
    nch = math.ceil(kb * tiles * a / DEPTH)
    last_m, last_n = m - SIDE * (tiles - 1), n - SIDE * (nt - 1)  # 1 to 16
    first = w * (SIDE * (nt - 1) + max(last_n, a))
    compute = kb * (nch * first + (tiles - nch) * a * e) + nch * (a - 1)
    fetch = kb * a * ((tiles - 1) * max(SIDE, e) + max(last_m, e)) + nch * (
        kb * a if nt > 1 else 1
    ) * (e - 1)
    return max(compute, fetch)
