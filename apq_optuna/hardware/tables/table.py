"""`CostTable`: what every layer choice costs on one device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apq_optuna.errors import CostTableError, MissingCostError
from apq_optuna.hardware.costs import METRIC_NAMES, Cost, Key, layer_name, whole_number
from apq_optuna.hardware.files.formats import read_table, write_table
from apq_optuna.hardware.files.rows import Contents, fault
from apq_optuna.hardware.tables.compiled import CompiledCosts
from apq_optuna.hardware.tables.correction import Correction
from apq_optuna.networks import ConvLayer, PlacedLayer
from apq_optuna.space import SearchSpace


class CostTable:
    """Latency and energy of layers at bit-widths, on one device.

    Args:
        entries: `(layer, w_bits, a_bits)` to (latency in ms, energy in mJ or None). Energy is
            given for all entries or for none.
        device: Name of the device.
        provenance: Where the numbers come from, in JSON types.
        partial: The table does not count every fixed layer (the published one leaves out the first
            block and the classifier); a complete table that lacks one is an error.
        spreads: Of measured latencies, in ms: how far apart the rounds were.
        overhead: What every network costs beside its layers: ms, and mJ where there is energy.

    Raises:
        InvalidArgumentError: Widths that are no whole numbers.
        CostTableError: No entries, a negative or non-finite cost, or energy for some entries only.
    """

    def __init__(
        self,
        entries: Mapping[Key, Cost],
        *,
        device: str,
        provenance: Mapping[str, Any] | None = None,
        partial: bool = False,
        spreads: Mapping[Key, float] | None = None,
        overhead: Sequence[float] = (0.0, 0.0),
    ) -> None:
        if not device.strip() or not device.isprintable():
            raise CostTableError(f"device={device!r}: a name on one line")
        if not entries:
            raise CostTableError(f"the cost table of {device!r} has no entries")
        for key, cost in entries.items():
            if wrong := fault(*cost):
                raise CostTableError(
                    f"the cost table of {device!r} has {wrong}, for {layer_name(*key)}"
                )
        if len(overhead) != len(METRIC_NAMES) or any(fault(value, None) for value in overhead):
            raise CostTableError(f"overhead={overhead}: give (ms, mJ), finite and not negative")
        if strangers := [key for key in spreads or {} if key not in entries]:
            raise CostTableError(f"a spread is of no entry: {layer_name(*strangers[0])}")
        with_energy = sum(energy is not None for _, energy in entries.values())
        if with_energy not in (0, len(entries)):
            lacking = next(key for key, (_, energy) in entries.items() if energy is None)
            raise CostTableError(
                f"the cost table of {device!r} has energies for some entries only; "
                f"{layer_name(*lacking)} has none"
            )
        # plain numbers, whatever a device answers with: files and digests depend on their text
        self.entries: dict[Key, Cost] = {
            _key(*key): (float(ms), None if mj is None else float(mj))
            for key, (ms, mj) in entries.items()
        }
        self.device = device
        self.provenance = dict(json.loads(json.dumps(dict(provenance or {}), default=str)))
        self.partial = partial
        self.spreads = {_key(*key): float(spread) for key, spread in (spreads or {}).items()}
        self.overhead: tuple[float, ...] = tuple(float(value) for value in overhead)
        self.metric_names: tuple[str, ...] = METRIC_NAMES if with_energy else METRIC_NAMES[:1]

    def __repr__(self) -> str:
        return f"CostTable({self.device!r}, {len(self.entries)} entries, {self.metric_names})"

    @property
    def digest(self) -> str:
        """Identity of the costs, 16 hexadecimal digits."""
        text = repr(sorted(self.entries.items(), key=lambda entry: repr(entry[0])))
        if any(self.overhead):
            text += repr(self.overhead)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        """(latency in ms, energy in mJ or None).

        Raises:
            InvalidArgumentError: Widths that are no whole numbers.
            MissingCostError: The table has no such entry.
        """
        try:
            return self.entries[_key(layer, w_bits, a_bits)]
        except KeyError:
            raise MissingCostError(
                f"the cost table of {self.device!r} has no {layer_name(layer, w_bits, a_bits)}"
            ) from None

    def network_cost(self, layers: Iterable[PlacedLayer]) -> tuple[float, ...]:
        """Summed costs of placed layers and the overhead, in the order of `metric_names`.

        Fixed layers that a partial table does not count are left out.

        Raises:
            InvalidArgumentError: Widths that are no whole numbers.
            MissingCostError: A searched layer, or a fixed one of a complete table, is missing.
        """
        total = list(self.overhead)
        for placed in layers:
            if self.partial and self._uncounted(placed):
                continue
            cost = self.cost(placed.layer, placed.w_bits, placed.a_bits)
            total[0] += cost[0]
            total[1] += cost[1] or 0.0
        return tuple(total[: len(self.metric_names)])

    def _uncounted(self, placed: PlacedLayer) -> bool:
        return (
            not placed.searched
            and _key(placed.layer, placed.w_bits, placed.a_bits) not in self.entries
        )

    def corrected(self, correction: Correction) -> CostTable:
        """The same table with its latencies scaled and an overhead, as whole networks told.

        Energies are left as they are. The correction is written into the provenance.

        Raises:
            CostTableError: The correction makes costs negative.
        """
        entries = {key: (ms * correction.scale, mj) for key, (ms, mj) in self.entries.items()}
        overhead = (
            self.overhead[0] * correction.scale + correction.overhead_ms, *self.overhead[1:]
        )  # fmt: skip
        return CostTable(
            entries,
            device=self.device,
            provenance=self.provenance | {"correction": correction.provenance()},
            partial=self.partial,
            spreads={key: spread * correction.scale for key, spread in self.spreads.items()},
            overhead=overhead,
        )

    def compile(self, space: SearchSpace) -> CompiledCosts:
        """A function from genotypes to costs.

        Raises:
            CostTableError: The table lacks a fixed layer of the space, or lacks some searched
                layer at every bit-width.
        """
        return CompiledCosts(self, space)

    def save(self, path: str | Path) -> Path:
        """Writes the table as CSV if the name ends in .csv, else as JSON; returns the path.

        `load` reads both.
        """
        contents = Contents(
            self.device, self.entries, self.spreads, self.provenance, self.partial, self.overhead
        )
        write_table(Path(path), contents)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> CostTable:
        """Reads JSON or CSV, or the dictionary published with the APQ paper.

        Raises:
            CostTableError: Not such a file; the message names the line.
        """
        contents = read_table(Path(path))
        return cls(
            contents.entries,
            device=contents.device,
            provenance=contents.provenance,
            partial=contents.partial,
            spreads=contents.spreads,
            overhead=contents.overhead,
        )


def _key(layer: ConvLayer, w_bits: int, a_bits: int) -> Key:
    """An entry's key, its widths as Python's integers: 8.0 and True would find others' entries."""
    return layer, whole_number("w_bits", w_bits), whole_number("a_bits", a_bits)
