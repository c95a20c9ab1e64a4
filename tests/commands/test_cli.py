"""The command line: the main job end to end, help that teaches, and errors of one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import pytest

import apq_optuna as apq
from apq_optuna.cli import main
from apq_optuna.hardware import CPU, DEVICES, CostTable

COMMANDS = ("quickstart", "train", "collect", "search", "report", "finetune", "ledger", "hardware")
ACTIONS = ("list", "build", "check", "show", "compare", "price")


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
    again = "search --run run --steps 2 --images 200 --budget latency_ms=0.1 --trials 16"
    assert f"resume or extend: apq-optuna {again}" in out
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
    assert main(["search", *run, "--predict-only", "--hardware", "bitserial",
                 "--max-latency-ms", "0.03", "--enqueue", "2"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "predicted front on bitserial with latency_ms <= 0.03" in out
    assert re.search(r"[\d.]+ s from the command to this front; nothing was trained", out)
    assert "2 of the most accurate networks enqueued in study 'search-bitserial'" in out
    assert (
        "--study search-bitserial --hardware bitserial --source-study search --steps 2 "
        "--finetune-rate 0.001 --images 200 --budget latency_ms=0.03 --trials 2" in out
    )
    assert Path("run/predicted-search-bitserial.html").exists()
    assert main(["search", *run, "--predict-only", "--hardware", "bitserial",
                 "--max-latency-ms", "0.03", "--enqueue", "2"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "0 of the most accurate networks enqueued" in out and "(2 of them were there" in out
    assert main(["search", *run, "--study", "search-bitserial", "--hardware", "bitserial",
                 "--source-study", "search", "--trials", "2", "--steps", "1", "--images", "50",
                 "--no-baselines", "--measure-on", "cpu"]) == 0  # fmt: skip
    study = optuna.load_study(study_name="search-bitserial", storage="sqlite:///run/apq.db")
    assert len(study.trials) == 2
    for trial in study.trials:
        assert trial.params == trial.system_attrs["fixed_params"]
        assert trial.values[1] <= 0.03 and "expected_mean" in trial.user_attrs
        assert trial.user_attrs["measured_latency_ms"] > 0
    assert "Latency of 2 whole networks" in Path("run/search-bitserial.html").read_text()
    capsys.readouterr()
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


@pytest.fixture
def search_with(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[optuna.Trial], None]], int]:
    """A search of 3 trials, before each of which something is done to it."""
    monkeypatch.chdir(tmp_path)
    measured = apq.Objective.__call__

    def search(before: Callable[[optuna.Trial], None]) -> int:
        def measure(objective: apq.Objective, trial: optuna.Trial) -> object:
            before(trial)
            return measured(objective, trial)

        monkeypatch.setattr(apq.Objective, "__call__", measure)
        return main(["search", "--run", str(run_folder), "--storage", "sqlite:///a.db",
                     "--trials", "3", "--steps", "2", "--images", "50",
                     "--no-baselines"])  # fmt: skip

    return search


def _taken(trial: optuna.Trial) -> None:
    """What another worker does that finds no heartbeat."""
    assert trial.number < 5, "a search that never ends"
    trial.storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)


def _second_taken(trial: optuna.Trial) -> None:
    if trial.number == 1:
        _taken(trial)


def test_a_worker_that_stood_still_goes_on(
    search_with: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search_with(_second_taken) == 0
    assert "trial 1 stood still" in capsys.readouterr().out
    study = optuna.load_study(study_name="search", storage=apq.open_storage("sqlite:///a.db"))
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_worker_whose_trials_are_always_taken_gives_up(
    search_with: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("apq_optuna.commands.study.MOST_LOST", 3)
    assert search_with(_taken) == 2
    told = capsys.readouterr()
    assert told.out.count("stood still") == 2
    assert "3 trials in a row gave no values; the last one: trial 2 stood still" in told.err


def test_what_an_objective_raises_of_a_taken_trial_is_told(
    search_with: Callable[..., int],
) -> None:
    def broken(trial: optuna.Trial) -> None:
        _taken(trial)
        raise MemoryError("no room for the images")

    with pytest.raises(MemoryError, match="no room"):
        search_with(broken)


def test_what_a_sampler_raises_after_a_taken_trial_is_told(
    search_with: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def before_trial(sampler: apq.APQSampler, study: optuna.Study, trial: object) -> None:
        if len(study.trials) > 1:
            raise ValueError("the sampler is at its end")

    monkeypatch.setattr(apq.APQSampler, "before_trial", before_trial)
    with pytest.raises(ValueError, match="at its end"):
        search_with(_taken)
    assert capsys.readouterr().out.count("stood still") == 1


@pytest.mark.parametrize(
    "command", [(), *((c,) for c in COMMANDS), *(("hardware", a) for a in ACTIONS)]
)
def test_help_teaches(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    if not command:
        assert all(name in text for name in COMMANDS)
    elif len(command) == 1:
        assert f"example:\n  apq-optuna {command[0]}" in text


def test_hardware_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = ["--preset", "digits"]
    assert main(["hardware", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("bitfusion-small", "bitserial", "cpu", "module:name"))
    build = ["hardware", "build", *digits]
    assert main([*build, "--out", "b.json", "--device", "bitfusion-small"]) == 0
    assert "hardware check b.json --preset digits" in capsys.readouterr().out
    assert main([*build, "--out", "s.csv", "--device", "bitserial", "--set", "batch=4"]) == 0
    assert CostTable.load("s.csv").provenance["parameters"]["batch"] == 4
    capsys.readouterr()
    assert main([*build, "--out", "s.csv"]) == 2  # a table made by hand might be there
    assert "--out s.csv exists; give --overwrite" in capsys.readouterr().err
    assert main([*build, "--out", "s.csv", "--overwrite", "--device", "bitserial"]) == 0
    capsys.readouterr()
    assert main(["hardware", "check", "b.json", *digits]) == 0
    out = capsys.readouterr().out
    assert "entries of 'bitfusion-small', latency_ms, energy_mj" in out
    assert re.search(r"coverage: (\d+) of \1 searched entries", out)
    assert main(["hardware", "check", "b.json", "--preset", "cifar10"]) == 1
    assert "error: " in capsys.readouterr().out
    assert main(["hardware", "compare", "b.json", "bitserial", *digits, "--networks", "50"]) == 0
    assert "rank correlation of 50 random networks" in capsys.readouterr().out
    assert Path("bitfusion-small-bitserial.html").exists()
    show = ["hardware", "show", "s.csv", *digits, "--layer", "stage1.block1.expand"]
    assert main([*show, "--out", "p/layer.html"]) == 0
    assert "stage1.block1.expand on bitserial" in Path("p/layer.html").read_text()
    assert main(["hardware", "show", "bitfusion", *digits]) == 0
    assert Path("bitfusion-stage3.block1.depthwise.html").exists()
    assert main(["hardware", "price", "--model", "resnet18", "--image-size", "64"]) == 0
    assert re.search(r"resnet18, 21 layers, W8A8 on bitfusion: [\d.]+ ms", capsys.readouterr().out)


def test_the_cpu_as_hardware_is_measured_once_a_run(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    quick = partial(CPU, rounds=2, repeats=3)
    monkeypatch.setitem(DEVICES, "cpu", quick)
    # other tests on the other core disturb every visit: what is asked here is not how exact it is
    monkeypatch.setattr("apq_optuna.export.measure.WAITS_S", ())
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    command = ["search", "--run", str(run), "--hardware", "cpu", "--steps", "1", "--images", "50",
               "--no-baselines", "--trials"]  # fmt: skip
    assert main([*command, "1"]) == 0
    assert "corrected by 5 whole networks" in capsys.readouterr().out
    assert main([*command, "2"]) == 0
    assert f"costs of cpu: measured before, in {run}/hardware-cpu.json" in capsys.readouterr().out
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{run}/apq.db")
    table = CostTable.load(run / "hardware-cpu.json")
    CostTable(
        table.entries, device="cpu", provenance=table.provenance | {"processor": "another"}
    ).save(run / "hardware-cpu.json")
    assert main([*command, "3"]) == 2  # measured anew: the study's costs were others
    captured = capsys.readouterr()
    assert "was measured otherwise (processor 'another'): measuring anew" in captured.out
    assert "measured under other conditions" in captured.err
    for trial in study.trials:  # bits that cost nothing are not given away
        assert {v for k, v in trial.params.items() if k.endswith("_bits")} == {8}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--data", "mnist", "--run", "r"], "error: --data mnist is unknown; use"),
        (["train", "--run", "r"], "error: --data is needed"),
        (
            ["train", "--data", "digits", "--preset", "big", "--run", "r"],
            "--preset big is unknown",
        ),
        (["collect", "--run", "nothing"], "supernet.safetensors does not exist"),
        (["search", "--run", "RUN", "--hardware", "tpu"], "device='tpu' is unknown; choose from"),
        (["search", "--run", "RUN", "--hardware", "no.json"], "there is no cost table no.json"),
        (["search", "--run", "RUN", "--budget", "latency_ms"], "write METRIC=LIMIT"),
        (["search", "--run", "RUN", "--budget", "latency_ms=1e-9"], "the cheapest configuration"),
        (["search", "--run", "RUN", "--storage", "apq.db"], "is not a database URL"),
        (["search", "--run", "RUN", "--source-study", "none"], "--source-study 'none' is not in"),
        (["search", "--run", "RUN", "--device", "nochip"], "--device nochip cannot be used"),
        (["search", "--run", "RUN", "--images", "0"], "--images 0: at least 1"),
        (["collect", "--run", "RUN", "--images", "0"], "images=0, calibration_images=512"),
        (["report", "--run", "nowhere"], "--run nowhere has no study yet: there is no apq.db"),
        (["hardware", "price", "--model", "nonet"], "--model 'nonet'"),
        (["hardware", "build", "--out", "t.json"], "give either --preset or --run"),
        (["hardware", "build", "--preset", "digits", "--out", "t.txt"], "name it .json or .csv"),
        (
            ["hardware", "build", "--preset", "digits", "--out", "t.csv", "--set", "rows"],
            "--set 'rows': write NAME=VALUE",
        ),
        (
            ["hardware", "build", "--preset", "digits", "--out", "t.csv", "--networks", "3"],
            "'bitfusion' runs no whole networks",
        ),
        (["hardware", "check", "none.csv", "--preset", "digits"], "no cost table none.csv"),
        (["hardware", "compare", "bitfusion", "x", "--preset", "digits"], "device='x' is unknown"),
        (["search", "--run", "RUN", "--enqueue", "3"], "--enqueue and --into go with --predict"),
        (
            ["search", "--run", "RUN", "--predict-only", "--enqueue", "0"],
            "--enqueue 0: at",
        ),
        (
            ["search", "--run", "RUN", "--predict-only", "--into", "x"],
            "--into goes with",
        ),
        (["search", "--run", "RUN", "--predict-only", "--measure-on", "cpu"], "runs no networks"),
        (
            ["hardware", "build", "--preset", "digits", "--out", "t.csv", "--networks", "-1"],
            "--networks -1: cannot be negative",
        ),
        (
            ["hardware", "build", "--preset", "digits", "--out", "t.json", "--template"],
            "a template is a .csv",
        ),
        (
            [
                "hardware",
                "build",
                "--preset",
                "digits",
                "--out",
                "t.csv",
                "--template",
                "--widths",
                "16",
            ],
            "--widths [16]: the space has [2, 4, 6, 8]",
        ),
        (
            ["search", "--run", "RUN", "--predict-only", "--storage", "sqlite:///new.db"],
            "--study 'search' is not in sqlite:///new.db",
        ),
        (["search", "--run", "RUN", "--measure-on", "bitfusion"], "runs no whole networks"),
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
