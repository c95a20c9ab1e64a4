"""The command line with a model of one's own, from `trace` to the finished network."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
import torch
from safetensors.torch import save_file

import apq_optuna as apq
from apq_optuna._optuna import study_attribute
from apq_optuna.cli import main
from tests.tracing.helpers import Residual, trained_like

MODEL = """
import sys
sys.path.insert(0, {root!r})
from tests.tracing.helpers import Residual

def build(num_classes):
    return Residual(num_classes, in_channels=1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mine")
    root = str(Path(__file__).resolve().parents[2])
    (path / "my_model.py").write_text(MODEL.format(root=root))
    torch.manual_seed(0)
    model = trained_like(Residual(in_channels=1))
    save_file(model.state_dict(), path / "mine.safetensors")
    torch.save(model.state_dict(), path / "mine.pt")
    torch.save(model, path / "whole.pt")
    return path


class Shell:
    """Commands in a folder of one's own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, words: Sequence[str], status: int = 0) -> str:
        found = main(words)
        out, err = self._capsys.readouterr()
        assert found == status, err
        return out if status == 0 else err


@pytest.fixture
def run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Shell(folder, capsys)


MINE = ("--model", "my_model:build", "--weights", "mine.safetensors", "--data", "digits")


def test_the_whole_job(run: Shell, folder: Path) -> None:
    said = run(["trace", *MINE, "--hardware", "bitfusion-small", "--run", "runs/mine",
                        "--budget", "latency_ms=0.01"])  # fmt: skip
    assert "4 groups of channels and 14 decisions at 1x8x8" in said
    assert "as it is: accuracy 0." in said and "normalised with mean 0.3" in said
    assert (
        "smallest, 4 bits" in said and "of 20,000 random networks meet latency_ms <= 0.01" in said
    )
    said = run(["train", "--run", "runs/mine", "--epochs", "1", "--batch-size", "64"])
    assert "trained in" in said
    said = run(["collect", "--run", "runs/mine", "--pairs", "60", "--images", "100"])
    assert "60 fp32 pairs" in said and "fp32 predictor" in said
    options = ["--run", "runs/mine", "--hardware", "bitfusion-small"]
    said = run(["search", *options, "--trials", "5", "--steps", "2", "--images", "100"])
    assert "Pareto front" in said and "uniform W4A4" in said
    url = f"sqlite:///{folder}/runs/mine/apq.db"
    study = optuna.load_study(study_name="search", storage=apq.open_storage(url))
    assert study_attribute(study, "objective")["finetune learning_rate"] == pytest.approx(1e-4)
    # a study that began with another rate goes on with it
    other = [*options, "--study", "other", "--steps", "1", "--images", "50", "--no-baselines"]
    run(["search", *other, "--trials", "1", "--finetune-rate", "0.002"])
    run(["search", *other, "--trials", "2"])
    study = optuna.load_study(study_name="other", storage=apq.open_storage(url))
    assert study_attribute(study, "objective")["finetune learning_rate"] == 0.002
    assert len(study.trials) == 2
    page = (folder / "runs/mine/search.html").read_text()
    assert len(page) > 10_000
    run(["report", "--run", "runs/mine", "--trial", "1"])
    said = run(["search", *options, "--predict-only", "--max-latency-ms", "0.02"])
    assert "predicted front" in said
    said = run(["finetune", "--run", "runs/mine", "--epochs", "0.2", "--out", "done"])
    assert 'apq_optuna.load_network("done", model=MODEL)' in said
    assert "the whole model in float32: search-validation 0." in said
    network = apq.load_network(folder / "done", model=Residual(in_channels=1))
    assert network.about["model"] == "my_model:build"
    said = run(["ledger", "--run", "runs/mine"])
    assert "search" in said
    said = run(["trace", *MINE, "--hardware", "bitfusion-small", "--run", "runs/mine"])
    assert "traced before" in said and "smallest, 4 bits" in said and "as it is" in said
    said = run(["trace", *MINE, "--run", "runs/mine", "--mean", "0.5"], status=2)
    assert "--mean: the images of runs/mine are normalised with 0.3" in said
    assert "trained in" not in run(["trace", "--run", "runs/mine"])  # no images are needed now
    other = ["trace", "--model", "timm:resnet18", *MINE[2:], "--run", "runs/mine"]
    assert "holds another network" in run(other, status=2)


def test_a_search_traces_by_itself(run: Shell) -> None:
    words = ["collect", *MINE, "--run", "runs/at-once", "--pairs", "2", "--images", "50"]
    assert "traced in" in run(words)
    assert "traced before" in run(words)
    other = ["collect", "--model", "timm:resnet18", *MINE[2:], "--run", "runs/at-once"]
    assert "holds another network" in run(other, status=2)


def test_a_supernet_is_no_traced_model(run: Shell, run_folder: Path) -> None:
    assert "holds a supernet, not a traced model" in run(["trace", "--run", str(run_folder)], 2)


def test_a_run_that_a_script_began_goes_on_by_commands(run: Shell, folder: Path) -> None:
    torch.manual_seed(0)
    model = trained_like(Residual(in_channels=1))
    data = apq.load_data("digits")
    net = apq.PretrainedNet(model, apq.trace(model, (1, 8, 8)), data=data)
    net.save(folder / "runs/script")
    refused = ["trace", "--run", "runs/script", "--model", "my_model:build", "--bits", "2", "8"]
    assert "--bits: runs/script has its network as it is" in run(refused, status=2)
    assert not json.loads((folder / "runs/script/supernet.json").read_text())["model"]
    words = ["--run", "runs/script", "--pairs", "2", "--images", "50"]
    said = run(["collect", *words], status=2)
    assert "trace --run RUN --model MODULE:NAME" in said
    before = net.weights_hash
    run(["trace", "--run", "runs/script", "--model", "my_model:build"])
    assert "2 fp32 pairs" in run(["collect", *words])
    again = apq.PretrainedNet.load(folder / "runs/script", Residual(in_channels=1))
    assert (again.source, again.weights_hash) == ("my_model:build", before)


def test_a_model_of_torchvision_before_any_image_is_needed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["trace", "--model", "torchvision:squeezenet1_1", "--classes", "5", "--input-size"]
    assert main([*words, "64", "--bits", "4", "8", "--ignore", "features.12.*"]) == 0
    said = capsys.readouterr().out
    assert "features.0" in said and "nothing was kept" in said
    assert "features.12" not in said.split("costs on")[0].split("always so")[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "mine.pt"], "is a pickle"),
        (["--weights", "mine.pt"], 'load("mine.pt", weights_only=True)'),
        (["--weights", "whole.pt"], 'load("whole.pt", weights_only=False).state_dict()'),
        (["--model", "my_model.py:build"], "without .py: my_model:build"),
        (["--model", "nowhere:build"], "looked for in the current folder"),
        (["--weights", "nowhere.safetensors"], "no such file"),
        (["--classes", "7"], "the images have 10 classes"),
        (["--keep", "0"], "shares above 0"),
        (["--ignore", "nothing"], "no such module"),
        (["--mean", "0.5", "0.5"], "1 numbers in [0, 1]"),
        (["--budget", "watts=1"], "no cost of bitfusion"),
        (["--model", "my_model:nothing"], "has no attribute"),
    ],
)
def test_bad_input(run: Shell, words: Sequence[str], said: str) -> None:
    assert said in run(["trace", *MINE, *words], status=2)


TAUGHT = ("train", "--data", "digits", "--preset", "digits", "--epochs", "0.2")


def test_a_supernet_has_a_teacher(run: Shell, folder: Path) -> None:
    words = [*TAUGHT, "--run", "runs/taught", "--teacher", "my_model:build"]
    words += ["--teacher-weights", "mine.safetensors"]
    said = run(words)
    assert "teacher my_model:build: search-validation accuracy 0." in said
    assert "a teacher that knows so little teaches little" in said  # its weights are random ones
    assert "trained in" in said
    about = json.loads((folder / "runs/taught/training.json").read_text())
    *_, plan, teacher = json.loads(about["fingerprint"])
    assert plan["mixed"] == 0.8 and len(teacher) == 16
    assert "of another teacher" in run([*TAUGHT, "--run", "runs/taught", "--mixed", "0.8"], 2)
    assert "(of another plan: mixed 0.8, now 0.3)" in run([*words, "--mixed", "0.3"], 2)
    assert "it was trained already" in run(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher-weights", "mine.safetensors"], "--teacher-weights needs --teacher"),
        (["--teacher", "torchvision:resnet18"], "needs --teacher-weights"),
        (["--teacher", "torch.nn:Identity"], "teacher: gives (1, 1, 8, 8) for one image"),
        (["--teacher", "my_model:build", "--teacher-weights", "mine.pt"], "pickle"),
        (["--mixed", "2"], "--mixed 2.0: "),
        (["--minutes", "1"], "--minutes and --epochs: one of them"),
    ],
)
def test_what_no_teacher_can_be(run: Shell, words: list[str], said: str) -> None:
    assert said in run([*TAUGHT, "--run", "runs/untaught", *words], 2)
