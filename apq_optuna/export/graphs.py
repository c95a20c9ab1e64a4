"""ONNX graphs to measure: one layer, or a whole subnet, as float32 or as quantized int8 (QDQ).

Weights are random: what a kernel takes does not depend on their values. A quantized layer is what
a runtime's quantizer would write: uint8 activations per tensor, int8 weights per output channel,
int32 bias, and QuantizeLinear/DequantizeLinear pairs which the runtime fuses into integer kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import ConvLayer, Subnet, as_pair

OPSET, IR_VERSION = 17, 9
SCALE, WEIGHT_SCALE = 0.02, 0.01
UNSIGNED, SIGNED = 0, 128
"""Zero points of activations after a ReLU, and of others."""


def layer_graph(layer: ConvLayer, *, int8: bool, copies: int) -> tuple[bytes, tuple[int, ...]]:
    """A model of several copies of one layer that share their input.

    Copies with weights of their own, one after the other, take as long as so many layers of a
    network; one alone would mostly be the cost of starting a run. Runtimes compute quantized
    convolutions with channels last, so input and outputs are laid out so: nothing is transposed.

    Args:
        layer: The layer; a ReLU follows each copy of a convolution.
        int8: Quantized, or float32.
        copies: How many.

    Returns:
        The serialised model, and the shape of its input `x`: uint8, or float32 where not `int8`.
    """
    graph = _Graph()
    height, width = as_pair(layer.input_size)
    if layer.linear:
        shape: tuple[int, ...] = (height * width, layer.in_channels)
    elif int8:
        shape = (1, height, width, layer.in_channels)
    else:
        shape = (1, layer.in_channels, height, width)
    x = "x"
    if int8:
        if not layer.linear:
            x = graph.add("Transpose", [x], perm=[0, 3, 1, 2])
        x = graph.dequantized(x, UNSIGNED)
    outputs = []
    for _ in range(copies):
        y = graph.layer(x, layer, int8=int8, relu=not layer.linear)
        if int8:
            y = graph.quantized(y, UNSIGNED)
            if not layer.linear:
                y = graph.add("Transpose", [y], perm=[0, 2, 3, 1])
        outputs.append(y)
    kind = np.uint8 if int8 else np.float32
    return graph.serialised([("x", kind, shape)], [(y, kind) for y in outputs]), shape


def subnet_graph(subnet: Subnet, int8: Sequence[bool]) -> tuple[bytes, tuple[int, ...]]:
    """A whole network, wired as its steps say.

    Args:
        subnet: The network.
        int8: For each of its layers, in order, whether it is quantized.

    Returns:
        The serialised model, and the shape of its input `x`, one float32 image.
    """
    graph, placed = _Graph(), list(subnet.layers())
    outputs: dict[int, str] = {-1: "x"}
    for number, step in enumerate(subnet.steps()):
        inputs = [outputs[source] for source in step.inputs]
        if step.operation == "layer":
            y = _applied(graph, inputs[0], placed[step.layer].layer, int8[step.layer], step.relu)
        elif step.operation == "add":
            y = graph.add("Add", inputs)
            y = graph.requantized(y) if all(map(graph.is_quantized, inputs)) else y
        elif step.operation == "concat":
            y = graph.add("Concat", inputs, axis=1)
            y = graph.requantized(y) if all(map(graph.is_quantized, inputs)) else y
        elif step.operation == "mean":
            y = _mean(graph, inputs[0])
        else:
            raise InvalidArgumentError(f"step {number} is {step.operation!r}: has no graph")
        outputs[number] = y
    shape = (1, *subnet.family.input_shape)
    return graph.serialised([("x", np.float32, shape)], [(y, np.float32)]), shape


def _applied(graph: _Graph, x: str, layer: ConvLayer, int8: bool, relu: bool) -> str:
    """A layer with its input and output as integers where it is quantized."""
    y = graph.layer(graph.requantized(x) if int8 else x, layer, int8=int8, relu=relu)
    return graph.requantized(y, UNSIGNED if relu else SIGNED) if int8 else y


def _mean(graph: _Graph, x: str) -> str:
    """The mean over pixels, flat."""
    pooled = graph.add("GlobalAveragePool", [x])
    if graph.is_quantized(x):
        pooled = graph.requantized(pooled, UNSIGNED)
    flat = graph.add("Flatten", [pooled])
    return graph.requantized(flat, UNSIGNED) if graph.is_quantized(pooled) else flat


class _Graph:
    """Nodes and constants of a model that grows."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._rng = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._quantized: set[str] = set()

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node; returns the name of its output."""
        output = f"{operator}_{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """A stored tensor; returns its name."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(self._numpy.from_array(np.asarray(value), name))
        return name

    def quantized(self, x: str, zero_point: int) -> str:
        """float32 to uint8."""
        step = [self.constant(np.float32(SCALE)), self.constant(np.uint8(zero_point))]
        return self.add("QuantizeLinear", [x, *step])

    def dequantized(self, x: str, zero_point: int) -> str:
        """uint8 to float32."""
        step = [self.constant(np.float32(SCALE)), self.constant(np.uint8(zero_point))]
        y = self.add("DequantizeLinear", [x, *step])
        self._quantized.add(y)
        return y

    def requantized(self, x: str, zero_point: int = SIGNED) -> str:
        """`x` as integers would carry it, unless they do already."""
        if self.is_quantized(x):
            return x
        return self.dequantized(self.quantized(x, zero_point), zero_point)

    def is_quantized(self, x: str) -> bool:
        """Whether integers carry a tensor."""
        return x in self._quantized

    def layer(self, x: str, layer: ConvLayer, *, int8: bool, relu: bool) -> str:
        """A convolution or linear layer with bias, and a ReLU where there is one."""
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels
        kernel = () if layer.linear else as_pair(layer.kernel_size)
        weights = self._weights((outputs, inputs, *kernel), int8=int8)
        if layer.linear:
            y = self.add("Gemm", [x, *weights], transB=1)
        else:
            top, left = as_pair(layer.padding)
            y = self.add(
                "Conv", [x, *weights], kernel_shape=kernel, strides=as_pair(layer.stride),
                pads=[top, left, top, left], dilations=as_pair(layer.dilation),
                group=layer.groups,
            )  # fmt: skip
        return self.add("Relu", [y]) if relu else y

    def _weights(self, shape: tuple[int, ...], *, int8: bool) -> list[str]:
        """Names of weight and bias."""
        if not int8:
            weight = self._rng.standard_normal(shape, np.float32) * np.float32(0.1)
            return [self.constant(weight), self.constant(np.zeros(shape[0], np.float32))]
        names = []
        for kind, values, scale in (
            (np.int8, self._rng.integers(-127, 128, shape), WEIGHT_SCALE),
            (np.int32, self._rng.integers(-100, 101, shape[0]), WEIGHT_SCALE * SCALE),
        ):
            inputs = [
                self.constant(values.astype(kind)),
                self.constant(np.full(shape[0], scale, np.float32)),
                self.constant(np.zeros(shape[0], kind)),
            ]
            names.append(self.add("DequantizeLinear", inputs, axis=0))
        return names

    def serialised(
        self,
        inputs: Sequence[tuple[str, type[np.generic], tuple[int, ...]]],
        outputs: Sequence[tuple[str, type[np.generic]]],
    ) -> bytes:
        """The model with typed inputs and outputs, as bytes."""
        helper = self._helper

        def described(name: str, kind: type[np.generic], shape: tuple[int, ...] | None) -> Any:
            return helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape
            )

        graph = helper.make_graph(
            self._nodes, "measured", [described(*each) for each in inputs],
            [described(*each, None) for each in outputs], self._constants,
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        return bytes(model.SerializeToString())
