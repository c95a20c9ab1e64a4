"""`trace` and `PretrainedNet`: names, nesting, weights, quantization, and the whole job."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import CheckpointError, DataError, InvalidArgumentError, SpaceError
from apq_optuna.hardware import CostTable, check_table
from apq_optuna.hardware.devices.device import Device
from apq_optuna.hardware.tables.between import interpolated_sizes, measured_errors
from apq_optuna.networks import ConvLayer, TracedSubnet
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import load_net
from tests.conftest import FAST

from .helpers import (
    SHAPE,
    Residual,
    Scaled,
    Wired,
    channels,
    check,
    family_of,
    trained_like,
)


@pytest.fixture(scope="module")
def model() -> Residual:
    torch.manual_seed(0)
    found = Residual()
    trained_like(found)
    return found


@pytest.fixture(scope="module")
def space(model: Residual) -> SearchSpace:
    return apq.trace(model, SHAPE)


@pytest.fixture(scope="module")
def net(model: Residual, space: SearchSpace) -> apq.PretrainedNet:
    return apq.PretrainedNet(model, space)


def test_decisions_carry_the_modules_names(space: SearchSpace) -> None:
    names = [decision.name for decision in space.decisions]
    assert names[:4] == ["stem.0.channels", "a.0.channels", "a.0.w_bits", "a.0.a_bits"]
    assert "a.3.channels" in names and "dw.channels" not in names  # one with what it is added to
    assert not any(name.startswith(("stem.0.w", "head.")) for name in names)  # 8 bits, all classes
    searched_ends = apq.trace(Residual().eval(), SHAPE, ends=True)
    assert "head.w_bits" in searched_ends.column and "stem.0.a_bits" in searched_ends.column


def test_a_space_is_a_value(space: SearchSpace) -> None:
    again = SearchSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space and again.architecture_hash == space.architecture_hash
    other = apq.trace(Residual().eval(), SHAPE, bits=(2, 8))
    assert other != space and other.architecture_hash == space.architecture_hash
    row = space.sample(1, np.random.default_rng(0))[0]
    subnet = space.decode(row)
    assert space.networks.subnet(json.loads(json.dumps(subnet.to_dict()))) == subnet
    with pytest.raises(SpaceError, match="not one of"):
        space.networks.subnet({**subnet.to_dict(), "channels": dict.fromkeys(channels(space), 7)})


def test_smaller_networks_are_nested_in_larger(net: apq.PretrainedNet) -> None:
    family = family_of(net.space)
    for g, group in enumerate(family.groups):
        kept: set[int] = set()
        for count in group.choices:
            counts = tuple(
                count if k == g else other.channels for k, other in enumerate(family.groups)
            )
            keep = net.slicer.keep(counts)
            places = [(m.path, m.side) for m in group.members if (m.path, m.side) in keep]
            if not places:
                continue
            some = keep[places[0]]
            assert kept < set(some.tolist())
            kept = set(some.tolist())


def test_the_most_important_channels_are_kept() -> None:
    model = Residual().eval()
    with torch.no_grad():
        model.pw.weight[5] *= 100.0
    net = apq.PretrainedNet(model, apq.trace(model, SHAPE))
    family = family_of(net.space)
    g = [group.name for group in family.groups].index("pw")
    assert net.slicer.order[g][0] == 5


def test_a_network_is_of_the_models_own_classes_and_does_not_share_its_weights(
    model: Residual, net: apq.PretrainedNet
) -> None:
    row = net.space.extreme(largest=False)[0]
    network = net.subnet(net.space.decode(row))
    assert type(network.model) is Residual
    assert network.model.stem[0].out_channels == 8 and network.model.dw.groups == 8
    before = model.head.weight.clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(model.head.weight, before)
    assert torch.equal(net.model.head.weight, before)


class Tied(Wired):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__(
            a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 16, 3), c=nn.Conv2d(16, 16, 3),
            d=nn.Linear(16, 5),
        )  # fmt: skip
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.d(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_tied_weights_stay_whole_and_are_named() -> None:
    space = check(Tied())
    assert any("b and c share one weight" in note for note in family_of(space).notes)
    assert channels(space) == {}


def test_training_raises_the_smaller_networks(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual(in_channels=1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for images, labels in digits.training_batches(64, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    space = apq.trace(model, (1, 8, 8))
    net = apq.PretrainedNet(model, space, data=digits)
    smallest = space.decode(space.extreme(largest=False)[0])

    def accuracy() -> float:
        from apq_optuna.quantization import fp32_network
        from apq_optuna.supernet import accuracy

        return accuracy(fp32_network(net, smallest, digits, 256, 0), digits)

    before, hash_before = accuracy(), net.weights_hash
    order = [first.tolist() for first in net.slicer.order]
    plan = apq.TrainingPlan(epochs=3, batch_size=64, learning_rate=0.02)
    apq.train_supernet(net, digits, plan, tmp_path)
    assert accuracy() > before + 0.05
    again = apq.PretrainedNet.load(tmp_path, model=Residual(in_channels=1))
    assert again.weights_hash == net.weights_hash != hash_before
    assert [first.tolist() for first in again.slicer.order] == order  # what is nested stays so


def test_training_with_zeros_is_training_what_is_cut_out(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = trained_like(Residual(in_channels=1))
    space = apq.trace(model, (1, 8, 8))
    plan = apq.TrainingPlan(epochs=0.5, batch_size=64, learning_rate=0.02)
    usual = apq.PretrainedNet.prepare_training
    weights, masked = [], []
    for device in ("cpu", "cuda"):

        def prepare(self: apq.PretrainedNet, given: str, device: str = device) -> None:
            usual(self, device)  # as on a GPU, which computes what this machine does
            masked.append(self.masked)

        monkeypatch.setattr(apq.PretrainedNet, "prepare_training", prepare)
        net = apq.PretrainedNet(model, space, data=digits)
        apq.train_supernet(net, digits, plan, tmp_path / device, device="cpu")
        weights.append(net.state_dict())
    assert masked == [False, False, True, True]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-4), name


def test_the_whole_job(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = trained_like(Residual(in_channels=1))
    space = apq.trace(model, (1, 8, 8))
    net = apq.PretrainedNet(model, space, data=digits)
    url = f"sqlite:///{tmp_path / 'apq.db'}"
    store = apq.PairStore(url, supernet=net)
    assert apq.collect_pairs(net, digits, store, 30, images=64) == 30
    costs = apq.hardware.bitfusion_small().table(space)
    objective = apq.Objective(net, digits, costs, finetune=FAST, images=64)
    study = optuna.create_study(
        storage=apq.open_storage(url), directions=objective.directions,
        sampler=apq.APQSampler(space, costs=costs, source=store, seed=0),
    )  # fmt: skip
    study.optimize(objective, n_trials=3)
    trial = study.best_trials[0]
    subnet = space.decode(space.from_params(trial.params))
    assert trial.values[1:] == pytest.approx(costs.network_cost(subnet.layers()))
    network, about = apq.finish(net, digits, subnet, tmp_path / "done", epochs=0.1, costs=costs)
    again = apq.load_network(tmp_path / "done", model=Residual(in_channels=1))
    image = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(image), network(image))
    assert about["weight_bytes"] == subnet.weight_bytes
    with pytest.raises(InvalidArgumentError, match="give the model"):
        apq.load_network(tmp_path / "done")


def test_a_checkpoint_comes_back(net: apq.PretrainedNet, tmp_path: Path) -> None:
    net.save(tmp_path)
    again = apq.PretrainedNet.load(tmp_path, model=Residual())
    assert again.weights_hash == net.weights_hash and again.space == net.space
    with pytest.raises(CheckpointError, match="a file runs no code"):
        load_net(tmp_path)
    with pytest.raises(CheckpointError, match=r"PretrainedNet\.load"):
        apq.OnceForAllNet.load(tmp_path)


def test_what_stays_float_is_priced_at_the_widest_bits() -> None:
    space = apq.trace(Scaled().eval(), SHAPE)
    device = apq.hardware.bitfusion()
    table = device.table(space)
    function = next(layer for layer in family_of(space).traced if not layer.module)
    widest = max(device.bits)
    assert table.cost(function.layer, 32, 32) == device.cost(function.layer, widest, widest)
    assert check_table(table, space).usable
    rows = space.sample(20, np.random.default_rng(0))
    each = [table.network_cost(space.decode(row).layers()) for row in rows]
    np.testing.assert_allclose(table.compile(space)(rows), each)


class Dense(Wired):
    """Six concatenations, one behind the other."""

    def __init__(self) -> None:
        layers = {f"l{k}": nn.Conv2d(32 + 16 * k, 16, 3, 1, 1) for k in range(6)}
        super().__init__(
            a=nn.Conv2d(3, 32, 3, 1, 1), **layers, h=nn.Conv2d(128, 32, 1), f=nn.Linear(32, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        for k in range(6):
            x = torch.cat([x, F.relu(getattr(self, f"l{k}")(x))], 1)
        return self.f(F.relu(self.h(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Measured(Device):
    """A device whose costs bend: a straight line between two sizes is a little off."""

    name = "measured"
    bits = (4, 6, 8)
    rounds = 2

    def __init__(self) -> None:
        self._asked: list[ConvLayer] = []

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> tuple[float, None]:
        self._asked.append(layer)
        return 0.01 + layer.macs**1.1 * w_bits * 1e-9, None


def test_many_sizes_are_measured_at_sixteen_and_interpolated_between() -> None:
    space = apq.trace(Dense().eval(), SHAPE, step=4)
    device = Measured()
    table: CostTable = device.table(space)
    between = interpolated_sizes(space)
    assert between and not set(between) & set(device._asked)
    assert len(table.provenance["interpolated"]) == len(between)
    compiled = table.compile(space)
    rows = space.sample(50, np.random.default_rng(0))
    assert np.isfinite(compiled(rows)).all()
    errors = measured_errors(table, Measured(), space, 20)
    assert len(errors) == 20 and 0 < max(abs(error) for _, error in errors) < 0.05
    small = apq.trace(Residual().eval(), SHAPE)
    assert not interpolated_sizes(small)
    assert measured_errors(Measured().table(small), Measured(), small, 3) == []


def test_the_wiring_of_ones_own_model_is_not_run_by_devices(space: SearchSpace) -> None:
    subnet = space.decode(space.extreme(largest=True)[0])
    assert isinstance(subnet, TracedSubnet)
    with pytest.raises(SpaceError, match="no device runs its networks whole"):
        subnet.steps()


def test_the_model_must_be_the_one_that_was_traced(space: SearchSpace) -> None:
    other = Residual()
    other.pw = nn.Conv2d(32, 48, 1)
    with pytest.raises(InvalidArgumentError, match=r"not the model .* traced from: pw"):
        apq.PretrainedNet(other, space)
    with pytest.raises(SpaceError, match=r"apq\.trace"):
        apq.PretrainedNet(Residual(), SearchSpace.preset("digits"))
    copied = copy.deepcopy(Residual())
    assert apq.PretrainedNet(copied, space).space == space


def test_images_normalised_otherwise_are_refused(digits: ImageData) -> None:
    model = Residual(in_channels=1).eval()
    net = apq.PretrainedNet(
        model, apq.trace(model, (1, 8, 8)), data=apq.load_data("digits", mean=(0.9,), std=(0.1,))
    )
    with pytest.raises(DataError, match=r"has mean \[0.*, the supernet was made for \[0.9\]"):
        apq.Objective(net, digits)


def test_tracing_takes_nothing_of_the_callers_random_numbers() -> None:
    model = Residual().eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = apq.trace(model, SHAPE)
    assert torch.equal(torch.rand(3), expected)
    assert apq.trace(model, SHAPE) == first
