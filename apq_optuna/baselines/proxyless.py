"""ProxylessNAS: architecture parameters learned by gradients (Cai et al., ICLR 2019).

A block's candidate operations are its kernels x channels. The paper's blocks can also be skipped,
each on its own; here a stage's depth is a prefix (a block is there if the depth reaches it), so
skipping is one choice a stage, among its depths, and what lies beyond the chosen one is skipped.

Notation:
    C, N    choices, one a block and one a stage; most candidates of a choice
    alpha   architecture parameters, `(C, N)`; p is their softmax, by choice
    g       binary gates of two sampled candidates of every choice, `(C, 2)`: one open, one shut
    F       costs of candidates, `(C, N)`; E is the expected cost of the network; T is the target

Where the paper trains weights and alpha in turns, the supernet holds trained weights of every path
already, and they are kept unless `ProxylessOptions.weight_steps` says otherwise. Equation numbers
are the paper's.
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna._memory import keep_buffers
from apq_optuna._progress import progress_bar
from apq_optuna.baselines.gates import TwoPaths, gate_gradient, step_within_pairs
from apq_optuna.baselines.parts import hold_out
from apq_optuna.baselines.paths import Paths, Picks, expected_cost
from apq_optuna.data import ImageData
from apq_optuna.errors import (
    CheckpointError,
    InfeasibleBudgetError,
    InvalidArgumentError,
    SpaceError,
)
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Subnet
from apq_optuna.supernet import OnceForAllNet
from apq_optuna.supernet.devices import resolve_device
from apq_optuna.supernet.modules import Supernet, check_data

BETAS = (0.0, 0.999)
"""Of Adam; without momentum a candidate moves only in steps that sampled or priced it."""

TARGET_UNITS = 100.0
"""What the target counts in the power loss. A ratio of logarithms depends on the unit; in this one
it is the same for every device and metric, and about the paper's for a phone (80 ms)."""

Report = Callable[[int, int, float, float], None]
"""Called with steps done, steps in all, the loss on labels, and the expected cost."""


