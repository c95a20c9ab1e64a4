"""The quantized subnet: BatchNorm folded, every layer at its own weight and activation bits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.errors import CheckpointError, SpaceError
from apq_optuna.networks import FLOAT_BITS, PlacedLayer, Size, Subnet, as_pair, read_family
from apq_optuna.quantization.quantizers import (
    SMALLEST_SCALE,
    calibrated_scale,
    code_range,
    fake_quantize,
)
from apq_optuna.supernet import ConvNorm, Slot, SubnetModule, module_of
from apq_optuna.supernet.convolution import conv2d, sound_conv2d
from apq_optuna.supernet.pretrained.sources import LIBRARIES, build_model

LARGEST_BIAS = 2**30
"""In units of the products it is added to: an int32, with as much room for their sum."""

CALIBRATION_VALUES = 1 << 16
"""Activations looked at when a step size is started."""


class QuantizedLayer(nn.Module):
    """A convolution or linear layer with folded BatchNorm and learned step sizes.

    Args:
        weight: `(out, in / groups, kh, kw)`, or `(out, in)` for a linear layer.
        bias: `(out,)`; stays in high precision, as in integer runtimes.
        placed: Bit-widths; 32 leaves that operand in floating point.
        signed: Whether the layer's input can be negative.
        relu: Whether a ReLU follows.
        stride, padding, groups, dilation: Of a convolution.
        inner: A layer that computes in a way of its own (padding by the image's size, say); its
            weights are then those here.

    Attributes:
        weight_scale: `(out, 1, ...)`, one step per output channel.
        activation_scale: `()`, one step for the input tensor; started by the first batch seen
            while `calibrating`.
        in_channels, out_channels, kernel_size, in_features, out_features: Those of the layer that
            it replaces, for a forward that looks.
        prepared: Its quantized weights, where those of all layers were quantized at once.
    """

    in_channels: int
    out_channels: int
    in_features: int
    out_features: int
    kernel_size: tuple[int, ...]

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        placed: PlacedLayer,
        *,
        signed: bool,
        relu: bool,
        stride: Size = 1,
        padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
        inner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        # dense, the first axis the slowest: what quantizes all at once relies on it
        dense = weight.detach().clone(memory_format=torch.contiguous_format)
        self.weight = nn.Parameter(dense)
        self.bias = nn.Parameter(bias.detach().clone())
        self.name, self.w_bits, self.a_bits = placed.name, placed.w_bits, placed.a_bits
        self.signed, self.relu = signed, relu
        self.stride, self.padding, self.groups = stride, padding, groups
        self.dilation = dilation
        self._square = (
            weight.ndim == 4 and weight.shape[2] == weight.shape[3] and dilation == 1
            and isinstance(stride, int) and isinstance(padding, int)
        )  # fmt: skip
        # not a submodule: it has no weights of its own
        self.__dict__["inner"] = inner
        self.weight_codes = code_range(min(self.w_bits, 16), signed=True)
        self.activation_codes = code_range(min(self.a_bits, 16), signed=signed)
        if self.w_bits != FLOAT_BITS:
            scale = calibrated_scale(self.weight, *self.weight_codes, per_channel=True)
            self.weight_scale = nn.Parameter(scale)
        if self.a_bits != FLOAT_BITS:
            self.activation_scale = nn.Parameter(torch.ones((), device=weight.device))
        self.calibrating = False
        self.prepared: Tensor | None = None

    def extra_repr(self) -> str:
        return f"{self.name}, W{self.w_bits}A{self.a_bits}, weight={tuple(self.weight.shape)}"

    def quantized_weight(self) -> Tensor:
        """The weights as the device sees them."""
        if self.prepared is not None:
            return self.prepared
        if self.w_bits == FLOAT_BITS:
            return self.weight
        return fake_quantize(self.weight, self.weight_scale, *self.weight_codes)

    def forward(self, x: Tensor) -> Tensor:
        if self.a_bits != FLOAT_BITS:
            if self.calibrating:
                step = max(1, x.numel() // CALIBRATION_VALUES)
                sample = x.detach().reshape(-1)[::step]
                self.activation_scale.data = calibrated_scale(sample, *self.activation_codes)
            x = fake_quantize(x, self.activation_scale, *self.activation_codes)
        weight = self.quantized_weight()
        if (inner := self.__dict__["inner"]) is not None:
            y = computed_by(inner, x, weight, self.bias)
        elif weight.ndim == 2:
            y = F.linear(x, weight, self.bias)
        elif self._square:
            stride, padding = as_pair(self.stride)[0], as_pair(self.padding)[0]
            y = conv2d(x, weight, self.bias, stride, padding, self.groups)
        else:
            y = sound_conv2d(
                x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        return F.relu(y, inplace=True) if self.relu else y


def computed_by(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a layer makes of its input with other weights."""
    given = {"weight": weight}
    if getattr(layer, "bias", None) is not None:
        given["bias"] = bias
        return functional_call(layer, given, (x,))  # type: ignore[no-any-return]
    y = functional_call(layer, given, (x,))
    return y + (bias if weight.ndim == 2 else bias[:, None, None])  # type: ignore[no-any-return]


def fold(layer: nn.Conv2d | nn.Linear, norm: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Weights and bias of a layer, a BatchNorm that follows it folded in."""
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    if norm is None:
        return weight, bias
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None and norm.running_mean is not None
    gain = (norm.running_var + norm.eps).rsqrt()
    shift = torch.zeros_like(gain)
    if norm.affine:
        gain, shift = (
            norm.weight.detach() / (norm.running_var + norm.eps).sqrt(),
            norm.bias.detach(),
        )
    bias = shift + (bias - norm.running_mean) * gain
    return weight * gain.view(-1, *[1] * (weight.ndim - 1)), bias


def fold_network(module: SubnetModule) -> SubnetModule:
    """A copy of an extracted subnet with BatchNorm folded, in floating point.

    It computes what the subnet computes, to within rounding, in less time.
    """
    placed = [
        replace(layer, w_bits=FLOAT_BITS, a_bits=FLOAT_BITS)
        for layer in module.description.layers()
    ]
    return _replaced(module, placed).eval()


def quantize_network(module: SubnetModule, subnet: Subnet) -> SubnetModule:
    """A copy of an extracted subnet with BatchNorm folded and `subnet`'s bit-widths.

    Activation step sizes are unset until `calibrate` has seen images.

    Raises:
        SpaceError: The module is of another architecture than `subnet`.
    """
    result = _replaced(module, list(subnet.layers()))
    result.description = subnet
    return result


def _replaced(module: SubnetModule, layers: Sequence[PlacedLayer]) -> SubnetModule:
    """A copy with a `QuantizedLayer` in every slot, and nothing where a BatchNorm was folded."""
    slots = [Slot(*slot) for slot in module.layer_slots()]
    if len(slots) != len(layers):
        raise SpaceError("the network to quantize has another architecture than the subnet")
    instead: dict[int, nn.Module] = {}
    for slot, placed in zip(slots, layers, strict=True):
        if slot.parent is None:
            continue  # no module: it stays as it is
        original = getattr(slot.parent, slot.attribute)
        if id(original) in instead:
            continue  # called again, with the same codes
        norm = None if slot.norm is None else getattr(*slot.norm)
        instead[id(original)] = _quantized(original, norm, placed, slot.signed)
        if norm is not None:
            instead[id(norm)] = _without_norm(norm)
    kept: dict[int, Any] = {id(module.description): module.description, **instead}
    result = copy.deepcopy(module, kept)  # the new layers wherever the old ones were
    result.lay_out()
    return result


def _quantized(
    original: nn.Module, norm: nn.Module | None, placed: PlacedLayer, signed: bool
) -> QuantizedLayer:
    """A layer with the bit-widths that it is placed with."""
    if isinstance(original, ConvNorm):
        weight, bias = fold(original.conv, original.norm)
        convolution = original.conv
        return QuantizedLayer(
            weight, bias, placed, signed=signed, relu=original.relu,
            stride=convolution.stride[0], padding=int(convolution.padding[0]),
            groups=convolution.groups,
        )  # fmt: skip
    if not isinstance(original, nn.Conv2d | nn.Linear):
        raise SpaceError(
            f"{placed.name} is a {type(original).__name__}: a ConvNorm, a convolution or a linear "
            "layer is quantized"
        )
    weight, bias = fold(original, norm)
    if isinstance(original, nn.Linear):
        inner = None if type(original).forward is nn.Linear.forward else original
        layer = QuantizedLayer(weight, bias, placed, signed=signed, relu=False, inner=inner)
        layer.in_features, layer.out_features = original.in_features, original.out_features
        return layer
    usual = (
        type(original).forward is nn.Conv2d.forward
        and original.padding_mode == "zeros"
        and not isinstance(original.padding, str)
    )
    layer = QuantizedLayer(
        weight, bias, placed, signed=signed, relu=False, stride=_size(original.stride),
        padding=0 if isinstance(original.padding, str) else _size(original.padding),
        groups=original.groups, dilation=_size(original.dilation),
        inner=None if usual else original,
    )  # fmt: skip
    layer.in_channels, layer.out_channels = original.in_channels, original.out_channels
    layer.kernel_size = original.kernel_size
    return layer


def _size(values: tuple[int, ...]) -> Size:
    height, width = values
    return height if height == width else (height, width)


def _without_norm(norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm that was folded: nothing, or an activation that it has in it."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    found = [part for part in parts if isinstance(part, nn.Module)]
    return nn.Sequential(*found) if found else nn.Identity()


def quantized_layers(module: nn.Module) -> list[QuantizedLayer]:
    """The quantized layers of a network, in order."""
    return [layer for layer in module.modules() if isinstance(layer, QuantizedLayer)]


@torch.no_grad()
def calibrate(module: nn.Module, images: Tensor) -> None:
    """Starts every activation step size from one batch, layer after layer.

    Each layer sees the outputs of the quantized layers before it, as it will later.
    """
    layers = quantized_layers(module)
    for layer in layers:
        layer.calibrating = True
    try:
        module(images)
    finally:
        for layer in layers:
            layer.calibrating = False


@torch.no_grad()
def round_biases(module: nn.Module) -> bool:
    """Rounds biases to what integer runtimes add: int32 in units of the products they are added
    to, the step of the input times that of the weights (Jacob et al., CVPR 2018, section 2.4).

    Layers with a float operand keep theirs, and so do channels whose weights are all 0, and those
    whose bias no int32 is at that unit.

    Returns:
        Whether any changed: biases that were rounded before do not.
    """
    changed = False
    for layer in quantized_layers(module):
        if FLOAT_BITS in (layer.w_bits, layer.a_bits):
            continue
        unit = layer.weight_scale.flatten().double() * layer.activation_scale.double()
        whole = (layer.bias.double() / unit).round()
        kept = (layer.quantized_weight().flatten(1) == 0).all(1) | (whole.abs() > LARGEST_BIAS)
        rounded = torch.where(kept, layer.bias, (whole * unit).to(layer.bias.dtype))
        changed |= not torch.equal(rounded, layer.bias)
        layer.bias.copy_(rounded)
    return changed


# ---------------------------------------------------------------------- files


def save_network(
    module: SubnetModule, path: str | Path, about: Mapping[str, Any] | None = None
) -> Path:
    """Writes a quantized network as `network.safetensors` with a JSON sidecar.

    Args:
        module: From `quantize_network`.
        path: A folder; made if missing.
        about: Whatever should travel with it in JSON types: costs, accuracies, class names.
    """
    target = Path(path) / "network.safetensors"
    subnet = module.description
    description = {
        "kind": "network",
        "space": subnet.family.to_dict(),
        **subnet.to_dict(),
        "layers": [
            {"name": p.name, "w_bits": p.w_bits, "a_bits": p.a_bits} for p in subnet.layers()
        ],
    }
    write_checkpoint(target, module.state_dict(), description | dict(about or {}))
    return target


def load_network(path: str | Path, *, model: nn.Module | None = None) -> SubnetModule:
    """Reads a finished network; it classifies exactly as when it was saved.

    Args:
        path: The folder that `finetune` wrote.
        model: What a network of one's own model is made of, its weights untrained; of
            torchvision's and timm's models the folder knows the name.

    Returns:
        A module from normalised `(B, C, H, W)` images to logits, in evaluation mode. Its `about`
        attribute is the sidecar: class names, normalisation, costs, accuracies.

    Raises:
        CheckpointError: Missing, damaged, a pickle, or not a finished network.
    """
    tensors, about = read_checkpoint(Path(path) / "network.safetensors")
    if about.get("kind") != "network":
        raise CheckpointError(f"{path} holds a {about.get('kind')!r}, not a finished network")
    try:
        subnet = read_family(about["space"]).subnet(about)
        if model is None and str(about.get("model", "")).startswith(LIBRARIES):
            model = build_model(about["model"], subnet.family.num_classes)
        raw = module_of(subnet) if model is None else module_of(subnet, model)
        module = quantize_network(raw.eval(), subnet)
        module.load_state_dict(tensors)
        for name, scale in module.named_parameters():  # what was stored may be below
            if name.endswith("_scale"):
                scale.data.clamp_min_(SMALLEST_SCALE)
    except (KeyError, TypeError, RuntimeError, SpaceError) as error:
        raise CheckpointError(f"{path}: tensors and description do not fit: {error}") from error
    module.about = about
    return module.eval()
