"""All weights of a network quantized at once, and parameters laid behind one another.

Networks that fit an embedded device have many small layers: what is done layer by layer to their
weights, in an optimiser or a quantizer, takes as long as the layers themselves.

Notation:
    n, r    values of all weights; their rows, one per output channel
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apq_optuna.quantization.network import QuantizedLayer
from apq_optuna.quantization.quantizers import value_gradients


class FlatParameters:
    """Parameters laid behind one another in one vector, and their gradients in another.

    Each stays what it is, as a view.

    Attributes:
        vector: `(n,)` of all values, with the gradients as its `grad`.
        parameters: What it was made of.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        values = [_in_memory(p.detach()) for p in self.parameters]
        self.vector = nn.Parameter(torch.cat(values) if values else torch.zeros(0))
        self.vector.grad = torch.zeros_like(self.vector)
        start = 0
        for p in self.parameters:
            shape, strides = p.shape, p.stride()
            p.data = self.vector.data.as_strided(shape, strides, start)
            p.grad = self.vector.grad.as_strided(shape, strides, start)
            start += p.numel()

    def zero_grad(self) -> None:
        """Sets all gradients to zero."""
        assert self.vector.grad is not None
        self.vector.grad.zero_()

    def release(self) -> None:
        """Gives each parameter its values for itself, without a gradient."""
        for p in self.parameters:
            p.data, p.grad = p.data.clone(), None


def _in_memory(x: Tensor) -> Tensor:
    """The values of a dense tensor as a vector, in the order they have in memory."""
    return x.as_strided((x.numel(),), (1,))


class WeightsTogether:
    """Quantizes the weights of many layers in one go: `fake_quantize` of each, to rounding.

    Args:
        layers: Layers whose weights are quantized.

    Attributes:
        weights, scales: Their parameters.
    """

    def __init__(self, layers: Sequence[QuantizedLayer]) -> None:
        self._layers = list(layers)
        self.weights = FlatParameters([layer.weight for layer in layers])
        self.scales = FlatParameters([layer.weight_scale for layer in layers])
        self._shapes = [(layer.weight.shape, layer.weight.stride()) for layer in layers]
        device = self.weights.vector.device
        rows = [layer.weight_scale.numel() for layer in layers]
        values = [layer.weight.numel() // r for layer, r in zip(layers, rows, strict=True)]
        each = torch.tensor(
            [v for v, r in zip(values, rows, strict=True) for _ in range(r)], dtype=torch.long
        )
        # the first axis is the slowest in memory, channels last or not
        self._row = torch.repeat_interleave(each).to(device)
        bounds = [
            torch.tensor([float(layer.weight_codes[end]) for layer in layers], device=device)
            .repeat_interleave(torch.tensor(rows, dtype=torch.long, device=device))
            for end in (0, 1)
        ]  # fmt: skip
        self._low, self._high = (bound[self._row] for bound in bounds)
        self._scale_gradient = (each.to(device) * bounds[1].clamp_min(1.0)).rsqrt()

    def __enter__(self) -> WeightsTogether:
        if self._layers:
            quantized = _Together.apply(self.weights.vector, self.scales.vector, self)
            for layer, weight in zip(self._layers, quantized, strict=True):
                layer.prepared = weight
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.prepared = None

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """`(n,)` as a tensor of each layer."""
        found, start = [], 0
        for shape, strides in self._shapes:
            found.append(vector.as_strided(shape, strides, start))
            start += math.prod(shape)
        return tuple(found)


class _Together(torch.autograd.Function):
    """`_FakeQuantize` of weights, with a scale and a range for each value."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, scales: Tensor, of: WeightsTogether) -> Any:
        scale = scales[of._row]
        codes = (weights / scale).clamp_(of._low, of._high).round_()
        ctx.save_for_backward(weights, scale)
        ctx.of = of
        return of.split(codes.mul_(scale))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, scale = ctx.saved_tensors
        of: WeightsTogether = ctx.of
        gradient = torch.empty_like(weights)
        for place, given in zip(of.split(gradient), gradients, strict=True):
            place.copy_(given)
        of_weights, slope = value_gradients(gradient, weights, scale, of._low, of._high)
        step = torch.zeros_like(of._scale_gradient).index_add_(0, of._row, slope)
        return of_weights, step.mul_(of._scale_gradient), None
