"""Devices of one's own, however they are named, and tables that can be stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import apq_optuna as apq
from apq_optuna.errors import CostTableError, InvalidArgumentError, MissingCostError
from apq_optuna.hardware import BitFusion, BitSerial, Device, find_device, known_devices
from apq_optuna.hardware.devices.device import Cost
from apq_optuna.networks import ConvLayer

SPACE = apq.SearchSpace.preset("digits")

BOARD = """
    from apq_optuna.hardware import Device

    class Board(Device):
        name = "board"
        bits = (4, 8)

        def __init__(self, slowness=1.0):
            self.slowness = slowness

        def cost(self, layer, w_bits, a_bits):
            self.check_bits(w_bits, a_bits)
            return layer.macs * self.slowness * 1e-6, None
"""


def test_devices_by_name_and_by_object() -> None:
    assert isinstance(find_device("bitfusion"), BitFusion)
    assert find_device("bitserial", {"batch": 4}).batch == 4  # type: ignore[attr-defined]
    assert isinstance(find_device(BitSerial), BitSerial)
    made = BitSerial(batch=2)
    assert find_device(made) is made
    assert {"bitfusion", "bitserial", "cpu"} <= set(known_devices())


def test_every_number_of_bitfusion_is_a_parameter() -> None:
    layer = ConvLayer(64, 64, 14, 1, 1, 0, 1)
    base = find_device("bitfusion").cost(layer, 8, 8)
    for parameters in ({"dram_nj": 0.03}, {"core_nj": 1.0}, {"leakage_nj": 1.0}):
        latency, energy = find_device("bitfusion", parameters).cost(layer, 8, 8)
        assert latency == base[0] and energy is not None and base[1] is not None
        assert energy > base[1]
    assert find_device("bitfusion", {"bandwidth_bits": 24}).cost(layer, 8, 8)[0] > base[0]
    assert find_device("bitfusion", {"frequency_hz": 1e9}).cost(layer, 8, 8)[0] == base[0] / 2
    with pytest.raises(InvalidArgumentError, match=r"dram_nj=-1: cannot be negative"):
        find_device("bitfusion", {"dram_nj": -1})


def test_a_device_in_a_file_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_board.py").write_text(textwrap.dedent(BOARD))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    board = find_device("lab_board:Board", {"slowness": 2.0})
    assert board.table(SPACE).device == "board"
    assert board.cost(ConvLayer(1, 1, 1, 1, 1, 0, 1), 8, 8) == (2e-6, None)


def test_a_device_of_an_installed_package(tmp_path: Path) -> None:
    """A package that declares the entry point, seen by a process that has it on its path."""
    (tmp_path / "lab_device.py").write_text(textwrap.dedent(BOARD))
    info = tmp_path / "lab_device-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-device\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[apq_optuna.hardware]\nboard = lab_device:Board\n")
    code = (
        "from apq_optuna.hardware import find_device, known_devices\n"
        "print(find_device('board').name, known_devices()['board'])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert out.strip() == "board From lab-device: lab_device:Board."


@pytest.mark.parametrize(
    ("device", "parameters", "message"),
    [
        ("tpu", {}, "device='tpu' is unknown; choose from"),
        ("no_such_module:Board", {}, "No module named 'no_such_module'"),
        ("json:Board", {}, "has no attribute 'Board'"),
        ("json:loads", {"s": "{}"}, "makes a dict; derive it from"),
        ("math:pi", {}, "is a float, not a device"),
        ("bitserial", {"batches": 2}, "has no parameter 'batches'; it has"),
        (BitSerial(), {"batch": 2}, "is made already"),
        (":Board", {}, "is unknown"),
        (".a:Board", {}, "is unknown"),
        ("bitserial", {"batch": "two"}, "batch='two': a whole number"),
        ("bitserial", {"batch": 1.5}, "batch=1.5: a whole number"),
        ("bitfusion", {"rows": 3}, "rows=3: an even number"),
        ("bitfusion", {"rows": "x"}, "rows='x': a whole number, at least 2"),
        ("bitfusion", {"bits": (9,)}, r"bits=\(9,\): a tuple of some of"),
        ("bitfusion", {"frequency_hz": float("nan")}, "frequency_hz=nan: must be positive"),
        ("cpu", {"rounds": 2.5}, "rounds=2.5: a whole number"),
    ],
)
def test_what_is_no_device_is_named(
    device: str | Device, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        find_device(device, parameters)


def test_files_that_fail_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "broken_board.py").write_text("class Board(:\n")
    (tmp_path / "picky_board.py").write_text(
        textwrap.dedent(BOARD).replace("slowness=1.0", "slowness, **more")
    )
    with pytest.raises(InvalidArgumentError, match="SyntaxError"):
        find_device("broken_board:Board")
    with pytest.raises(InvalidArgumentError, match="missing a required argument: 'slowness'"):
        find_device("picky_board:Board")
    assert find_device("picky_board:Board", {"slowness": 2.0, "other": 1}).name == "board"


# ---------------------------------------------------------------------- tables that are built


class Bench(Device):
    """A board that is asked over a slow line, and says how often."""

    name = "bench"
    bits = (2, 4, 6, 8)
    rounds = 3

    def __init__(self, answers: int | None = None) -> None:
        self._answers, self._asked = answers, 0

    def executes(self, w_bits: int, a_bits: int) -> tuple[int, int]:
        return (4, 4) if max(w_bits, a_bits) <= 4 else (8, 8)

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        self.check_bits(w_bits, a_bits)
        if self._answers is not None and self._asked >= self._answers:
            raise KeyboardInterrupt
        self._asked += 1
        return layer.macs * w_bits * 1e-9 * (1 + self._asked % 3), None


def test_a_stopped_table_goes_on(tmp_path: Path) -> None:
    journal = tmp_path / "bench.json.journal"
    with pytest.raises(KeyboardInterrupt):
        Bench(answers=50).table(SPACE, journal=journal)
    lines = journal.read_text().splitlines()
    journal.write_text(journal.read_text() + lines[-1][:20])  # killed while it wrote
    steps: list[tuple[int, int]] = []
    bench = Bench()
    table = bench.table(SPACE, journal=journal, report=lambda *step: steps.append(step))
    whole = Bench()
    again = whole.table(SPACE)
    assert bench._asked == whole._asked - (len(lines) - 1) and len(lines) > 20
    assert table.entries.keys() == again.entries.keys()
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert journal.exists()  # until the table is saved


def test_layers_that_run_alike_are_asked_for_once() -> None:
    bench = Bench()
    table = bench.table(SPACE)
    layers = {layer for layer, _, _ in table.entries}
    assert bench._asked <= 2 * 3 * len(layers)
    layer = ConvLayer(8, 16, 8, 1, 1, 0, 1)
    assert table.entries[layer, 2, 4] == table.entries[layer, 4, 4]
    assert table.entries[layer, 6, 2] == table.entries[layer, 8, 8]
    assert table.entries[layer, 4, 4] != table.entries[layer, 8, 8]


def test_rounds_give_a_median_and_a_spread() -> None:
    class Steps(Bench):
        """1, 2 and 6 times as long, in the three rounds."""

        def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
            _, _ = super().cost(layer, w_bits, a_bits)
            turn = self.seen[layer, w_bits] = self.seen.get((layer, w_bits), 0) + 1
            return layer.macs * (1.0, 2.0, 6.0)[turn - 1], None

        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[tuple[ConvLayer, int], int] = {}

    table = Steps().table(SPACE)
    assert set(table.spreads) == set(table.entries)
    for (layer, w, a), (ms, _) in table.entries.items():
        assert ms == 2.0 * layer.macs
        assert table.spreads[layer, w, a] == 1.0 * layer.macs  # the farthest is left out


def test_a_journal_of_another_table_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "t.journal"
    with pytest.raises(KeyboardInterrupt):
        Bench(answers=9).table(SPACE, journal=journal)
    kept = journal.read_text()
    other = apq.SearchSpace.preset("digits", bits=(4, 8))
    with pytest.raises(CostTableError, match=r"journal of another table \(space '.*', now"):
        Bench().table(other, journal=journal)
    assert journal.read_text() == kept
    journal.write_text("a diary\n")
    with pytest.raises(CostTableError, match="is not the journal of a table"):
        Bench().table(SPACE, journal=journal)


def test_rows_of_other_parameters_are_not_mixed_in(tmp_path: Path) -> None:
    class Tuned(Bench):
        def __init__(self, slowness: float, answers: int | None = None) -> None:
            super().__init__(answers)
            self.slowness = slowness

    journal = tmp_path / "t.journal"
    with pytest.raises(KeyboardInterrupt):
        Tuned(1.0, answers=9).table(SPACE, journal=journal)
    with pytest.raises(CostTableError, match=r"\(slowness 1.0, now 100.0\)"):
        Tuned(100.0).table(SPACE, journal=journal)


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"no newline", b"[1]\n", b"{}\n{}\n"])
def test_what_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    journal = tmp_path / "t.journal"
    journal.write_bytes(content)
    with pytest.raises(CostTableError, match="is not the journal of a table"):
        Bench().table(SPACE, journal=journal)
    assert journal.read_bytes() == content


def test_one_build_at_a_time_adds_to_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "t.journal"
    refused: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if done == 5:
            with pytest.raises(CostTableError, match="is in use: another build") as error:
                Bench().table(SPACE, journal=journal)
            refused.append(str(error.value))

    Bench().table(SPACE, journal=journal, report=meanwhile)
    again = Bench()
    again.table(SPACE, journal=journal)
    assert refused and again._asked == 0  # everything is there


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), -1.0])
def test_an_answer_that_is_no_cost_stops_the_build_and_is_not_kept(
    tmp_path: Path, answer: float
) -> None:
    class Faulty(Bench):
        def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
            ms, _ = super().cost(layer, w_bits, a_bits)
            return (answer if self._asked == 20 and self._answers is None else ms), None

    journal = tmp_path / "t.journal"
    with pytest.raises(CostTableError, match=r"device 'bench' answers latency_ms=.*finite"):
        Faulty().table(SPACE, journal=journal)
    table = Faulty(answers=10**6).table(SPACE, journal=journal)
    assert all(ms > 0 for ms, _ in table.entries.values())


def test_an_answer_of_another_shape_is_named() -> None:
    class Alone(Bench):
        def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
            return 1.0  # type: ignore[return-value]

    with pytest.raises(CostTableError, match=r"'bench' answers 1.0; a cost is \(latency in ms"):
        Alone().table(SPACE)


def test_a_device_whose_source_has_changed_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "first_board.py").write_text(textwrap.dedent(BOARD))
    (tmp_path / "fixed_board.py").write_text(textwrap.dedent(BOARD).replace("1e-6", "2e-6"))
    journal = tmp_path / "t.journal"
    find_device("first_board:Board").table(SPACE, journal=journal)
    with pytest.raises(CostTableError, match=r"another table \(source '.*', now"):
        find_device("fixed_board:Board").table(SPACE, journal=journal)


def test_what_a_device_counts_does_not_make_its_table_anothers() -> None:
    class Counting(Bench):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
            self.calls += 1
            return super().cost(layer, w_bits, a_bits)

        def provenance(self) -> dict[str, Any]:
            return super().provenance() | {"notes": Path("bench.txt")}  # no JSON type

    table = Counting().table(SPACE)
    assert table.provenance["calls"] == 0
    assert table.provenance["notes"] == "bench.txt"


def test_answers_of_numpy_are_kept_as_numbers(tmp_path: Path) -> None:
    class Lab(Bench):
        def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
            return np.float32(layer.macs * 1e-6), np.float32(1.0)  # type: ignore[return-value]

    journal = tmp_path / "t.journal"
    first = Lab().table(SPACE, journal=journal)
    assert Lab().table(SPACE, journal=journal).digest == first.digest


def test_a_device_without_a_width_of_the_space_says_so() -> None:
    class Forgetful(Bench):
        bits = ()

    class Narrow(Bench):
        bits = (4,)

    for device in (Forgetful(), Narrow()):
        with pytest.raises(MissingCostError, match=r"of the space's \[2, 4, 6, 8\], and \[8\]"):
            device.table(SPACE)


def test_a_killed_build_loses_nothing_it_had_written(tmp_path: Path) -> None:
    """A real process, killed in the middle, on the real CPU."""
    out = tmp_path / "cpu.json"
    # without waiting for quiet moments: beside other tests none comes
    script = """