@dataclass(frozen=True)
class ProxylessOptions:
    """How the architecture is searched; in brackets what the paper does, where it is otherwise.

    Attributes:
        steps: Architecture steps (one every 5 weight steps of the last 80 of 120 epochs).
        batch_size: Images a step (256).
        learning_rate: Of Adam for alpha (0.001; in so few steps that hardly leaves the start).
        held_out: Share of the training images that is for architecture steps alone. Weight steps
            keep off it; the training that the supernet came with may not have.
        widths: Channel choices of a block that are candidates, evenly spaced from the smallest to
            the largest; None is all (two expansions). Two candidates of a choice are compared a
            step, so few get compared often.
        loss: `added`: CE + latency_weight (E - T) / T; `power`: CE * power_scale
            (log E / log T)^power.
        latency_weight: The paper's lambda, 0.1 to 0.2.
        power_scale, power: The paper's alpha and beta.
        weight_steps: Weight steps before each architecture step (5). With any, the weights are
            trained on.
        warmup_steps: Weight steps before the first architecture step (those of 40 epochs).
        weight_rate: Of SGD for the weights, at its highest; falls as a cosine.
        weight_decay: Not applied to BatchNorm and biases.
        strict: Whether the result has to meet the target; else it is the most probable candidate
            of every choice, with a warning where that costs more.
        checkpoint_seconds: Time between checkpoints.
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 0.02
    held_out: float = 0.1
    widths: int | None = 3
    loss: Literal["added", "power"] = "added"
    latency_weight: float = 0.1
    power_scale: float = 0.2
    power: float = 0.3
    weight_steps: int = 0
    warmup_steps: int = 0
    weight_rate: float = 0.01
    weight_decay: float = 5e-5
    strict: bool = True
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        least = {
            "steps": 1, "batch_size": 2, "widths": 2, "latency_weight": 0, "weight_steps": 0,
            "warmup_steps": 0, "weight_decay": 0, "checkpoint_seconds": 0,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise InvalidArgumentError(f"{name}={value}: at least {low}, and finite")
        for name in ("learning_rate", "weight_rate", "power_scale", "power"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidArgumentError(f"{name}={getattr(self, name)}: must be positive")
        if not 0 < self.held_out < 1:
            raise InvalidArgumentError(f"held_out={self.held_out}: a share between 0 and 1")
        if self.loss not in ("added", "power"):
            raise InvalidArgumentError(f"loss={self.loss!r}: choose added or power")

    @property
    def trains_weights(self) -> bool:
        """Whether weights are trained on."""
        return self.weight_steps > 0 or self.warmup_steps > 0


def search_architecture(
    supernet: Supernet,
    data: ImageData,
    costs: CostTable,
    target: float,
    *,
    metric: str = "latency_ms",
    options: ProxylessOptions | None = None,
    path: str | Path | None = None,
    bits: int = 8,
    device: str = "auto",
    seed: int = 0,
    progress: bool = False,
    report: Report | None = None,
) -> Subnet:
    """The architecture that ProxylessNAS finds on a supernet, for one target.

    Alpha is learned on a part of the training images that is held out for it; neither the
    search-validation nor the test split is touched. BatchNorm normalises by the statistics of the
    batch, as a supernet's own mix all subnets. The search works on a copy: the supernet stays as
    it is, to the bit, and gets new weights at the end only where the options train them.

    Args:
        supernet: A trained once-for-all network.
        data: The images it was trained on.
        costs: Costs of the layers on the target device.
        target: What the network may cost, in the metric's unit (ms or mJ).
        metric: Which cost: one of `costs.metric_names`.
        options: How; see `ProxylessOptions`.
        path: Folder for `proxyless.safetensors`. A search that finds one of the same settings goes
            on from it, and ends as if it had never stopped; `strict` and `checkpoint_seconds` may
            be others.
        bits: Bit-width at which everything is priced, and of the result.
        device: `auto`, `cpu` or `cuda`.
        seed: Of the held-out part, alpha's start, and everything that is sampled.
        progress: Shows a bar with the loss, the expected cost and the time left.
        report: Called after each step; see `Report`.

    Returns:
        The network, `bits` wide everywhere that is searched.

    Raises:
        SpaceError: The supernet is not a once-for-all network, or has one architecture only.
        InvalidArgumentError: An argument has a value that is not allowed, or training diverged.
        InfeasibleBudgetError: The target is below the cheapest network.
        MissingCostError: The device has no cost for some candidate at `bits`.
        CostTableError: The table lacks layers of the space.
        DataError: The images do not fit the supernet.
        CheckpointError: The folder's checkpoint is damaged, or of other settings.
    """
    if not isinstance(supernet, OnceForAllNet):
        raise SpaceError(f"supernet: a {type(supernet).__name__} is not a OnceForAllNet")
    if isinstance(target, bool) or not 0 < target < math.inf:
        raise InvalidArgumentError(f"target={target!r}: must be positive and finite")
    options = options or ProxylessOptions()
    check_data(supernet, data)
    paths = Paths(supernet.space, costs, metric, bits, options.widths)
    cheapest = paths.cheapest()
    least = paths.cost(cheapest)
    if target < least:
        network = paths.subnet(cheapest)
        raise InfeasibleBudgetError(
            f"target={target}: the cheapest network, of depths {network.depths} and "
            f"{network.macs} MACs, takes {metric}={least:.6g} at {bits} bits; allow at least that"
        )
    keep_buffers()
    settings = {
        "space": supernet.space.architecture_hash,
        "weights": supernet.weights_hash,
        "data": [data.split_hash, data.augment],
        "costs": [costs.digest, metric, bits],
        "target": float(target),
        "seed": seed,
        "options": asdict(replace(options, strict=True, checkpoint_seconds=0.0)),
    }
    file = None if path is None else Path(path) / "proxyless.safetensors"
    search = _Search(
        supernet, data, paths, float(target), options, resolve_device(device), seed, file, settings
    )
    search.resume()
    with progress_bar(search.total, "proxyless", show=progress, unit="step") as bar:
        bar.update(search.done)

        def told(loss: float, expected: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}, {metric} {expected:.4g}", refresh=False)
            bar.update(search.done - bar.n)
            if report is not None:
                report(search.done, search.total, loss, expected)

        search.run(told)
    if options.trains_weights:
        supernet.load_state_dict(search.net.state_dict())
    return paths.subnet(search.chosen())


def total_loss(ce: Tensor, expected: Tensor, target: float, options: ProxylessOptions) -> Tensor:
    """What alpha minimises: the loss on labels and the expected cost, as one number."""
    if options.loss == "added":  # eq. 7, the cost as a share of the target
        return ce + options.latency_weight * (expected - target) / target
    # section 4.2: a cost far below the target, whose logarithm could be negative, is good enough
    counted = (expected * (TARGET_UNITS / target)).clamp(min=math.e)
    return ce * options.power_scale * (counted.log() / math.log(TARGET_UNITS)) ** options.power


class _Search:
    """State of one search."""

    def __init__(
        self, supernet: OnceForAllNet, data: ImageData, paths: Paths, target: float,
        options: ProxylessOptions, device: str, seed: int, file: Path | None,
        settings: dict[str, object],
    ) -> None:  # fmt: skip
        self.paths, self.target, self.options, self.device = paths, target, options, device
        self.file, self.fingerprint = file, json.dumps(settings, sort_keys=True)
        self.net = copy.deepcopy(supernet).to(device).train().requires_grad_(False)
        self.two_paths = TwoPaths(self.net, paths)
        self.generator = torch.Generator().manual_seed(seed)
        self.weight_images, self.alpha_images = hold_out(
            replace(data, train=data.train.on(device)), options.held_out, self.generator
        )
        self.mask = torch.from_numpy(paths.mask)
        start = torch.randn(self.mask.shape, generator=self.generator, dtype=torch.float64)
        self.alpha = nn.Parameter(start * 1e-3)
        self.adam = torch.optim.Adam([self.alpha], lr=options.learning_rate, betas=BETAS)
        named = list(self.net.named_parameters())
        plain = [p for name, p in named if p.ndim == 1 or ".transforms." in name]
        decayed = [p for name, p in named if p.ndim > 1 and ".transforms." not in name]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain}]
        groups[0]["weight_decay"] = options.weight_decay
        self.sgd = torch.optim.SGD(groups, lr=options.weight_rate, momentum=0.9, nesterov=True)
        self.total = options.warmup_steps + options.steps
        self.done = 0

    def run(self, report: Callable[[float, float], None]) -> None:
        """The steps that are left."""
        saved = time.perf_counter()
        loss, expected = math.nan, expected_cost(self.paths, self._log_p().exp()).item()
        while self.done < self.total:
            warming = self.done < self.options.warmup_steps
            for _ in range(1 if warming else self.options.weight_steps):
                loss = self._weight_step()
            if not warming:
                loss, expected = self._alpha_step()
            self.done += 1
            if time.perf_counter() - saved >= self.options.checkpoint_seconds:
                self._save()
                saved = time.perf_counter()
            report(loss, expected)
        self._save()

    def chosen(self) -> Picks:
        """The most probable candidates, `(C,)`; with `strict`, of architectures at the target."""
        log_p = self._log_p().detach().numpy()
        picks: Picks = log_p.argmax(axis=1)
        cost = self.paths.cost(picks)
        if cost <= self.target:
            return picks
        if self.options.strict:
            return self.paths.most_probable(log_p, self.target)
        warnings.warn(
            f"the most probable network takes {self.paths.metric}={cost:.6g}, more than the "
            f"target={self.target:.6g}: raise latency_weight or steps, or let strict=True pick",
            stacklevel=3,
        )
        return picks

    # ------------------------------------------------------------------ steps

    def _log_p(self) -> Tensor:
        """Logarithms of p, `(C, N)`."""
        return self.alpha.masked_fill(~self.mask, -math.inf).log_softmax(1)

    def _keys(self) -> Tensor:
        """Gumbel keys, `(C, N)`: the largest k of a row are k draws by p without replacement."""
        gumbel = -torch.empty_like(self.alpha).exponential_(generator=self.generator).log()
        return self._log_p().detach() + gumbel

    def _images(self, data: ImageData) -> tuple[Tensor, Tensor]:
        """A batch, drawn anew each time: no place in a pass has to be kept in a checkpoint."""
        size = self.options.batch_size
        return next(data.training_batches(size, self.generator, device=self.device, limit=1))

    def _weight_step(self) -> float:
        """SGD on one path, drawn by p (section 3.2: eq. 2)."""
        images, labels = self._images(self.weight_images)
        subnet = self.paths.subnet(self._keys().argmax(1).numpy())
        for group in self.sgd.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * self.done / self.total))
            group["lr"] = self.options.weight_rate * cosine
        self.net.requires_grad_(True)
        self.sgd.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.net(images, subnet), labels)
        loss.backward()
        self.sgd.step()
        self.net.requires_grad_(False)
        return self._finite(loss)

    def _alpha_step(self) -> tuple[float, float]:
        """Adam on alpha, by two sampled paths (section 3.2.1); (loss on labels, expected cost)."""
        images, labels = self._images(self.alpha_images)
        pairs = self._keys().topk(2, dim=1).indices
        p = self.alpha.detach().gather(1, pairs).softmax(1)  # as if there were no others
        swap = torch.rand(len(p), generator=self.generator, dtype=p.dtype) < p[:, 1]
        pairs, p = (torch.where(swap[:, None], t.flip(1), t) for t in (pairs, p))  # the open first
        logits, gates = self.two_paths(images, pairs)
        ce = F.cross_entropy(logits, labels)
        expected = expected_cost(self.paths, self._log_p().exp())
        self.adam.zero_grad(set_to_none=True)
        total_loss(ce.double().cpu(), expected, self.target, self.options).backward()
        assert self.alpha.grad is not None and gates.grad is not None
        self.alpha.grad.scatter_add_(1, pairs, gate_gradient(p, gates.grad.cpu().double()))
        step_within_pairs(self.alpha, self.adam, pairs)
        return self._finite(ce), expected.item()

    def _finite(self, loss: Tensor) -> float:
        number = loss.item()
        if not math.isfinite(number):
            raise InvalidArgumentError(
                f"weight_rate={self.options.weight_rate}: the loss on labels is {number} in step "
                f"{self.done + 1}; use a lower one, or a supernet that is trained"
            )
        return number

    # ------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        if self.file is None:
            return
        tensors = {"alpha": self.alpha, "generator": self.generator.get_state()}
        if state := self.adam.state.get(self.alpha):
            tensors |= {f"adam.{name}": value for name, value in state.items()}
        if self.options.trains_weights:
            tensors |= {f"net.{name}": value for name, value in self.net.state_dict().items()}
            for name, parameter in self.net.named_parameters():
                if (buffer := self.sgd.state[parameter].get("momentum_buffer")) is not None:
                    tensors[f"momentum.{name}"] = buffer
        about = {"kind": "proxyless", "fingerprint": self.fingerprint, "done": self.done}
        write_checkpoint(self.file, tensors, about)

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if self.file is None or not self.file.exists():
            return
        tensors, about = read_checkpoint(self.file)
        if about.get("fingerprint") != self.fingerprint:
            theirs = json.loads(about.get("fingerprint") or "{}")
            ours = json.loads(self.fingerprint)
            other = [name for name, value in ours.items() if theirs.get(name) != value]
            raise CheckpointError(
                f"{self.file} is of another search, which differs in {' and '.join(other)}; "
                "choose another folder, or remove it to start again"
            )
        with torch.no_grad():
            self.alpha.copy_(tensors["alpha"])
        self.generator.set_state(tensors["generator"])
        adam, weights = (
            {name[len(kind) :]: value for name, value in tensors.items() if name.startswith(kind)}
            for kind in ("adam.", "net.")
        )
        if adam:
            self.adam.state[self.alpha] = adam
        if weights:
            self.net.load_state_dict(weights)
        for name, parameter in self.net.named_parameters():
            if f"momentum.{name}" in tensors:
                buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                self.sgd.state[parameter]["momentum_buffer"] = buffer
        self.done = about["done"]
