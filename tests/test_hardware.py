"""Hardware: the published table exactly, tables of our own, and layers of any model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from apq_optuna._torchvision import models
from apq_optuna.errors import (
    CostTableError,
    InvalidArgumentError,
    MissingCostError,
    UnsupportedLayerError,
)
from apq_optuna.hardware import CostTable, Device, bitfusion, bitfusion_small, bitserial, layers_of
from apq_optuna.space import ConvLayer, SearchSpace


def test_bitfusion_reproduces_the_published_table(published: Path) -> None:
    device, table = bitfusion(), CostTable.load(published)
    assert len(table.entries) == 6569
    for (layer, w, a), (ms, mj) in table.entries.items():
        assert device.cycles(layer, w, a) == round(ms * 5e5), (layer, w, a)
        assert device.cost(layer, w, a)[1] == pytest.approx(mj, rel=1e-12)


def test_published_table_misses_kernel_7_at_4_bit_activations(published: Path) -> None:
    space = SearchSpace.preset("imagenet")
    compiled = CostTable.load(published).compile(space)
    row = space.extreme(largest=True)
    assert np.isfinite(compiled(row)).all()
    row[0, space.column["stage1.block1.dw_a_bits"]] = 0
    assert np.isinf(compiled(row)).all()


def test_compiled_costs_equal_the_sum_of_layers(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    rows = space.sample(200, np.random.default_rng(0))
    priced = digits_costs.compile(space)(rows)
    summed = [digits_costs.network_cost(space.decode(row).layers()) for row in rows]
    np.testing.assert_allclose(priced, summed, rtol=1e-12)


def test_minima_and_maxima_bound_every_network(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    compiled = digits_costs.compile(space)
    costs = compiled(space.sample(5000, np.random.default_rng(1)))
    assert (costs >= compiled.minima - 1e-12).all()
    assert (costs <= compiled.maxima + 1e-12).all()


def test_low_bits_pay_on_the_small_array(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    for largest in (True, False):
        subnet = space.decode(space.extreme(largest=largest)[0])
        low, high = (digits_costs.network_cost(subnet.with_bits(b).layers()) for b in (4, 8))
        assert low[0] < high[0]
        assert low[1] < high[1]


def test_own_tables_count_the_whole_network() -> None:
    space = SearchSpace.preset("imagenet")
    device = bitfusion()
    subnet = space.decode(space.extreme(largest=True)[0])
    placed = list(subnet.layers())
    assert [p.name for p in placed[:3]] == ["stem", "first.depthwise", "first.project"]
    assert [p.name for p in placed[-2:]] == ["last", "classifier"]
    whole = device.network_cost([p.layer for p in placed], [p.w_bits for p in placed], 8)
    assert device.table(space).network_cost(placed) == pytest.approx(whole)


def test_6_bits_compute_like_8_but_move_less() -> None:
    device, layer = bitfusion(), ConvLayer(96, 96, 14, 3, 1, 1, 96)
    assert device.cost(layer, 6, 6)[0] <= device.cost(layer, 8, 8)[0]
    assert device.cost(layer, 4, 4)[0] < 0.6 * device.cost(layer, 8, 8)[0]


def test_grouped_convolutions_are_priced_group_by_group() -> None:
    device = bitfusion()
    group = device.cost(ConvLayer(16, 16, 14, 3, 1, 1, 1), 8, 8)
    whole = device.cost(ConvLayer(64, 64, 14, 3, 1, 1, 4), 8, 8)
    assert whole == pytest.approx([4 * value for value in group])


def test_widths_the_array_does_not_have_are_errors() -> None:
    with pytest.raises(MissingCostError, match=r"w_bits=32: device 'bitfusion' executes \[2, 3"):
        bitfusion().cost(ConvLayer(8, 8, 8, 1, 1, 0, 1), 32, 8)


def test_a_device_of_ones_own_takes_a_dozen_lines() -> None:
    class Board(Device):
        name = "board"
        bits = (8,)

        def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> tuple[float, None]:
            self.check_bits(w_bits, a_bits)
            return layer.macs * 1e-9, None

    space = SearchSpace.preset("digits")
    table = Board().table(space)
    compiled = table.compile(space)
    assert compiled.metric_names == ("latency_ms",)
    wide, narrow = space.extreme(largest=True), space.extreme(largest=True, bits=4)
    subnet = space.decode(wide[0])
    assert compiled(wide)[0, 0] == pytest.approx(subnet.macs * 1e-9)
    assert math.isinf(compiled(narrow)[0, 0])
    with pytest.raises(MissingCostError, match=r"cost table of 'board' has no .* W4A4"):
        table.network_cost(subnet.with_bits(4).layers())


def test_blocks_a_device_cannot_run_are_repaired(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    only_8 = {k: v for k, v in digits_costs.entries.items() if k[1:] == (8, 8)}
    compiled = CostTable(only_8, device="board").compile(space)
    rng = np.random.default_rng(0)
    rows = space.sample(300, rng)
    assert np.isinf(compiled(rows)).any()
    repaired = compiled.repair(rows, rng)
    assert np.isfinite(compiled(repaired)).all()
    feasible = np.isfinite(compiled(rows)).all(axis=1)
    np.testing.assert_array_equal(repaired[feasible], rows[feasible])


# ---------------------------------------------------------------------- files


def test_tables_round_trip_as_json(tmp_path: Path, digits_costs: CostTable) -> None:
    again = CostTable.load(digits_costs.save(tmp_path / "table.json"))
    assert again.entries == digits_costs.entries
    assert (again.device, again.metric_names) == (digits_costs.device, digits_costs.metric_names)
    assert again.provenance["model"] == "BitFusion"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["units"].pop("latency"), r"units\.latency=None; expected 'ms'"),
        (lambda d: d["units"].update(energy="J"), r"units\.energy='J'; expected 'mJ'"),
        (lambda d: d["entries"][3].update(latency=-1.0), r"line \d+ \(entry 3\): latency_ms=-1"),
        (lambda d: d["entries"][3].update(energy=math.nan), r"\(entry 3\): energy_mj=nan"),
        (lambda d: d["entries"][3].pop("latency"), r"\(entry 3\): latency is missing"),
        (lambda d: d["entries"].append(d["entries"][0]), "repeats"),
        (lambda d: d["entries"][3].pop("energy"), r"\(entry 3\): has no energy, but"),
        (lambda d: d.update(schema=99), "schema=99; expected 1"),
        (lambda d: d.pop("units"), "'units' .* required"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(
    tmp_path: Path, digits_costs: CostTable, change: object, message: str
) -> None:
    path = digits_costs.save(tmp_path / "table.json")
    document = json.loads(path.read_text())
    change(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    with pytest.raises(CostTableError, match=message):
        CostTable.load(path)


def test_missing_layers_are_named(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    entries = dict(digits_costs.entries)
    stem = next(key for key in entries if key[0].in_channels == 1)
    without_stem = {key: cost for key, cost in entries.items() if key != stem}
    with pytest.raises(CostTableError, match="lacks the fixed layer stem of this space: conv"):
        CostTable(without_stem, device="d").compile(space)
    layer = ConvLayer(8, 8, 8, 3, 1, 1, 8)
    without = {key: cost for key, cost in entries.items() if key[0] != layer}
    with pytest.raises(
        CostTableError, match=r"lacks .*depthwise 8->8|lacks the fixed layer first"
    ):
        CostTable(without, device="d").compile(space)


# ---------------------------------------------------------------------- layers of any model


@pytest.mark.parametrize(
    ("name", "count", "mmacs"),
    [("mobilenet_v2", 53, 300.8), ("resnet18", 21, 1814.1), ("mobilenet_v3_large", 64, 216.6)],
)
def test_torchvision_models_are_listed_whole(name: str, count: int, mmacs: float) -> None:
    layers = layers_of(getattr(models, name)(), (3, 224, 224))
    assert len(layers) == count
    assert sum(layer.macs for layer in layers) / 1e6 == pytest.approx(mmacs, abs=0.1)
    for device in (bitfusion(), bitserial()):
        assert 0 < device.network_cost(layers, 4, 4)[0] < device.network_cost(layers, 8, 8)[0]


def test_true_shapes_are_seen() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2)), nn.ReLU(),
        nn.Conv2d(8, 16, 3, dilation=2, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip
    assert layers_of(model, (3, 20, 12)) == [
        ConvLayer(3, 8, (20, 12), (3, 5), (2, 1), (1, 2), 1),
        ConvLayer(8, 16, (10, 12), 3, 1, 0, 4, 2),
        ConvLayer(16, 5, 1, 1, 1, 0, 1, linear=True),
    ]
    assert model.training


def test_what_computes_and_has_no_price_is_named() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2) @ x.flatten(2).transpose(1, 2)

    with pytest.raises(UnsupportedLayerError, match=r"aten::bmm .* has no price"):
        layers_of(Attention(), (3, 8, 8))

    class Gram(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(1)
            return rows @ rows.t()

    class Dynamic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.conv2d(x, x[:, :, :3, :3])

    class Distances(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pdist(x[0].flatten(1))

    encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)

    with pytest.raises(UnsupportedLayerError, match="aten::_transformer_encoder_layer_fwd"):
        layers_of(nn.Sequential(nn.Flatten(2), encoder), (3, 8, 8))
    for module in (Gram(), Dynamic()):
        with pytest.raises(UnsupportedLayerError, match="multiplies two activations"):
            layers_of(module, (3, 8, 8))
    with pytest.raises(UnsupportedLayerError, match="aten::_pdist_forward"):
        layers_of(Distances(), (3, 8, 8))
    with pytest.raises(UnsupportedLayerError, match="transposed"):
        layers_of(nn.ConvTranspose2d(3, 4, 2), (3, 8, 8))


def test_everything_between_layers_is_free() -> None:
    between = [
        nn.LayerNorm([8, 8]), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), nn.PReLU(),
        nn.Hardswish(True), nn.SiLU(True), nn.GELU(), nn.Mish(), nn.Sigmoid(),
        nn.LPPool2d(2, 2), nn.ReflectionPad2d(1),
        nn.Upsample(scale_factor=2, mode="bicubic"), nn.Softmax2d(), nn.AdaptiveAvgPool2d(4),
        nn.Dropout2d(), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.MaxPool2d(2),
    ]  # fmt: skip

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.between, self.conv = nn.Sequential(*between), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(self.between(x))
            y = torch.cat([y, y * 2, y.sigmoid_() + 1], dim=1)
            return y.clamp_(0, 1).std() + y.sort().values.mean() + y.topk(1).values.sum()

    assert layers_of(Mixed(), (3, 8, 8)) == [ConvLayer(3, 4, 1, 1, 1, 0, 1)]


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, -1), (3, 8, 8.0), 5, "888", (4, 8, 8)])
def test_images_a_model_does_not_take_are_named(shape: object) -> None:
    with pytest.raises(InvalidArgumentError, match="input_shape="):
        layers_of(nn.Conv2d(3, 4, 3), shape)  # type: ignore[arg-type]


def test_weights_that_are_computed_are_weights() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    assert layers_of(nn.Sequential(nn.Flatten(), layer), (2, 2, 2)) == [
        ConvLayer(8, 4, 1, 1, 1, 0, 1, linear=True)
    ]


def test_small_array_differs_from_the_published_one() -> None:
    layer = ConvLayer(16, 16, 8, 1, 1, 0, 1)
    assert bitfusion_small().cost(layer, 8, 8)[0] > bitfusion().cost(layer, 8, 8)[0]
