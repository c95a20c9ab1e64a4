"""The accuracy predictor: an ensemble of small MLPs, trained as one batched model.

Notation:
    E   members; every weight has E as its first axis
    F   features, A of them describing the architecture and the rest the quantization
    H   hidden units (400), in three layers
    n   rows
    u   targets in standard units, (y - centre) / unit
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.errors import CheckpointError, InvalidArgumentError
from apq_optuna.space import SearchSpace

Floats = NDArray[np.floating]

_PRIOR_ROWS = 3.0
"""How many held-out residuals the prior spread is worth."""

_PRIOR_SPREAD = 0.5
"""Prior standard deviation of a prediction, in standard units of the targets."""


class AccuracyPredictor:
    """Mean and spread of a network's accuracy from its features (Wang et al., CVPR 2020, section
    3.2).

    Args:
        num_features: F.
        architecture_features: A, the leading columns; by default all of them.
        members: E.
        hidden: H.
        bag: Share of the rows that each member is trained on; the others calibrate its spread.
        seed: Of initial weights, bags and batches.
    """

    def __init__(
        self,
        num_features: int,
        architecture_features: int | None = None,
        *,
        members: int = 5,
        hidden: int = 400,
        bag: float = 0.8,
        seed: int = 0,
    ) -> None:
        if num_features < 1 or members < 1:
            raise InvalidArgumentError(
                f"num_features={num_features}, members={members}: both must be positive"
            )
        self.num_features = num_features
        self.architecture_features = (
            num_features if architecture_features is None else architecture_features
        )
        self.members, self.hidden, self.bag = members, hidden, bag
        self.generator = torch.Generator().manual_seed(seed)
        sizes = (num_features, hidden, hidden, hidden, 1)
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for inputs, outputs in pairwise(sizes):
            gain = (2.0 / inputs) ** 0.5 if outputs > 1 else 0.1 / inputs**0.5
            if inputs == num_features:  # about one column in six of a one-hot row is set
                gain = (2.0 / max(1.0, num_features / 6)) ** 0.5
            weight = torch.randn(members, inputs, outputs, generator=self.generator) * gain
            self.weights.append(weight)
            self.biases.append(torch.zeros(members, 1, outputs))
        self.centre, self.unit = 0.0, 1.0
        self.spread_gain = 1.0
        self.spread_floor = _PRIOR_SPREAD**2

    # ------------------------------------------------------------------ prediction

    def _forward(self, x: Tensor) -> Tensor:
        """`(E, n, F)` or `(n, F)` to `(E, n)` in standard units."""
        x = x.expand(self.members, *x.shape[-2:]) if x.ndim == 2 else x
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = torch.baddbmm(bias, x, weight).relu()
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])[..., 0]

    @torch.no_grad()
    def member_predictions(self, features: Floats) -> NDArray[np.float64]:
        """Every member's prediction, `(E, n)`."""
        x = torch.from_numpy(np.ascontiguousarray(features, np.float32))
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise InvalidArgumentError(
                f"features have shape {tuple(x.shape)}; expected (n, {self.num_features})"
            )
        return self._forward(x).double().numpy() * self.unit + self.centre

    def predict(self, features: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each row, both `(n,)`.

        The spread is the members' disagreement, scaled and floored so that it matches what
        held-out
        residuals showed: a linear combination of variances.
        """
        each = self.member_predictions(features)
        variance = each.var(axis=0) * self.spread_gain + self.spread_floor * self.unit**2
        return each.mean(axis=0), np.sqrt(variance)

    def scorer(self, space: SearchSpace) -> Callable[[NDArray[np.int32]], NDArray[np.float64]]:
        """Mean accuracy straight from genotypes `(n, D)`, for a search that asks often.

        A one-hot row times the first layer is a sum of the layer's rows, so it is gathered instead
        of multiplied; a spare row of zeros stands for decisions without a column.

        Raises:
            InvalidArgumentError: The space has scaled numbers among its features.
        """
        if not space.one_hot or space.num_features != self.num_features:
            raise InvalidArgumentError("scorer: needs a one-hot space of the predictor's features")
        spare = torch.zeros(self.members, 1, self.hidden)
        first = torch.cat([self.weights[0], spare], 1)

        @torch.inference_mode()
        def score(genotypes: NDArray[np.int32]) -> NDArray[np.float64]:
            index = torch.from_numpy(space.feature_indices(genotypes))
            total = np.zeros(len(genotypes))
            for e in range(self.members):
                x = torch.nn.functional.embedding_bag(index, first[e], mode="sum")
                x = x.add_(self.biases[0][e]).relu_()
                for weight, bias in zip(self.weights[1:3], self.biases[1:3], strict=True):
                    x = torch.addmm(bias[e], x, weight[e]).relu_()
                total += torch.addmm(self.biases[3][e], x, self.weights[3][e])[:, 0].numpy()
            return total / self.members * self.unit + self.centre

        return score

    # ------------------------------------------------------------------ training

    def fit(
        self,
        features: Floats,
        targets: Floats,
        *,
        epochs: int = 60,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
    ) -> AccuracyPredictor:
        """Trains on rows from the weights as they are.

        The targets' mean becomes the output's offset, so an untrained predictor predicts it.

        Args:
            features: `(n, F)`.
            targets: `(n,)`, finite.
            epochs, batch_size, learning_rate, weight_decay: For AdamW with a cosine to zero.

        Returns:
            The predictor itself.
        """
        x, y = _checked(features, targets, self.num_features)
        self.centre = float(y.mean())
        self.unit = _unit(y)
        steps = epochs * max(1, -(-len(y) // batch_size))
        mask = self._bags(x)
        self._train(x, y, mask, steps, batch_size, learning_rate, weight_decay, torch.ones(len(y)))
        self._calibrate(x, y, mask)
        return self

    def update(
        self,
        features: Floats,
        targets: Floats,
        *,
        replay: tuple[Floats, Floats] | None = None,
        steps: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        replay_weight: float = 0.5,
    ) -> AccuracyPredictor:
        """Finetunes on rows while replaying others, so that those are not forgotten.

        Args:
            features, targets: `(n, F)` and `(n,)`: what is new and what spread is calibrated on.
            replay: Rows learned before; as many are drawn each step as there are new ones.
            steps, batch_size, learning_rate, weight_decay: For AdamW with a cosine to zero.
            replay_weight: Weight of a replayed row in the loss.

        Returns:
            The predictor itself.
        """
        x, y = _checked(features, targets, self.num_features)
        mask = self._bags(x)
        if len(y) >= 4:
            self._rescale(max(_unit(y), self.unit))
        weight = torch.ones(len(y))
        if replay is not None and len(replay[1]):
            old_x, old_y = _checked(*replay, self.num_features)
            count = min(len(old_y), max(32, len(y)))
            chosen = torch.randperm(len(old_y), generator=self.generator)[:count]
            every_x, every_y = torch.cat([x, old_x[chosen]]), torch.cat([y, old_y[chosen]])
            every_mask = torch.cat([mask, torch.ones(self.members, count)], 1)
            weight = torch.cat([weight, torch.full((count,), replay_weight)])
        else:
            every_x, every_y, every_mask = x, y, mask
        self._train(
            every_x, every_y, every_mask, steps, batch_size, learning_rate, weight_decay, weight
        )
        self._calibrate(x, y, mask)
        return self

    def _rescale(self, unit: float) -> None:
        """Changes the standard unit of the output without changing what is predicted.

        Quantized accuracies spread far wider than fp32 ones; in the old unit their errors would be
        dozens of units, and the spread could not follow.
        """
        ratio = self.unit / unit
        self.weights[-1] *= ratio
        self.biases[-1] *= ratio
        self.spread_floor *= ratio**2
        self.unit = unit

    def _bags(self, x: Tensor) -> Tensor:
        """Which rows each member is trained on, `(E, n)`; every member keeps at least one.

        The row itself decides, so that a row a member was not trained on is never given to it by
        a later update: the residuals that calibrate the spread stay held out.
        """
        direction = torch.randn(x.shape[1], 1, generator=torch.Generator().manual_seed(1))
        mark = (x.double() @ direction.double())[:, 0].mul(1e4)
        odd = torch.arange(1, self.members + 1, dtype=torch.float64).mul(0.6180339887498949)
        mask = ((mark[None] * odd[:, None]).remainder(1.0) < self.bag).float()
        mask[mask.sum(1) == 0] = 1.0
        return mask

    def _train(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor,
        steps: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        row_weight: Tensor,
    ) -> None:
        u = (y - self.centre) / self.unit
        parameters = [*self.weights, *self.biases]
        for parameter in parameters:
            parameter.requires_grad_(True)
        groups = [
            {"params": self.weights, "weight_decay": weight_decay},
            {"params": self.biases, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
        n = len(u)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(steps):
            if len(order) < min(batch_size, n):
                order = torch.cat([order, torch.randperm(n, generator=self.generator)])
            chosen, order = order[: min(batch_size, n)], order[min(batch_size, n) :]
            rate = learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            error = self._forward(x[chosen]) - u[chosen]
            # Huber: a handful of collapsed networks must not outweigh all others
            loss = torch.where(error.abs() < 2, error.square(), 4 * error.abs() - 4)
            share = mask[:, chosen] * row_weight[chosen]
            total = (loss * share).sum(1) / share.sum(1).clamp_min(1e-6)
            optimizer.zero_grad(set_to_none=True)
            total.sum().backward()
            optimizer.step()
        for parameter in parameters:
            parameter.requires_grad_(False)

    @torch.no_grad()
    def _calibrate(self, x: Tensor, y: Tensor, mask: Tensor) -> None:
        """Sets gain and floor of the spread from the residuals of rows a member never saw."""
        u = (y - self.centre) / self.unit
        each = self._forward(x)
        unseen = 1 - mask
        count = unseen.sum(0)
        held = count > 0
        if not bool(held.any()):
            self.spread_gain, self.spread_floor = 1.0, _PRIOR_SPREAD**2
            return
        mean = (each * unseen).sum(0)[held] / count[held]
        squared = float((mean - u[held]).square().clamp_max(9.0).sum())
        rows = float(held.sum())
        residual = (squared + _PRIOR_ROWS * _PRIOR_SPREAD**2) / (rows + _PRIOR_ROWS)
        disagreement = float(each.var(0, correction=0).mean())
        self.spread_gain = min(1.0, residual / max(disagreement, 1e-12))
        self.spread_floor = max(residual - disagreement * self.spread_gain, 0.05 * residual)

    def copy(self) -> AccuracyPredictor:
        """A predictor with the same weights that is trained on its own."""
        return self.from_bytes(self.to_bytes())

    # ------------------------------------------------------------------ files

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"weight{i}": w.detach() for i, w in enumerate(self.weights)}
        tensors |= {f"bias{i}": b.detach() for i, b in enumerate(self.biases)}
        return tensors

    def _about(self) -> dict[str, object]:
        names = ("num_features", "architecture_features", "members", "hidden", "bag", "centre",
                 "unit", "spread_gain", "spread_floor")  # fmt: skip
        return {"kind": "predictor", **{name: getattr(self, name) for name in names}}

    @classmethod
    def _rebuild(
        cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any], origin: str
    ) -> AccuracyPredictor:
        try:
            predictor = cls(
                int(about["num_features"]),
                int(about["architecture_features"]),
                members=int(about["members"]),
                hidden=int(about["hidden"]),
                bag=float(about["bag"]),
            )
            for name in ("centre", "unit", "spread_gain", "spread_floor"):
                setattr(predictor, name, float(about[name]))
            for i in range(4):
                predictor.weights[i].copy_(tensors[f"weight{i}"])
                predictor.biases[i].copy_(tensors[f"bias{i}"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{origin} is not an accuracy predictor: {error}") from error
        return predictor

    def to_bytes(self, *, half: bool = False) -> bytes:
        """The predictor as safetensors bytes, its settings in the metadata.

        Args:
            half: Weights in half precision: half of the bytes, and predictions that differ by less
                than a thousandth of their spread.
        """
        tensors = self._tensors()
        if half:
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        packed: bytes = save(tensors, metadata={"about": json.dumps(self._about())})
        return packed

    @classmethod
    def from_bytes(cls, packed: bytes) -> AccuracyPredictor:
        """The inverse of `to_bytes`.

        Raises:
            CheckpointError: Not such bytes.
        """
        try:
            tensors = load(packed)
            length = int.from_bytes(packed[:8], "little")
            about = json.loads(json.loads(packed[8 : 8 + length])["__metadata__"]["about"])
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"not an accuracy predictor: {error}") from error
        return cls._rebuild(tensors, about, "the packed predictor")

    def save(self, path: str | Path) -> Path:
        """Writes `path` (safetensors) with a JSON sidecar."""
        write_checkpoint(Path(path), self._tensors(), self._about())
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> AccuracyPredictor:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: Missing, damaged, a pickle, or not a predictor.
        """
        tensors, about = read_checkpoint(Path(path))
        return cls._rebuild(tensors, about, str(path))


def _unit(y: Tensor) -> float:
    """Standard unit of targets: a robust spread, which a few collapsed networks do not set."""
    std = float(y.std(correction=0))
    deviation = 1.4826 * float((y - y.median()).abs().median())
    return max(min(max(deviation, std / 4), std), 1e-4)


def _checked(features: Floats, targets: Floats, width: int) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    y = torch.from_numpy(np.ascontiguousarray(targets, np.float32))
    if x.ndim != 2 or x.shape[1] != width or y.shape != (len(x),) or not len(y):
        raise InvalidArgumentError(
            f"features {tuple(x.shape)} and targets {tuple(y.shape)}: expected (n, {width}) "
            "and (n,) with n > 0"
        )
    if not bool(torch.isfinite(y).all()):
        raise InvalidArgumentError("targets hold NaN or infinite values; leave those rows out")
    return x, y
