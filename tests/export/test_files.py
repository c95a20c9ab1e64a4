"""A finished network as a file: what is in it, that it is proven, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import ExportError, InvalidArgumentError
from apq_optuna.export import build_float_onnx, build_onnx, export_onnx
from apq_optuna.export.graphs import subnet_graph
from apq_optuna.export.running import Agreement, Parity, check_on_noise, parity, session
from apq_optuna.export.writing import write_both
from apq_optuna.quantization import fp32_network, quantized_network, round_biases
from apq_optuna.supernet import OnceForAllNet, SubnetModule
from tests.conftest import FAST
from tests.export.helpers import check, products_saturate, run

SPACE = apq.SearchSpace.preset("digits")


@pytest.fixture(scope="module")
def finished(
    run_folder: Path, digits: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SubnetModule]:
    """A mixed network, finetuned for a moment and saved."""
    net = OnceForAllNet.load(run_folder)
    subnet = SPACE.decode(SPACE.sample(1, np.random.default_rng(4))[0])
    folder = tmp_path_factory.mktemp("finished")
    apq.finish(net, digits, subnet, folder, epochs=0.5, options=FAST)
    yield apq.load_network(folder)


def network_at(net: OnceForAllNet, digits: ImageData, bits: int, seed: int = 0) -> SubnetModule:
    subnet = SPACE.decode(SPACE.sample(1, np.random.default_rng(seed))[0]).with_bits(bits)
    return quantized_network(
        fp32_network(net, subnet, digits, 128, 0), subnet, digits, 128, 0
    ).eval()


def test_a_finished_network_is_written_proven_and_integer(
    finished: SubnetModule, digits: ImageData, tmp_path: Path
) -> None:
    report = export_onnx(finished, tmp_path / "deep" / "network.onnx", data=digits)
    path = tmp_path / "deep" / "network.onnx"
    assert json.loads((tmp_path / "deep" / "network.onnx.json").read_text()) == report
    proof = report["parity"]
    assert proof["passed"] and proof["images"] == len(digits.search_validation)
    assert proof["agreement"]["equal_top1"] >= 0.995
    # what was tested is what was written: biases were rounded before it was saved
    assert not report["rounded_biases"] and proof["given_accuracy"] is None
    assert proof["accuracy"] == pytest.approx(finished.about["accuracy"]["search_validation"])
    assert report["kernels"]["integer_share_of_macs"] == 1.0 and not report["kernels"]["other"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    about = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert about["class_names"] == list(digits.class_names) and about["mean"] == list(digits.mean)
    assert about["fit"] == "crop" and about["image_size"] == 8
    stored = report["tensor_bytes"]
    assert sum(stored.values()) == report["bytes"] == path.stat().st_size
    assert report["expected_bytes"] == stored["weights"] + stored["biases"] + stored["scales"]


def test_the_batch_is_dynamic_and_the_file_needs_no_more_than_the_runtime(
    finished: SubnetModule, digits: ImageData, tmp_path: Path
) -> None:
    path = tmp_path / "network.onnx"
    export_onnx(finished, path, data=digits, with_preprocessing=True)
    pixels = digits.search_validation.images.batch(torch.arange(7)).permute(0, 2, 3, 1).numpy()
    np.save(tmp_path / "pixels.npy", pixels)
    code = (
        "import sys, json, numpy as np, onnxruntime as ort\n"
        f"s = ort.InferenceSession({str(path)!r})\n"
        f"x = np.load({str(tmp_path / 'pixels.npy')!r})\n"
        "several = s.run(None, {'pixels': x})[0]\n"
        "one = [s.run(None, {'pixels': x[i : i + 1]})[0][0] for i in range(len(x))]\n"
        "assert np.allclose(several, one, atol=1e-4)\n"
        "assert not {'torch', 'onnx', 'optuna', 'apq_optuna'} & set(sys.modules)\n"
        "print(several.argmax(1).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    images = digits.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.no_grad():
        assert json.loads(done.stdout) == finished(images).argmax(1).tolist()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 7, 8, 32])
def test_every_width_computes_what_was_trained(
    supernet: OnceForAllNet, digits: ImageData, bits: int
) -> None:
    network = network_at(supernet, digits, bits)
    made, kernels = check(network, (1, 8, 8), close=0.3)
    if bits < 32:
        assert kernels.share == 1.0
    else:  # stem, first block, last and classifier have 8
        assert 0 < kernels.share < 0.9
    proof = parity(made, network, digits)
    assert proof.passed, proof.text()


def test_codes_beyond_the_width_never_appear(supernet: OnceForAllNet, digits: ImageData) -> None:
    """Every tensor of bytes that a layer of 3 bits takes has 8 codes at most."""
    network = network_at(supernet, digits, 3)
    model = onnx.load_from_string(build_onnx(network).content)
    widths = {p.name: p.a_bits for p in network.description.layers()}
    made_by = {y: node for node in model.graph.node for y in node.output}
    taken = {}
    for node in model.graph.node:
        if node.op_type == "ConvInteger":
            taken[node.name] = node.input[0]
        elif node.op_type in ("Conv", "Gemm", "MatMul"):
            taken[node.name] = made_by[node.input[0]].input[0]
    assert set(taken) == set(widths)
    for name in taken.values():
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    runtime = onnxruntime.InferenceSession(model.SerializeToString(), plain)
    given = digits.normalise(digits.search_validation.images.batch(torch.arange(200)))
    found = runtime.run(list(taken.values()), {"images": given.contiguous().numpy()})
    for layer, codes in zip(taken, found, strict=True):
        assert codes.dtype == np.uint8
        assert int(codes.max()) - int(codes.min()) < 2 ** widths[layer], layer


def test_half_bytes_hold_the_same_weights(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    network = network_at(supernet, digits, 4)
    whole = export_onnx(network, tmp_path / "whole.onnx", data=digits)
    half = export_onnx(network, tmp_path / "half.onnx", data=digits, int4=True)
    assert (whole["opset"], half["opset"]) == (18, 21)
    assert half["parity"]["agreement"] == whole["parity"]["agreement"]
    searched = sum(p.layer.weights for p in network.description.layers() if p.w_bits == 4)
    assert whole["tensor_bytes"]["weights"] - half["tensor_bytes"]["weights"] == searched // 2
    assert half["kernels"]["integer_share_of_macs"] == 1.0


def test_weights_of_7_bits_are_another_network_and_said_to_be(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    network = network_at(supernet, digits, 8)
    report = export_onnx(network, tmp_path / "network.onnx", data=digits, reduce_range=True)
    names = [p.name for p in network.description.layers()]
    assert report["reduced_to_7_bits"] == names  # all of them are W8A8
    assert report["parity"]["given_accuracy"] is not None
    weights = [
        onnx.numpy_helper.to_array(each)
        for each in onnx.load(tmp_path / "network.onnx").graph.initializer
    ]
    signed = [w for w in weights if w.dtype == np.int8 and w.ndim > 1]
    assert signed and all(np.abs(w.astype(int)).max() <= 64 for w in signed)
    # two products of a byte and 7 bits fit into 16 bits, of 8 bits they do not
    assert 2 * 255 * 64 < 2**15 <= 2 * 255 * 127


def test_saturation_is_what_the_processor_does(supernet: OnceForAllNet, digits: ImageData) -> None:
    """Where the processor multiplies bytes exactly nothing is told; the proof holds anywhere."""
    network = network_at(supernet, digits, 8)
    proof = parity(build_onnx(network), network, digits)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "vnni" in flags:
        assert not proof.saturates and proof.runtime == "default"
    assert proof.passed, proof.text()


def test_figures_of_a_processor_that_saturates_are_of_the_precise_session(
    finished: SubnetModule, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a processor would find is said in its place: few are one."""
    monkeypatch.setattr("apq_optuna.export.running._saturates", lambda *_: True)
    proof = export_onnx(finished, tmp_path / "network.onnx", data=digits)["parity"]
    assert proof["saturates"] and proof["runtime"] == "precise" and proof["passed"]


