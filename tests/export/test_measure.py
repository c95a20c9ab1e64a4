"""The file that is copied to other machines: it times any ONNX file, alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apq_optuna.export import measure
from apq_optuna.export.graphs import layer_graph
from apq_optuna.networks import ConvLayer

QUICK = ["--rounds", "2", "--repeats", "3"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "layer.onnx"
    path.write_bytes(layer_graph(ConvLayer(8, 8, 8, 3, 1, 1, 1), int8=True, copies=1)[0])
    return path


def test_one_copied_file_times_another_and_needs_two_packages(model: Path, tmp_path: Path) -> None:
    shutil.copy(measure.__file__, tmp_path / "measure.py")
    code = (
        "import runpy, sys\n"
        "sys.argv = ['measure.py', *sys.argv[1:]]\n"
        "try:\n"
        "    runpy.run_path('measure.py', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "others = {'torch', 'onnx', 'optuna', 'apq_optuna', 'scipy', 'sqlalchemy', 'plotly'}\n"
        "assert not others & set(sys.modules), others & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "layer.onnx", *QUICK, "--out", "layer.json"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "layer.onnx: " in done.stdout and "reference" in done.stdout
    found = json.loads((tmp_path / "layer.json").read_text())
    assert found["latency_ms"] > 0 and found["spread_ms"] >= 0 and found["reference_ms"] > 0
    assert found["file"] == "layer.onnx" and found["bytes"] == model.stat().st_size
    assert len(found["sha256"]) == 64 and found["threads"] == 1 and found["rounds"] == 2


def test_it_is_a_module_of_the_package_too(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "apq_optuna.export.measure", str(model), *QUICK],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and " ms (spread" in done.stdout, done.stderr


def test_what_cannot_be_timed_is_one_line(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.onnx").write_text("no model")
    assert measure.main([str(tmp_path / "no.onnx")]) == 1
    assert measure.main([str(tmp_path / "none.onnx")]) == 1
    assert "FileNotFoundError" in capsys.readouterr().err
    for wrong in (["--threads", "0"], ["--out", "x.json", str(model)]):
        with pytest.raises(SystemExit):
            measure.main([str(model), *wrong])


def test_rounds_go_over_all_files(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WAITS_S", ())
    steps: list[tuple[int, int]] = []
    runs = [measure.Run(str(model)), measure.Run(model.read_bytes(), 1)]
    found = measure.rounds_over(runs, rounds=3, repeats=3, report=lambda *s: steps.append(s))
    assert found.shape == (3, 2) and (found > 0).all() and steps[-1] == (6, 6)
