"""A quantized network as an ONNX model, in memory.

Operators are those of ONNX itself, so that any runtime reads them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apq_optuna.errors import ExportError, InvalidArgumentError
from apq_optuna.export.graph import Graph
from apq_optuna.export.modules import float_graph, network_codes, output_ranges
from apq_optuna.export.placing import PlacedCodes, place
from apq_optuna.export.wiring import BATCH, IMAGES
from apq_optuna.quantization.network import quantized_layers, round_biases
from apq_optuna.quantization.quantizers import code_range
from apq_optuna.supernet import SubnetModule

OPSET, INT4_OPSET = 18, 21
"""Of the operators: what runtimes of the last years have; and the first with 4-bit integers."""

PIXELS = "pixels"
"""Name of the input of a graph with preprocessing."""

ABOUT = ("class_names", "image_size", "fit", "mean", "std", "accuracy", "costs", "device")
"""What of a finished network's description goes into the file."""


@dataclass(frozen=True)
class OnnxNetwork:
    """A network in ONNX, and what it is to be compared with.

    Attributes:
        content: The file.
        network: The network as it was written: biases rounded to int32, and weights of 7 bits
            where that was asked.
        layers: What became of each layer.
        opset: Of the operators.
        rounded_biases: Whether the given network had others.
        reduced: Names of the layers whose weights were reduced to 7 bits.
        tensor_bytes: Bytes of `weights`, `biases`, `scales` (zero points of channels among them)
            and of all `other`: nodes, names, metadata.
        expected_bytes: Of weights at their bits as they are stored, 4 a bias, and scales.
    """

    content: bytes
    network: SubnetModule
    layers: tuple[PlacedCodes, ...]
    opset: int
    rounded_biases: bool
    reduced: tuple[str, ...]
    tensor_bytes: Mapping[str, int]
    expected_bytes: int


def build_onnx(
    network: SubnetModule,
    *,
    opset: int | None = None,
    int4: bool = False,
    reduce_range: bool = False,
    round_outputs: Sequence[Tensor] | None = None,
    float_sums: bool = False,
    with_preprocessing: bool = False,
    about: Mapping[str, Any] | None = None,
) -> OnnxNetwork:
    """A quantized network as an ONNX model.

    Args:
        network: From `finish`, `load_network` or `quantize_network` (calibrated). Not changed.
        opset: Of the operators; by default 18, and 21 with `int4`.
        int4: Stores weights of 4 bits and fewer in half bytes.
        reduce_range: Weights of 7 bits in place of 8 where bytes of the input can be above 127:
            sums of two products then fit into 16 bits, in which some kernels add them up.
        round_outputs: Normalised training images `(B, C, H, W)`, in batches: layers whose output
            is taken as float round it to a byte over the range seen on them. Faster where kernels
            are larger than 1x1, and not exact.
        float_sums: Layers with kernels larger than 1x1 whose output is taken as float are computed
            in floating point: exact as well, and faster where the runtime's ConvInteger is slow.
        with_preprocessing: The model takes `(B, H, W, C)` uint8 pixels and normalises them itself.
        about: Description that goes into the file's metadata; by default the network's own.

    Raises:
        InvalidArgumentError: The network is not quantized, or an option has no such value.
        ExportError: ONNX's own checker refuses what was made.
        SpaceError: The network's code cannot be written as a graph.
    """
    about = dict(network.about if about is None else about)
    opset = _opset(opset, int4)
    own = copied(network)
    reduced = _reduce_range(own) if reduce_range else ()
    rounded = round_biases(own)
    found = network_codes(own)
    fitting = {id(its): its.fitting() for its in found if its is not None}  # one of all calls
    codes = [None if its is None else fitting[id(its)] for its in found]
    ranges = None if round_outputs is None else output_ranges(own, round_outputs)
    graph, of_weight = float_graph(own, codes, opset)
    layers = place(graph, of_weight, codes, round_outputs=ranges, float_sums=float_sums, int4=int4)
    placed = list(own.description.layers())
    described = {layer.number for layer in layers}
    layers += [
        PlacedCodes(p.name, i, "", "a function of a parameter, of no module")
        for i, p in enumerate(placed)
        if i not in described
    ]
    layers.sort(key=lambda layer: layer.number)
    model = graph.model(opset, "network", _metadata(own, about))
    if with_preprocessing:
        model = _with_preprocessing(model, own, about, opset)
    check(model)
    stored = _tensor_bytes(graph)
    content = bytes(model.SerializeToString())
    stored["other"] = len(content) - sum(stored.values())
    weights = sum(
        its.weight.size * (4 if its.weight_scale is None else _stored_bits(its.w_bits, int4) / 8)
        for its in {id(its): its for its in codes if its is not None}.values()
    )
    return OnnxNetwork(
        content, own, tuple(layers), opset, rounded, reduced, stored,
        round(weights) + stored["biases"] + stored["scales"],
    )  # fmt: skip


def build_float_onnx(network: SubnetModule, *, opset: int = OPSET) -> bytes:
    """The same network in floating point, as a file: what quantization is compared with."""
    own = copied(network)
    graph, _ = float_graph(own, network_codes(own), opset)
    graph.tidy()
    model = graph.model(opset, "float")
    check(model)
    return bytes(model.SerializeToString())