@pytest.mark.skipif(products_saturate(), reason="without VNNI noise saturates the kernels")
def test_a_file_without_images_is_tried_on_noise(finished: SubnetModule, tmp_path: Path) -> None:
    assert export_onnx(finished, tmp_path / "network.onnx")["parity"] is None
    made = build_onnx(finished)
    with torch.no_grad():
        made.network.classifier.bias += torch.arange(10.0)  # type: ignore[union-attr,operator]
    with pytest.raises(ExportError, match="on noise its logits are apart"):
        check_on_noise(made)


def test_what_was_there_before_goes_with_a_file_that_is_refused(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    network, path = network_at(supernet, digits, 3), tmp_path / "network.onnx"
    export_onnx(network, path, data=digits)
    with pytest.raises(ExportError, match="kept as"):
        export_onnx(network, path, data=digits, round_outputs=True, equal_top1=1.0)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["network.onnx.rejected", "network.onnx.rejected.json"]


def test_a_report_that_cannot_be_written_takes_the_file_with_it(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    (tmp_path / "network.onnx.json").mkdir()
    with pytest.raises(ExportError, match="cannot be written"):
        write_both(path, b"content", {})
    assert not path.exists()


def test_the_given_network_is_left_as_it_was(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    network = network_at(supernet, digits, 4).train()
    export_onnx(network, tmp_path / "network.onnx", data=digits, limit=20)
    assert network.training


def test_a_float_file_is_the_network_without_rounding_of_activations(
    supernet: OnceForAllNet, digits: ImageData
) -> None:
    network = network_at(supernet, digits, 32)
    given = digits.normalise(digits.search_validation.images.batch(torch.arange(50)))
    with torch.no_grad():
        expected = network(given).numpy()
    got = run(build_float_onnx(network), given)
    searched = np.abs(got - expected).max()  # first and last layers have 8 bits in torch
    assert searched < 0.2 * np.abs(expected).max()


def test_biases_are_rounded_once(supernet: OnceForAllNet, digits: ImageData) -> None:
    network = network_at(supernet, digits, 4)
    assert round_biases(network) and not round_biases(network)
    assert not build_onnx(network).rounded_biases


def test_a_file_that_is_not_the_network_is_kept_aside(
    supernet: OnceForAllNet, digits: ImageData, tmp_path: Path
) -> None:
    """Rounded outputs are not exact; of all images in the same class something is missing."""
    network = network_at(supernet, digits, 3)
    path = tmp_path / "network.onnx"
    with pytest.raises(
        ExportError, match=r"does not compute what the network does: .* in the same"
    ):
        export_onnx(network, path, data=digits, round_outputs=True, equal_top1=1.0)
    assert not path.exists() and (tmp_path / "network.onnx.rejected").exists()
    assert not json.loads((tmp_path / "network.onnx.rejected.json").read_text())["parity"][
        "passed"
    ]


def test_what_passes() -> None:
    def proof(top1: float, accuracy: float) -> Parity:
        agreement = Agreement(top1, accuracy, 0.0, 0.0)
        return Parity(100, 0.9, None, None, 1.0, "default", agreement, agreement, False, "1", "x")

    assert proof(0.995, 0.903).passed and proof(1.0, 0.897).passed
    assert not proof(0.9949, 0.9).passed and not proof(1.0, 0.9035).passed


def test_bad_options(finished: SubnetModule, digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    with pytest.raises(InvalidArgumentError, match="opset=17: from 18 to"):
        export_onnx(finished, path, opset=17)
    with pytest.raises(InvalidArgumentError, match=r"opset=20: from 21 \(with 4-bit weights\)"):
        export_onnx(finished, path, opset=20, int4=True)
    with pytest.raises(InvalidArgumentError, match="equal_top1=2: a share"):
        export_onnx(finished, path, equal_top1=2)
    with pytest.raises(ExportError, match="round_outputs needs data"):
        export_onnx(finished, path, round_outputs=True)
    with pytest.raises(InvalidArgumentError, match="does not say the mean and std"):
        export_onnx(finished, path, with_preprocessing=True, about={})
    raw = OnceForAllNet(SPACE).subnet(finished.description)
    with pytest.raises(InvalidArgumentError, match="ConvNorm is no quantized layer"):
        export_onnx(raw, path)
    assert not list(tmp_path.iterdir())


def test_a_runtime_without_the_operators_is_told_which_has_them(finished: SubnetModule) -> None:
    model = onnx.load_from_string(build_onnx(finished).content)
    model.opset_import[0].version = 99
    with pytest.raises(ExportError, match=r"it has opset 99; no version is known to have it"):
        session(model.SerializeToString())
    with pytest.raises(ExportError, match="cannot run the file"):
        session(b"no model")


def test_paths_that_cannot_be_written(finished: SubnetModule, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a folder: give the name of a file"):
        export_onnx(finished, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(finished, tmp_path / "file" / "network.onnx")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from apq_optuna._files import replace_file\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    replace_file(Path(sys.argv[1]), b'x' * 5000)\n"
        "except OSError as error:\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "network.onnx")])
    assert done.returncode == 7 and not list(tmp_path.iterdir())


def test_other_backends_can_take_a_finished_network(finished: SubnetModule) -> None:
    example = torch.zeros(2, 1, 8, 8)
    dim = torch.export.Dim("batch")
    program = torch.export.export(finished, (example,), dynamic_shapes=({0: dim},))
    given = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = finished(given)
        assert torch.allclose(program.module()(given), expected, atol=1e-4)


def test_a_relu_that_follows_a_sum_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families of one's own may have it: ours has none there."""
    subnet = SPACE.decode(SPACE.extreme(largest=True)[0])
    steps = subnet.steps()
    sums = sum(step.operation == "add" for step in steps)
    before = onnx.load_from_string(subnet_graph(subnet))
    changed = tuple(replace(s, relu=True) if s.operation == "add" else s for s in steps)
    monkeypatch.setattr(type(subnet), "steps", lambda self: changed)
    after = onnx.load_from_string(subnet_graph(subnet))

    def relus(model: onnx.ModelProto) -> int:
        return sum(node.op_type == "Relu" for node in model.graph.node)

    assert sums > 0 and relus(after) == relus(before) + sums
