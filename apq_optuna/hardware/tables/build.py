"""`build_table`: asks a device for every layer of a space, in rounds, and can be stopped.

Each cost is a line of a journal as soon as it is known: the round, the layer, the bit-widths it
runs at, latency and energy. A table that was stopped reads the journal and asks for the rest.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from apq_optuna.errors import CostTableError, MissingCostError
from apq_optuna.hardware.costs import (
    Cost,
    Key,
    Measurement,
    Report,
    layer_name,
    whole_number,
)
from apq_optuna.hardware.devices.device import Device
from apq_optuna.hardware.entries import fixed_widths, needed_entries
from apq_optuna.hardware.files.rows import UNREADABLE, fault
from apq_optuna.hardware.tables.between import (
    executed,
    interpolated,
    interpolated_sizes,
    layer_text,
)
from apq_optuna.hardware.tables.table import CostTable
from apq_optuna.networks import FLOAT_BITS, ConvLayer
from apq_optuna.space import SearchSpace

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

Visit = tuple[int, ConvLayer]
"""One round's visit to a layer; all widths that run differently are asked for at once."""


def build_table(
    device: Device,
    space: SearchSpace,
    *,
    journal: str | Path | None = None,
    report: Report | None = None,
) -> CostTable:
    """See `Device.table`."""
    for width in device.bits:
        whole_number("bits", width)
    whole_number("rounds", device.rounds)
    _check_widths(device, space)
    needed = needed_entries(space, device.bits)
    between = interpolated_sizes(space) if device.rounds > 1 else {}
    runs = {
        layer: list(dict.fromkeys(executed(device, w, a) for w, a in pairs))
        for layer, pairs in needed.items()
        if layer not in between
    }
    found: dict[tuple[int, ConvLayer, int, int], Cost] = {}
    # asked once: a device may count what it does in attributes of its own
    provenance = json.loads(json.dumps(device.provenance(), default=str))
    about = {"device": device.name, "space": space.hash, "made by": provenance}
    with _journal(journal, about, found) as file:
        visits = _visits(list(runs), device.rounds)
        for done, (turn, layer) in enumerate(visits):
            missing = [pair for pair in runs[layer] if (turn, layer, *pair) not in found]
            if missing:
                costs = device.costs(layer, missing)
                for pair, answer in zip(missing, costs, strict=True):
                    cost = _plain(device, answer)
                    if wrong := fault(*cost):
                        raise CostTableError(
                            f"the device {device.name!r} answers {wrong}, for "
                            f"{layer_name(layer, *pair)}"
                        )
                    found[turn, layer, *pair] = cost
                    if file is not None:
                        file.write(_line(turn, layer, pair, cost))
                if file is not None:
                    file.flush()
            if report is not None:
                report(done + 1, len(visits))
    entries: dict[Key, Cost] = {}
    spreads: dict[Key, float] = {}
    for layer in runs:
        for w, a in needed[layer]:
            run = executed(device, w, a)
            if device.rounds == 1:
                entries[layer, w, a] = found[0, layer, *run]
                continue
            rounds = [found[turn, layer, *run] for turn in range(device.rounds)]
            entries[layer, w, a], spreads[layer, w, a] = _summary(rounds)
    made: dict[str, Any] = {"created": datetime.date.today().isoformat(), "space": space.hash}
    if between:
        entries |= interpolated(entries, between, needed)
        made["interpolated"] = [layer_text(layer) for layer in between]
    return CostTable(entries, device=device.name, provenance=provenance | made, spreads=spreads)


def _check_widths(device: Device, space: SearchSpace) -> None:
    """Whether the device runs the fixed layers, and any width of the searched ones."""
    common = [b for b in space.bits if b in device.bits]
    fixed = fixed_widths(space)
    fixed.discard(FLOAT_BITS)  # what is float runs at the widest there is
    if (space.bits and not common) or not fixed <= set(device.bits):
        raise MissingCostError(
            f"device {device.name!r} executes {list(device.bits)} bits: a table needs some of the "
            f"space's {list(space.bits)}, and {sorted(fixed)} for its fixed layers; "
            "set its `bits`"
        )
    for site in space.networks.sites():
        for width in (site.w_bits, site.a_bits):
            if width.bits == (FLOAT_BITS,):
                continue
            if not set(width.bits) & set(device.bits):
                raise MissingCostError(
                    f"device {device.name!r} executes {list(device.bits)} bits, and none of the "
                    f"{list(width.bits)} that {site.name} may have"
                )


