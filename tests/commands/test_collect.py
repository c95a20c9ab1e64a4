"""`collect --quantized`: what it stores, says and costs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from apq_optuna.cli import main
from apq_optuna.ledger import Ledger
from apq_optuna.pairs import PairStore
from apq_optuna.supernet import OnceForAllNet


def test_quantized_pairs_beside_fp32_ones(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, "run", ignore=shutil.ignore_patterns("apq.db*"))
    command = ["collect", "--run", "run", "--pairs", "4", "--images", "60"]
    assert main(command) == 0
    assert "quantized pairs" not in capsys.readouterr().out
    assert main([*command, "--quantized", "6"]) == 0
    out = capsys.readouterr().out
    assert "4 fp32 pairs: accuracy" in out
    assert "6 quantized pairs, calibrated and not finetuned, in sqlite:///run/apq.db" in out
    assert main([*command, "--quantized", "6"]) == 0  # all are there
    store = PairStore("sqlite:///run/apq.db", supernet=OnceForAllNet.load("run"))
    assert (len(store), len(store.quantized())) == (4, 6)
    rows = Ledger("sqlite:///run/apq.db").rows()
    assert [(row.task, row.scope, row.units, row.units_done, row.share) for row in rows] == [
        ("collect", "shared", "pairs", 4, 1),
        ("collect", "shared", "quantized pairs", 6, 1),
    ]


def test_help_tells_of_them_and_a_bad_number_is_named(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["collect", "--help"])
    assert "--quantized N" in capsys.readouterr().out
    assert main(["collect", "--run", str(run_folder), "--quantized", "-1"]) == 2
    assert "--quantized -1: cannot be negative" in capsys.readouterr().err
