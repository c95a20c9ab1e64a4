"""A cost table as CSV: one row a layer and pair of bit-widths.

Units are in the names of the columns. What JSON says beside its entries stands in comments before
the columns (`# device: board`). Spreadsheets' ways are understood: semicolons with decimal commas,
quoted or padded comments, empty rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apq_optuna._files import replace_file
from apq_optuna.errors import CostTableError
from apq_optuna.hardware.costs import Key
from apq_optuna.hardware.files.rows import (
    PAIRS,
    SCHEMA,
    SHAPE,
    UNITS,
    Contents,
    Rows,
    as_size,
    layer_of,
)
from apq_optuna.networks import ConvLayer

_COLUMNS = (*SHAPE, "w_bits", "a_bits", "latency_ms", "energy_mj", "latency_spread_ms")
_REQUIRED = ("in_channels", "out_channels", "input_size", "kernel_size", "w_bits", "a_bits",
             "latency_ms")  # fmt: skip
_COMMENTS = ("schema", "device", "partial", "overhead_ms", "overhead_mj", "provenance")
_TRUTH = {"0": False, "1": True, "false": False, "true": True}


def csv_of(contents: Contents) -> str:
    """The text of a table's file."""
    metrics = ["latency_ms"]
    metrics += ["energy_mj"] if contents.with_energy else []
    metrics += ["latency_spread_ms"] if contents.spreads else []
    comments = [("schema", str(SCHEMA)), ("device", contents.device)]
    comments += [("partial", "true")] if contents.partial else []
    for name, value in zip(("overhead_ms", "overhead_mj"), contents.overhead, strict=False):
        comments += [(name, repr(value))] if value else []
    comments.append(("provenance", json.dumps(contents.provenance)))
    rows = []
    for key, (ms, mj) in contents.entries.items():
        costs = {"latency_ms": ms, "energy_mj": mj, "latency_spread_ms": contents.spreads.get(key)}
        cells = ["" if costs[m] is None else repr(costs[m]) for m in metrics]
        rows.append([*_cells(key), *cells])
    return _text(comments, [*SHAPE, "w_bits", "a_bits", *metrics], rows)


def write_template(path: Path, needed: Mapping[ConvLayer, Iterable[tuple[int, int]]]) -> int:
    """A CSV of layers and bit-widths without costs, to be filled in; returns the rows.

    Raises:
        CostTableError: The file exists: it may be filled in already.
    """
    if path.exists():
        raise CostTableError(f"{path} exists; delete it, or name another file")
    keys: list[Key] = [(layer, w, a) for layer, pairs in needed.items() for w, a in pairs]
    columns = [*SHAPE, "w_bits", "a_bits", "latency_ms", "energy_mj"]
    comments = [("schema", str(SCHEMA)), ("device", path.stem)]
    rows = ([*_cells(key), "", ""] for key in keys)
    replace_file(path, _text(comments, columns, rows).encode())
    return len(keys)


def _text(
    comments: Iterable[tuple[str, str]], columns: list[str], rows: Iterable[list[str]]
) -> str:
    text = io.StringIO()
    for name, value in comments:
        text.write(f"# {name}: {value}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _cells(key: Key) -> list[str]:
    layer, w, a = key
    shape = []
    for name in SHAPE:
        value = getattr(layer, name)
        shape.append("x".join(map(str, value)) if isinstance(value, tuple) else str(int(value)))
    return [*shape, str(w), str(a)]


# ---------------------------------------------------------------------- reading


def from_csv(path: Path, text: str) -> Contents:
    """Reads a table's text.

    Raises:
        CostTableError: The message names the line.
    """
    contents = Contents(path.stem)
    found = Rows(path, contents)
    columns: list[str] = []
    separator = _separator(text)
    for number, line in enumerate(text.splitlines(), 1):
        place = f"line {number}"
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]
        except csv.Error as error:
            raise found.fail(place, str(error)) from error
        if not any(cells):
            continue  # what a spreadsheet leaves of an empty row
        if cells[0].startswith("#"):
            if not columns:
                # a comment of several cells has separators of its own, and padding behind it
                whole = cells[0] if not any(cells[1:]) else line.rstrip(" ,;")
                _read_comment(found, place, whole)
            continue
        if not columns:
            columns = _checked_columns(found, place, cells)
            continue
        if len(cells) != len(columns):
            raise found.fail(place, f"has {len(cells)} cells for {len(columns)} columns")
        if separator == ";":
            cells = [cell.replace(",", ".") for cell in cells]
        _add(found, place, dict(zip(columns, cells, strict=True)))
    return found.finish()


def _separator(text: str) -> str:
    """Semicolon where the line of columns has it: the way of spreadsheets with decimal commas."""
    for line in text.splitlines():
        if line.strip(" ,;") and not line.lstrip('"').startswith("#"):
            return ";" if line.count(";") > line.count(",") else ","
    return ","


def _read_comment(found: Rows, place: str, line: str) -> None:
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
            contents.partial = _TRUTH[value.lower()]
        elif name == "provenance":
            contents.provenance = dict(json.loads(value))
        elif name.startswith("overhead"):
            both = list(contents.overhead)
            both[name == "overhead_mj"] = float(value)
            contents.overhead = tuple(both)
    except (ValueError, TypeError, KeyError) as error:
        raise found.fail(place, f"{name}: {value!r} is not valid: {error}") from error


def _checked_columns(found: Rows, place: str, columns: list[str]) -> list[str]:
    if columns[0].replace(".", "").isdigit():
        raise found.fail(place, "the first row names the columns, but this one holds numbers")
    if any("\t" in name for name in columns):
        raise found.fail(place, "columns are separated by tabs; save it with commas or semicolons")
    for number, name in enumerate(columns, 1):
        if not name:
            raise found.fail(place, f"column {number} has no name: delete it")
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
    if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
        raise found.fail(place, f"column {twice[0]!r} is there twice")
    return columns


def _add(found: Rows, place: str, row: Mapping[str, str]) -> None:
    values: dict[str, Any] = {}
    for name, cell in row.items():
        if cell == "":
            if name in _REQUIRED:
                raise found.fail(place, f"{name} is empty")
            continue
        cost = name.endswith(("_ms", "_mj"))
        try:
            if name in PAIRS:
                values[name] = as_size([_whole(part) for part in cell.lower().split("x")])
            elif name == "linear":
                values[name] = _TRUTH[cell.lower()]
            else:
                values[name] = float(cell) if cost else _whole(cell)
        except (ValueError, KeyError) as error:
            expected = "a number" if cost else "a whole number"
            expected = "0 or 1" if name == "linear" else expected
            expected = "a whole number, or HEIGHTxWIDTH" if name in PAIRS else expected
            raise found.fail(place, f"{name}={cell!r}: {expected} is expected") from error
    key = (layer_of(values), values["w_bits"], values["a_bits"])
    cost_of = (values["latency_ms"], values.get("energy_mj"))
    found.add(place, key, cost_of, values.get("latency_spread_ms"))


def _whole(cell: str) -> int:
    """A whole number, which some programs save as 8.0."""
    value = float(cell)
    if not value.is_integer():
        raise ValueError(cell)
    return int(value)
