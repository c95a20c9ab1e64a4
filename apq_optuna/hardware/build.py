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
from typing import IO, Any

import numpy as np

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.device import (
    Cost,
    Device,
    Key,
    Measurement,
    Report,
    needed_entries,
)
from apq_optuna.hardware.table import CostTable
from apq_optuna.space import ConvLayer, SearchSpace

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
    needed = needed_entries(space, device.bits)
    runs = {
        layer: list(dict.fromkeys(device.executes(w, a) for w, a in pairs))
        for layer, pairs in needed.items()
    }
    found: dict[tuple[int, ConvLayer, int, int], Cost] = {}
    about = {"device": device.name, "space": space.hash, "made by": device.provenance()}
    with _journal(journal, about, found) as file:
        visits = _visits(list(needed), device.rounds)
        for done, (turn, layer) in enumerate(visits):
            missing = [pair for pair in runs[layer] if (turn, layer, *pair) not in found]
            if missing:
                costs = device.costs(layer, missing)
                for pair, cost in zip(missing, costs, strict=True):
                    found[turn, layer, *pair] = cost
                    if file is not None:
                        file.write(_line(turn, layer, pair, cost))
                if file is not None:
                    file.flush()
            if report is not None:
                report(done + 1, len(visits))
    entries: dict[Key, Cost] = {}
    spreads: dict[Key, float] = {}
    for layer, pairs in needed.items():
        for w, a in pairs:
            run = device.executes(w, a)
            if device.rounds == 1:
                entries[layer, w, a] = found[0, layer, *run]
                continue
            rounds = [found[turn, layer, *run] for turn in range(device.rounds)]
            entries[layer, w, a], spreads[layer, w, a] = _summary(rounds)
    made = {"created": datetime.date.today().isoformat(), "space": space.hash}
    table = CostTable(
        entries, device=device.name, provenance=device.provenance() | made, spreads=spreads
    )
    if journal is not None:
        Path(journal).unlink(missing_ok=True)
    return table


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
        CostTableError: It is of another space or device.
    """
    if path is None:
        yield None
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # what follows the last end of line was being written when the build was stopped
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    lines = whole.decode().splitlines()
    if lines:
        try:
            header = json.loads(lines[0])
            if header != json.loads(json.dumps(about)):
                raise CostTableError(
                    f"{path} is the journal of another table ({_differences(header, about)}): "
                    "delete it, or write to another file"
                )
            for text in lines[1:]:
                turn, shape, w, a, ms, mj = json.loads(text)
                layer = ConvLayer(**{k: _size(v) for k, v in shape.items()})
                found[turn, layer, w, a] = (ms, mj)
        except (json.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, CostTableError):
                raise
            raise CostTableError(f"{path} is not the journal of a table: {error}") from error
    if path.exists():
        os.truncate(path, len(whole) + 1 if lines else 0)
    with path.open("a") as file:
        if not lines:
            file.write(json.dumps(about) + "\n")
        yield file


def _differences(header: Any, about: dict[str, Any]) -> str:
    if not isinstance(header, dict):
        return "no header"
    names = [name for name in about if header.get(name) != json.loads(json.dumps(about[name]))]
    return ", ".join(f"{name} {header.get(name)!r}, now {about[name]!r}" for name in names)


def _size(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
