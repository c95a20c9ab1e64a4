"""A finetuning that was stopped goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import apq_optuna as apq
from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.data import ImageData
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import Subnet
from apq_optuna.quantization import DivergedError, load_network, resuming
from apq_optuna.quantization.finetune import _State
from apq_optuna.supernet import OnceForAllNet, PretrainedNet
from tests.tracing.helpers import Residual, trained_like

OPTIONS = apq.FinetuneOptions(batch_size=64, learning_rate=1e-3, distillation=0.5, averaging=0.4)


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming.FinetuneCheckpoint, "due", True)


def stop_at(wanted: int):  # type: ignore[no-untyped-def]
    def report(step: int, steps: int, loss: float) -> None:
        if step == wanted:
            raise Stopped

    return report


def finish(net, data, subnet, folder, report=None, **options):  # type: ignore[no-untyped-def]
    steps: list[int] = []

    def told(step: int, of: int, loss: float) -> None:
        steps.append(step)
        if report is not None:
            report(step, of, loss)

    asked = {"epochs": 1.0, "options": OPTIONS, "device": "cpu"} | options
    network, _ = apq.finish(net, data, subnet, folder, report=told, **asked)
    return network, steps


@pytest.fixture
def traced(digits: ImageData) -> tuple[PretrainedNet, Subnet]:
    torch.manual_seed(0)
    model = trained_like(Residual(in_channels=1))
    net = PretrainedNet(model, apq.trace(model, (1, 8, 8)), data=digits)
    return net, net.space.decode(net.space.sample(1, np.random.default_rng(0))[0])


@pytest.mark.parametrize(
    ("family", "stopped_at", "rates"),
    [
        ("mobile", 3, "alike"),
        ("mobile", 12, "by-width"),
        ("traced", 12, "by-width"),
    ],  # before and after averaging begins
)
def test_it_ends_as_one_that_was_not_stopped(
    supernet: OnceForAllNet, traced: tuple[PretrainedNet, Subnet], digits: ImageData,
    tmp_path: Path, family: str, stopped_at: int, rates: str,
) -> None:  # fmt: skip
    space = supernet.space
    options = {"options": replace(OPTIONS, rates=rates)}
    net, subnet = (
        traced
        if family == "traced"
        else (supernet, space.decode(space.sample(1, np.random.default_rng(1))[0]))
    )
    whole, steps = finish(net, digits, subnet, tmp_path / "whole", **options)
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 12
    with pytest.raises(Stopped):
        finish(net, digits, subnet, tmp_path / "broken", report=stop_at(stopped_at), **options)
    assert (tmp_path / "broken/finetuning.safetensors").exists()
    again, left = finish(net, digits, subnet, tmp_path / "broken", **options)
    assert left == list(range(stopped_at + 1, len(steps) + 1))
    for (name, mine), theirs in zip(
        whole.state_dict().items(), again.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)
    names = sorted(file.name for file in (tmp_path / "broken").iterdir())
    assert names == ["network.json", "network.safetensors"]


def test_a_key_that_interrupts_loses_nothing(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming.FinetuneCheckpoint, "due", False)

    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(supernet, digits, supernet.largest, tmp_path, report=interrupt, epochs=0.4)
    _, steps = finish(supernet, digits, supernet.largest, tmp_path, epochs=0.4)
    assert steps[0] == 4


def test_another_network_or_other_options_begin_anew(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    space = supernet.space
    first, second = (space.decode(row) for row in space.sample(2, np.random.default_rng(2)))
    for other in ({"subnet": second}, {"options": replace(OPTIONS, learning_rate=5e-4)},
                  {"epochs": 0.2}, {"data": replace(digits, crop_padding=0)}):  # fmt: skip
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(Stopped):
            finish(supernet, digits, first, folder, report=stop_at(2), epochs=0.3)
        asked = {"epochs": 0.3} | other
        subnet, data = asked.pop("subnet", first), asked.pop("data", digits)
        network, steps = finish(supernet, data, subnet, folder, **asked)
        assert steps[0] == 1
        assert network.description.identity == subnet.identity


def test_one_that_was_stopped_after_its_last_step_is_tested_and_saved(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        finish(supernet, digits, supernet.largest, tmp_path, report=stop_at(4), epochs=0.3)
    about = json.loads((tmp_path / "finetuning.json").read_text())
    about["seconds"] = 1000.0
    (tmp_path / "finetuning.json").write_text(json.dumps(about))
    _, steps = finish(supernet, digits, supernet.largest, tmp_path, epochs=0.3)
    assert not steps
    assert load_network(tmp_path).about["seconds"] > 1000  # those before the stop are counted


def test_what_another_version_kept_begins_anew(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        finish(supernet, digits, supernet.largest, tmp_path, report=stop_at(2), epochs=0.3)
    file = tmp_path / "finetuning.safetensors"
    tensors, about = read_checkpoint(file)
    del tensors["0.average"]
    write_checkpoint(file, tensors, about)
    _, steps = finish(supernet, digits, supernet.largest, tmp_path, epochs=0.3)
    assert steps[0] == 1


def test_buffers_are_part_of_the_state(tmp_path: Path) -> None:
    def made() -> _State:
        torch.manual_seed(1)
        module = torch.nn.BatchNorm1d(3)
        vector = torch.nn.Parameter(torch.randn(5))
        return _State(module, [vector], [torch.zeros(5)], torch.optim.Adam([vector]))

    first, kept = made(), resuming.FinetuneCheckpoint(tmp_path / "f.safetensors", "this")
    first.module(torch.randn(8, 3))
    first.vectors[0].grad = torch.randn(5)
    first.optimizer.step()
    first.averages[0].fill_(2.0)
    kept.write(first.tensors(), 1)
    second = made()
    assert second.resume(kept) == 1
    for name, value in first.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name
    for state in (first, second):
        state.vectors[0].grad = torch.ones(5)
        state.optimizer.step()
    assert torch.equal(first.vectors[0], second.vectors[0])


def test_what_was_damaged_begins_anew(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        finish(supernet, digits, supernet.largest, tmp_path, report=stop_at(2), epochs=0.3)
    file = tmp_path / "finetuning.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    _, steps = finish(supernet, digits, supernet.largest, tmp_path, epochs=0.3)
    assert steps[0] == 1
    assert load_network(tmp_path).description.identity == supernet.largest.identity


def test_one_that_diverged_is_not_gone_on_with(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError):
        finish(
            supernet, digits, supernet.largest, tmp_path,
            options=replace(OPTIONS, learning_rate=1e30),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_between_two_checkpoints_there_is_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    now = [100.0]
    monkeypatch.setattr(resuming.time, "perf_counter", lambda: now[0])
    kept = resuming.FinetuneCheckpoint(tmp_path / "f.safetensors", "this")
    assert not kept.due
    now[0] += 61
    assert kept.due
    kept.write({"x": torch.ones(2)}, 5)
    assert not kept.due
    assert kept.read() is not None
    assert resuming.FinetuneCheckpoint(tmp_path / "f.safetensors", "that").read() is None


@pytest.mark.parametrize("family", ["mobile", "traced"])
def test_what_was_finished_is_returned_as_it_is_and_nothing_else_replaces_it(
    supernet: OnceForAllNet, traced: tuple[PretrainedNet, Subnet], digits: ImageData,
    tmp_path: Path, family: str,
) -> None:  # fmt: skip
    net, subnet = traced if family == "traced" else (supernet, supernet.largest)
    network, _ = finish(net, digits, subnet, tmp_path, epochs=0.2)
    written = (tmp_path / "network.safetensors").stat().st_mtime_ns
    again, steps = finish(net, digits, subnet, tmp_path, epochs=0.2)
    assert not steps and (tmp_path / "network.safetensors").stat().st_mtime_ns == written
    images, _ = next(digits.evaluation_batches(digits.test, 64))
    assert torch.equal(again(images), network(images))
    for other in ({"epochs": 0.3}, {"options": replace(OPTIONS, learning_rate=5e-4)}):
        with pytest.raises(InvalidArgumentError, match="another finished network"):
            finish(net, digits, subnet, tmp_path, **({"epochs": 0.2} | other))
    _, steps = finish(net, digits, subnet, tmp_path, epochs=0.3, overwrite=True)
    assert steps
