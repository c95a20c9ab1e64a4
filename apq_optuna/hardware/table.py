"""`CostTable`: what every layer choice costs on one device; genotypes priced by gathers."""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna._files import replace_file
from apq_optuna.errors import CostTableError, MissingCostError
from apq_optuna.hardware.device import Cost, fixed_layers
from apq_optuna.space import ConvLayer, PlacedLayer, SearchSpace
from apq_optuna.space.space import BIT_NAMES, Genotypes
from apq_optuna.space.subnet import Block, NetworkSpec, stage_input_size

SCHEMA = 1
UNITS = {"latency": "ms", "energy": "mJ"}
CHUNK = 2048
"""Genotypes priced at a time."""

METRIC_NAMES = ("latency_ms", "energy_mj")

Key = tuple[ConvLayer, int, int]

_PUBLISHED_FIXED = {
    "head": (ConvLayer(3, 32, 224, 3, 2, 1, 1), 8, 8),
    "tail": (ConvLayer(320, 1280, 7, 1, 1, 0, 1), 8, 8),
}


class CostTable:
    """Latency and energy of layers at bit-widths, on one device.

    Args:
        entries: `(layer, w_bits, a_bits)` to (latency in ms, energy in mJ or None). Energy is
            given for all entries or for none.
        device: Name of the device.
        provenance: Where the numbers come from, in JSON types.
        partial: The table does not count every fixed layer (the published one leaves out the first
            block and the classifier); a complete table that lacks one is an error.

    Raises:
        CostTableError: No entries, a negative or non-finite cost, or energy for some entries only.
    """

    def __init__(
        self,
        entries: Mapping[Key, Cost],
        *,
        device: str,
        provenance: Mapping[str, Any] | None = None,
        partial: bool = False,
    ) -> None:
        if not entries:
            raise CostTableError(f"the cost table of {device!r} has no entries")
        for key, cost in entries.items():
            for metric, value in zip(METRIC_NAMES, cost, strict=True):
                if value is not None and not (math.isfinite(value) and value >= 0):
                    raise CostTableError(
                        f"the cost table of {device!r} has {metric}={value} for {_name(*key)}; "
                        "costs are finite and not negative"
                    )
        with_energy = sum(energy is not None for _, energy in entries.values())
        if with_energy not in (0, len(entries)):
            lacking = next(key for key, (_, energy) in entries.items() if energy is None)
            raise CostTableError(
                f"the cost table of {device!r} has energies for some entries only; "
                f"{_name(*lacking)} has none"
            )
        self.entries = dict(entries)
        self.device = device
        self.provenance = dict(provenance or {})
        self.partial = partial
        self.metric_names = METRIC_NAMES if with_energy else METRIC_NAMES[:1]

    def __repr__(self) -> str:
        return f"CostTable({self.device!r}, {len(self.entries)} entries, {self.metric_names})"

    @property
    def digest(self) -> str:
        """Identity of the entries, 16 hexadecimal digits."""
        text = repr(sorted(self.entries.items(), key=lambda entry: repr(entry[0])))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        """(latency in ms, energy in mJ or None).

        Raises:
            MissingCostError: The table has no such entry.
        """
        try:
            return self.entries[layer, w_bits, a_bits]
        except KeyError:
            raise MissingCostError(
                f"the cost table of {self.device!r} has no {_name(layer, w_bits, a_bits)}"
            ) from None

    def network_cost(self, layers: Iterable[PlacedLayer]) -> tuple[float, ...]:
        """Summed costs of placed layers, in the order of `metric_names`.

        Fixed layers that a partial table does not count are left out.

        Raises:
            MissingCostError: A searched layer, or a fixed one of a complete table, is missing.
        """
        total = [0.0, 0.0]
        for placed in layers:
            if self.partial and self._uncounted(placed):
                continue
            cost = self.cost(placed.layer, placed.w_bits, placed.a_bits)
            total[0] += cost[0]
            total[1] += cost[1] or 0.0
        return tuple(total[: len(self.metric_names)])

    def _uncounted(self, placed: PlacedLayer) -> bool:
        fixed = placed.name.split(".")[0] in ("stem", "first", "last", "classifier")
        return fixed and (placed.layer, placed.w_bits, placed.a_bits) not in self.entries

    def compile(self, space: SearchSpace) -> CompiledCosts:
        """A function from genotypes to costs.

        Raises:
            CostTableError: The table lacks a fixed layer of the space, or lacks some searched
                layer at every bit-width.
        """
        return CompiledCosts(self, space)

    # ------------------------------------------------------------------ files

    def save(self, path: str | Path) -> Path:
        """Writes the table as JSON; `load` reads it."""
        rows = [
            {**asdict(layer), "w_bits": w, "a_bits": a, "latency": ms}
            | ({} if mj is None else {"energy": mj})
            for (layer, w, a), (ms, mj) in self.entries.items()
        ]
        document = {
            "schema": SCHEMA,
            "device": self.device,
            "units": {k: v for k, v in UNITS.items() if f"{k}_{v.lower()}" in self.metric_names},
            "partial": self.partial,
            "provenance": self.provenance,
            "entries": rows,
        }
        replace_file(Path(path), json.dumps(document, indent=0).encode())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Reads a table that `save` wrote, or the dictionary published with the APQ paper.

        Raises:
            CostTableError: Not such a file; the message names the entry.
        """
        path = Path(path)
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise CostTableError(f"there is no cost table {path}") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CostTableError(f"{path} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise CostTableError(f"{path} is not a cost table: its top level is not an object")
        if "entries" not in document and any(str(key).startswith("(") for key in document):
            return cls._from_published(path, document)
        return cls._from_document(path, document)

    @classmethod
    def _from_document(cls, path: Path, document: Mapping[str, Any]) -> CostTable:
        if document.get("schema") != SCHEMA:
            raise CostTableError(f"{path}: schema={document.get('schema')!r}; expected {SCHEMA}")
        units, rows = document.get("units"), document.get("entries")
        if not isinstance(units, dict) or not isinstance(rows, list):
            raise CostTableError(
                f"{path}: 'units' (an object) and 'entries' (a list) are required"
            )
        entries: dict[Key, Cost] = {}
        for number, row in enumerate(rows):
            try:
                metrics = {name: row[name] for name in UNITS if row.get(name) is not None}
                for name in metrics:
                    if units.get(name) != UNITS[name]:
                        raise CostTableError(
                            f"{path}: units.{name}={units.get(name)!r}; expected {UNITS[name]!r}"
                        )
                names = ("input_size", "kernel_size", "stride", "padding", "dilation")
                shape = {n: _size(row[n]) for n in names if n in row}
                layer = ConvLayer(
                    in_channels=int(row["in_channels"]),
                    out_channels=int(row["out_channels"]),
                    groups=int(row["groups"]),
                    linear=bool(row.get("linear", False)),
                    **shape,
                )
                energy = float(metrics["energy"]) if "energy" in metrics else None
                key = (layer, int(row["w_bits"]), int(row["a_bits"]))
                cost = (float(metrics["latency"]), energy)
            except CostTableError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CostTableError(f"{path}: entry {number} is not valid: {error!r}") from error
            if key in entries:
                raise CostTableError(f"{path}: entry {number} repeats {_name(*key)}")
            entries[key] = cost
        return cls(
            entries,
            device=str(document.get("device", path.stem)),
            provenance=document.get("provenance") or {},
            partial=bool(document.get("partial", False)),
        )

    @classmethod
    def _from_published(cls, path: Path, document: Mapping[str, Any]) -> CostTable:
        entries: dict[Key, Cost] = {}
        for text, cost in document.items():
            try:
                if text in _PUBLISHED_FIXED:
                    key = _PUBLISHED_FIXED[text]
                else:
                    shape, bits = text.rsplit("-W", 1)
                    w, a = bits.split("A")
                    key = (ConvLayer(*ast.literal_eval(shape)), int(w), int(a))
                entries[key] = (float(cost["latency"]), float(cost["energy"]))
            except (KeyError, TypeError, ValueError, SyntaxError) as error:
                raise CostTableError(f"{path}: entry {text!r} is not valid: {error!r}") from error
        provenance = {"source": "published with Wang et al., CVPR 2020", "file": path.name}
        return cls(entries, device="bitfusion", provenance=provenance, partial=True)


class CompiledCosts:
    """Costs of genotypes by array gathers: one flat table per block choice, one gather per metric.

    Attributes:
        metric_names: Columns of the result.
        maxima: The largest finite total of each cost, `(m,)`: the default reference point.
        minima: The smallest total of each cost, `(m,)`.
    """

    def __init__(self, table: CostTable, space: SearchSpace) -> None:
        spec = space._network()
        self.metric_names = table.metric_names
        self.space = space
        m = len(self.metric_names)
        fixed = np.zeros(m)
        for placed in fixed_layers(space):
            key = (placed.layer, placed.w_bits, placed.a_bits)
            if key in table.entries:
                fixed += np.array(table.entries[key][:m], float)
            elif not table.partial:
                raise CostTableError(
                    f"the cost table of {table.device!r} lacks the fixed layer {placed.name} of "
                    f"this space: {_name(*key)}; build the table for this space"
                )
        self.fixed = fixed
        blocks = [(s, b) for s, st in enumerate(spec.stages) for b in range(st.depths[-1])]
        strides = np.zeros((len(space.decisions), len(blocks)), np.float32)
        flats: list[NDArray[np.float64]] = []
        self._repairs: list[tuple[list[int], NDArray[np.int32]]] = []
        offset = 0
        offsets = []
        for j, (s, b) in enumerate(blocks):
            costs = _block_costs(table, spec, s, b, m)  # (k, c, pw_w, pw_a, dw_w, dw_a, m)
            step = 1
            names = ("kernel", "channels", *BIT_NAMES)
            columns = [space.column[f"stage{s + 1}.block{b + 1}.{name}"] for name in names]
            runnable = np.argwhere(np.isfinite(costs).all(axis=-1)).astype(np.int32)
            if not len(runnable):
                raise CostTableError(
                    f"the device {table.device!r} runs no choice of stage {s + 1}, block {b + 1}"
                )
            self._repairs.append((columns, runnable))
            for name, size in zip(names[::-1], costs.shape[-2::-1], strict=True):
                strides[space.column[f"stage{s + 1}.block{b + 1}.{name}"], j] = step
                step *= size
            flats.append(costs.reshape(-1, m))
            offsets.append(offset)
            offset += step
        flats.append(np.zeros((1, m)))  # what an inactive block costs
        self._strides = strides
        self._offsets = np.array(offsets, np.int32)
        self._flat = np.ascontiguousarray(np.concatenate(flats).T)
        self._nothing = offset
        kernels = [space.column[f"stage{s + 1}.block{b + 1}.kernel"] for s, b in blocks]
        self._inactive = space.inactive(np.array(kernels, np.intp))
        self._summarise(spec, blocks, flats)

    def repair(self, genotypes: Genotypes, rng: np.random.Generator) -> Genotypes:
        """`(n, D)` genotypes in which every block that has no cost is one, drawn at random, that
        has.

        A device that runs few of the bit-widths leaves so few feasible networks that chance does
        not find them.
        """
        flat, index = self._flat[0], self._index(genotypes)
        missing = ~np.isfinite(flat.take(index))
        if not missing.any():
            return genotypes
        result = genotypes.copy()
        for block, (columns, runnable) in enumerate(self._repairs):  # a loop over blocks only
            rows = np.flatnonzero(missing[:, block])
            drawn = runnable[rng.integers(len(runnable), size=len(rows))]
            result[rows[:, None], columns] = drawn
        return result

    def _index(self, rows: Genotypes) -> NDArray[np.int32]:
        """`(n, D)` to `(n, blocks)`: each block's place in the flat table."""
        index = (rows.astype(np.float32) @ self._strides).astype(np.int32)
        index += self._offsets
        index[self._inactive(rows)] = self._nothing
        return index

    def _summarise(
        self, spec: NetworkSpec, blocks: list[tuple[int, int]], flats: list[NDArray[np.float64]]
    ) -> None:
        finite = [np.where(np.isfinite(f), f, np.nan) for f in flats]
        self.maxima = self.fixed + sum(np.nanmax(f, axis=0) for f in finite)
        minima = self.fixed.copy()
        for s, stage in enumerate(spec.stages):
            least = [np.nanmin(finite[j], axis=0) for j, (t, _) in enumerate(blocks) if t == s]
            minima += sum(least[: stage.depths[0]])
        self.minima = minima

    @property
    def has_gaps(self) -> bool:
        """Whether some choice of the space has no cost."""
        return bool(np.isinf(self._flat).any())

    def __call__(self, genotypes: Genotypes) -> NDArray[np.float64]:
        """`(n, D)` genotypes to `(n, m)` costs; inf where the table has no entry."""
        out = np.empty((len(genotypes), len(self.metric_names)))
        for start in range(0, len(genotypes), CHUNK):  # a chunk's arrays stay in the cache
            rows = genotypes[start : start + CHUNK]
            index = self._index(rows)
            for column, flat in enumerate(self._flat):
                flat.take(index).sum(axis=1, out=out[start : start + CHUNK, column])
        out += self.fixed
        return out


