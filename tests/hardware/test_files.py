"""Cost tables as files: JSON, CSV, spreadsheets and the published dictionary, good and bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import apq_optuna as apq
from apq_optuna.errors import CostTableError
from apq_optuna.hardware import (
    CostTable,
    check_table,
)
from apq_optuna.hardware.entries import needed_entries
from apq_optuna.hardware.files.csv_file import write_template
from apq_optuna.networks import ConvLayer

SPACE = apq.SearchSpace.preset("digits")
ODD = ConvLayer(6, 12, (20, 12), (3, 5), (2, 1), (1, 2), 3, (1, 2))


@pytest.mark.parametrize("name", ["t.json", "t.csv"])
def test_tables_come_back_whole(tmp_path: Path, digits_costs: CostTable, name: str) -> None:
    entries = dict(digits_costs.entries) | {(ODD, 4, 32): (0.1 + 0.2, 1e-300)}
    table = CostTable(
        entries, device="my, board", provenance={"by": ["me", 1]}, partial=True,
        spreads={(ODD, 4, 32): 0.01}, overhead=(0.125, 0.5),
    )  # fmt: skip
    again = CostTable.load(table.save(tmp_path / name))
    for attribute in ("entries", "device", "provenance", "partial", "spreads", "overhead"):
        assert getattr(again, attribute) == getattr(table, attribute), attribute
    assert again.digest == table.digest
    text = (tmp_path / name).read_text().splitlines()
    assert sum("12" in line and "20" in line for line in text) >= 1
    assert len(text) > len(entries)  # an entry a line


def test_a_table_written_by_hand_needs_few_columns(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_text(
        "# measured with a stopwatch\n\n# device: my board\n"
        "in_channels,out_channels,input_size,kernel_size,w_bits,a_bits,latency_ms\n"
        "8,16,8,1,8,8,0.5\n8, 16, 8x4, 3x5, 8, 8, 0.25\n,,,,,,\n"
    )
    table = CostTable.load(path)
    assert table.device == "my board" and table.metric_names == ("latency_ms",)
    assert table.entries == {
        (ConvLayer(8, 16, 8, 1, 1, 0, 1), 8, 8): (0.5, None),
        (ConvLayer(8, 16, (8, 4), (3, 5), 1, (1, 2), 1), 8, 8): (0.25, None),
    }


HEAD = "in_channels,out_channels,input_size,kernel_size,groups,w_bits,a_bits,latency_ms,energy_mj"
ROW = "8,16,8,1,1,8,8,0.5,0.1"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEAD.replace("latency_ms", "latency"), ROW],
         r"line 1: column 'latency': costs are in ms, and their column says so: 'latency_ms'"),
        ([HEAD.replace("energy_mj", "energy_uj"), ROW], r"line 1: column 'energy_uj': .* in mJ"),
        ([HEAD, ROW, ROW.replace("0.5", "-0.5")], r"line 3: latency_ms=-0.5: costs are finite"),
        ([HEAD, ROW.replace("0.1", "nan")], r"line 2: energy_mj=nan: costs are finite"),
        ([HEAD, "# a remark", ROW, "", ROW], r"line 5: repeats line 3: convolution 8->16"),
        ([HEAD, ROW, "16,16,8,1,1,8,8,0.5,"], r"line 3: has no energy, but other rows do"),
        ([HEAD, "16,16,8,1,1,8,8,0.5,", ROW], r"line 2: has no energy, but other rows do"),
        ([HEAD, ROW.replace("0.5", "")], r"line 2: latency_ms is empty"),
        ([HEAD, ROW.replace("0.5", "0,5")], r"line 2: has 10 cells for 9 columns"),
        ([HEAD, ROW.replace("0.5", "fast")], r"line 2: latency_ms='fast': a number is expected"),
        ([HEAD, "8,16,8,1,1,8.5,8,0.5,0.1"], r"line 2: w_bits='8.5': a whole number is expected"),
        ([HEAD, "8,16,8by8,1,1,8,8,0.5,1"], r"line 2: input_size='8by8': .* HEIGHTxWIDTH"),
        ([HEAD, "8,16,8,1,3,8,8,0.5,0.1"], r"line 2: groups=3 does not divide the channels"),
        ([HEAD, "8,16,8,1,1,9,8,0.5,0.1"], r"line 2: w_bits=9: bit-widths are 1 to 8, and 32"),
        ([HEAD, "0,16,8,1,1,8,8,0.5,0.1"], r"line 2: in_channels=0: at least 1"),
        ([HEAD.replace("groups", "grups"), ROW], r"line 1: column 'grups' is unknown; allowed"),
        ([HEAD + ",groups", ROW + ",1"], r"line 1: column 'groups' is there twice"),
        ([HEAD + ",", ROW + ","], r"line 1: column 10 has no name: delete it"),
        ([HEAD.replace(",", "\t"), ROW], r"line 1: columns are separated by tabs"),
        ([ROW, ROW], r"line 1: the first row names the columns, but this one holds numbers"),
        (["w_bits,a_bits,latency_ms", "8,8,1"], r"line 1: .*\['in_channels'.* are missing"),
        (["# schema: 9", HEAD, ROW], r"line 1: schema: '9' is not valid: expected 1"),
        (["# provenance: {", HEAD, ROW], r"line 1: provenance: .* is not valid"),
        ([HEAD], r"has no entries"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_their_line(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    path = tmp_path / "board.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CostTableError, match=f"board.csv.*{message}"):
        CostTable.load(path)


def test_lines_of_a_json_file_are_named(tmp_path: Path, digits_costs: CostTable) -> None:
    path = digits_costs.save(tmp_path / "t.json")
    lines = path.read_text().splitlines()
    line = next(i for i, text in enumerate(lines) if '"in_channels"' in text) + 7
    row = json.loads(lines[line].rstrip(","))
    lines[line] = json.dumps(row | {"latency": -3.0}) + ","
    path.write_text("\n".join(lines))
    with pytest.raises(CostTableError, match=rf"line {line + 1} \(entry 7\): latency_ms=-3.0"):
        CostTable.load(path)
    lines[line] = lines[line - 1]
    path.write_text("\n".join(lines))
    with pytest.raises(CostTableError, match=rf"line {line + 1} \(entry 7\): repeats line"):
        CostTable.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace('"latency": 0.5', '"latency": -0.5'), r"line 2, '\(8, .*=-0.5"),
        (lambda t: t.replace('"latency": 0.5, ', ""), r"line 2, .*KeyError\('latency'\)"),
        (lambda t: t.replace("(16,", "(8,"), r"line 3: repeats \"\(8, 16"),
        (lambda t: t.replace("W8A8", "WxA8", 1), r"line 2, .* is not valid"),
    ],
)
def test_the_published_dictionary_is_checked(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    text = (
        '{\n"(8, 16, 8, 1, 1, 0, 1)-W8A8": {"latency": 0.5, "energy": 0.1},\n'
        '"(16, 16, 8, 1, 1, 0, 1)-W8A8": {"latency": 0.25, "energy": 0.2}\n}\n'
    )
    path = tmp_path / "published.json"
    path.write_text(text)
    assert len(CostTable.load(path).entries) == 2
    path.write_text(change(text))
    with pytest.raises(CostTableError, match=message):
        CostTable.load(path)


def test_the_template_filled_in_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    rows = write_template(path, needed_entries(SPACE, (8,)))
    with pytest.raises(CostTableError, match="latency_ms is empty"):
        CostTable.load(path)
    head, *lines = [t for t in path.read_text().splitlines() if not t.startswith("#")]
    assert len(lines) == rows
    filled = [head.removesuffix(",energy_mj")]
    filled += [line.removesuffix(",,") + f",{0.01 * (i + 1)}" for i, line in enumerate(lines)]
    path.write_text("\n".join(filled))
    table = CostTable.load(path)
    check = check_table(table, SPACE)
    assert check.usable and len(table.entries) == rows
    assert any("W2A2" in note for note in check.notes)  # only 8 bits are there


def test_a_template_never_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "board.csv"
    path.write_text("days of work\n")
    with pytest.raises(CostTableError, match="exists; delete it, or name another file"):
        write_template(path, needed_entries(SPACE, (8,)))
    assert path.read_text() == "days of work\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("# schema: 1", '"# schema: 1"'),
        # every row padded to the width of the widest, as spreadsheets save them
        lambda text: text.replace("# schema: 1", "# schema: 1" + "," * 11).replace(
            "# device: my board", "# device: my board" + "," * 11
        ),
        lambda text: "\n".join(
            line if line.startswith("#") else line.replace(",", ";").replace(".", ",")
            for line in text.splitlines()
        ),
        lambda text: text.replace("# schema: 1", "# schema: 1;;;;").replace(",", ";"),
    ],
    ids=["mark", "crlf", "quoted", "padded", "semicolons", "padded-semicolons"],
)
def test_what_spreadsheets_save_is_read(tmp_path: Path, change: Callable[[str], str]) -> None:
    entries = {(ConvLayer(8, 16, (8, 4), (3, 5), 1, (1, 2), 1), 8, 4): (0.25, 0.5)}
    path = CostTable(entries, device="my board").save(tmp_path / "board.csv")
    path.write_bytes(change(path.read_text()).encode())
    table = CostTable.load(path)
    assert table.entries == entries and table.device == "my board"


def test_numbers_of_numpy_are_plain_numbers(tmp_path: Path) -> None:
    layer = ConvLayer(8, 16, 8, 1, 1, 0, 1)
    for kind in (np.float64, np.float32, int):
        table = CostTable(
            {(layer, 8, 8): (kind(2), kind(3))}, device="d", spreads={(layer, 8, 8): kind(1)},
            provenance={"when": Path("x")},
        )  # fmt: skip
        for name in ("t.json", "t.csv"):
            again = CostTable.load(table.save(tmp_path / name))
            assert again.digest == table.digest and again.entries == table.entries


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overhead": {"latency": "x"}}, "overhead=.* is not valid"),
        ({"overhead": [1, 2]}, "overhead=.* is not valid"),
        ({"overhead": {"latency": -1.0}}, r"t\.json: overhead -1.0: finite and not"),
        ({"provenance": [1]}, r"provenance=\[1\]; expected an object"),
        ({"partial": "false"}, "partial='false'; expected true or false"),
        ({"device": "two\nlines"}, "a name on one line"),
        ({"entries": [{}]}, r"\(entry 0\): in_channels is missing"),
        ({"entries": [7]}, r"\(entry 0\): 7: an object is expected"),
    ],
)  # fmt: skip
def test_bad_heads_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = CostTable({(ConvLayer(8, 8, 8, 1, 1, 0, 1), 8, 8): (1, 1)}, device="d").save(
        tmp_path / "t.json"
    )
    document = json.loads(path.read_text()) | change
    path.write_text(json.dumps(document, indent=1))
    with pytest.raises(CostTableError, match=message):
        CostTable.load(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("in_channels", 8.7, "in_channels=8.7: a whole number is expected"),
        ("w_bits", True, "w_bits=True: a whole number"),
        ("linear", "false", "linear='false': true or false is expected"),
        ("kernel_size", [1, 1, 7], "one number, or height and width"),
        ("kernel_size", [], "one number, or height and width"),
        ("latency", True, "latency=True: a number is expected"),
        ("latency", None, "latency=None: a number is expected"),
        ("latency", 10**400, "int too large"),
        ("padding", -1, "padding=-1: at least 0"),
        ("latencyy", 1.0, "unknown name 'latencyy'"),
    ],
)
def test_bad_values_of_an_entry_are_named(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    layers = [ConvLayer(8, width, 8, 1, 1, 0, 1) for width in (8, 16)]
    path = CostTable({(k, 8, 8): (1, 1) for k in layers}, device="d").save(tmp_path / "t.json")
    document = json.loads(path.read_text())
    document["entries"][1][name] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CostTableError, match=rf"line 1 \(entry 1\): .*{message}"):
        CostTable.load(path)


def test_lines_are_found_whatever_stands_before_the_entries(tmp_path: Path) -> None:
    key = (ConvLayer(8, 8, 8, 1, 1, 0, 1), 8, 8)
    about = {"entries": "counted", "list": [1, 2], "latency": "of a batch"}
    path = CostTable({key: (1, 1)}, device="d", provenance=about).save(tmp_path / "t.json")
    text = path.read_text()
    line = 1 + next(i for i, t in enumerate(text.splitlines()) if '"in_channels"' in t)
    path.write_text(text.replace('"latency": 1.0', '"latency": -1.0'))
    with pytest.raises(CostTableError, match=rf"line {line} \(entry 0\)"):
        CostTable.load(path)
    path.write_text(text.replace('"latency": 1.0', '"latency": 1.0, "latency": 2.0'))
    with pytest.raises(CostTableError, match=rf'line {line}: repeats "latency"'):
        CostTable.load(path)
    path.write_text(text)
    document = json.loads(text)
    document["entries"][0]["kernel_size"] = [1, 1]
    path.write_text(json.dumps(document))
    assert list(CostTable.load(path).entries) == [key]
