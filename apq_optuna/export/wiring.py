"""A network as an ONNX graph in floating point, from the steps in which its family says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apq_optuna.errors import InvalidArgumentError, SpaceError
from apq_optuna.export.codes import LayerCodes
from apq_optuna.export.graph import Graph
from apq_optuna.networks import ConvLayer, PlacedLayer, Step, Subnet, as_pair
from apq_optuna.space import SearchSpace

BATCH = "batch"
"""Name of the dimension that images are counted along."""

IMAGES, LOGITS = "images", "logits"
"""Names of a graph's input and output."""


@dataclass(frozen=True)
class Own:
    """Whose a weight is.

    Attributes:
        numbers: Positions of its layer in `Subnet.layers()`, one a call.
        bias: Name of the layer's bias; empty where that is added elsewhere.
    """

    numbers: tuple[int, ...]
    bias: str


OfWeight = dict[str, Own]


def wired(subnet: Subnet, codes: Sequence[LayerCodes | None]) -> tuple[Graph, OfWeight]:
    """A network's graph from its steps.

    Args:
        subnet: Its wiring and shapes.
        codes: Of each of its layers.

    Returns:
        The graph, its weights in floating point, and of which layer each weight is.

    Raises:
        SpaceError: The family does not say how its networks are wired.
    """
    steps = subnet.steps()
    graph = _empty(subnet.family.input_shape, subnet.family.num_classes)
    of_weight: OfWeight = {}
    placed = list(subnet.layers())
    outputs: dict[int, str] = {-1: IMAGES}
    for number, step in enumerate(steps):
        inputs = [outputs[source] for source in step.inputs]
        if step.operation == "layer":
            layer = codes[step.layer]
            assert layer is not None
            y, weight, bias = _layer(graph, inputs[0], placed[step.layer], layer)
            of_weight[weight] = Own((step.layer,), bias)
        elif step.operation == "add":
            y = graph.add("Add", inputs, "s")
        elif step.operation == "concat":
            y = graph.add("Concat", inputs, "s", axis=1)
        elif step.operation == "mean":
            y = graph.add("Flatten", [graph.add("GlobalAveragePool", inputs, "m")], "m")
        else:
            raise InvalidArgumentError(f"step {number} is {step.operation!r}: has no graph")
        outputs[number] = graph.add("Relu", [y], "r") if step.relu else y
    graph.nodes[-1].output[0] = LOGITS
    return graph, of_weight


def _empty(shape: Sequence[int], classes: int) -> Graph:
    from onnx import TensorProto, helper

    described = helper.make_tensor_value_info
    return Graph(
        [described(IMAGES, TensorProto.FLOAT, (BATCH, *shape))],
        [described(LOGITS, TensorProto.FLOAT, (BATCH, classes))],
    )


def _layer(graph: Graph, x: str, placed: PlacedLayer, codes: LayerCodes) -> tuple[str, str, str]:
    """A layer at the end of a graph: the names of its output, its weight and its bias."""
    layer = placed.layer
    weight, bias = graph.constant(codes.float_weight(), "w"), graph.constant(codes.bias, "b")
    inputs = [x, weight, bias]
    if layer.linear:
        return graph.add("Gemm", inputs, "l", name=placed.name, transB=1), weight, bias
    top, left = as_pair(layer.padding)
    more: dict[str, Any] = {}
    if any(as_pair(layer.padding)):
        more["pads"] = [top, left, top, left]
    for name, value in (("strides", layer.stride), ("dilations", layer.dilation)):
        if as_pair(value) != (1, 1):
            more[name] = as_pair(value)
    if layer.groups > 1:
        more["group"] = layer.groups
    return graph.add("Conv", inputs, "l", name=placed.name, **more), weight, bias


def summed_layers(space: SearchSpace) -> frozenset[ConvLayer]:
    """Layers of a space whose output something else than one layer takes, in all their sizes:
    `export_onnx` keeps that float. None of a family that does not say how networks are wired."""
    largest = space.decode(space.extreme(largest=True)[0])
    if not is_wired(largest):
        return frozenset()
    steps, names = largest.steps(), [placed.name for placed in largest.layers()]
    takers: dict[int, list[Step]] = {}
    for step in steps:
        for source in step.inputs:
            takers.setdefault(source, []).append(step)
    kept = {
        names[step.layer]
        for number, step in enumerate(steps)
        if step.operation == "layer"
        and [taker.operation for taker in takers.get(number, ())] != ["layer"]
    }
    return frozenset(
        layer
        for site in space.networks.sites()
        if site.name in kept
        for layer in map(site.layer_of, site.distinct())
        if layer.groups == 1 and not layer.linear
    )


def is_wired(subnet: Subnet) -> bool:
    """Whether a family says how its networks are wired."""
    try:
        subnet.steps()
    except SpaceError:
        return False
    return True