import sys
from apq_optuna.cli import main
from apq_optuna.export import measure
measure.WAITS_S = ()
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", script, "hardware", "build", "--device", "cpu",
               "--preset", "digits", "--set", "rounds=2", "--set", "repeats=3",
               "--out", str(out), "--networks", "2"]  # fmt: skip
    journal = Path(f"{out}.journal")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None:
            if journal.exists() and len(journal.read_bytes().splitlines()) > 5:
                killed.kill()
                break
            time.sleep(0.01)
    before = journal.read_bytes().rpartition(b"\n")[0]
    assert len(before.splitlines()) > 5 and not out.exists()
    header, line, *others = before.decode().splitlines()
    turn, shape, w, a, _, _ = json.loads(line)
    planted = json.dumps([turn, shape, w, a, 400.0, None])
    journal.write_text("\n".join([header, planted, *others]) + "\n")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"going on from {journal}" in done.stdout
    table = apq.CostTable.load(out)
    layer = ConvLayer(**{k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()})
    scale = table.provenance["correction"]["scale"]
    assert table.entries[layer, w, a][0] > 100 * scale  # what was written down was believed
    assert table.provenance["correction"]["networks"] == 2
    assert not journal.exists()


def test_a_device_that_runs_no_networks_says_so() -> None:
    with pytest.raises(MissingCostError, match="'bitfusion' runs no whole networks"):
        find_device("bitfusion").measure([])
