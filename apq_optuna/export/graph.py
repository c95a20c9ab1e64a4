"""An ONNX graph that is being changed: nodes, constants, and who takes what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Graph:
    """Nodes in execution order and named constants.

    Attributes:
        nodes: `onnx.NodeProto`s, each after those whose outputs it takes.
        constants: Stored tensors by name, as arrays or, of types that numpy lacks, as
            `onnx.TensorProto`s.
        inputs, outputs: `onnx.ValueInfoProto`s.
    """

    def __init__(self, inputs: Sequence[Any] = (), outputs: Sequence[Any] = ()) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs, self.outputs = list(inputs), list(outputs)
        self._taken: set[str] = {value.name for value in self.inputs}
        self._count = 0
        self._scalars: dict[tuple[str, bytes] | None, str] = {}

    @classmethod
    def of(cls, model: Any) -> Graph:
        """The graph of a model; what `Constant` nodes hold becomes constants."""
        from onnx import numpy_helper

        graph = cls(model.graph.input, model.graph.output)
        for tensor in model.graph.initializer:
            graph.constants[tensor.name] = numpy_helper.to_array(tensor)
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                value = numpy_helper.to_array(node.attribute[0].t)
                graph.constants[node.output[0]] = value
            else:
                graph.nodes.append(node)
        graph._taken |= graph.constants.keys() | {y for node in graph.nodes for y in node.output}
        return graph

    def name(self, stem: str) -> str:
        """A name that nothing has yet."""
        stem = re.sub(r"[^\w.]+", "_", stem)
        name = stem
        while name in self._taken:  # short: in a small network names are much of a file
            self._count += 1
            name = stem + np.base_repr(self._count, 36).lower()
        self._taken.add(name)
        return name

    def constant(self, value: NDArray[Any] | np.generic | Any, stem: str = "c") -> str:
        """A stored tensor; returns its name. Equal scalars are stored once."""
        if isinstance(value, np.generic):
            value = np.asarray(value)
        scalar = isinstance(value, np.ndarray) and value.ndim == 0
        key = (value.dtype.str, value.tobytes()) if scalar else None
        if key in self._scalars:
            return self._scalars[key]
        name = self.name(stem)
        self.constants[name] = value
        if key is not None:
            self._scalars[key] = name
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        stem: str = "t",
        *,
        name: str = "",
        **attributes: Any,
    ) -> tuple[Any, str]:
        """A node that is in no graph yet, and the name of its output."""
        from onnx import helper

        output = self.name(stem)
        return helper.make_node(operator, inputs, [output], name=name, **attributes), output

    def add(self, operator: str, inputs: Sequence[str], stem: str = "t", **attributes: Any) -> str:
        """A node at the end; returns the name of its output."""
        node, output = self.node(operator, inputs, stem, **attributes)
        self.nodes.append(node)
        return output

    def consumers(self) -> dict[str, list[Any]]:
        """Who takes each tensor: a node once for each time; the graph's outputs count as None."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for x in node.input:
                found.setdefault(x, []).append(node)
        for value in self.outputs:
            found.setdefault(value.name, []).append(None)
        return found

    def producers(self) -> dict[str, Any]:
        """The node that makes each tensor."""
        return {y: node for node in self.nodes for y in node.output}

    def rename(self, old: str, new: str) -> None:
        """Whoever takes one tensor takes another."""
        for node in self.nodes:
            for i, x in enumerate(node.input):
                if x == old:
                    node.input[i] = new

    def remove(self, nodes: Sequence[Any]) -> None:
        """Takes nodes out."""
        gone = {id(node) for node in nodes}
        self.nodes = [node for node in self.nodes if id(node) not in gone]

    def tidy(self) -> None:
        """Leaves out what nothing takes."""
        wanted = {value.name for value in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if any(y in wanted for y in node.output):
                kept.append(node)
                wanted.update(_inputs(node))
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if k in wanted}

    def model(
        self, opset: int, name: str = "network", metadata: Mapping[str, str] | None = None
    ) -> Any:
        """The graph as an `onnx.ModelProto`, of the oldest format that has the operator set."""
        from onnx import helper, numpy_helper

        initializers = [
            numpy_helper.from_array(value, key) if isinstance(value, np.ndarray) else value
            for key, value in self.constants.items()
        ]
        for key, tensor in zip(self.constants, initializers, strict=True):
            tensor.name = key
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="apq-optuna",
        )  # fmt: skip
        if metadata:
            helper.set_model_props(model, dict(metadata))
        return model


def _inputs(node: Any) -> Iterator[str]:
    """What a node takes, with what the graphs inside it take."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _inputs(inner)


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """A node's attribute as a Python value."""
    from onnx import helper

    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default