def copied(network: SubnetModule) -> SubnetModule:
    """A copy on the CPU, evaluating."""
    memo: dict[int, Any] = {id(network.description): network.description}
    return copy.deepcopy(network, memo).to("cpu").eval()


def _opset(opset: int | None, int4: bool) -> int:
    if opset is None:
        return INT4_OPSET if int4 else OPSET
    least = INT4_OPSET if int4 else OPSET
    from onnx import defs

    if not least <= opset <= defs.onnx_opset_version():
        raise InvalidArgumentError(
            f"opset={opset}: from {least}{' (with 4-bit weights)' if int4 else ''} to "
            f"{defs.onnx_opset_version()}, which the installed onnx has"
        )
    return opset


def _stored_bits(w_bits: int, int4: bool) -> int:
    return 4 if int4 and w_bits <= 4 else 8


@torch.no_grad()
def _reduce_range(network: SubnetModule) -> tuple[str, ...]:
    """Weights of 7 bits in place of 8, where a byte of the input can be above 127: where it has 8
    bits, or is signed, and so around 128."""
    names = []
    for layer in quantized_layers(network):
        if layer.w_bits == 8 and (layer.a_bits == 8 or (layer.signed and layer.a_bits < 8)):
            layer.w_bits, layer.weight_codes = 7, code_range(7, signed=True)
            layer.weight_scale.mul_(2.0)
            names.append(layer.name)
    return tuple(names)


def _metadata(network: SubnetModule, about: Mapping[str, Any]) -> dict[str, str]:
    """What travels in the file; every value is JSON."""
    found = {name: json.dumps(about[name]) for name in ABOUT if name in about}
    found["input"] = json.dumps(
        "float32 (batch, channels, height, width), normalised: (pixels / 255 - mean) / std"
    )
    return found


def _with_preprocessing(
    model: Any, network: SubnetModule, about: Mapping[str, Any], opset: int
) -> Any:
    """The model behind what makes `(B, H, W, C)` bytes its images, as training normalised them."""
    from onnx import TensorProto, compose, helper

    if "mean" not in about or "std" not in about:
        raise InvalidArgumentError(
            "with_preprocessing: the network does not say the mean and std of its images; one "
            "that `finish` saved does, and about={'mean': ..., 'std': ...} says it"
        )
    channels, height, width = network.description.family.input_shape
    described = helper.make_tensor_value_info
    graph = Graph(
        [described(PIXELS, TensorProto.UINT8, (BATCH, height, width, channels))],
        [described("normalised", TensorProto.FLOAT, (BATCH, channels, height, width))],
    )
    x = graph.add("Transpose", [PIXELS], perm=[0, 3, 1, 2])
    x = graph.add("Cast", [x], to=TensorProto.FLOAT)
    mean, std = (
        (np.array(about[name], np.float32) * np.float32(255)).reshape(1, -1, 1, 1)
        for name in ("mean", "std")
    )
    x = graph.add("Sub", [x, graph.constant(mean, "mean")])
    graph.add("Div", [x, graph.constant(std, "std")])
    graph.nodes[-1].output[0] = "normalised"
    first = compose.add_prefix(graph.model(opset, "preprocessing"), "p_")
    first.graph.input[0].name = PIXELS
    first.graph.node[0].input[0] = PIXELS
    merged = compose.merge_models(
        first, model, [("p_normalised", IMAGES)], producer_name="apq-optuna"
    )
    merged.ir_version = model.ir_version
    del merged.opset_import[1:]
    helper.set_model_props(
        merged,
        {p.key: p.value for p in model.metadata_props}
        | {"input": json.dumps("uint8 (batch, height, width, channels)")},
    )
    return merged


def check(model: Any) -> None:
    """ONNX's own checker and shape inference, strict.

    Raises:
        ExportError: It refuses the model; says why.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX refuses the graph that was made: {error}") from error


def _tensor_bytes(graph: Graph) -> dict[str, int]:
    """Bytes of stored tensors by kind, told by the nodes that take them."""
    sizes = {
        name: value.nbytes if isinstance(value, np.ndarray) else _packed(value)
        for name, value in graph.constants.items()
    }
    kinds: dict[str, str] = {}
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            if name not in sizes or sizes[name] <= 4:
                continue
            kinds[name] = _kind(node, i, name, graph)
    found = {"weights": 0, "biases": 0, "scales": 0}
    for name, kind in kinds.items():
        found[kind] = found.get(kind, 0) + sizes[name]
    found.pop("other", None)
    return found


def _kind(node: Any, i: int, name: str, graph: Graph) -> str:
    if node.op_type == "DequantizeLinear" and i == 0:
        value = graph.constants[name]
        return "biases" if getattr(value, "dtype", None) == np.int32 else "weights"
    if node.op_type in ("DequantizeLinear", "Mul") and i > 0:
        return "scales"
    if node.op_type in ("ConvInteger", "MatMulInteger", "Cast"):
        return "weights"
    if node.op_type == "Add" or (node.op_type in ("Conv", "Gemm") and i == 2):
        return "biases"
    return "weights" if node.op_type in ("Conv", "Gemm") and i == 1 else "other"


def _packed(value: Any) -> int:
    """Bytes of a tensor of half bytes."""
    return (int(np.prod(value.dims)) + 1) // 2