def _block_costs(
    table: CostTable, spec: NetworkSpec, s: int, b: int, m: int
) -> NDArray[np.float64]:
    """Costs of every choice of one block: `(kernels, channels, pw_w, pw_a, dw_w, dw_a, m)`."""
    stage, bits = spec.stages[s], spec.bits
    channels = spec.channel_choices(s, b)
    size = stage_input_size(spec, s)
    stride = stage.stride if b == 0 else 1
    if b > 0:
        size = (size - 1) // stage.stride + 1
    pointwise = np.empty((len(channels), len(bits), len(bits), m))
    depthwise = np.empty((len(stage.kernels), *pointwise.shape))
    for k, kernel in enumerate(stage.kernels):
        for c, width in enumerate(channels):
            block = Block(
                "", s, b, spec.block_inputs(s, b), width, stage.out_channels, kernel, stride, size,
                8, 8, 8, 8,
            )  # fmt: skip
            expand, dw, project = (placed.layer for placed in block.layers())
            depthwise[k, c] = _layer_costs(table, dw, bits, m)
            if k == 0:
                pointwise[c] = _layer_costs(table, expand, bits, m) + _layer_costs(
                    table, project, bits, m
                )
    return np.asarray(pointwise[None, :, :, :, None, None] + depthwise[:, :, None, None])


def _layer_costs(
    table: CostTable, layer: ConvLayer, bits: tuple[int, ...], m: int
) -> NDArray[np.float64]:
    """`(w, a, m)` costs of a layer, inf where missing."""
    missing = (math.inf,) * m
    costs = np.array(
        [[table.entries.get((layer, w, a), missing)[:m] for a in bits] for w in bits], float
    )
    if np.isinf(costs).all():
        raise CostTableError(
            f"the cost table of {table.device!r} lacks {_name(layer, bits[-1], bits[-1])} and "
            "every other bit-width of it; build the table for this space"
        )
    return costs


def _size(value: Any) -> int | tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, list) else int(value)


def _name(layer: ConvLayer, w_bits: int, a_bits: int) -> str:
    kind = "linear" if layer.linear else "depthwise" if layer.depthwise else "convolution"
    return (
        f"{kind} {layer.in_channels}->{layer.out_channels} kernel {layer.kernel_size} "
        f"stride {layer.stride} groups {layer.groups} at input {layer.input_size}, "
        f"W{w_bits}A{a_bits}"
    )
