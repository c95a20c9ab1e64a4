"""`train --start`: a supernet that is there, trained for longer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import apq_optuna as apq
from apq_optuna._text import as_option
from apq_optuna.cli import main
from tests.tracing.helpers import Residual

DIGITS = ["train", "--data", "digits", "--preset", "digits"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "first"
    assert main([*DIGITS, "--run", str(folder), "--epochs", "0.3"]) == 0
    return folder


def test_a_supernet_is_trained_for_longer(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (first / "supernet.safetensors").read_bytes()
    longer = ["train", "--start", str(first), "--run", str(tmp_path), "--epochs", "0.2"]
    assert main(longer) == 0
    out = capsys.readouterr().out
    assert f"training the supernet of {first} for longer, into {tmp_path}" in out
    assert "saved in" in out
    plan = json.loads(json.loads((tmp_path / "training.json").read_text())["fingerprint"])[3]
    assert plan["shares"] == [0, 0, 0, 1]
    assert (first / "supernet.safetensors").read_bytes() == before
    old, new = (apq.OnceForAllNet.load(folder) for folder in (first, tmp_path))
    assert old.space == new.space and old.data_info == new.data_info
    assert old.weights_hash != new.weights_hash
    flat = [
        np.concatenate([p.detach().numpy().ravel() for p in n.parameters()]) for n in (old, new)
    ]
    assert np.corrcoef(*flat)[0, 1] > 0.9  # from its weights, and not from others
    assert main(longer) == 0
    assert "it was trained already" in capsys.readouterr().out
    third = ["--run", str(tmp_path / "third"), "--epochs", "0.05"]
    assert main(["train", "--start", str(tmp_path), *third]) == 0
    assert main(["train", "--start", str(first), *third]) == 2
    assert f"plan: start {new.weights_hash}, now {old.weights_hash}" in capsys.readouterr().err


def test_what_start_refuses(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, reason in (
        (["--run", str(first)], "give another --run"),
        (["--run", str(tmp_path), "--model", "torchvision:resnet18"], "--start and --model"),
        (["--run", str(tmp_path / "copy")], "holds another network"),
    ):
        (tmp_path / "copy").mkdir(exist_ok=True)
        for name in ("supernet.json", "supernet.safetensors"):
            (tmp_path / "copy" / name).write_bytes((first / name).read_bytes())
        assert main(["train", "--start", str(first), *options]) == 2
        assert reason in capsys.readouterr().err
    assert main(["train", "--start", "pretrained:none", "--run", str(tmp_path / "x")]) == 2
    assert "none" in capsys.readouterr().err
    assert main(["train", "--start", "nowhere", "--run", str(tmp_path / "x")]) == 2
    assert "nowhere" in capsys.readouterr().err


def build(num_classes: int = 10) -> Residual:
    return Residual(num_classes, in_channels=1)


def test_a_model_of_ones_own_is_trained_for_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model", "tests.commands.test_train:build", "--run", "own"]
    assert main(["trace", *model, "--data", "digits"]) == 0
    assert main(["train", "--start", "own", "--run", "longer", "--epochs", "0.2"]) == 0
    assert "saved in longer" in capsys.readouterr().out
    assert main(["collect", "--run", "longer", "--pairs", "3", "--images", "50"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "1"], "error: --batch-size 1: at least 2"),
        (["--epochs", "0"], "error: --epochs 0.0: must be positive"),
        (["--model", "torchvision:nothing"], "error: --model torchvision:nothing: "),
    ],
)
def test_messages_name_the_option(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DIGITS, "--run", str(tmp_path / "run"), *options]) == 2
    assert said in capsys.readouterr().err


def test_other_messages_are_left_as_they_are() -> None:
    given = {"epochs": 0, "batch_size": 4, "device": "auto"}
    assert as_option("epochs=0 is few", given) == "--epochs 0 is few"
    for message in (
        "batch_size=4", "batch_size=5: no", "other=2: no", "2 epochs=0: no",
        "epochs=0, batch_size=4: no", "device='tpu' is unknown", "other=None: no",
    ):  # fmt: skip
        assert as_option(message, given) == message
