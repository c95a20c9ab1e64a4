"""`apq-optuna export` and `hardware measure`: from a study to a file that is timed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import optuna
import pytest

from apq_optuna._optuna import set_study_attribute, study_attribute
from apq_optuna.cli import main
from apq_optuna.export import measure
from apq_optuna.storage import open_storage

SEARCH = ["--steps", "2", "--images", "100", "--no-baselines", "--trials", "3"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WAITS_S", ())  # tests beside it disturb every visit
    monkeypatch.setattr(measure, "ROUNDS", 2)


@pytest.fixture
def run(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "apq.db").unlink(missing_ok=True)  # of another test
    return folder


def test_a_trial_is_exported_as_it_was_measured_then_as_it_was_finished(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--run", str(run), *SEARCH]) == 0
    command = ["export", "--run", str(run), "--trial", "1", "--images", "100"]
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "finetuning it as it was measured (2 steps)" in said
    assert "in the same class" in said and "100.0% of multiply-accumulates" in said
    assert "the same in float" in said and "largest network, W8A8" in said
    path = run / "trial-1.onnx"
    report = json.loads(Path(f"{path}.json").read_text())
    assert report["parity"]["passed"] and report["latency"]["file"]["latency_ms"] > 0
    study = optuna.load_study(study_name="search", storage=open_storage(f"sqlite:///{run}/apq.db"))
    value = study.trials[1].values[0]
    about = report["parity"]
    given = about["given_accuracy"] if report["rounded_biases"] else about["accuracy"]
    assert given == pytest.approx(value, abs=0.011)  # one image may fall to the other side
    assert main(command) == 2
    assert "exists; give --overwrite" in capsys.readouterr().err

    assert main(["report", "--run", str(run)]) == 0
    page = (run / "search.html").read_text()
    front = 1 in [t.number for t in study.best_trials]
    assert ("<th>measured</th>" in page) == front
    assert "measured: " in page  # beside the trial, in the figures

    assert main(["finetune", "--run", str(run), "--trial", "1", "--epochs", "0.3"]) == 0
    capsys.readouterr()
    assert main([*command, "--overwrite", "--no-measure", "--int4", "--with-preprocessing"]) == 0
    said = capsys.readouterr().out
    assert "trial 1: its finished network" in said and "opset 21" in said
    assert "biases as int32 make another network" not in said
    folder = run / "finished-1"
    assert main(["export", str(folder), "--images", "50"]) == 0
    assert (folder / "network.onnx").exists()
    said = capsys.readouterr().out
    assert "50 search-validation images" in said and "largest network, W8A8" in said


def test_a_trial_of_before_there_were_rates_is_finetuned_as_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "8", "--finetune-rate", "3e-3", "--rates", "alike"]
    assert main(["search", "--run", str(run), *SEARCH, *more]) == 0
    study = optuna.load_study(study_name="search", storage=open_storage(f"sqlite:///{run}/apq.db"))
    conditions = dict(study_attribute(study, "objective"))
    del conditions["finetune rates"], conditions["finetune averaging"]
    set_study_attribute(study, "objective", conditions)
    capsys.readouterr()
    words = ["--no-measure", "--out", "network.onnx"]
    assert main(["export", "--run", str(run), "--trial", "1", "--images", "100", *words]) == 0
    value = study.trials[1].values[0]
    assert f"accuracy {value:.4f}, the trial measured {value:.4f}\n" in capsys.readouterr().out


def test_what_was_timed_elsewhere_goes_with_its_trial(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--run", str(run), *SEARCH]) == 0
    assert main(["export", "--run", str(run), "--no-measure", "--images", "50",
                 "--out", "network.onnx"]) == 0  # fmt: skip
    quick = ["--rounds", "2", "--repeats", "3"]
    capsys.readouterr()
    assert main(["hardware", "measure", "network.onnx", *quick, "--out", "here.json"]) == 0
    assert "network.onnx: " in capsys.readouterr().out
    found = json.loads(Path("here.json").read_text()) | {"processor": "a board", "latency_ms": 7.5}
    Path("board.json").write_text(json.dumps(found))
    keep = ["hardware", "measure", "board.json", "--run", str(run), "--trial"]
    assert main([*keep, "0"]) == 0
    assert "7.5000 ms on a board" in capsys.readouterr().out
    assert main(["report", "--run", str(run)]) == 0
    assert "measured: 7.5 ms on a board" in (run / "search.html").read_text()
    assert main([*keep, "99"]) == 2
    assert "no completed trial" in capsys.readouterr().err
    Path("bad.json").write_text("{}")
    assert main(["hardware", "measure", "bad.json"]) == 2
    assert main(["hardware", "measure", "none.onnx"]) == 2
    assert main(["hardware", "measure", "network.onnx", "--trial", "1"]) == 2
    assert main(["hardware", "measure", "network.onnx", "--rounds", "0"]) == 2
    assert main(["hardware", "measure", "a.onnx", "b.onnx", "--out", "x.json"]) == 2
    assert main(["hardware", "measure", "network.onnx", "--out", "/proc/x.json"]) == 2
    said = capsys.readouterr().err
    assert "--trial goes with --run" in said and "at least 1" in said
    assert "--out takes the result of one file" in said and "cannot be written" in said


def test_bad_input_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert main(["export", *arguments]) == 2
        return capsys.readouterr().err

    assert "give either the folder" in refused()
    assert "has no study yet" in refused("--run", str(run))
    assert main(["search", "--run", str(run), *SEARCH[:-1], "1"]) == 0
    study = optuna.load_study(study_name="search", storage=open_storage(f"sqlite:///{run}/apq.db"))
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    capsys.readouterr()
    assert "--trial 9: the study has no such trial" in refused("--run", str(run), "--trial", "9")
    assert "--trial 1: it did not complete (fail)" in refused("--run", str(run), "--trial", "1")
    assert "is no finished network" in refused(str(run))
    assert "is no finished network" in refused("nowhere") and not Path("nowhere").exists()
    assert "--images 0: at least 1" in refused("--run", str(run), "--images", "0")
    assert "give a table of it" in refused("--run", str(run), "--hardware", "bitfusion")
    assert "none.json" in refused("--run", str(run), "--hardware", "none.json")
    assert "is a folder" in refused("--run", str(run), "--out", str(run), "--overwrite")
    assert "--opset 3: from 18" in refused("--run", str(run), "--opset", "3", "--images", "20")


def test_each_trial_is_run_as_it_would_be_exported(run: Path) -> None:
    assert main(["search", "--run", str(run), *SEARCH[:-1], "1", "--measure-on", "cpu"]) == 0
    study = optuna.load_study(study_name="search", storage=open_storage(f"sqlite:///{run}/apq.db"))
    attributes = study.trials[0].user_attrs
    assert attributes["measured_latency_ms"] > 0 and "not_measured" not in attributes


def test_a_strangers_folder_runs_no_code(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "--run", str(run), *SEARCH[:-1], "1"]) == 0
    assert main(["finetune", "--run", str(run), "--trial", "0", "--epochs", "0.2"]) == 0
    folder = run / "finished-0"
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    about = json.loads((folder / "network.json").read_text()) | {"model": "evil:make"}
    (folder / "network.json").write_text(json.dumps(about))
    capsys.readouterr()
    assert main(["export", str(folder)]) == 2
    assert "a file runs no code: say --model evil:make" in capsys.readouterr().err
    about |= {"model": "", "data": "folder:/gone/images"}
    (folder / "network.json").write_text(json.dumps(about))
    assert main(["export", str(folder), "--no-measure"]) == 0
    said = capsys.readouterr().out
    assert "/gone/images" in said and "only tried on noise" in said
