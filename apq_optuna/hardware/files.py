"""Cost tables as files: JSON and CSV in and out, and the dictionary published with the APQ paper.

JSON: `schema`, `device`, `units`, `partial`, `overhead`, `provenance` and `entries`, one a line.
CSV: one row a layer and pair of bit-widths, units in the names of the columns, and what JSON says
beside its entries as comments before them (`# device: board`). Every row is checked, and what is
wrong is said with its line.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from apq_optuna._files import replace_file
from apq_optuna.errors import CostTableError
from apq_optuna.hardware.device import Cost, Key, layer_name
from apq_optuna.space import ConvLayer
from apq_optuna.space.subnet import FLOAT_BITS, Size, as_pair

SCHEMA = 1
UNITS = {"latency": "ms", "energy": "mJ"}

SHAPE = ("in_channels", "out_channels", "input_size", "kernel_size", "stride", "padding", "groups",
         "dilation", "linear")  # fmt: skip
_PAIRS = ("input_size", "kernel_size", "stride", "padding", "dilation")
_COLUMNS = (*SHAPE, "w_bits", "a_bits", "latency_ms", "energy_mj", "latency_spread_ms")
_REQUIRED = ("in_channels", "out_channels", "input_size", "kernel_size", "w_bits", "a_bits",
             "latency_ms")  # fmt: skip
_DEFAULTS = {"stride": 1, "groups": 1, "dilation": 1, "linear": False}
_COMMENTS = ("schema", "device", "partial", "overhead_ms", "overhead_mj", "provenance")

_PUBLISHED_FIXED = {
    "head": (ConvLayer(3, 32, 224, 3, 2, 1, 1), 8, 8),
    "tail": (ConvLayer(320, 1280, 7, 1, 1, 0, 1), 8, 8),
}


@dataclass
class Contents:
    """What a file holds; the fields are those of `CostTable`."""

    device: str
    entries: dict[Key, Cost] = field(default_factory=dict)
    spreads: dict[Key, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    partial: bool = False
    overhead: tuple[float, ...] = (0.0, 0.0)


def write_table(path: Path, contents: Contents) -> None:
    """Writes CSV where the name ends in .csv, else JSON."""
    text = _as_csv(contents) if path.suffix.lower() == ".csv" else _as_json(contents)
    replace_file(path, text.encode())


def read_table(path: Path) -> Contents:
    """Reads what `write_table` wrote, a CSV made by hand, or the published dictionary.

    Raises:
        CostTableError: Not such a file; the message names the line.
    """
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise CostTableError(f"there is no cost table {path}") from error
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise CostTableError(f"{path} is not a text file: {error}") from error
    return _from_csv(path, text) if path.suffix.lower() == ".csv" else _from_json(path, text)


def write_template(path: Path, needed: Mapping[ConvLayer, Iterable[tuple[int, int]]]) -> int:
    """A CSV of layers and bit-widths without costs, to be filled in; returns the rows."""
    keys: list[Key] = [(layer, w, a) for layer, pairs in needed.items() for w, a in pairs]
    columns = [*SHAPE, "w_bits", "a_bits", "latency_ms", "energy_mj"]
    comments = [("schema", str(SCHEMA)), ("device", path.stem)]
    replace_file(path, _csv_text(comments, columns, ([*_cells(key), "", ""] for key in keys)))
    return len(keys)


def fault(latency_ms: float, energy_mj: float | None, spread_ms: float | None = None) -> str:
    """What is wrong with the costs of a row; empty where nothing is."""
    named = {"latency_ms": latency_ms, "energy_mj": energy_mj, "latency_spread_ms": spread_ms}
    for name, value in named.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            return f"{name}={value}: costs are finite and not negative"
    return ""


# ---------------------------------------------------------------------- rows


class _Rows:
    """Rows as they are read: each is checked against itself and those before it."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path, self.contents = path, contents
        self.place: dict[Key, str] = {}

    def fail(self, place: str, message: str) -> CostTableError:
        return CostTableError(f"{self.path}, {place}: {message}")

    def add(self, place: str, key: Key, cost: Cost, spread: float | None = None) -> None:
        wrong = _shape_fault(key) or fault(*cost, spread)
        if wrong:
            raise self.fail(place, f"{wrong} ({layer_name(*key)})")
        if key in self.place:
            raise self.fail(place, f"repeats {self.place[key]}: {layer_name(*key)}")
        if self.place:
            first = next(iter(self.place))
            if (self.contents.entries[first][1] is None) != (cost[1] is None):
                without = place if cost[1] is None else self.place[first]
                raise self.fail(
                    without,
                    "has no energy, but other rows do: give it for all of them, or for none "
                    "(energy is then no objective)",
                )
        self.place[key] = place
        self.contents.entries[key] = cost
        if spread is not None:
            self.contents.spreads[key] = spread

    def finish(self) -> Contents:
        if not self.place:
            raise CostTableError(f"{self.path} has no entries")
        return self.contents