def _plain(device: Device, answer: Cost) -> Cost:
    """A device's answer as plain floats."""
    try:
        ms, mj = answer
        return float(ms), None if mj is None else float(mj)
    except (TypeError, ValueError) as error:
        raise CostTableError(
            f"the device {device.name!r} answers {answer!r}; a cost is (latency in ms, energy in "
            "mJ or None)"
        ) from error


def _visits(layers: list[ConvLayer], rounds: int) -> list[Visit]:
    """Every layer once a round; measured rounds each in an order of their own.

    Whatever else the machine does for a while then meets some layers in one round and others in
    the next, and the median over the rounds leaves it out.
    """
    visits: list[Visit] = []
    for turn in range(rounds):
        order = list(layers)
        if rounds > 1:
            random.Random(turn).shuffle(order)
        visits += [(turn, layer) for layer in order]
    return visits


def _summary(rounds: list[Cost]) -> tuple[Cost, float]:
    """Median cost, and the spread of the latencies, in ms."""
    measured = Measurement.of([ms for ms, _ in rounds])
    energies = [mj for _, mj in rounds if mj is not None]
    energy = float(np.median(energies)) if len(energies) == len(rounds) else None
    return (measured.latency_ms, energy), measured.spread_ms


def _line(turn: int, layer: ConvLayer, pair: tuple[int, int], cost: Cost) -> str:
    return json.dumps([turn, asdict(layer), *pair, *cost]) + "\n"


@contextlib.contextmanager
def _journal(
    path: str | Path | None,
    about: dict[str, Any],
    found: dict[tuple[int, ConvLayer, int, int], Cost],
) -> Iterator[IO[str] | None]:
    """The journal, open to be added to, after `found` has taken in what it holds.

    Raises:
        CostTableError: It is of another space, device or parameters, no journal, or in use.
    """
    if path is None:
        yield None
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # for adding, as another process might be adding to it: two of them would mix their lines
    with path.open("a") as file:
        _claim(file, path)
        # what follows the last end of line was being written when the build was stopped
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        header = json.dumps(about)
        if not header.encode().startswith(content[:1]):
            raise CostTableError(f"{path} is not the journal of a table")
        if whole:
            _read(path, whole, about, found)
        os.truncate(path, len(whole))
        if not whole:
            file.write(header + "\n")
            file.flush()
        yield file


def _claim(file: IO[str], path: Path) -> None:
    """Holds the journal as long as it is open, where the system can."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise CostTableError(f"{path} is in use: another build is adding to it") from error


def _read(
    path: Path,
    content: bytes,
    about: dict[str, Any],
    found: dict[tuple[int, ConvLayer, int, int], Cost],
) -> None:
    """Takes a journal's lines into `found`."""
    try:
        first, *lines = content.decode().splitlines()
        header = json.loads(first)
        if not isinstance(header, dict) or header.keys() != about.keys():
            raise ValueError("it begins with something else")
        if header != about:
            raise CostTableError(
                f"{path} is the journal of another table ({_differences(header, about)}): "
                "delete it, or write to another file"
            )
        for text in lines:
            turn, shape, w, a, ms, mj = json.loads(text)
            layer = ConvLayer(**{k: _size(v) for k, v in shape.items()})
            found[turn, layer, w, a] = (ms, mj)
    except UNREADABLE as error:
        if isinstance(error, CostTableError):
            raise
        raise CostTableError(f"{path} is not the journal of a table: {error}") from error


def _differences(header: dict[str, Any], about: dict[str, Any]) -> str:
    """The parameters that differ, with both values."""
    found = []
    for name, value in about.items():
        if isinstance(value, dict) and isinstance(header.get(name), dict):
            theirs = {key: header[name].get(key) for key in value}
            found.append(_differences(theirs, value))
        elif header.get(name) != value:
            found.append(f"{name} {header.get(name)!r}, now {value!r}")
    return "; ".join(filter(None, found))


def _size(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
