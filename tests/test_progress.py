"""Whatever takes long shows how long, if it is asked to, and else is silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch

import apq_optuna as apq
from apq_optuna.collect import collect_pairs
from apq_optuna.data import ImageData
from apq_optuna.finishing import finish
from apq_optuna.pairs import PairStore
from apq_optuna.supernet import OnceForAllNet

from .conftest import FAST

Long = Callable[[bool], object]


@pytest.fixture(params=["train", "collect", "finetune", "layers", "trial"])
def long(
    request: pytest.FixtureRequest, supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> tuple[str, Long]:
    """A call that takes long, and what its bar is called."""
    space = supernet.space

    def train(progress: bool) -> object:
        torch.manual_seed(0)
        plan = apq.TrainingPlan(epochs=0.1, batch_size=32)
        return apq.train_supernet(OnceForAllNet(space), digits, plan, tmp_path, progress=progress)

    def collect(progress: bool) -> object:
        store = PairStore(f"sqlite:///{tmp_path}/pairs.db", supernet=supernet)
        return collect_pairs(supernet, digits, store, 3, images=50, progress=progress)

    def finetune(progress: bool) -> object:
        subnet = space.decode(space.extreme(largest=False)[0])
        return finish(
            supernet, digits, subnet, tmp_path / "finished", epochs=0.05, options=FAST,
            progress=progress,
        )  # fmt: skip

    def layers(progress: bool) -> object:
        return apq.hardware.bitfusion_small().table(space, progress=progress)

    def trial(progress: bool) -> object:
        objective = apq.Objective(supernet, digits, finetune=FAST, images=50, progress=progress)
        study = optuna.create_study(directions=objective.directions)
        study.optimize(objective, n_trials=1)
        return study

    calls = {"train": train, "collect": collect, "finetune": finetune, "layers": layers}
    name = str(request.param)
    return ("finetune", trial) if name == "trial" else (name, calls[name])


def test_a_bar_is_shown_where_it_is_wanted(
    long: tuple[str, Long], capsys: pytest.CaptureFixture[str]
) -> None:
    name, call = long
    call(True)
    shown = capsys.readouterr().err
    assert f"{name}: " in shown
    assert "%|" in shown


def test_nothing_is_shown_by_default(
    long: tuple[str, Long], capsys: pytest.CaptureFixture[str]
) -> None:
    _, call = long
    call(False)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
