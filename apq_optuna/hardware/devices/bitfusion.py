"""BitFusion (Sharma et al., ISCA 2018): a systolic array whose multipliers fuse or split with the
bits.

This model reproduces the table behind the APQ paper: integer cycles exactly, energies to rounding.

Notation (one dense convolution, batch 1; `t` tilings, `p` bit-width pairs, arrays are `(p, t)`):
    N, M        rows (input channels) and columns (output channels) of the array
    K, S, O     kernel, stride and output side, each (height, width)
    w, a        bits of weights and activations; 32-bit outputs and partial sums
    pf          parallelism of narrow operands, (8 // a) * (8 // w): multiplies the rows
    o, i, c     output side, input channels and output channels of one tile
    n_x ...     number of tiles along each axis
    A, W, O     activations, weights, outputs: traffic in bits, footprint in padded bits

A tile of o x o outputs reads (o - 1) S + K rows of pixels, and with a dilation d only those it
touches: |{S j + d k : j < o, k < K}|. A kernel is never too large: where the smallest tile (o and
i of 1, c of M) fits no buffer, its taps go through one after another. It is charged as that tile,
and an operand that overflows its buffer keeps nothing there for the next tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import CostTableError, InvalidArgumentError
from apq_optuna.hardware.costs import Cost, bit_widths, positive, whole_number
from apq_optuna.hardware.devices.device import Device
from apq_optuna.networks import ConvLayer, as_pair

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_OUTPUT_BITS = 32
_BUFFERS = {"A": "activation_kib", "W": "weight_kib", "O": "output_kib"}
_DEPENDS = {"A": "XYI", "W": "IC", "O": "XYC"}
_ORDERS = ("ICYX", "YXCI")  # innermost loop first: X Y C I and I C X Y, outermost first


@dataclass(frozen=True, eq=True)
class BitFusion(Device):
    """The BitFusion accelerator; by default the published design, which is 16 x 32.

    Attributes:
        rows, columns: Of the array (N, M).
        weight_kib, activation_kib, output_kib: SRAM, double-buffered: half of each is usable.
        bandwidth_bits: DRAM bits per cycle.
        frequency_hz: Clock.
        core_nj, leakage_nj: Energy per compute cycle and per cycle.
        weight_read_nj, weight_write_nj, activation_read_nj, activation_write_nj: SRAM, per bit.
        output_nj: SRAM, a read and a write of one output bit.
        dram_nj: Per bit.
        bits: Bit-widths it takes, up to 8.
        name: Of the device, in tables and reports.
    """

    rows: int = 16
    columns: int = 32
    weight_kib: float = 64
    activation_kib: float = 32
    output_kib: float = 16
    bandwidth_bits: int = 192
    frequency_hz: float = 500e6
    core_nj: float = 0.4766518
    leakage_nj: float = 0.433014704
    weight_read_nj: float = 0.000683701 / 32
    weight_write_nj: float = 0.000925317 / 32
    activation_read_nj: float = 0.00190318 / 32
    activation_write_nj: float = 0.00363853 / 32
    output_nj: float = 0.002960047 / 32
    dram_nj: float = 0.015
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    name: str = "bitfusion"
    _cache: dict[tuple[ConvLayer, int, int], tuple[int, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        normal: dict[str, object] = {
            "rows": whole_number("rows", self.rows, 2),
            "columns": whole_number("columns", self.columns),
            "bandwidth_bits": whole_number("bandwidth_bits", self.bandwidth_bits),
            "bits": bit_widths(self.bits, range(1, 9)),
        }
        if self.rows % 2:  # a depthwise block has half as many channels
            raise InvalidArgumentError(f"rows={self.rows}: an even number")
        for name in ("weight_kib", "activation_kib", "output_kib", "frequency_hz"):
            normal[name] = positive(name, getattr(self, name))
        for energy in (f.name for f in fields(self) if f.name.endswith("_nj")):
            normal[energy] = positive(energy, getattr(self, energy), zero=True)
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    def provenance(self) -> dict[str, object]:
        """The parameters of the array."""
        parameters = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_cache"}
        return {"model": "BitFusion", "parameters": parameters}

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        """(latency in ms, energy in mJ) of one layer for one image.

        Raises:
            MissingCostError: Bit-widths other than `bits`.
            CostTableError: The layer has no output, or the buffers do not hold one tap of it.
        """
        return self.costs(layer, [(w_bits, a_bits)])[0]

    def cycles(self, layer: ConvLayer, w_bits: int, a_bits: int) -> int:
        """Clock cycles of one layer for one image; raises what `cost` does."""
        return self._priced(layer, [(w_bits, a_bits)])[0][0]

    def costs(self, layer: ConvLayer, pairs: Sequence[tuple[int, int]]) -> list[Cost]:
        """Costs of a layer at several (w_bits, a_bits), in one pass; raises what `cost` does."""
        per_ms = self.frequency_hz / 1e3
        return [(cycles / per_ms, nj * 1e-6) for cycles, nj in self._priced(layer, pairs)]

    def _priced(
        self, layer: ConvLayer, pairs: Sequence[tuple[int, int]]
    ) -> list[tuple[int, float]]:
        """(cycles, energy in nJ) for each pair."""
        pairs = [self.check_bits(*pair) for pair in pairs]
        missing = [pair for pair in pairs if (layer, *pair) not in self._cache]
        if missing:
            for pair, priced in zip(missing, self._price(layer, missing), strict=True):
                self._cache[(layer, *pair)] = priced
        return [self._cache[(layer, *pair)] for pair in pairs]

    def _price(
        self, layer: ConvLayer, pairs: Sequence[tuple[int, int]]
    ) -> list[tuple[int, float]]:
        if layer.depthwise:
            # blocks of g channels, each a dense g -> g convolution, the last one charged in full;
            # g depends on the bits only through pf, so pairs are priced once per block size
            priced = []
            for w, a in pairs:
                g = (self.rows // 2) * (8 // a) * (8 // w)
                dense = ConvLayer(
                    g, g, layer.input_size, layer.kernel_size, layer.stride, layer.padding, 1,
                    layer.dilation,
                )  # fmt: skip
                key = (dense, -w, -a)  # negative: as a depthwise block, never im2col
                if key not in self._cache:
                    self._cache[key] = self._dense(dense, [(w, a)], im2col=False)[0]
                cycles, nj = self._cache[key]
                groups = -(-layer.in_channels // g)
                priced.append((cycles * groups, nj * groups))
            return priced
        groups = layer.groups
        dense = ConvLayer(
            layer.in_channels // groups, layer.out_channels // groups, layer.input_size,
            layer.kernel_size, layer.stride, layer.padding, 1, layer.dilation,
        )  # fmt: skip
        return [(cycles * groups, nj * groups) for cycles, nj in self._dense(dense, pairs)]

    def _dense(
        self, layer: ConvLayer, pairs: Sequence[tuple[int, int]], *, im2col: bool = True
    ) -> list[tuple[int, float]]:
        """One dense convolution over all tilings and both loop orders."""
        w, a = (np.array(column, np.int64)[:, None] for column in zip(*pairs, strict=True))
        rows, columns = self.rows * (8 // a) * (8 // w), self.columns
        w_stored, a_stored = 8 // (8 // w), 8 // (8 // a)
        (kh, kw), (sh, sw) = as_pair(layer.kernel_size), as_pair(layer.stride)
        dh, dw = as_pair(layer.dilation)
        height, width = layer.output_size
        ic, oc = layer.in_channels, layer.out_channels
        if height < 1 or width < 1:
            raise CostTableError(f"{layer} has no output: its input is smaller than its kernel")

        sides, inputs = _doubling(1, max(height, width)), _doubling(1, ic)
        outputs = _doubling(columns, oc)
        o, i, c = (g.ravel()[None] for g in np.meshgrid(sides, inputs, outputs, indexing="ij"))
        oh, ow = np.minimum(o, height), np.minimum(o, width)
        n = {"X": -(-height // oh), "Y": -(-width // ow), "I": -(-ic // i), "C": -(-oc // c)}
        tiles = n["X"] * n["Y"] * n["I"] * n["C"]
        field_size = _touched(oh, sh, kh, dh) * _touched(ow, sw, kw, dw)
        area, k2 = oh * ow, kh * kw

        unrolled = im2col & (k2 > 1) & (ic < rows)  # (p, 1)
        steps = np.where(unrolled, -(-k2 * i // rows), k2 * -(-i // rows))
        column_steps = -(-c // columns)
        traffic = {
            "A": np.where(unrolled, area * k2 * i * a, field_size * i * a),
            "W": k2 * i * c * w,
            "O": area * c * _OUTPUT_BITS + 0 * a,
        }
        footprint = {
            "A": np.where(unrolled, area * steps * rows, field_size * -(-i // rows) * rows)
            * a_stored,
            "W": -(-k2 * i // rows) * rows * column_steps * columns * w_stored,
            "O": area * column_steps * columns * _OUTPUT_BITS + 0 * a,
        }
        usable = {
            "A": int(self.activation_kib * 4096),
            "W": int(self.weight_kib * 4096),
            "O": int(self.output_kib * 4096),
        }
        fits = np.ones_like(steps, bool)
        for operand in "AWO":
            fits &= footprint[operand] <= usable[operand]
        # tap by tap where nothing fits; the tilings begin with the smallest
        fits[:, 0] |= ~fits.any(axis=1)
        one_tap = {"A": rows * a_stored, "W": rows * columns * w_stored,
                   "O": columns * _OUTPUT_BITS + 0 * a}  # fmt: skip
        for operand, bits in one_tap.items():
            if (bits > usable[operand]).any():
                raise CostTableError(
                    f"{layer} does not fit {self.name!r}: {_BUFFERS[operand]} holds "
                    f"{usable[operand]} bits, and one tap takes {bits.max()}"
                )

        compute = tiles * area * steps * column_steps
        inner = self._inner_energy(tiles, area, k2, i, c, steps, column_steps, w, a)
        best: list[tuple[Ints, Floats]] = []
        for order in _ORDERS:
            total, held = _reuse(order, n, traffic, footprint, usable)
            read, write = total["A"] + total["W"] + total["O"], total["O"]
            bandwidth = self.bandwidth_bits
            fill = -(-(held["A"] + held["W"] + held["O"]) // bandwidth) + -(
                -held["O"] // bandwidth
            )
            cycles = np.maximum(compute + fill, -(-read // bandwidth) + -(-write // bandwidth))
            energy = (
                compute * self.core_nj
                + cycles * self.leakage_nj
                + inner
                + total["W"] * self.weight_write_nj
                + total["A"] * self.activation_write_nj
                + total["O"] * self.output_nj
                + (read + write) * self.dram_nj
            )
            best.append((np.where(fits, cycles, np.iinfo(np.int64).max), energy))
        cycles = np.concatenate([b[0] for b in best], axis=1)
        energy = np.concatenate([b[1] for b in best], axis=1)
        fewest = cycles.min(axis=1)
        cheapest = np.where(cycles == fewest[:, None], energy, np.inf).min(axis=1)
        return list(zip(fewest.tolist(), cheapest.tolist(), strict=True))

    def _inner_energy(
        self, tiles: Ints, area: Ints, k2: int, i: Ints, c: Ints, steps: Ints, column_steps: Ints,
        w: Ints, a: Ints,
    ) -> Floats:  # fmt: skip
        """SRAM energy (nJ) of the better of output- and weight-stationary inner loops."""
        activations = area * k2 * i * column_steps * a * self.activation_read_nj
        output_stationary = (
            area * k2 * i * c * w * self.weight_read_nj + area * c * _OUTPUT_BITS * self.output_nj
        )
        weight_stationary = (
            k2 * i * c * w * self.weight_read_nj + area * c * steps * _OUTPUT_BITS * self.output_nj
        )
        return np.asarray(tiles * (activations + np.minimum(output_stationary, weight_stationary)))


bitfusion = BitFusion
"""The published array; each of its parameters can be given."""


def bitfusion_small() -> BitFusion:
    """A 4 x 8 array with buffers of a sixteenth: one that fits digits-sized networks."""
    return BitFusion(
        rows=4, columns=8, weight_kib=4, activation_kib=2, output_kib=1, name="bitfusion-small"
    )


def _doubling(start: int, full: int) -> list[int]:
    """start, 2 start, 4 start, ... below `full`, and then `full`."""
    sizes = []
    while start < full:
        sizes.append(start)
        start *= 2
    return [*sizes, full]


def _touched(outputs: Ints, stride: int, kernel: int, dilation: int) -> Ints:
    """Rows of pixels that some rows of outputs read: the span, or where dilated what it touches.

    A kernel of 1 has nothing to dilate.
    """
    if dilation == 1 or kernel == 1:
        return (outputs - 1) * stride + kernel
    sizes, which = np.unique(outputs, return_inverse=True)
    taps = dilation * np.arange(kernel)
    rows = [np.unique(stride * np.arange(size)[:, None] + taps).size for size in sizes]
    return np.array(rows, np.int64)[which].reshape(outputs.shape)


def _reuse(
    order: str,
    n: dict[str, Ints],
    traffic: dict[str, Ints],
    footprint: dict[str, Ints],
    usable: dict[str, int],
) -> tuple[dict[str, Ints], dict[str, Ints]]:
    """Bits moved per operand in one loop order, and the bits that stay on chip.

    `order` names the loops from the innermost. An operand is reused for free across a loop it does
    not depend on, as long as what it needs inside that loop still fits its buffer: not at all
    where a tile of it does not.
    """
    total, held = {}, {}
    for operand, depends in _DEPENDS.items():
        moved, kept, size = traffic[operand], traffic[operand], footprint[operand]
        alive = size <= usable[operand]
        for loop in order:
            if loop in depends:
                moved = moved * n[loop]
                size = np.where(alive, size * n[loop], size)
                alive = alive & (size <= usable[operand])
                kept = np.where(alive, moved, kept)
            else:
                moved = np.where(alive, moved, moved * n[loop])
        total[operand], held[operand] = moved, kept
    return total, held
