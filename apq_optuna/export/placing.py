"""Where integers go: QuantizeLinear and DequantizeLinear around the layers of a float graph.

Integer kernels are made of DequantizeLinear, layer, QuantizeLinear with nothing in between and
nobody else who takes the layer's output. What follows a layer up to the next one's input is
brought behind the rounding where that changes nothing:

- a ReLU or clamp, since rounding keeps the order of values: it is a bound on codes;
- pooling to the largest and changes of shape, which only choose among values.

A bit-width below 8 is a bound on codes, too: bytes saturate at 8 bits, so a Clip of bytes follows
the rounding. So codes beyond b bits never appear, and what the layers compute is what was trained.

An output that something else takes (a sum of residuals, a mean) was float in training and stays
so, exactly. A 1x1 convolution is a product of matrices, for which there are integer kernels that
give floats. Of a larger one ConvInteger gives the sums of products as int32, which are scaled to
float; its weights are unsigned bytes with the zero point 128, for which runtimes have their
fastest such kernel, one that does not saturate. Asked to `round_outputs`, such layers are as the
others, and their outputs are rounded to a byte over the range seen on images: faster where kernels
are large, but a rounding that nothing was trained with, and lower widths behind it magnify it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apq_optuna.errors import SpaceError
from apq_optuna.export.codes import Grid, LayerCodes
from apq_optuna.export.following import absorb_padding, bounds, clamps, path, weight_of
from apq_optuna.export.forms import Forms, pointwise
from apq_optuna.export.graph import Graph, attribute
from apq_optuna.export.wiring import OfWeight

ASKED = "its output is taken as float, and float was asked for"
LARGE = "its bias is no int32 at the steps of its products"
GROUPED = "grouped, and its output is taken as float: runtimes have no fast integer kernel of that"


@dataclass(frozen=True)
class PlacedCodes:
    """What became of a layer in the graph.

    Attributes:
        name: Of the layer.
        number: Its position in `Subnet.layers()`.
        node: Name of its node.
        why: Why it computes in floating point; empty where integers do.
        rounded: Whether its output is rounded to a byte that no layer was trained with.
    """

    name: str
    number: int
    node: str
    why: str = ""
    rounded: bool = False


def place(
    graph: Graph,
    of_weight: OfWeight,
    codes: Sequence[LayerCodes | None],
    *,
    round_outputs: Sequence[tuple[float, float]] | None = None,
    float_sums: bool = False,
    int4: bool = False,
) -> list[PlacedCodes]:
    """Quantizes a float graph in place.

    Args:
        graph: From `wiring`; changed.
        of_weight: Whose each weight is.
        codes: Of each layer.
        round_outputs: Smallest and largest output of each layer, over which those that something
            else takes are rounded to bytes; None keeps them exact.
        float_sums: Leaves layers with kernels larger than 1x1 whose output something else takes
            float: exact as well, and faster where the runtime's ConvInteger is slow.
        int4: Stores weights of 4 bits and fewer as INT4.

    Returns:
        What became of each layer, in execution order.
    """
    return _Placing(graph, of_weight, codes, round_outputs, int4, float_sums).placed()


class _Placing(Forms):
    def __init__(
        self, graph: Graph, of_weight: OfWeight,
        codes: Sequence[LayerCodes | None],
        ranges: Sequence[tuple[float, float]] | None, int4: bool, float_sums: bool,
    ) -> None:  # fmt: skip
        super().__init__(graph, int4)
        self.codes, self.ranges, self.float_sums = codes, ranges, float_sums
        self.numbers = self._calls(of_weight)
        absorb_padding(graph, [node for node in graph.nodes if id(node) in self.numbers])
        self.after: dict[int, list[Any]] = {}
        self.first: list[Any] = []
        self.outputs: dict[int, Grid] = {}

    def _calls(self, of_weight: OfWeight) -> dict[int, int]:
        """Which layer each node is, by the node's id.

        It takes the layer's weight and its bias, or, where code adds that in a way of its own,
        none. Who takes the weight in yet another way is no call of the layer.
        """
        consumers = self.graph.consumers()
        plain: dict[tuple[int, ...], list[Any]] = {own.numbers: [] for own in of_weight.values()}
        bare: dict[tuple[int, ...], list[Any]] = {numbers: [] for numbers in plain}
        for node in self.graph.nodes:
            own = of_weight.get(weight_of(node, self.graph))
            if own is None:
                continue
            takers = [t for t in consumers.get(node.output[0], ()) if t is not None]
            beside = [x for t in takers if t.op_type == "Add" for x in t.input]
            added = beside if node.op_type == "MatMul" else node.input[2:3]
            if own.bias in added:
                plain[own.numbers].append(node)
            elif node.op_type == "MatMul" or not len(added):
                bare[own.numbers].append(node)
        found: dict[int, int] = {}
        for numbers, calls in plain.items():
            if len(calls) < len(numbers):
                order = {id(node): i for i, node in enumerate(self.graph.nodes)}
                calls = sorted([*calls, *bare[numbers]], key=lambda node: order[id(node)])
            codes = self.codes[numbers[0]]
            if len(calls) != len(numbers) and codes is not None:
                raise SpaceError(
                    f"{codes.name}: its code computes with its weight or bias in a way of its "
                    "own, which cannot be written with integers"
                )
            found |= {id(node): number for node, number in zip(calls, numbers, strict=True)}
        return found

    def _takers(self, tensor: str) -> list[Any]:
        """Who takes a tensor by now; the graph's output counts as None."""
        nodes = [*self.first, *self.graph.nodes]
        for more in (*self.before.values(), *self.after.values()):
            nodes += more
        found = [node for node in nodes for x in node.input if x == tensor]
        return found + [None for value in self.graph.outputs if value.name == tensor]

    def placed(self) -> list[PlacedCodes]:
        layers = [node for node in self.graph.nodes if id(node) in self.numbers]
        self._inputs(layers)
        found = [self._layer(node) for node in layers]
        self._splice()
        self.graph.tidy()
        return found

    def _of(self, node: Any) -> LayerCodes:
        codes = self.codes[self.numbers[id(node)]]
        assert codes is not None
        return codes

    def _integer(self, node: Any) -> bool:
        codes = self._of(node)
        return codes.integer and codes.bias_fits()

    # ------------------------------------------------------------------ inputs

    def _inputs(self, layers: Sequence[Any]) -> None:
        """Rounds what layers take: at the layer that makes it where possible."""
        wanted: dict[str, dict[Grid, list[Any]]] = {}
        for node in layers:
            if (grid := self._of(node).grid) is not None:
                wanted.setdefault(node.input[0], {}).setdefault(grid, []).append(node)
        consumers, producers = self.graph.consumers(), self.graph.producers()
        for tensor, grids in wanted.items():
            for grid, takers in grids.items():
                own = len(consumers[tensor]) == len(takers)  # nobody else takes it
                found = (
                    path(tensor, consumers, producers, self.numbers, self.graph) if own else None
                )
                if found is None or not self._integer(found[0]):
                    y = self._rounded(tensor, grid, producers.get(tensor))
                else:
                    y = self._along(found, grid)
                for node in takers:
                    node.input[0] = y

    def _along(self, found: Sequence[Any], grid: Grid) -> str:
        """Rounds the output of a layer, `found[0]`, in front of what follows it."""
        layer, *rest = found
        plain = Grid(grid.scale, grid.zero, 0, 255)
        clamped = grid
        for node in rest:
            if clamps(node, self.graph):
                clamped = clamped.clamped(*bounds(node, self.graph))
        self.outputs[id(layer)] = clamped
        y = self._rounded(layer.output[0], clamped, layer)
        for node in rest:
            if clamps(node, self.graph):
                self.graph.remove([node])
                continue
            node.input[0] = y
            y = self._rounded(node.output[0], plain, node)
        return y

    def _rounded(self, tensor: str, grid: Grid, producer: Any) -> str:
        """A tensor rounded to a grid; returns the name of what comes out."""
        graph = self.graph
        step = [graph.constant(np.float32(grid.scale)), graph.constant(np.uint8(grid.zero))]
        nodes = []
        node, y = graph.node("QuantizeLinear", [tensor, *step], "q")
        nodes.append(node)
        if not grid.whole:
            ends = [graph.constant(np.uint8(grid.low)), graph.constant(np.uint8(grid.high))]
            node, y = graph.node("Clip", [y, *ends], "q")
            nodes.append(node)
        codes = y
        node, y = graph.node("DequantizeLinear", [codes, *step], "d")
        nodes.append(node)
        self.bytes_of[y], self.grid_of[y] = codes, grid
        (self.first if producer is None else self.after.setdefault(id(producer), [])).extend(nodes)
        return y

    # ------------------------------------------------------------------ layers

    def _layer(self, node: Any) -> PlacedCodes:
        """A layer's weights as integers, and its output where it has to be rounded."""
        codes, number = self._of(node), self.numbers[id(node)]
        node.name = self.graph.name(codes.name)
        if not codes.integer:
            self.weights(node, codes, "float")
            why = f"W{codes.w_bits}A{codes.a_bits}: an operand is float"
            return PlacedCodes(codes.name, number, node.name, why)
        trained = id(node) in self.outputs
        free = node.op_type == "Gemm" and codes.bias_fits()  # its integer kernel can give floats
        if node.op_type != "MatMul" and (trained or free):
            self.weights(node, codes, "bytes")
            return PlacedCodes(codes.name, number, node.name)
        if node.op_type == "Conv" and self.ranges is not None and codes.bias_fits():
            self._over_its_range(node, self.ranges[number])
            self.weights(node, codes, "bytes")
            return PlacedCodes(codes.name, number, node.name, rounded=True)
        if node.op_type == "Gemm" or attribute(node, "group", 1) > 1:
            self.weights(node, codes, "float")
            why = GROUPED if codes.bias_fits() else LARGE
            return PlacedCodes(codes.name, number, node.name, why)
        if node.op_type == "Conv" and pointwise(node, codes):
            self.product(node, codes)
        elif node.op_type == "Conv" and self.float_sums:
            self.weights(node, codes, "float")
            return PlacedCodes(codes.name, number, node.name, ASKED)
        else:
            self.sums(node, codes)
        return PlacedCodes(codes.name, number, node.name)

    def _over_its_range(self, node: Any, seen: tuple[float, float]) -> None:
        """Rounds the output of a layer to a byte, over its range behind the clamps that follow."""
        low, high = seen
        last, behind_it = node, []
        while len(found := self._takers(last.output[0])) == 1 and found[0] is not None:
            if not clamps(found[0], self.graph):
                break
            last = found[0]
            behind_it.append(last)
            bottom, top = bounds(last, self.graph)
            low, high = max(low, bottom), min(high, top)
        old, behind = last.output[0], self.after.pop(id(node), [])
        for each in behind_it:
            behind += self.after.pop(id(each), [])
        self.graph.remove(behind_it)
        everywhere = (*self.after.values(), *self.before.values(), self.first, self.graph.nodes)
        takers = [taker for nodes in (behind, *everywhere) for taker in nodes]
        y = self._rounded(node.output[0], Grid.over(low, high), node)
        for taker in takers:
            for i, x in enumerate(taker.input):
                if x == old:
                    taker.input[i] = y
        self.after[id(node)] += behind

    def _splice(self) -> None:
        nodes = list(self.first)
        for node in self.graph.nodes:
            nodes += [*self.before.get(id(node), ()), node, *self.after.get(id(node), ())]
        self.graph.nodes = nodes
        self.graph.remove(self.gone)
