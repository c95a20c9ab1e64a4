"""What follows a layer in a float graph, and what stands in front of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apq_optuna.export.graph import Graph, attribute

CHOOSE = ("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators whose outputs are some of their first input's values."""


def weight_of(node: Any, graph: Graph) -> str:
    """Name of the weight of a layer; empty for other nodes."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
        return ""
    name = str(node.input[1])
    if node.op_type == "Gemm":
        plain = attribute(node, "transB", 0) == 1 and not attribute(node, "transA", 0)
        return name if plain and attribute(node, "beta", 1.0) == 1.0 else ""
    if node.op_type == "MatMul":
        made = graph.producers().get(name)
        if made is None or made.op_type != "Transpose":
            return ""
        return str(made.input[0])
    return name


def path(
    tensor: str, consumers: Mapping[str, Sequence[Any]], producers: Mapping[str, Any],
    layers: Mapping[int, int], graph: Graph,
) -> list[Any] | None:  # fmt: skip
    """From the layer that makes a tensor to it, nobody else taking anything; None if none does."""
    found: list[Any] = []
    while (node := producers.get(tensor)) is not None:
        found.append(node)
        if id(node) in layers:
            return found[::-1]
        if len(node.output) > 1 or not (node.op_type in CHOOSE or clamps(node, graph)):
            return None
        tensor = node.input[0]
        if len(consumers[tensor]) != 1:
            return None
    return None


def clamps(node: Any, graph: Graph) -> bool:
    """Whether a node clamps to bounds that are known."""
    return node.op_type == "Relu" or (
        node.op_type == "Clip" and all(not x or x in graph.constants for x in node.input[1:3])
    )


def bounds(node: Any, graph: Graph) -> tuple[float, float]:
    """What a clamp clamps to."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    ends = [-float("inf"), float("inf")]
    for i, name in enumerate(node.input[1:3]):
        if name:
            ends[i] = float(graph.constants[name])
    return ends[0], ends[1]


def absorb_padding(graph: Graph, layers: Sequence[Any]) -> None:
    """Padding with zeros in front of a convolution becomes the convolution's own."""
    producers, consumers = graph.producers(), graph.consumers()
    for node in layers:
        pad = producers.get(node.input[0])
        if node.op_type != "Conv" or pad is None or pad.op_type != "Pad":
            continue
        value = graph.constants.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0
        sizes = graph.constants.get(pad.input[1]) if len(pad.input) > 1 else None
        axes = graph.constants.get(pad.input[3]) if len(pad.input) > 3 and pad.input[3] else None
        mode = attribute(pad, "mode", b"constant")
        if mode not in (b"constant", "constant") or value is None or sizes is None or value != 0:
            continue
        if len(pad.input) > 3 and pad.input[3] and axes is None:
            continue
        if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
            continue
        if len(consumers[pad.output[0]]) != 1:
            continue
        around = np.zeros((2, 4), int)
        chosen = np.arange(4) if axes is None else np.asarray(axes) % 4
        around[:, chosen] = np.asarray(sizes).reshape(2, -1)
        if around[:, :2].any() or (around < 0).any():
            continue
        own = np.array(attribute(node, "pads", (0, 0, 0, 0))).reshape(2, 2)
        _set(node, "pads", (own + around[:, 2:]).ravel().tolist())
        node.input[0] = pad.input[0]
        graph.remove([pad])
        consumers = graph.consumers()


def _set(node: Any, name: str, value: Any) -> None:
    from onnx import helper

    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
