"""Quantization-aware finetuning: a fixed number of steps, decided by a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna.data import ImageData
from apq_optuna.errors import ApqError, InvalidArgumentError
from apq_optuna.networks import FLOAT_BITS, Subnet
from apq_optuna.quantization.network import calibrate, quantize_network, quantized_layers
from apq_optuna.quantization.quantizers import SMALLEST_SCALE
from apq_optuna.quantization.resuming import FinetuneCheckpoint
from apq_optuna.quantization.together import FlatParameters, WeightsTogether
from apq_optuna.supernet import SubnetModule, Supernet, recalibrate
from apq_optuna.supernet.evaluation import BATCH_PIXELS

AVERAGING = 0.0
"""Share of the steps, at the end, that a new study averages over; see `benchmarks/noise.py`."""

ALIKE, BY_WIDTH = "alike", "by-width"
"""How rates are given to weights and step sizes; see `FinetuneOptions.rates`."""

RATES = BY_WIDTH
"""What a new study does; see `benchmarks/README.md`, "Rates by width"."""

PRETRAINED_RATE = 0.1
"""Learning rates for a model of one's own, as a share of those for a supernet's networks: weights
of a deep one, with BatchNorm folded in, are small, and Adam's first steps are not."""

SCALE_RATE = 0.3
"""Learning rate of step sizes, as a share of that of weights, where all have one rate."""

SCALE_SHARE = 6.0
"""What a step size changes by in a step, as a share of itself and of the learning rate, where
rates are by width."""


