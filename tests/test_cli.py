"""The command line: the main job end to end, help that teaches, and errors of one line."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest

from apq_optuna.cli import main

COMMANDS = ("quickstart", "train", "collect", "search", "report", "finetune", "hardware")


def test_the_whole_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, collect, search, stop, resume, report, finetune: as a user types it."""
    monkeypatch.chdir(tmp_path)
    run = ["--run", "run"]
    assert main(["train", "--data", "digits", "--preset", "digits", *run, "--epochs", "4"]) == 0
    assert "next: apq-optuna collect --run run" in capsys.readouterr().out
    assert main(["collect", *run, "--pairs", "60", "--images", "200", "--export", "p.npz"]) == 0
    out = capsys.readouterr().out
    assert "60 fp32 pairs" in out
    assert re.search(r"fp32 predictor on 12 held-out pairs: pairwise accuracy 0\.\d+", out)
    search = ["search", *run, "--steps", "2", "--images", "200"]
    assert main([*search, "--trials", "6"]) == 0
    out = capsys.readouterr().out
    assert "0 of 6 trials done, 60 fp32 pairs, device bitfusion-small" in out
    assert "largest network, uniform W4A4: accuracy" in out
    assert main([*search, "--trials", "8", "--budget", "latency_ms=0.1"]) == 0
    out = capsys.readouterr().out
    assert "6 of 8 trials done" in out
    assert "measuring the largest network" not in out  # kept in the study
    study = optuna.load_study(study_name="search", storage="sqlite:///run/apq.db")
    assert len(study.trials) == 8
    assert main(["report", *run, "--trial", "3", "--out", "r.html"]) == 0
    assert "Trial 3: accuracy" in Path("r.html").read_text()
    assert main(["finetune", *run, "--trial", "3", "--epochs", "1", "--out", "done"]) == 0
    out = capsys.readouterr().out
    saved = re.search(r"search-validation (0\.\d+) \(fp32", out)
    again = re.search(r"loaded again: search-validation (0\.\d+)", out)
    assert saved and again and saved[1] == again[1]
    assert main(["finetune", *run, "--trial", "3", "--epochs", "1", "--out", "done"]) == 2
    assert "holds a finished network, tested once" in capsys.readouterr().err
    assert main(["report", *run, "--study", "none"]) == 2
    assert "--study 'none' is not in sqlite" in capsys.readouterr().err
    assert "test 0." in out
    assert main(["search", *run, "--study", "second", "--source-study", "search", "--trials", "2",
                 "--steps", "1", "--images", "50", "--no-baselines"]) == 0  # fmt: skip
    assert main(["collect", *run, "--storage", "sqlite:///other.db", "--import", "p.npz"]) == 0
    assert "imported 60 pairs" in capsys.readouterr().out


def test_a_resumed_peer_does_not_repeat_its_trials(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["search", "--run", str(run_folder), "--storage", "sqlite:///a.db", "--no-baselines",
               "--sampler", "random", "--steps", "1", "--images", "50"]  # fmt: skip
    for total in ("2", "4"):
        assert main([*command, "--trials", total]) == 0
    trials = optuna.load_study(study_name="search", storage="sqlite:///a.db").trials
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 4


def test_quickstart_and_its_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apq_optuna import supernet

    plan = supernet.TrainingPlan
    monkeypatch.setattr(supernet, "TrainingPlan", lambda **o: plan(**(o | {"epochs": 1})))
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--trials", "2"]) == 0
    assert main(["quickstart", "--trials", "3"]) == 0
    out = capsys.readouterr().out
    assert "supernet: the trained one in runs/digits" in out
    assert "2 of 3 trials done" in out
    assert Path("runs/digits/quickstart.html").exists()


def test_a_search_in_which_nothing_works_gives_up(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("apq_optuna.commands.study.MOST_LOST", 3)
    command = ["search", "--run", str(run_folder), "--storage", "sqlite:///a.db", "--trials", "9",
               "--finetune-rate", "1e30", "--steps", "4", "--images", "50"]  # fmt: skip
    assert main(command) == 2
    assert "3 trials in a row gave no values; the last one: the loss became" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS), ("hardware", "build")])
def test_help_teaches(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    if not command:
        assert all(name in text for name in COMMANDS)
    elif len(command) == 1:
        assert f"example:\n  apq-optuna {command[0]}" in text


def test_hardware_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware", "list"]) == 0
    assert "bitfusion-small" in capsys.readouterr().out
    table = str(tmp_path / "table.json")
    assert main(["hardware", "build", "--preset", "digits", "--out", table]) == 0
    assert "entries in" in capsys.readouterr().out
    assert main(["hardware", "price", "--model", "resnet18", "--image-size", "64"]) == 0
    assert re.search(r"resnet18, 21 layers, W8A8 on bitfusion: [\d.]+ ms", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--data", "mnist", "--run", "r"], "error: data='mnist' is unknown; use"),
        (["train", "--run", "r"], "error: --data is needed"),
        (
            ["train", "--data", "digits", "--preset", "big", "--run", "r"],
            "preset='big' is unknown",
        ),
        (["collect", "--run", "nothing"], "supernet.safetensors does not exist"),
        (["search", "--run", "RUN", "--hardware", "tpu"], "device='tpu' is unknown; choose from"),
        (["search", "--run", "RUN", "--hardware", "no.json"], "there is no cost table no.json"),
        (["search", "--run", "RUN", "--budget", "latency_ms"], "write METRIC=LIMIT"),
        (["search", "--run", "RUN", "--budget", "latency_ms=1e-9"], "the cheapest configuration"),
        (["search", "--run", "RUN", "--storage", "apq.db"], "is not a database URL"),
        (["search", "--run", "RUN", "--source-study", "none"], "--source-study 'none' is not in"),
        (["search", "--run", "RUN", "--device", "nochip"], "device='nochip' cannot be used"),
        (["search", "--run", "RUN", "--images", "0"], "images=0: at least 1"),
        (["collect", "--run", "RUN", "--images", "0"], "images=0, calibration_images=512"),
        (["report", "--run", "nowhere"], "--run nowhere has no study yet: there is no apq.db"),
        (["hardware", "price", "--model", "nonet"], "--model 'nonet'"),
        (["hardware", "build", "--out", "t.json"], "give either --preset or --run"),
    ],
)
def test_bad_input_is_one_line(
    command: list[str], message: str, run_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    weights = (run_folder / "supernet.safetensors").read_bytes()
    assert main([str(run_folder) if word == "RUN" else word for word in command]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert (run_folder / "supernet.safetensors").read_bytes() == weights
