"""The scripts in `studies/` run as they are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from PIL import Image

import apq_optuna as apq

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


def test_the_packages_supernet_and_its_teacher(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abcdefghij":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    options = ("--data", "folder:images", "--run", "r", "--minutes", "0.02")
    out = run(tmp_path, "cifar10_supernet.py", *options, "--teacher-epochs", "2")
    assert "teacher: search-validation accuracy 0." in out
    out = run(tmp_path, "cifar10_supernet.py", *options)  # all of it is there
    assert "teacher: the one in r/teacher.safetensors" in out and "epoch" not in out
    longer = ("--data", "folder:images", "--run", "s", "--minutes", "0.02", "--start", "r")
    out = run(tmp_path, "cifar10_supernet.py", *longer)
    assert "teacher: the one in r/teacher.safetensors" in out and "epoch" not in out
    nets = [apq.OnceForAllNet.load(tmp_path / name) for name in "rs"]
    assert nets[1].data_info["class_names"] == list("abcdefghij")
    assert nets[0].weights_hash != nets[1].weights_hash


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
