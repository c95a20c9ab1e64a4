"""The ledger of commands: what each took, also of workers that are stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from apq_optuna.cli import main
from apq_optuna.ledger import Ledger

BOARD = """
from apq_optuna.hardware import Device


class Board(Device):
    name = "board"
    bits = (4, 8)
    rounds = 2  # measured

    def cost(self, layer, w_bits, a_bits):
        w_bits, a_bits = self.check_bits(w_bits, a_bits)
        return layer.macs * (w_bits + a_bits) * 1e-9, None
"""
SEARCH = ["--steps", "1", "--images", "50", "--no-baselines"]


@pytest.fixture
def run(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    # other tests may have left a database there
    shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("apq.db*"))
    return "run"


def test_every_step_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("board.py").write_text(BOARD)
    here = ["--run", "run", "--watts", "50"]
    train = ["train", "--data", "digits", "--preset", "digits", *here, "--epochs", "1"]
    assert main(train) == 0
    assert main(["collect", *here, "--pairs", "10", "--images", "50"]) == 0
    assert main(["collect", *here, "--pairs", "10", "--images", "50"]) == 0  # all are there
    search = ["search", *here, *SEARCH, "--trials"]
    assert main([*search, "2"]) == 0
    assert main([*search, "4"]) == 0
    assert main([*search, "4"]) == 0  # all are there
    other = ["--study", "other", "--hardware", "board:Board"]
    assert main([*search, "2", *other]) == 0
    assert main(["finetune", *here, "--trial", "0", "--epochs", "1", "--out", "done"]) == 0
    build = ["hardware", "build", *here, "--device", "board:Board", "--out"]
    assert main([*build, "board.json"]) == 0
    assert main(["hardware", "build", *here, "--device", "bitfusion", "--out", "b.json"]) == 0
    capsys.readouterr()
    assert main(["ledger", "--run", "run", "--csv", "x/rows.csv", "--json", "all.json"]) == 0
    out = capsys.readouterr().out
    rows = Ledger("sqlite:///run/apq.db").rows()
    assert [(row.task, row.subject, row.target, row.scope) for row in rows] == [
        ("train", "run", "", "shared"),
        ("collect", "run", "", "shared"),
        ("search", "search", "bitfusion-small", "device"),
        ("search", "search", "bitfusion-small", "device"),
        ("hardware", "board", "board", "device"),
        ("search", "other", "board", "device"),
        ("finetune", "search", "bitfusion-small", "device"),
        ("hardware", "board", "board", "device"),
    ]
    assert [row.share for row in rows] == [1, 1, 1, 0.5, 1, 1, 1, 1]
    assert [row.units_done for row in rows if row.units == "trials"] == [2, 2, 2]
    assert all(row.processor_s > 0 and row.threads and row.device for row in rows)
    assert {row.energy_from for row in rows} == {"stated power"}
    assert rows[0].kwh == pytest.approx(1.58 * rows[0].wall_s / 3600 * 0.05)
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["task", "scope", "subject", "for"]
    assert lines[3].split()[:4] == ["search", "device", "search", "bitfusion-small"]
    assert "each further device or budget, median of 2" in out
    costs = json.loads(Path("all.json").read_text())["costs"]
    assert costs["deployments"] == 2
    assert costs["first"]["wall_s"] == pytest.approx(
        sum(rows[place].wall_s for place in (0, 1, 2, 3, 6))
    )
    with Path("x/rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_workers_that_are_stopped_both_leave_a_row(run: str, tmp_path: Path) -> None:
    words = ["search", "--run", run, *SEARCH, "--trials", "10000", "--sampler", "random"]
    command = [sys.executable, "-m", "apq_optuna.cli", *words]
    workers = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for worker in workers:
            assert worker.stdout is not None
            while not (line := worker.stdout.readline()).startswith("study 'search' in"):
                assert line, f"ended with {worker.wait()}"
        study = optuna.load_study(study_name="search", storage="sqlite:///run/apq.db")
        wanted = len(study.trials) + 6
        for _ in range(600):
            if len(study.get_trials(deepcopy=False)) >= wanted:
                break
            time.sleep(0.1)
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        ledger = Ledger("sqlite:///run/apq.db")
        for _ in range(600):  # not for their end: one stopped as a trial began may wait on
            if len(rows := ledger.rows()) == 2:
                break
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    assert [row.task for row in rows] == ["search", "search"]
    assert 0 < sum(row.units_done or 0 for row in rows) <= len(done)
    assert all(row.share is not None and row.share < 0.01 for row in rows)


def test_a_database_that_cannot_be_written_fails_no_step(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", "digits", "--preset", "digits", "--run", "new", "--epochs",
               "0.1", "--storage", "sqlite:///no/folder/apq.db"]  # fmt: skip
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "note: what 'train' took could not be recorded" in out
    assert "saved in new" in out


def test_a_run_without_rows(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ledger", "--run", run]) == 2
    assert "--run run has no ledger yet: there is no apq.db" in capsys.readouterr().err
    assert not Path("run/apq.db").exists()
    optuna.create_study(storage="sqlite:///run/apq.db")
    assert main(["ledger", "--run", run]) == 0
    assert "no step has been recorded yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "digits", "--preset", "digits", "--run", "new"],
        ["collect", "--run", "run"],
        ["search", "--run", "run"],
        ["search", "--run", "run", "--predict-only"],
        ["finetune", "--run", "run"],
        ["quickstart", "--run", "new"],
        ["hardware", "build", "--run", "run", "--out", "b.json"],
    ],
    ids=" ".join,
)
def test_bad_watts_are_told_before_any_work(
    command: list[str], run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert main([*command, "--watts", "-1"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --watts -1.0: must be positive\n"
    assert captured.out == ""
    assert sorted(Path().rglob("*")) == before


def test_watts_are_of_something_that_is_recorded(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["hardware", "build", "--preset", "digits", "--out", "b.json", "--watts", "5"]
    assert main(command) == 2
    assert "--watts goes with --run or --storage" in capsys.readouterr().err
