"""A cost table as JSON, and the dictionary published with the APQ paper.

`schema`, `device`, `units`, `partial`, `overhead`, `provenance` and `entries`, one a line.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from apq_optuna.errors import CostTableError
from apq_optuna.hardware.files.rows import (
    PAIRS,
    SCHEMA,
    UNITS,
    UNREADABLE,
    Contents,
    Rows,
    as_size,
    fault,
    layer_of,
    shape_fault,
)
from apq_optuna.networks import ConvLayer, Size

_PUBLISHED_FIXED = {
    "head": (ConvLayer(3, 32, 224, 3, 2, 1, 1), 8, 8),
    "tail": (ConvLayer(320, 1280, 7, 1, 1, 0, 1), 8, 8),
}


class _RepeatedNameError(Exception):
    """An object has the same name twice."""


def json_of(contents: Contents) -> str:
    """The text of a table's file."""
    head = {
        "schema": SCHEMA,
        "device": contents.device,
        "units": {k: v for k, v in UNITS.items() if k == "latency" or contents.with_energy},
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


def from_json(path: Path, text: str) -> Contents:
    """Reads a table's text, or that of the published dictionary.

    Raises:
        CostTableError: The message names the line.
    """
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise CostTableError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise CostTableError(f"{path} is not a cost table: it is nested too deeply") from error
    except _RepeatedNameError as error:
        name = str(error)
        raise CostTableError(
            f"{path}, line {_line_of_repeat(text, name)}: repeats {name}"
        ) from None
    if not isinstance(document, dict):
        raise CostTableError(f"{path} is not a cost table: its top level is not an object")
    if "entries" not in document and any(str(key).startswith("(") for key in document):
        return _from_published(path, text, document)
    contents = _head(path, document)
    found = Rows(path, contents)
    try:
        for number, row in enumerate(document["entries"]):
            _add(found, f"entry {number}", row)
    except CostTableError as error:
        # lines are looked for only now: it takes a slower parser
        raise CostTableError(_with_lines(str(error), text)) from error
    return found.finish()


def _head(path: Path, document: Mapping[str, Any]) -> Contents:
    """What a file says beside its entries."""
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
    partial, provenance = document.get("partial", False), document.get("provenance", {})
    overhead = document.get("overhead", {})
    if not isinstance(partial, bool):
        raise CostTableError(f"{path}: partial={partial!r}; expected true or false")
    if not isinstance(provenance, dict):
        raise CostTableError(f"{path}: provenance={provenance!r}; expected an object")
    try:
        both = tuple(_number(overhead.get(name, 0.0)) for name in UNITS)
    except UNREADABLE as error:
        raise CostTableError(f"{path}: overhead={overhead!r} is not valid: {error!r}") from error
    if wrong := [value for value in both if fault(value, None)]:
        raise CostTableError(f"{path}: overhead {wrong[0]}: finite and not negative is expected")
    device = str(document.get("device", path.stem))
    return Contents(device, provenance=provenance, partial=partial, overhead=both)


def _add(found: Rows, place: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise found.fail(place, f"{row!r}: an object is expected")
    if unknown := sorted(set(row) - _ROW):
        raise found.fail(place, f"unknown name {unknown[0]!r}; allowed are {sorted(_ROW)}")
    values: dict[str, Any] = {}
    for name in _READERS:
        try:
            if name in row and (row[name] is not None or name in _NEEDED):
                values[name] = _READERS[name](row[name])
        except UNREADABLE as error:
            raise found.fail(place, f"{name}={row[name]!r}: {error}") from error
    if lacking := [name for name in _NEEDED if name not in values]:
        raise found.fail(place, f"{lacking[0]} is missing")
    key = (layer_of(values), values["w_bits"], values["a_bits"])
    cost = (values["latency"], values.get("energy"))
    found.add(place, key, cost, values.get("latency_spread"))


def _from_published(path: Path, text: str, document: Mapping[str, Any]) -> Contents:
    provenance = {"source": "published with Wang et al., CVPR 2020", "file": path.name}
    contents = Contents("bitfusion", provenance=provenance, partial=True)
    found = Rows(path, contents)

    def place(name: str) -> str:
        return f"line {text.count(chr(10), 0, text.find(json.dumps(name))) + 1}, {name!r}"

    for name, cost in document.items():
        try:
            if name in _PUBLISHED_FIXED:
                key = _PUBLISHED_FIXED[name]
            else:
                shape, bits = name.rsplit("-W", 1)
                w, a = bits.split("A")
                ic, oc, size, kernel, stride, padding, groups = map(
                    _whole, ast.literal_eval(shape)
                )
                layer = ConvLayer(ic, oc, size, kernel, stride, padding, groups)
                key = (layer, int(w), int(a))
            energy = cost.get("energy")
            values = (_number(cost["latency"]), None if energy is None else _number(energy))
        except UNREADABLE as error:
            raise found.fail(place(name), f"is not valid: {error!r}") from error
        if fault(*values) or shape_fault(key) or key in found.place:
            found.add(place(name), key, values)  # fails, with the line
        found.add(name, key, values)
    return found.finish()


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number is expected")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number is expected")
    return float(value)


def _size(value: Any) -> Size:
    return as_size([_whole(v) for v in (value if isinstance(value, list) else [value])])


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is expected")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("in_channels", "out_channels", "groups", "w_bits", "a_bits"), _whole),
    **dict.fromkeys(PAIRS, _size),
    **dict.fromkeys(("latency", "energy", "latency_spread"), _number),
    "linear": _truth,
}
_ROW = set(_READERS)
_NEEDED = ("in_channels", "out_channels", "input_size", "kernel_size", "w_bits", "a_bits",
           "latency")  # fmt: skip


# ---------------------------------------------------------------------- lines


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedNameError(
            next(json.dumps(n) for i, n in enumerate(names) if n in names[:i])
        )
    return result


def _entries(text: str, hook: Callable[[list[tuple[str, Any]]], Any]) -> Iterator[int]:
    """Where each entry of a file starts; `hook` is the decoder's for objects inside it."""
    decoder, plain = json.JSONDecoder(object_pairs_hook=hook), json.JSONDecoder()
    start = _next(text, text.index("{") + 1)
    while text[start] != "}":  # the names of the top level
        name, start = plain.raw_decode(text, start)
        start = _next(text, start)
        if name == "entries" and text[start] == "[":
            break
        start = _next(text, plain.raw_decode(text, start)[1])
    if text[start] != "[":
        return
    start = _next(text, start + 1)
    while text[start] != "]":
        yield start
        start = _next(text, decoder.raw_decode(text, start)[1])


def _next(text: str, start: int) -> int:
    """The next place that is neither blank nor a separator."""
    found = re.compile(r"[\s,:]*").match(text, start)
    return found.end() if found else start


def _with_lines(message: str, text: str) -> str:
    """The message with the line of every entry that it names."""
    starts = list(_entries(text, dict))

    def named(found: re.Match[str]) -> str:
        line = text.count("\n", 0, starts[int(found[1])]) + 1
        return f"line {line} (entry {found[1]}):"

    return re.sub(r"entry (\d+):", named, message)


def _line_of_repeat(text: str, name: str) -> int:
    start = 0
    try:
        for place in _entries(text, _once):
            start = place  # the last one before the repeat is met
    except _RepeatedNameError:
        return text.count("\n", 0, start) + 1
    again = text.find(name, text.find(name) + 1)
    return text.count("\n", 0, again) + 1