def _shape_fault(key: Key) -> str:
    layer, *bits = key
    for name in ("in_channels", "out_channels", "groups"):
        if getattr(layer, name) < 1:
            return f"{name}={getattr(layer, name)}: at least 1"
    for name in ("input_size", "kernel_size", "stride", "dilation"):
        if min(as_pair(getattr(layer, name))) < 1:
            return f"{name}={getattr(layer, name)}: at least 1"
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        return f"groups={layer.groups} does not divide the channels"
    if min(layer.output_size) < 1:
        return "the kernel is larger than the padded input"
    for name, width in zip(("w_bits", "a_bits"), bits, strict=True):
        if not (1 <= width <= 8 or width == FLOAT_BITS):
            return f"{name}={width}: bit-widths are 1 to 8, and {FLOAT_BITS} for float"
    return ""


def _layer(values: Mapping[str, Any]) -> ConvLayer:
    """A layer from what a row says of it; padding is by default what keeps the size."""
    shape = {name: values[name] for name in SHAPE if name in values}
    if "padding" not in shape:
        high, wide = as_pair(shape["kernel_size"])
        shape["padding"] = high // 2 if high == wide else (high // 2, wide // 2)
    return ConvLayer(**(_DEFAULTS | shape))


# ---------------------------------------------------------------------- JSON


def _as_json(contents: Contents) -> str:
    with_energy = any(energy is not None for _, energy in contents.entries.values())
    head = {
        "schema": SCHEMA,
        "device": contents.device,
        "units": {k: v for k, v in UNITS.items() if k == "latency" or with_energy},
        "partial": contents.partial,
        "overhead": dict(zip(UNITS, contents.overhead, strict=False)),
        "provenance": contents.provenance,
    }
    rows = []
    for key, (ms, mj) in contents.entries.items():
        layer, w, a = key
        row = {f.name: getattr(layer, f.name) for f in fields(layer)}
        row |= {"w_bits": w, "a_bits": a, "latency": ms}
        row |= {} if mj is None else {"energy": mj}
        row |= {"latency_spread": contents.spreads[key]} if key in contents.spreads else {}
        rows.append(json.dumps(row))
    opened = json.dumps(head, indent=1)[:-2]  # without the closing brace
    return opened + ',\n "entries": [\n' + ",\n".join(rows) + "\n]}\n"


def _from_json(path: Path, text: str) -> Contents:
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _once(path, text, pairs))
    except json.JSONDecodeError as error:
        raise CostTableError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CostTableError(f"{path} is not a cost table: its top level is not an object")
    if "entries" not in document and any(str(key).startswith("(") for key in document):
        return _from_published(path, text, document)
    if document.get("schema") != SCHEMA:
        raise CostTableError(f"{path}: schema={document.get('schema')!r}; expected {SCHEMA}")
    units, rows = document.get("units"), document.get("entries")
    if not isinstance(units, dict) or not isinstance(rows, list):
        raise CostTableError(f"{path}: 'units' (an object) and 'entries' (a list) are required")
    used = {name for name in UNITS for row in rows if isinstance(row, dict) and name in row}
    for name in UNITS:
        if name in used and units.get(name) != UNITS[name]:
            raise CostTableError(
                f"{path}: units.{name}={units.get(name)!r}; expected {UNITS[name]!r}"
            )
    overhead = document.get("overhead") or {}
    contents = Contents(
        str(document.get("device", path.stem)),
        provenance=document.get("provenance") or {},
        partial=bool(document.get("partial", False)),
        overhead=tuple(float(overhead.get(name, 0.0)) for name in UNITS),
    )
    found = _Rows(path, contents)
    try:
        for number, row in enumerate(rows):
            place = f"entry {number}"
            _add_json(found, place, row)
    except CostTableError as error:
        # lines are looked for only now: it takes a slower parser
        raise CostTableError(_with_lines(str(error), text)) from error
    return found.finish()


