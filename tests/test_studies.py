"""The scripts in `studies/` run as they are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

STUDIES = Path(__file__).resolve().parent.parent / "studies"


def run(folder: Path, script: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(STUDIES / script), *arguments], cwd=folder, capture_output=True,
        text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_designs_script(tmp_path: Path) -> None:
    options = ("--trials", "3", "--pairs", "12", "--epochs", "1", "--run", "r")
    out = run(tmp_path, "quickstart.py", *options)
    assert "report: r/report.html" in out
    assert (tmp_path / "r" / "report.html").exists()
    study = optuna.load_study(study_name="quickstart", storage=f"sqlite:///{tmp_path}/r/apq.db")
    assert study.metric_names == ["accuracy", "latency_ms", "energy_mj"]


def test_somebodys_script_with_a_parameter_of_its_own(tmp_path: Path) -> None:
    out = run(tmp_path, "plug_in.py", "--trials", "3", "--epochs", "1", "--run", "r")
    assert "lr " in out
    study = optuna.load_study(study_name="plug-in", storage=f"sqlite:///{tmp_path}/r/study.db")
    assert len({trial.params["lr"] for trial in study.trials}) == 3


def test_the_papers_table(tmp_path: Path) -> None:
    out = run(tmp_path, "imagenet.py", "--table")
    assert "7016 entries in" in out
    assert "energy_mj: " in out


def test_ray_tune_with_two_workers(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = run(tmp_path, "ray_tune.py", "--trials", "6", "--epochs", "1", "--run", "r")
    assert "6 trials, 6 distinct, 0 failed" in out


def test_dask_with_two_workers(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    out = run(tmp_path, "dask_workers.py", "--trials", "6", "--epochs", "1", "--run", "r")
    assert "6 trials, 6 distinct" in out
