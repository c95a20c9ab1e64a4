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

from apq_optuna.export.codes import Grid, LayerCodes
from apq_optuna.export.placing import place
from apq_optuna.export.wiring import wired
from apq_optuna.networks import FLOAT_BITS, ConvLayer, PlacedLayer, Step, Subnet, as_pair

OPSET, IR_VERSION = 17, 9
SCALE, WEIGHT_SCALE = 0.02, 0.01
UNSIGNED = 0
"""Zero point of activations after a ReLU."""


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


def summed_graph(layer: ConvLayer, *, copies: int) -> bytes:
    """Copies of a quantized layer whose output a sum takes, each with input and output of its own.

    As `export_onnx` writes it: kept float, added to a residual, and rounded for the layer behind.
    Inputs and outputs have channels last, as `layer_graph`'s do.

    Args:
        layer: A convolution that is not grouped.
        copies: How many.
    """
    graph = _Graph()
    height, width = as_pair(layer.input_size)
    kernel = as_pair(layer.kernel_size)
    shape = (layer.out_channels, layer.in_channels, *kernel)
    top, left = as_pair(layer.padding)
    zero, middle = graph.constant(np.uint8(UNSIGNED)), graph.constant(np.uint8(128))
    scale = graph.constant(np.full(layer.out_channels, WEIGHT_SCALE * SCALE, np.float32))
    bias = graph.constant(np.zeros((layer.out_channels, 1, 1), np.float32))
    residual = graph.add("Transpose", ["r"], perm=[0, 3, 1, 2])
    plain = kernel == (1, 1) and as_pair(layer.stride) == (1, 1) and (top, left) == (0, 0)
    inputs: list[tuple[str, type[np.generic], tuple[int, ...]]] = []
    outputs = []
    for i in range(copies):
        if plain:
            weight = graph.constant(graph.random.integers(-127, 128, shape[1::-1]).astype(np.int8))
            step = graph.constant(np.full(layer.out_channels, WEIGHT_SCALE, np.float32))
            zeros = graph.constant(np.zeros(layer.out_channels, np.int8))
            weight = graph.add("DequantizeLinear", [weight, step, zeros], axis=1)
            y = graph.add("MatMul", [graph.dequantized(f"x{i}", UNSIGNED), weight])
            y = graph.add("Transpose", [y], perm=[0, 3, 1, 2])
        else:
            x = graph.add("Transpose", [f"x{i}"], perm=[0, 3, 1, 2])
            weight = graph.constant(graph.random.integers(1, 256, shape).astype(np.uint8))
            y = graph.add(
                "ConvInteger", [x, weight, zero, middle], kernel_shape=kernel,
                strides=as_pair(layer.stride), pads=[top, left, top, left],
                dilations=as_pair(layer.dilation),
            )  # fmt: skip
            y = graph.add("DequantizeLinear", [y, scale], axis=1)
        y = graph.add("Add", [y, bias])
        y = graph.quantized(graph.add("Add", [y, residual]), 128)
        outputs.append(graph.add("Transpose", [y], perm=[0, 2, 3, 1]))
        inputs.append((f"x{i}", np.uint8, (1, height, width, layer.in_channels)))
    inputs.append(("r", np.float32, (1, *layer.output_size, layer.out_channels)))
    return graph.serialised(inputs, [(y, np.uint8) for y in outputs])


def subnet_graph(subnet: Subnet) -> bytes:
    """A whole network of random weights, laid out as `export_onnx` lays out trained ones.

    Raises:
        SpaceError: The family does not say how its networks are wired.
    """
    rng, steps = np.random.default_rng(0), subnet.steps()
    signed = [True] * len(steps)
    for step in steps:
        if step.operation == "layer":
            signed[step.layer] = not _positive(steps, step.inputs[0])
    codes = [_random_codes(p, s, rng) for p, s in zip(subnet.layers(), signed, strict=False)]
    graph, of_weight = wired(subnet, codes)
    place(graph, of_weight, codes)
    return bytes(graph.model(OPSET, "measured").SerializeToString())


def _positive(steps: Sequence[Step], number: int) -> bool:
    """Whether a step's output cannot be negative."""
    if number < 0:
        return False
    step = steps[number]
    return step.relu or (step.operation == "mean" and _positive(steps, step.inputs[0]))


def _random_codes(placed: PlacedLayer, signed: bool, rng: np.random.Generator) -> LayerCodes:
    """A layer of random weights at its bit-widths."""
    layer, outputs = placed.layer, placed.layer.out_channels
    kernel = () if layer.linear else as_pair(layer.kernel_size)
    shape = (outputs, layer.in_channels // layer.groups, *kernel)
    scale, grid = None, None
    if placed.w_bits == FLOAT_BITS:
        weight: NDArray[Any] = rng.standard_normal(shape, np.float32) * np.float32(0.1)
    else:
        half = 1 << (placed.w_bits - 1)
        weight = rng.integers(-half, half, shape).astype(np.int8)
        scale = np.full(outputs, WEIGHT_SCALE, np.float32)
    if placed.a_bits != FLOAT_BITS:
        grid = Grid.of(SCALE, placed.a_bits, signed=signed)
    bias = np.zeros(outputs, np.float32)
    return LayerCodes(placed.name, placed.w_bits, placed.a_bits, weight, scale, bias, grid)


class _Graph:
    """Nodes and constants of a model that grows."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self.random = np.random.default_rng(0)
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

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
        return self.add("DequantizeLinear", [x, *step])

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
            weight = self.random.standard_normal(shape, np.float32) * np.float32(0.1)
            return [self.constant(weight), self.constant(np.zeros(shape[0], np.float32))]
        names = []
        for kind, values, scale in (
            (np.int8, self.random.integers(-127, 128, shape), WEIGHT_SCALE),
            (np.int32, self.random.integers(-100, 101, shape[0]), WEIGHT_SCALE * SCALE),
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