def _add_json(found: _Rows, place: str, row: Any) -> None:
    try:
        values = dict(row)
        values |= {name: _size(row[name]) for name in _PAIRS if name in row}
        for name in ("in_channels", "out_channels", "groups"):
            values[name] = int(row[name])
        values["linear"] = bool(row.get("linear", False))
        key = (_layer(values), int(row["w_bits"]), int(row["a_bits"]))
        energy, spread = row.get("energy"), row.get("latency_spread")
        cost = (float(row["latency"]), None if energy is None else float(energy))
        spread = None if spread is None else float(spread)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise found.fail(place, f"is not valid: {error!r}") from error
    found.add(place, key, cost, spread)


def _once(path: Path, text: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(n for i, n in enumerate(names) if n in names[:i])
        quoted = json.dumps(name)
        line = text.count("\n", 0, text.find(quoted, text.find(quoted) + 1)) + 1
        raise CostTableError(f"{path}, line {line}: repeats {quoted}")
    return result


def _with_lines(message: str, text: str) -> str:
    """The message with the line of every entry that it names."""
    start = text.find("[", text.find('"entries"')) + 1
    decoder, numbers = json.JSONDecoder(), {}
    number, line, counted = 0, text.count("\n", 0, start) + 1, start
    while True:
        while text[start] in " \t\r\n,":
            start += 1
        if text[start] == "]":
            break
        line += text.count("\n", counted, start)
        counted = start
        numbers[number] = line
        number, start = number + 1, decoder.raw_decode(text, start)[1]
    return re.sub(
        r"entry (\d+):",
        lambda found: f"line {numbers[int(found[1])]} (entry {found[1]}):",
        message,
    )


def _from_published(path: Path, text: str, document: Mapping[str, Any]) -> Contents:
    provenance = {"source": "published with Wang et al., CVPR 2020", "file": path.name}
    contents = Contents("bitfusion", provenance=provenance, partial=True)
    found = _Rows(path, contents)

    def place(name: str) -> str:
        return f"line {text.count(chr(10), 0, text.find(json.dumps(name))) + 1}, {name!r}"

    for name, cost in document.items():
        try:
            if name in _PUBLISHED_FIXED:
                key = _PUBLISHED_FIXED[name]
            else:
                shape, bits = name.rsplit("-W", 1)
                w, a = bits.split("A")
                key = (ConvLayer(*ast.literal_eval(shape)), int(w), int(a))
            values = (float(cost["latency"]), float(cost["energy"]))
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise found.fail(place(name), f"is not valid: {error!r}") from error
        if fault(*values) or _shape_fault(key) or key in found.place:
            found.add(place(name), key, values)
        found.add(name, key, values)
    return found.finish()


def _size(value: Any) -> Size:
    return (int(value[0]), int(value[1])) if isinstance(value, list) else int(value)


# ---------------------------------------------------------------------- CSV


def _as_csv(contents: Contents) -> str:
    metrics = ["latency_ms"]
    if any(energy is not None for _, energy in contents.entries.values()):
        metrics.append("energy_mj")
    if contents.spreads:
        metrics.append("latency_spread_ms")
    comments = [("schema", str(SCHEMA)), ("device", contents.device)]
    comments += [("partial", "true")] if contents.partial else []
    for name, value in zip(("overhead_ms", "overhead_mj"), contents.overhead, strict=False):
        comments += [(name, repr(value))] if value else []
    comments.append(("provenance", json.dumps(contents.provenance)))
    rows = []
    for key, (ms, mj) in contents.entries.items():
        values = {
            "latency_ms": ms,
            "energy_mj": mj,
            "latency_spread_ms": contents.spreads.get(key),
        }
        rows.append(
            [*_cells(key), *("" if values[m] is None else repr(values[m]) for m in metrics)]
        )
    return _csv_text(comments, [*SHAPE, "w_bits", "a_bits", *metrics], rows).decode()


def _csv_text(
    comments: Iterable[tuple[str, str]], columns: list[str], rows: Iterable[list[str]]
) -> bytes:
    text = io.StringIO()
    for name, value in comments:
        text.write(f"# {name}: {value}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _cells(key: Key) -> list[str]:
    layer, w, a = key
    shape = []
    for name in SHAPE:
        value = getattr(layer, name)
        shape.append("x".join(map(str, value)) if isinstance(value, tuple) else str(int(value)))
    return [*shape, str(w), str(a)]


def _from_csv(path: Path, text: str) -> Contents:
    contents = Contents(path.stem)
    found = _Rows(path, contents)
    columns: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"line {number}"
        if not line.strip() or line.startswith("#"):
            if not columns:
                _read_comment(found, place, line)
            continue
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if not any(cells):
            continue  # what a spreadsheet leaves of an empty row
        if not columns:
            columns = _checked_columns(found, place, cells)
            continue
        if len(cells) != len(columns):
            raise found.fail(place, f"has {len(cells)} cells for {len(columns)} columns")
        _add_csv(found, place, dict(zip(columns, cells, strict=True)))
    return found.finish()


def _read_comment(found: _Rows, place: str, line: str) -> None:
    name, colon, value = line.lstrip("# ").partition(":")
    name, value, contents = name.strip(), value.strip(), found.contents
    if not colon or name not in _COMMENTS:
        return  # a remark
    try:
        if name == "schema" and int(value) != SCHEMA:
            raise ValueError(f"expected {SCHEMA}")
        if name == "device":
            contents.device = value
        elif name == "partial":
            contents.partial = value.lower() == "true"
        elif name == "provenance":
            contents.provenance = dict(json.loads(value))
        elif name.startswith("overhead"):
            both = list(contents.overhead)
            both[name == "overhead_mj"] = float(value)
            contents.overhead = tuple(both)
    except (ValueError, TypeError) as error:
        raise found.fail(place, f"{name}: {value!r} is not valid: {error}") from error


def _checked_columns(found: _Rows, place: str, columns: list[str]) -> list[str]:
    for name in columns:
        metric = next((m for m in UNITS if name.startswith(m)), None)
        if metric and name not in _COLUMNS:
            right = f"{metric}_{UNITS[metric].lower()}"
            raise found.fail(
                place,
                f"column {name!r}: costs are in {UNITS[metric]}, and their column says so: "
                f"{right!r}",
            )
        if name not in _COLUMNS:
            raise found.fail(place, f"column {name!r} is unknown; allowed are {list(_COLUMNS)}")
    lacking = [name for name in _REQUIRED if name not in columns]
    if lacking:
        raise found.fail(
            place, f"the first row names the columns; {lacking} are missing from {columns[:8]}"
        )
    if len(set(columns)) < len(columns):
        raise found.fail(place, "a column is named twice")
    return columns


def _add_csv(found: _Rows, place: str, row: Mapping[str, str]) -> None:
    values: dict[str, Any] = {}
    for name, cell in row.items():
        if cell == "":
            if name in _REQUIRED:
                raise found.fail(place, f"{name} is empty")
            continue
        try:
            if name in _PAIRS:
                sizes = [int(part) for part in cell.lower().split("x")]
                if len(sizes) > 2:
                    raise ValueError("at most height x width")
                values[name] = sizes[0] if sizes[0] == sizes[-1] else (sizes[0], sizes[1])
            elif name == "linear":
                values[name] = {"0": False, "1": True, "false": False, "true": True}[cell.lower()]
            elif name in UNITS or name.endswith(("_ms", "_mj")):
                values[name] = float(cell)
            else:
                values[name] = int(cell)
        except (ValueError, KeyError) as error:
            kind = "a number" if name.endswith(("_ms", "_mj")) else "a whole number"
            kind = "0 or 1" if name == "linear" else kind
            kind = "a whole number, or HEIGHTxWIDTH" if name in _PAIRS else kind
            raise found.fail(place, f"{name}={cell!r}: {kind} is expected") from error
    key = (_layer(values), values["w_bits"], values["a_bits"])
    cost = (values["latency_ms"], values.get("energy_mj"))
    found.add(place, key, cost, values.get("latency_spread_ms"))
