"""This machine, measured: real ONNX Runtime sessions, real latencies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import optuna
import pytest

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import CostTableError, InvalidArgumentError, MissingCostError
from apq_optuna.export.graphs import layer_graph, subnet_graph, summed_graph
from apq_optuna.export.wiring import summed_layers
from apq_optuna.hardware import CPU, CostTable, Measurement, bitfusion, correct, random_networks
from apq_optuna.hardware.tables.calibrate import calibration_networks
from apq_optuna.networks import ConvLayer
from apq_optuna.supernet import OnceForAllNet
from tests.conftest import FAST

SPACE = apq.SearchSpace.preset("digits")
QUICK = CPU(rounds=2, repeats=3)
LAYERS = {
    "pointwise": ConvLayer(16, 24, 8, 1, 1, 0, 1),
    "depthwise": ConvLayer(24, 24, 9, 5, 2, 2, 24),
    "grouped": ConvLayer(16, 32, 8, 3, 1, 1, 4),
    "rectangular": ConvLayer(3, 8, (20, 12), (3, 5), (2, 1), (1, 2), 1),
    "dilated": ConvLayer(8, 8, 12, 3, 1, 2, 1, 2),
    "linear": ConvLayer(64, 10, 1, 1, 1, 0, 1, linear=True),
    "rows": ConvLayer(64, 10, (6, 1), 1, 1, 0, 1, linear=True),
}


def run(model: bytes, shape: tuple[int, ...], kind: type[np.generic]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones(shape, kind)})  # type: ignore[no-any-return]


@pytest.mark.parametrize("int8", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_graph_computes_the_layer(name: str, int8: bool) -> None:
    layer = LAYERS[name]
    model, shape = layer_graph(layer, int8=int8, copies=3)
    outputs = run(model, shape, np.uint8 if int8 else np.float32)
    assert len(outputs) == 3
    height, width = layer.output_size
    expected = (1, height, width, layer.out_channels) if int8 else (
        1, layer.out_channels, height, width)  # fmt: skip
    if layer.linear:
        expected = (height * width, layer.out_channels)
    for output in outputs:
        assert output.shape == expected
        assert output.dtype == (np.uint8 if int8 else np.float32)
    assert not np.array_equal(outputs[0], outputs[1])  # copies have weights of their own


def operators(model: bytes, path: str) -> list[str]:
    """What the runtime makes of a model."""
    import onnx

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = path
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def test_quantized_layers_run_as_integers_and_nothing_else(tmp_path: object) -> None:
    model, _ = layer_graph(LAYERS["depthwise"], int8=True, copies=2)
    assert operators(model, f"{tmp_path}/layer.onnx") == ["QLinearConv"] * 2
    subnet = SPACE.decode(SPACE.extreme(largest=True)[0])
    count = len(list(subnet.layers()))
    found = operators(subnet_graph(subnet), f"{tmp_path}/network.onnx")
    products = found.count("MatMulIntegerToFloat")  # those that sums take
    assert products > 1 and found.count("QLinearConv") + products == count - 1
    assert "Conv" not in found and found.count("QGemm") == 1
    assert found.count("Transpose") <= 2  # the runtime has channels last from end to end


def test_layers_that_sums_take_are_priced_as_they_run(tmp_path: object) -> None:
    found = summed_layers(SPACE)
    names = {site.name for site in SPACE.networks.sites() if set(
        map(site.layer_of, site.distinct())) <= found}  # fmt: skip
    assert "last" in names and "stage1.block1.project" in names
    assert "stage1.block1.expand" not in names and "classifier" not in names
    for layer, operator in (
        (LAYERS["pointwise"], "MatMulIntegerToFloat"), (LAYERS["rectangular"], "ConvInteger")
    ):  # fmt: skip
        assert operators(summed_graph(layer, copies=2), f"{tmp_path}/x.onnx").count(operator) == 2
        summed = replace(QUICK, summed=frozenset([layer]))
        assert summed.cost(layer, 4, 8)[0] > 0 and summed == QUICK  # the same device


def test_a_networks_graph_is_the_network() -> None:
    for subnet in random_networks(SPACE, 3):
        for each in (subnet, subnet.with_bits(32), subnet.with_bits(3)):
            session = onnxruntime.InferenceSession(
                subnet_graph(each), providers=["CPUExecutionProvider"]
            )
            (logits,) = session.run(None, {"images": np.ones((2, 1, 8, 8), np.float32)})
            assert logits.shape == (2, 10) and np.isfinite(logits).all()


def test_widths_up_to_8_are_int8_and_the_table_says_so() -> None:
    device = CPU()
    assert device.executes(2, 7) == (8, 8)
    assert device.executes(32, 8) == device.executes(32, 32) == (32, 32)
    executes = device.provenance()["executes"]
    assert executes == {"2 to 8 bits": "int8 (QDQ)", "32 bits, either operand": "float32"}
    assert {"processor", "cores", "threads", "versions"} <= set(device.provenance())
    with pytest.raises(MissingCostError, match="w_bits=1: device 'cpu' executes"):
        device.cost(LAYERS["pointwise"], 1, 8)
    with pytest.raises(CostTableError, match="has no output"):
        device.cost(ConvLayer(8, 8, 2, 5, 1, 0, 1), 8, 8)


def test_more_work_takes_longer() -> None:
    """A hundred times the work, so that no disturbance turns it round."""
    small, large = ConvLayer(16, 16, 8, 1, 1, 0, 1), ConvLayer(160, 160, 32, 1, 1, 0, 1)
    for bits in (8, 32):
        (little, none), (much, _) = (QUICK.cost(each, bits, bits) for each in (small, large))
        assert 0 < little < much and none is None


def test_a_table_and_its_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apq_optuna.export.measure.WAITS_S", ())  # tests beside it disturb
    table = QUICK.table(SPACE)
    compiled = table.compile(SPACE)
    assert compiled.has_free_bits  # everything up to 8 runs alike
    assert (compiled(SPACE.sample(50, np.random.default_rng(0))) > 0).all()
    networks = calibration_networks(table, SPACE, 3)
    assert len({network.macs for network in networks}) == 3
    corrected = correct(table, QUICK, networks)
    assert corrected.provenance["correction"]["networks"] == 3
    assert corrected.metric_names == ("latency_ms",)


def test_whole_networks_are_measured_in_rounds() -> None:
    steps: list[tuple[int, int]] = []
    networks = random_networks(SPACE, 2)
    found = replace(QUICK, rounds=3).measure(networks, report=lambda *s: steps.append(s))
    assert [len(m.rounds) for m in found] == [3, 3] and steps[-1] == (6, 6)
    for each in found:
        assert each.latency_ms == np.median(each.rounds) > 0
    one_bit = apq.SearchSpace.preset("digits", bits=(2, 32))
    assert QUICK.measure(random_networks(one_bit, 1))[0].latency_ms > 0


def test_the_spread_leaves_out_the_farthest_round() -> None:
    assert Measurement.of([1.0, 1.1, 0.9, 5.0, 1.0]) == (
        1.0,
        pytest.approx(0.1),
        (1, 1.1, 0.9, 5, 1),
    )


def test_trials_keep_both_latencies(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> None:
    objective = apq.Objective(
        supernet, digits, digits_costs, finetune=FAST, images=50, measured_on=QUICK
    )
    study = optuna.create_study(directions=objective.directions)
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.user_attrs["table_latency_ms"] == trial.values[1]
    assert trial.user_attrs["measured_latency_ms"] > 0
    assert trial.user_attrs["measured_spread_ms"] >= 0
    with pytest.raises(InvalidArgumentError, match=r"measured_on='bitfusion': .* no whole net"):
        apq.Objective(supernet, digits, digits_costs, measured_on=bitfusion())


@pytest.mark.parametrize("parameters", [{"threads": 0}, {"rounds": 0}, {"pause_s": -1.0}])
def test_how_it_is_measured_is_checked(parameters: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(parameters))):
        CPU(**parameters)  # type: ignore[arg-type]
