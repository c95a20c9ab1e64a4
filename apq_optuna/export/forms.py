"""How a layer is written: its weights as integers, and what takes the place of its node."""

from __future__ import annotations

from typing import Any

import numpy as np

from apq_optuna.export.codes import SIGNED, Grid, LayerCodes
from apq_optuna.export.graph import Graph, attribute

FLOAT, UINT8, INT8 = 1, 2, 3
"""Of `onnx.TensorProto`."""

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Axes of images with channels last, and back."""


class Forms:
    """Layers of a graph and the nodes that are to stand in front of them.

    Attributes:
        graph: The graph.
        before: Nodes in front of a layer's, by its id.
        gone: Layers' nodes whose place others take.
        bytes_of, grid_of: Of a tensor that was rounded: its codes, and their grid.
    """

    def __init__(self, graph: Graph, int4: bool) -> None:
        self.graph, self.int4 = graph, int4
        self.before: dict[int, list[Any]] = {}
        self.gone: list[Any] = []
        self.bytes_of: dict[str, str] = {}
        self.grid_of: dict[str, Grid] = {}
        self.stored: dict[tuple[int, str], list[str]] = {}  # by the codes, which calls share

    def hide(self, node: Any) -> None:
        """The rounded input of a layer that stays float, without a DequantizeLinear: where a
        runtime sees one, it may round what is float of the layer, too."""
        nodes = self.before.setdefault(id(node), [])
        grid, x = self.grid_of[node.input[0]], self.bytes_of[node.input[0]]
        cast, x = self.graph.node("Cast", [x], "d", to=FLOAT)
        zero = self.graph.constant(np.float32(grid.zero))
        moved, x = self.graph.node("Sub", [x, zero], "d")
        scaled, x = self.graph.node("Mul", [x, self.graph.constant(np.float32(grid.scale))], "d")
        nodes += [cast, moved, scaled]
        node.input[0] = x

    def weights(self, node: Any, codes: LayerCodes, kind: str) -> None:
        """Weights and bias of a layer that is computed between DequantizeLinear: by integers if
        its bias is of `bytes`, too."""
        graph, number = self.graph, id(codes)
        nodes = self.before.setdefault(id(node), [])
        if kind == "float" and node.input[0] in self.bytes_of:
            self.hide(node)
        transposed = node.op_type == "MatMul"
        values = codes.weight.T if transposed else codes.weight
        if (number, kind) not in self.stored:
            if codes.weight_scale is None:
                stored = [graph.constant(np.ascontiguousarray(values, np.float32), "w")]
            else:
                stored = [self._bytes(values, codes, signed=True)]
            if len(node.input) < 3:  # what is added to it is another node
                pass
            elif kind == "bytes":
                steps = codes.bias_scale()
                whole = np.rint(codes.bias.astype(np.float64) / steps).astype(np.int32)
                stored += [graph.constant(whole, "b"), graph.constant(steps, "s")]
            else:
                stored.append(graph.constant(codes.bias, "b"))
            self.stored[number, kind] = stored
        weight, *bias = self.stored[number, kind]
        if codes.weight_scale is not None:
            weight = self._unpacked(nodes, weight, codes, signed=True)
            more = [graph.constant(codes.weight_scale, "s")]
            # the integer kernel of Gemm is not made without; of a layer that stays float runtimes
            # make up others, which fail
            if node.op_type == "Gemm" or kind == "float":
                more.append(graph.constant(np.zeros(len(codes.weight), np.int8), "z"))
            made, weight = graph.node(
                "DequantizeLinear", [weight, *more], "w", axis=int(transposed)
            )
            nodes.append(made)
        if kind == "bytes" and bias:
            made, y = graph.node("DequantizeLinear", bias, "b", axis=0)
            nodes.append(made)
            bias = [y]
        node.input[1] = weight
        if not transposed:
            del node.input[2:]
            node.input.extend(bias)

    def sums(self, node: Any, codes: LayerCodes) -> None:
        """A layer as its sums of products, scaled to float."""
        assert codes.weight_scale is not None and codes.grid is not None
        graph, number = self.graph, id(codes)
        nodes = self.before.setdefault(id(node), [])
        transposed = node.op_type == "MatMul"
        if (number, "sums") not in self.stored:
            values = codes.weight.T if transposed else codes.weight
            pixels = () if transposed else (1,) * (codes.weight.ndim - 2)
            self.stored[number, "sums"] = [
                self._bytes(values, codes, signed=False),
                graph.constant(codes.bias_scale(), "s"),
                graph.constant(codes.bias.reshape(-1, *pixels), "b"),
            ]
        stored, steps, bias = self.stored[number, "sums"]
        weight = self._unpacked(nodes, stored, codes, signed=False)
        middle = graph.constant(np.uint8(8 if self._is_int4(codes) else SIGNED))
        zero = graph.constant(np.uint8(codes.grid.zero))
        made, y = graph.node(
            "MatMulInteger" if transposed else "ConvInteger",
            [self.bytes_of[node.input[0]], weight, zero, middle], "i", name=node.name,
        )  # fmt: skip
        made.attribute.extend(node.attribute)
        nodes.append(made)
        if transposed:  # runtimes have one kernel for these three
            made, y = graph.node("Cast", [y], "i", to=FLOAT)
            nodes.append(made)
            scaled, _ = graph.node("Mul", [y, steps], "y")
        else:
            scaled, _ = graph.node("DequantizeLinear", [y, steps], "y", axis=1)
        nodes.append(scaled)
        self._with_bias(node, scaled, "" if transposed else bias)

    def product(self, node: Any, codes: LayerCodes) -> None:
        """A 1x1 convolution as a product of matrices, which has an integer kernel that gives
        floats; channels last, as the runtime lays out what is around it."""
        assert codes.weight_scale is not None and codes.grid is not None
        graph, number = self.graph, id(codes)
        nodes = self.before.setdefault(id(node), [])
        if (number, "product") not in self.stored:
            values = codes.weight.reshape(len(codes.weight), -1).T
            self.stored[number, "product"] = [
                self._bytes(values, codes, signed=True),
                graph.constant(codes.weight_scale, "s"),
                graph.constant(np.zeros(len(codes.weight), np.int8), "z"),
                graph.constant(codes.bias.reshape(-1, 1, 1), "b"),
            ]
        stored, *steps, bias = self.stored[number, "product"]
        weight = self._unpacked(nodes, stored, codes, signed=True)
        grid = codes.grid
        step = [graph.constant(np.float32(grid.scale)), graph.constant(np.uint8(grid.zero))]
        turned, x = graph.node("Transpose", [self.bytes_of[node.input[0]]], "x", perm=LAST)
        taken, x = graph.node("DequantizeLinear", [x, *step], "x")
        held, weight = graph.node("DequantizeLinear", [weight, *steps], "w", axis=1)
        made, y = graph.node("MatMul", [x, weight], "y", name=node.name)
        back, _ = graph.node("Transpose", [y], "y", perm=FIRST)
        nodes += [turned, taken, held, made, back]
        self._with_bias(node, back, bias)

    def _with_bias(self, node: Any, last: Any, bias: str) -> None:
        """Lets nodes take a layer's place; what adds its bias where it had none does so still."""
        if bias and len(node.input) > 2:
            added, _ = self.graph.node("Add", [last.output[0], bias], "y")
            self.before[id(node)].append(added)
            last = added
        last.output[0] = node.output[0]
        self.gone.append(node)

    def _is_int4(self, codes: LayerCodes) -> bool:
        return self.int4 and codes.w_bits <= 4

    def _bytes(self, values: Any, codes: LayerCodes, *, signed: bool) -> str:
        """Codes of weights, stored; in half bytes if so asked."""
        import ml_dtypes
        from onnx import numpy_helper

        if not self._is_int4(codes):
            shifted = values if signed else values.astype(np.int16) + SIGNED
            stored = np.ascontiguousarray(shifted, np.int8 if signed else np.uint8)
            return self.graph.constant(stored, "w")
        kind = ml_dtypes.int4 if signed else ml_dtypes.uint4
        shifted = values.astype(np.int16) + (0 if signed else 8)
        return self.graph.constant(numpy_helper.from_array(shifted.astype(kind)), "w")

    def _unpacked(self, nodes: list[Any], weight: str, codes: LayerCodes, *, signed: bool) -> str:
        """Stored codes as bytes; a runtime does it once, when it loads the file."""
        if not self._is_int4(codes):
            return weight
        made, y = self.graph.node("Cast", [weight], "w", to=INT8 if signed else UINT8)
        nodes.append(made)
        return y


def pointwise(node: Any, codes: LayerCodes) -> bool:
    """Whether a convolution is a product of matrices."""
    return (
        codes.weight.ndim == 4
        and codes.weight.shape[2:] == (1, 1)
        and attribute(node, "group", 1) == 1
        and not any(attribute(node, "pads", ()))
        and set(attribute(node, "strides", ())) <= {1}
        and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", "NOTSET")
    )
