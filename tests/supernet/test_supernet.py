"""The supernet: what is extracted is what was trained, and training resumes where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import CheckpointError, DataError, InvalidArgumentError
from apq_optuna.quantization import fp32_network
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet, TrainingPlan, accuracy, recalibrate, train_supernet

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_largest_subnet_is_the_supernet(supernet: OnceForAllNet) -> None:
    torch.testing.assert_close(supernet.subnet(supernet.largest)(IMAGES), supernet(IMAGES))


@pytest.mark.parametrize("seed", range(4))
def test_every_subnet_computes_what_the_supernet_does(supernet: OnceForAllNet, seed: int) -> None:
    rows = supernet.space.sample(3, np.random.default_rng(seed))
    for subnet in map(supernet.space.decode, rows):
        torch.testing.assert_close(supernet.subnet(subnet)(IMAGES), supernet(IMAGES, subnet))


def test_sorting_channels_keeps_the_function(supernet: OnceForAllNet) -> None:
    before = supernet(IMAGES)
    for block in supernet.elastic_blocks():
        block.sort_channels()
        importance = block.project.weight.abs().sum((0, 2, 3))
        assert (importance.diff() <= 1e-6).all()
    torch.testing.assert_close(supernet(IMAGES), before, rtol=1e-4, atol=1e-5)


def test_momentum_moves_with_its_channels(digits: ImageData, tmp_path: Path) -> None:
    from apq_optuna.supernet.training import _Trainer

    net = OnceForAllNet(SearchSpace.preset("digits"))
    trainer = _Trainer(net, digits, TrainingPlan(), tmp_path, "cpu", seed=0)
    for parameter in net.parameters():  # momentum that says which weight it belongs to
        trainer.optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone()
    trainer._sort_channels()
    for parameter in net.parameters():
        assert torch.equal(trainer.optimizer.state[parameter]["momentum_buffer"], parameter)


def test_smaller_kernels_are_the_transformed_centre() -> None:
    space = SearchSpace.preset("cifar10")
    block = next(iter(OnceForAllNet(space).elastic_blocks()))
    elastic = block.depthwise
    torch.testing.assert_close(elastic.kernel(5, 8), elastic.weight[:8, :, 1:6, 1:6])
    with torch.no_grad():
        elastic.transforms["to5"].mul_(2.0)
    torch.testing.assert_close(elastic.kernel(3, 8), 2 * elastic.weight[:8, :, 2:5, 2:5])


def test_training_learns(supernet: OnceForAllNet, digits: ImageData) -> None:
    for largest in (True, False):
        subnet = supernet.space.decode(supernet.space.extreme(largest=largest)[0])
        assert accuracy(fp32_network(supernet, subnet, digits, 512, 0), digits) > 0.5


def test_recalibration_uses_the_given_images_alone(
    supernet: OnceForAllNet, digits: ImageData
) -> None:
    module = supernet.subnet(supernet.largest)
    images, labels = next(digits.training_batches(256, torch.Generator(), augment=False))
    recalibrate(module, [(images, labels)])
    assert not module.training
    activations = module.stem.conv(images)
    mean = module.stem.norm.running_mean
    torch.testing.assert_close(mean, activations.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    first = module(images)
    recalibrate(module, [(images, labels)])
    torch.testing.assert_close(module(images), first)


# ---------------------------------------------------------------------- training that stops


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_and_ends_like_an_unbroken_one(
    digits: ImageData, tmp_path: Path
) -> None:
    plan = TrainingPlan(epochs=2, batch_size=256, checkpoint_seconds=0.0)

    def train(folder: Path, report: Callable[[float, str, float], None] | None) -> OnceForAllNet:
        torch.manual_seed(0)
        net = OnceForAllNet(SearchSpace.preset("digits"))
        return train_supernet(net, digits, plan, folder, device="cpu", report=report)

    whole = train(tmp_path / "whole", None)
    seen: list[str] = []

    def stop(progress: float, phase: str, loss: float) -> None:
        seen.append(phase)
        if progress > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "broken", stop)
    steps = len(seen)
    resumed = train(tmp_path / "broken", lambda progress, phase, loss: seen.append(phase))
    # the step whose report raised was not checkpointed: it is done once more, nothing else is
    assert len(seen) - steps == 6 - steps + 1
    assert seen[0] == "largest"
    assert seen[-1] == "channels"
    # an epoch begins anew after a stop, so its images come in another order: close, not equal
    images = torch.cat([x for x, _ in digits.evaluation_batches(digits.test, 512)])
    agree = (whole.eval()(images).argmax(1) == resumed.eval()(images).argmax(1)).float().mean()
    assert agree > 0.6


def test_a_key_that_interrupts_training_loses_nothing(digits: ImageData, tmp_path: Path) -> None:
    plan = TrainingPlan(epochs=2, batch_size=256)
    seen: list[float] = []

    def report(progress: float, phase: str, loss: float) -> None:
        seen.append(progress)
        if len(seen) == 4:
            raise KeyboardInterrupt

    for _ in range(2):
        net = OnceForAllNet(SearchSpace.preset("digits"))
        try:
            train_supernet(net, digits, plan, tmp_path, device="cpu", report=report)
        except KeyboardInterrupt:
            assert (tmp_path / "training.safetensors").exists()
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) == 6


def test_a_checkpoint_brings_back_the_whole_state(digits: ImageData, tmp_path: Path) -> None:
    from apq_optuna.supernet.training import _Trainer

    plan = TrainingPlan(epochs=2, batch_size=256)

    def trainer() -> _Trainer:
        net = OnceForAllNet(SearchSpace.preset("digits"))
        return _Trainer(net, digits, plan, tmp_path, "cpu", seed=0)

    first = trainer()
    first.run(lambda progress, phase, loss: None)
    second = trainer()
    second.resume()
    assert (second.step, second.sorted, second.progress) == (first.step, True, 1.0)
    assert second.rng.random() == first.rng.random()
    assert torch.equal(second.generator.get_state(), first.generator.get_state())
    pairs = zip(first.net.parameters(), second.net.parameters(), strict=True)
    for mine, theirs in pairs:
        assert torch.equal(mine, theirs)
        momenta = [o.state[p].get("momentum_buffer") for o, p in
                   ((first.optimizer, mine), (second.optimizer, theirs))]  # fmt: skip
        assert (momenta[0] is None) == (momenta[1] is None)
        assert momenta[0] is None or torch.equal(momenta[0], momenta[1])


def test_a_write_that_is_cut_short_leaves_the_last_checkpoint(
    supernet: OnceForAllNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apq_optuna import _checkpoints

    supernet.save(tmp_path)
    before = supernet.weights_hash
    replace = _checkpoints.replace_file

    def cut_short(path: Path, content: bytes) -> None:
        if path.suffix == ".safetensors":
            raise KeyboardInterrupt
        replace(path, content)

    monkeypatch.setattr(_checkpoints, "replace_file", cut_short)
    supernet.classifier.bias.data += 1
    supernet.data_info["name"] = "newer"
    with pytest.raises(KeyboardInterrupt):
        supernet.save(tmp_path)
    again = OnceForAllNet.load(tmp_path)
    assert again.weights_hash == before
    assert again.data_info["name"] == "digits"


def test_a_run_of_other_settings_is_refused(digits: ImageData, tmp_path: Path) -> None:
    def train(epochs: float) -> None:
        net = OnceForAllNet(SearchSpace.preset("digits"))
        train_supernet(net, digits, TrainingPlan(epochs=epochs, batch_size=256), tmp_path)

    train(0.5)
    stored = (tmp_path / "training.safetensors").read_bytes()
    with pytest.raises(
        CheckpointError,
        match=r"of another run \(of another plan: epochs 0.5, now 0.7\); choose another folder",
    ):
        train(0.7)
    assert (tmp_path / "training.safetensors").read_bytes() == stored


def test_plans_that_make_no_sense_are_errors() -> None:
    with pytest.raises(InvalidArgumentError, match="epochs=0: must be positive"):
        TrainingPlan(epochs=0)
    with pytest.raises(InvalidArgumentError, match="minutes=-1: must be positive"):
        TrainingPlan(minutes=-1)


def test_phases_open_one_after_another() -> None:
    plan = TrainingPlan()
    order = [plan.phase(progress) for progress in np.linspace(0, 0.999, 50)]
    assert list(dict.fromkeys(order)) == ["largest", "kernel", "depth", "channels"]
    rates = [plan.rate(progress) for progress in (0.0, plan.warmup, 1.0)]
    assert rates[0] < rates[1] == plan.learning_rate
    assert rates[2] == pytest.approx(0.0)


def test_images_of_another_kind_are_refused(supernet: OnceForAllNet, digits: ImageData) -> None:
    net = OnceForAllNet(SearchSpace.preset("cifar10"))
    with pytest.raises(DataError, match=r"= \(8, 1, 10\), but the supernet was made for \(32, 3"):
        apq.Objective(net, digits)
    supernet.data_info["split_hash"] = "0" * 16
    with pytest.raises(DataError, match="is not what the supernet was trained on"):
        apq.Objective(supernet, digits)


# ---------------------------------------------------------------------- checkpoints


def test_checkpoints_round_trip(supernet: OnceForAllNet, tmp_path: Path) -> None:
    supernet.save(tmp_path)
    again = OnceForAllNet.load(tmp_path)
    assert again.weights_hash == supernet.weights_hash
    assert again.data_info["class_names"] == list("0123456789")
    torch.testing.assert_close(again(IMAGES), supernet(IMAGES))
    other_bits = SearchSpace.preset("digits", bits=(4, 8))
    assert OnceForAllNet.load(tmp_path, space=other_bits).space == other_bits


def damage_truncated(folder: Path) -> None:
    path = folder / "supernet.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def damage_bit(folder: Path) -> None:
    path = folder / "supernet.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def damage_pickle(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "supernet.safetensors")


def damage_sidecar(folder: Path) -> None:
    (folder / "supernet.json").write_text("{")


def damage_kind(folder: Path) -> None:
    path = folder / "supernet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "predictor"}))


def damage_schema(folder: Path) -> None:
    path = folder / "supernet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "truncated or not safetensors"),
        (damage_bit, "is damaged: its sha256 differs"),
        (damage_pickle, r"is a pickle \(torch\.save\); only safetensors are read"),
        (damage_sidecar, r"supernet\.json is not JSON"),
        (damage_kind, "holds a 'predictor', not a supernet"),
        (damage_schema, "is not of schema 1"),
        (lambda folder: (folder / "supernet.json").unlink(), r"has no sidecar supernet\.json"),
        (lambda folder: (folder / "supernet.safetensors").unlink(), "does not exist"),
    ],
)
def test_bad_checkpoints_are_refused_and_left_alone(
    supernet: OnceForAllNet, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    supernet.save(tmp_path)
    damage(tmp_path)
    stored = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=message):
        OnceForAllNet.load(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == stored


def test_a_checkpoint_of_another_space_is_refused(run_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is of another search space"):
        OnceForAllNet.load(run_folder, space=SearchSpace.preset("cifar10"))


def test_half_precision_checkpoints_are_small_and_close(
    supernet: OnceForAllNet, tmp_path: Path
) -> None:
    from apq_optuna.supernet import save_supernet

    save_supernet(supernet, tmp_path, half=True)
    stored = load_file(tmp_path / "supernet.safetensors")
    assert stored["stem.weight"].dtype == torch.float16
    torch.testing.assert_close(
        OnceForAllNet.load(tmp_path)(IMAGES), supernet(IMAGES), rtol=0.05, atol=0.05
    )


def test_the_same_weights_may_be_described_anew(supernet: OnceForAllNet, tmp_path: Path) -> None:
    before = dict(supernet.data_info)
    try:
        for name in ("one", "two"):
            supernet.data_info = before | {"name": name}
            supernet.save(tmp_path)
            assert OnceForAllNet.load(tmp_path).data_info["name"] == name
    finally:
        supernet.data_info = before
