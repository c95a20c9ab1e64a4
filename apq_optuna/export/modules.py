"""A quantized module as an ONNX graph in floating point, and which constants are whose weights.

A family that knows its networks' wiring says it in steps. Others are models of somebody's own:
torch's exporter writes what their code does.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna._torchvision import make_importable
from apq_optuna.errors import InvalidArgumentError, SpaceError
from apq_optuna.export.codes import Grid, LayerCodes
from apq_optuna.export.graph import Graph
from apq_optuna.export.wiring import BATCH, IMAGES, LOGITS, OfWeight, Own, is_wired, wired
from apq_optuna.networks import FLOAT_BITS, PlacedLayer, as_pair
from apq_optuna.quantization.network import QuantizedLayer, computed_by, quantized_layers
from apq_optuna.supernet import Slot, SubnetModule

CHECKED = 1e-4
"""Largest relative difference between a layer and what takes its place."""


def network_codes(network: SubnetModule) -> list[LayerCodes | None]:
    """What each layer of a quantized network holds, in the order of `Subnet.layers()`; None for
    one that is no module.

    Raises:
        InvalidArgumentError: The network is not quantized.
    """
    found: dict[int, LayerCodes] = {}
    codes: list[LayerCodes | None] = []
    for layer in layers_in_slots(network):
        if layer is None:
            codes.append(None)
            continue
        if not isinstance(layer, QuantizedLayer):
            raise InvalidArgumentError(
                f"network: {type(layer).__name__} is no quantized layer; export what "
                "`finish` or `load_network` returned"
            )
        if id(layer) not in found:
            found[id(layer)] = codes_of(layer)
        codes.append(found[id(layer)])
    return codes


def codes_of(layer: QuantizedLayer) -> LayerCodes:
    """What a trained layer holds."""
    weight = layer.weight.detach().cpu()
    scale, grid = None, None
    if layer.w_bits != FLOAT_BITS:
        steps = layer.weight_scale.detach().cpu()
        weight = (weight / steps).clamp_(*layer.weight_codes).round_().to(torch.int8)
        scale = steps.reshape(-1).numpy().copy()
    if layer.a_bits != FLOAT_BITS:
        step = float(layer.activation_scale.detach())
        grid = Grid.of(step, layer.a_bits, signed=layer.signed)
    return LayerCodes(
        layer.name, layer.w_bits, layer.a_bits, weight.contiguous().numpy().copy(), scale,
        layer.bias.detach().cpu().numpy().copy(), grid,
    )  # fmt: skip


def layers_in_slots(network: SubnetModule) -> list[nn.Module | None]:
    """The modules of a network's layers, in the order of `Subnet.layers()`."""
    slots = [Slot(*slot) for slot in network.layer_slots()]
    return [None if s.parent is None else getattr(s.parent, s.attribute) for s in slots]