@dataclass(frozen=True)
class FinetuneOptions:
    """How a quantized subnet is finetuned.

    Attributes:
        steps: Optimiser steps; 0 measures right after calibration.
        batch_size: Images a step.
        learning_rate: For Adam; steady where steps are averaged, else the peak of a cosine that
            falls to zero.
        calibration_images: Training images for BatchNorm statistics and step sizes.
        distillation: Weight of the fp32 subnet's own predictions in the loss, in [0, 1].
        averaging: Share of the steps, at the end, whose weights are averaged (Izmailov et al., UAI
            2018), in [0, 1]; 0 is none. Of a few steps the last one is mostly chance: an average
            says more of the network. None is what is best for new studies, and what a study began
            with for others.
        rates: `by-width`: the rate of a layer's weights and biases falls to half with every two
            bits above 4, since what is rounded finely is nearly right and only needs to stay so,
            and step sizes change by shares of themselves; `alike`: one rate for all, in absolute
            terms, so that 20 steps cost a network at 8 bits more than rounding does. None as for
            `averaging`, and in `finish` it is `alike`.
    """

    steps: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    calibration_images: int = 512
    distillation: float = 0.5
    averaging: float | None = None
    rates: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InvalidArgumentError(f"steps={self.steps}: cannot be negative")
        if self.batch_size < 1 or self.calibration_images < 1:
            raise InvalidArgumentError(
                f"batch_size={self.batch_size}, calibration_images={self.calibration_images}: "
                "both must be at least 1"
            )
        if self.learning_rate <= 0:
            raise InvalidArgumentError(f"learning_rate={self.learning_rate}: must be positive")
        if self.averaging is not None and not 0 <= self.averaging <= 1:
            raise InvalidArgumentError(f"averaging={self.averaging}: must be between 0 and 1")
        if self.rates not in (None, ALIKE, BY_WIDTH):
            raise InvalidArgumentError(f"rates={self.rates!r}: {BY_WIDTH} or {ALIKE}")

    @property
    def averaged_steps(self) -> int:
        """Steps that are averaged over, the last ones."""
        share = AVERAGING if self.averaging is None else self.averaging
        return math.ceil(share * self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self.averaged_steps:
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class DivergedError(ApqError, ArithmeticError):
    """A finetune whose loss became infinite or NaN."""


def fp32_network(
    supernet: Supernet, subnet: Subnet, data: ImageData, images: int, seed: int
) -> SubnetModule:
    """The extracted subnet with BatchNorm statistics of its own, from `images` training images.

    These are augmented where the supernet says so, see `Supernet.augmented_statistics`.
    """
    module = supernet.subnet(subnet)
    device = supernet.device
    generator = torch.Generator().manual_seed(seed)
    batch = min(256, images, len(data.train))
    augment, steps = supernet.augmented_statistics, -(-images // batch)
    recalibrate(
        module,
        data.training_batches(batch, generator, device=device, augment=augment, limit=steps),
    )
    return module


def quantized_network(
    module: SubnetModule, subnet: Subnet, data: ImageData, images: int, seed: int
) -> SubnetModule:
    """An fp32 subnet folded, quantized to `subnet`'s bits and calibrated on training images."""
    quantized = quantize_network(module, subnet)
    device = str(next(module.parameters()).device)
    generator = torch.Generator().manual_seed(seed)
    batch = min(images, len(data.train))
    batches = data.training_batches(batch, generator, device=device, augment=False, limit=1)
    for calibration_images, _ in batches:
        calibrate(quantized, calibration_images)
    return quantized


def finetune_quantized(
    module: SubnetModule,
    data: ImageData,
    options: FinetuneOptions,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    report: Callable[[int, float], None] | None = None,
    checkpoint: FinetuneCheckpoint | None = None,
) -> SubnetModule:
    """Trains weights, biases and step sizes of a calibrated network in place.

    Args:
        module: From `quantized_network`.
        data: Only `data.train` is used.
        options: Steps and rates.
        seed: Of order and augmentation: the same seed gives the same network.
        teacher: Network whose predictions are distilled, usually the fp32 subnet.
        report: Called after each step with its number and loss.
        checkpoint: Where the state is kept meanwhile; what is there is gone on with, with the
            images that would have come next.

    Raises:
        DivergedError: The loss became infinite or NaN.
    """
    if options.steps == 0:
        return module.eval()
    device = str(next(module.parameters()).device)
    together = WeightsTogether(
        [layer for layer in quantized_layers(module) if layer.w_bits != FLOAT_BITS]
    )
    taken = {id(p) for p in (*together.weights.parameters, *together.scales.parameters)}
    left = [(name, p) for name, p in module.named_parameters() if id(p) not in taken]
    scales = FlatParameters([p for name, p in left if name.endswith("_scale")])
    others = FlatParameters([p for name, p in left if not name.endswith("_scale")])
    flats = [together.weights, others, together.scales, scales]
    learned = [together.weights.vector, others.vector]
    steps_of = [together.scales.vector, scales.vector]
    own = None
    if (options.rates or RATES) == BY_WIDTH:
        own = _own_rates(module, [together.weights, others])
    of_steps = SCALE_RATE if own is None else SCALE_SHARE
    groups = [{"params": learned, "weight": 1.0}, {"params": steps_of, "weight": of_steps}]
    optimizer = torch.optim.Adam(groups, lr=options.learning_rate, eps=1e-8)
    share = options.distillation if teacher is not None else 0.0
    averages = [torch.zeros_like(flat.vector) for flat in flats]
    first = options.steps - options.averaged_steps
    state = _State(module, [flat.vector for flat in flats], averages, optimizer)
    done = state.resume(checkpoint)
    images_left = _endless(data, options.batch_size, seed, device, done)
    batches = _taught(images_left, teacher if share else None, options.steps - done)
    module.train()
    whole = True
    try:
        for step, (images, labels, soft) in enumerate(batches, done):
            for group in optimizer.param_groups:
                group["lr"] = options.rate(step) * group["weight"]
            for flat in flats:
                flat.zero_grad()
            with together:
                logits = module(images)
            loss = F.cross_entropy(logits, labels)
            if soft is not None:
                loss = (1 - share) * loss + share * F.cross_entropy(logits, soft)
            value = loss.item()
            if not math.isfinite(value):
                raise DivergedError(
                    f"the loss became {value} at step {step + 1} of {options.steps}"
                )
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 5.0)
            whole = False
            before = [vector.data.clone() for vector in (*learned, *steps_of)] if own else []
            optimizer.step()
            if own is not None:
                shares = (*own, *before[len(learned) :])  # a step size's is itself
                for vector, old, share_of in zip(
                    (*learned, *steps_of), before, shares, strict=True
                ):
                    vector.data.copy_(torch.lerp(old, vector.data, share_of))
            for vector in steps_of:
                vector.data.clamp_min_(SMALLEST_SCALE)
            if step >= first:
                for average, flat in zip(averages, flats, strict=True):
                    average.add_(flat.vector.data, alpha=1 / options.averaged_steps)
            done, whole = step + 1, True
            if checkpoint is not None and checkpoint.due:
                checkpoint.write(state.tensors(), step + 1)
            if report is not None:
                report(step + 1, value)
        if options.averaged_steps:
            for average, flat in zip(averages, flats, strict=True):
                flat.vector.data.copy_(average)
    except KeyboardInterrupt:
        if checkpoint is not None and whole and optimizer.state:
            checkpoint.write(state.tensors(), done)
        raise
    finally:
        for flat in flats:
            flat.release()
    return module.eval()


def width_rate(bits: int) -> float:
    """The rate of weights of a width, as a share of that at 4 bits.

    Steps between codes are 16 times as fine at 8 bits as at 4; the rate falls with their root.
    """
    return float(2.0 ** ((4 - min(max(bits, 4), 8)) / 2))


def _own_rates(module: nn.Module, flats: Sequence[FlatParameters]) -> list[Tensor]:
    """A rate for each value of the vectors, by the width of its layer; of no layer is as of 8."""
    rates = {
        id(parameter): width_rate(layer.w_bits)
        for layer in quantized_layers(module)
        for parameter in (layer.weight, layer.bias)
        if parameter is not None
    }
    found = []
    for flat in flats:
        parts = [
            p.new_full((p.numel(),), rates.get(id(p), width_rate(8))) for p in flat.parameters
        ]
        found.append(torch.cat(parts) if parts else flat.vector.data.clone())
    return found


class _State:
    """Everything that a step changes.

    Args:
        module: For its buffers, whatever a model of one's own has in them.
        vectors: All that is learned.
        averages: As many vectors beside them.
        optimizer: Adam.
    """

    def __init__(
        self,
        module: nn.Module,
        vectors: Sequence[nn.Parameter],
        averages: Sequence[Tensor],
        optimizer: torch.optim.Adam,
    ) -> None:
        self.module, self.vectors, self.averages = module, vectors, averages
        self.optimizer = optimizer

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        found = {f"buffer.{name}": value for name, value in self.module.named_buffers()}
        for i, (vector, average) in enumerate(zip(self.vectors, self.averages, strict=True)):
            found |= {f"{i}.values": vector.data, f"{i}.average": average}
            for name in ("exp_avg", "exp_avg_sq"):
                found[f"{i}.{name}"] = self.optimizer.state[vector][name]
        return found

    @torch.no_grad()
    def resume(self, checkpoint: FinetuneCheckpoint | None) -> int:
        """Brings back what was kept; the number of steps it has behind it."""
        kept = None if checkpoint is None else checkpoint.read()
        if kept is None:
            return 0
        tensors, step = kept
        if not self._fits(tensors):  # of another version
            return 0
        for name, value in self.module.named_buffers():
            value.copy_(tensors[f"buffer.{name}"])
        for i, (vector, average) in enumerate(zip(self.vectors, self.averages, strict=True)):
            vector.copy_(tensors[f"{i}.values"])
            average.copy_(tensors[f"{i}.average"])
            moments = {
                name: torch.zeros_like(vector).copy_(tensors[f"{i}.{name}"])
                for name in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[vector] = {"step": torch.tensor(float(step)), **moments}
        return step

    def _fits(self, tensors: Mapping[str, Tensor]) -> bool:
        wanted = {f"buffer.{name}": value for name, value in self.module.named_buffers()}
        for i, vector in enumerate(self.vectors):
            for name in ("values", "average", "exp_avg", "exp_avg_sq"):
                wanted[f"{i}.{name}"] = vector
        return all(
            name in tensors and tensors[name].shape == value.shape
            for name, value in wanted.items()
        )


def _taught(
    batches: Iterator[tuple[Tensor, Tensor]], teacher: nn.Module | None, steps: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The first `steps` batches with a teacher's probabilities, as many at a time as fit."""
    left = steps
    while left:
        several = [next(batches)]
        images = several[0][0]
        fit = BATCH_PIXELS // max(1, len(images) * images.shape[2] * images.shape[3])
        several += islice(batches, min(max(fit, 1), left) - 1)
        left -= len(several)
        soft: Sequence[Tensor | None] = [None] * len(several)
        if teacher is not None:
            with torch.no_grad():
                every = torch.cat([images for images, _ in several])
                soft = teacher(every).softmax(1).split([len(y) for _, y in several])
        for (images, labels), taught in zip(several, soft, strict=True):
            yield images, labels, taught


def _endless(
    data: ImageData, batch_size: int, seed: int, device: str, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches for ever, from the one with the number `start` on."""
    generator = torch.Generator().manual_seed(seed)
    each = len(data.train) // min(batch_size, len(data.train))
    while True:
        skipped = min(start, each)
        start -= skipped
        yield from data.training_batches(batch_size, generator, device=device, start=skipped)