class _Plain(nn.Module):
    """A quantized layer without its quantization, for torch's exporter."""

    def __init__(self, layer: QuantizedLayer, codes: LayerCodes) -> None:
        super().__init__()
        # as it is: of its calls codes take the place, other code may look at it
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(torch.from_numpy(codes.bias))
        self.stride, self.padding, self.groups = layer.stride, layer.padding, layer.groups
        self.dilation, self.relu = layer.dilation, layer.relu
        for name in ("in_channels", "out_channels", "kernel_size", "in_features", "out_features"):
            if (value := getattr(layer, name, None)) is not None:
                setattr(self, name, value)  # for a forward that looks

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.ndim == 2:
            y = F.linear(x, self.weight, self.bias)
        else:
            y = F.conv2d(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        return F.relu(y) if self.relu else y


class _Biased(nn.Module):
    """A layer that knows of no bias, and the bias of what was folded into it."""

    def __init__(self, layer: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.bias = nn.Parameter(bias)

    @property
    def weight(self) -> Tensor:
        """Of the layer, for a forward that looks."""
        return self.layer.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + (self.bias if self.weight.ndim == 2 else self.bias[:, None, None])


def _plain(layer: QuantizedLayer, codes: LayerCodes, placed: PlacedLayer) -> nn.Module:
    """What takes a layer's place."""
    inner: nn.Module | None = layer.__dict__["inner"]
    if inner is None:
        return _Plain(layer, codes)
    weight, bias = layer.weight.detach().clone(), torch.from_numpy(codes.bias)
    own = copy.deepcopy(inner).cpu().eval()
    own.weight = nn.Parameter(weight)
    if getattr(inner, "bias", None) is not None:
        own.bias = nn.Parameter(bias)
        return own
    own.bias = nn.Parameter(bias)
    size = as_pair(placed.layer.input_size)
    shape = (*size, own.in_features) if placed.layer.linear else (own.in_channels, *size)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = computed_by(inner, x, weight, bias), own(x)
    if torch.allclose(got, expected, CHECKED, CHECKED):
        return own
    own.register_parameter("bias", None)
    return _Biased(own, bias)


def _without(module: nn.Module) -> Callable[[Any], bool | None]:
    """Says of a node that it is not computed beforehand where it takes a module's weights."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}

    def fold(node: Any) -> bool | None:
        return False if any(x is not None and x.name in names for x in node.inputs) else None

    return fold


def exported(
    network: SubnetModule, codes: Sequence[LayerCodes | None], opset: int
) -> tuple[Graph, OfWeight]:
    """A network's graph as torch's exporter writes it; as `wired` gives it.

    Raises:
        InvalidArgumentError: The exporter is not installed.
        SpaceError: It cannot write what the network computes; says what it said.
    """
    make_importable()  # the exporter looks for torchvision
    try:
        from onnxscript import optimizer  # of what torch's exporter is made of
    except ImportError as error:
        raise InvalidArgumentError(
            "the graph of a model of one's own is written by torch's exporter, which needs "
            "onnxscript: pip install onnxscript"
        ) from error
    subnet = network.description
    layers = layers_in_slots(network)
    instead: dict[int, Any] = {id(subnet): subnet}
    for layer, its, placed in zip(layers, codes, subnet.layers(), strict=True):
        if isinstance(layer, QuantizedLayer) and id(layer) not in instead:
            assert its is not None
            instead[id(layer)] = _plain(layer, its, placed)
    plain = copy.deepcopy(network, instead).cpu().eval()
    for parameter in plain.parameters():  # channels last would be written down as copies
        parameter.data = parameter.data.contiguous()
    images = torch.zeros(2, *subnet.family.input_shape)
    batch = torch.export.Dim(BATCH)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                plain, (images,), dynamo=True, opset_version=opset, verbose=False,
                input_names=[IMAGES], output_names=[LOGITS], dynamic_shapes=({0: batch},),
                external_data=False, optimize=False,
            )  # fmt: skip
            assert program is not None
            # its own optimisation gives equal weights one name, and folded ones another
            optimizer.fold_constants(program.model, should_fold=_without(plain))
            optimizer.remove_unused_nodes(program.model)
        graph = Graph.of(program.model_proto)
        versions = {each.version for each in program.model_proto.opset_import if not each.domain}
        if versions != {opset}:
            raise SpaceError(f"it writes opset {versions}, not {opset}")
    except Exception as error:  # whatever a model's own code meets there
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        raise SpaceError(
            f"torch's exporter cannot write {subnet.family.name}: {type(error).__name__}: {said}"
        ) from error
    if len(graph.outputs) != 1:
        raise SpaceError(f"{subnet.family.name} gives {len(graph.outputs)} outputs")
    numbers: dict[int, list[int]] = {}
    for number, layer in enumerate(layers):
        if id(layer) in instead:
            numbers.setdefault(id(instead[id(layer)]), []).append(number)
    of_weight: OfWeight = {}
    for path, module in plain.named_modules(remove_duplicate=False):
        if id(module) not in numbers:
            continue
        biased = isinstance(module, _Biased)
        name, bias = (f"{path}.layer.weight", "") if biased else (f"{path}.weight", f"{path}.bias")
        of_weight[name] = Own(tuple(numbers[id(module)]), bias)
    biases = {own.bias for own in of_weight.values()}
    for node in graph.nodes:  # a bias of zeros is how it writes none
        name = node.input[2] if node.op_type == "Conv" and len(node.input) > 2 else ""
        added = None if name in biases else graph.constants.get(name)
        if added is not None and not np.asarray(added).any():
            del node.input[2:]
    return graph, of_weight


def float_graph(
    network: SubnetModule, codes: Sequence[LayerCodes | None], opset: int
) -> tuple[Graph, OfWeight]:
    """A quantized network's graph in floating point, and of which layer each weight is.

    Args:
        network: From `load_network`, `finish` or `quantize_network`.
        codes: From `network_codes`.
        opset: Version of the operators.
    """
    subnet = network.description
    if is_wired(subnet):
        return wired(subnet, codes)
    return exported(network, codes, opset)


def output_ranges(network: SubnetModule, images: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Smallest and largest output of each layer over some images, a ReLU of its own included.

    In the order of `Subnet.layers()`; of one that is no module, nothing: (0, 0).
    """
    seen: dict[int, tuple[float, float]] = {}

    def look(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        low, high = seen.get(id(layer), (np.inf, -np.inf))
        ends = torch.aminmax(output.detach())
        seen[id(layer)] = (min(low, float(ends.min)), max(high, float(ends.max)))

    hooks = [layer.register_forward_hook(look) for layer in quantized_layers(network)]
    try:
        with torch.no_grad():
            for batch in images:
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen.get(id(layer), (0.0, 0.0)) for layer in layers_in_slots(network)]
