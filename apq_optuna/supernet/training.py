"""Supernet training: progressive shrinking with a sandwich step.

Phases open one choice after another: the largest network alone, then kernel sizes, then depths,
then channels (Cai et al., ICLR 2020). Once there is a choice, each step trains the largest
network on labels and, distilled from that step's own largest logits, the smallest network of the
phase and a random one (the sandwich rule and in-place distillation of Yu et al., ECCV 2020). One
cosine spans all phases.

With a teacher from outside, all of them learn what it says of the same images instead of labels
(Hinton et al., 2015); mixed images then have true answers too, so that small networks can be
trained for long without learning their images by heart (Beyer et al., CVPR 2022).

Progress is measured in epochs or, with `minutes`, in training time, so that a plan on an unknown
machine ends when it should. A checkpoint holds weights, momentum, generators and progress; a run
that finds one of the same space, data, seed, plan and teacher goes on from it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna._memory import keep_buffers
from apq_optuna._progress import progress_bar
from apq_optuna.data import ImageData, mixed_images, mixed_labels, usual_augment
from apq_optuna.errors import CheckpointError, InvalidArgumentError
from apq_optuna.supernet.devices import resolve_device, resolve_precision
from apq_optuna.supernet.modules import AUGMENTED, Supernet, check_data, hash_of, info_of
from apq_optuna.supernet.network import OnceForAllNet
from apq_optuna.supernet.passes import Passes
from apq_optuna.supernet.plan import TrainingPlan
from apq_optuna.supernet.teaching import prepared_teacher

Net = TypeVar("Net", bound=Supernet)

LOSS_EVERY = 20
"""Steps between two looks at the loss on a GPU, each of which waits for it."""


def train_supernet(
    net: Net,
    data: ImageData,
    plan: TrainingPlan,
    path: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    teacher: nn.Module | None = None,
    report: Callable[[float, str, float], None] | None = None,
    progress: bool = False,
) -> Net:
    """Trains a supernet, and goes on from the checkpoint in `path` if there is one.

    Every step is one of the largest network, of the smallest and of random ones, which the largest
    teaches unless there is a teacher (the sandwich rule, Yu and Huang, ICCV 2019). A model of
    one's own is finetuned so: all its networks at once, each nested in the larger ones.

    Args:
        net: A supernet; its weights are trained in place.
        data: The images; only `data.train` is used.
        plan: How long and how.
        path: Folder for `training.safetensors` while it runs and `supernet.safetensors` at the
            end.
        device: `auto`, `cpu` or `cuda`. On a GPU the images are kept there too.
        precision: Of activations: `float32`, `bfloat16` (autocast; weights and statistics stay
            float32), or `auto`, which is `bfloat16` on a GPU that has it.
        seed: Of order, augmentation and sampled subnets.
        teacher: A trained network, better than any of the supernet's, which takes the same images
            `(B, C, H, W)`, normalised as `data` is, and gives logits `(B, num_classes)`. It is not
            changed. Most of it comes of `TrainingPlan(mixed=...)`, which is none by default.
        report: Called after each step with progress in [0, 1], the phase, and the largest
            network's loss, which on a GPU is that of some steps before.
        progress: Shows a bar with the phase, the loss and the time left.

    Returns:
        `net`, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: The folder's checkpoint is damaged, or of another space, data, seed, plan
            or teacher.
        DataError: The images do not fit the space.
        InvalidArgumentError: The teacher does not fit the space; training diverged.
    """
    check_data(net, data)
    keep_buffers()
    device = resolve_device(device)
    half = resolve_precision(precision, device) == "bfloat16"
    kept = replace(data, train=data.train.on(device)) if device != "cpu" else data
    net.prepare_training(device)
    try:
        trainer = _Trainer(net.to(device), kept, plan, Path(path), device, half, seed, teacher)
        trainer.resume()
        with progress_bar(
            100, "train", show=progress, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        ) as bar:

            def told(done: float, phase: str, loss: float) -> None:
                bar.set_postfix_str(f"{phase}, loss {loss:.3f}", refresh=False)
                bar.update(100 * done - bar.n)
                if report is not None:
                    report(done, phase, loss)

            trainer.run(told)
    finally:
        net.prepare_training("cpu")
    net.to("cpu").eval()
    net.data_info = info_of(data)
    if trainer.augmented:
        net.data_info["statistics"] = AUGMENTED
    net.save(path)
    return net


class _Trainer:
    """State of one training run."""

    def __init__(
        self,
        net: Supernet,
        data: ImageData,
        plan: TrainingPlan,
        path: Path,
        device: str,
        half: bool = False,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        self.net, self.data, self.plan, self.device = net, data, plan, device
        self.half = half
        self.loss = 0.0
        self.teacher: nn.Module | None = None
        if teacher is not None:
            self.teacher = prepared_teacher(teacher, net.space, device)
        self.file = path / "training.safetensors"
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.passes = Passes(net, plan, self.rng, device, half=half, taught=teacher is not None)
        named = [
            (p.ndim > 1 and ".transforms." not in name, p) for name, p in net.named_parameters()
        ]
        decay, plain = ([p for decays, p in named if decays is kind] for kind in (True, False))
        groups: list[dict[str, Any]] = [
            {"params": decay, "weight_decay": plan.weight_decay},
            {"params": plain},
        ]
        fused = True if device.startswith("cuda") else None
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=fused)
        self.seconds = 0.0
        self.step = 0
        self.augmented = True  # see `Supernet.augmented_statistics`
        self.whole = True  # weights are those of a step, and not in between
        self.sorted = not isinstance(net, OnceForAllNet)  # those of other nets are in order
        images = data.split_hash
        if usual_augment(data.name) not in (None, data.augment):  # else as before it was named
            images += f" {data.augment}"
        learned: list[Any] = [net.space.architecture_hash, images, seed, plan.identity]
        if teacher is not None:
            learned.append(hash_of(teacher))
        self.fingerprint = json.dumps(learned, sort_keys=True)

    @property
    def progress(self) -> float:
        if self.plan.minutes is not None:
            return min(self.seconds / (60 * self.plan.minutes), 1.0)
        steps = max(1, len(self.data.train) // min(self.plan.batch_size, len(self.data.train)))
        return min(self.step / (steps * self.plan.epochs), 1.0)

    def run(self, report: Callable[[float, str, float], None]) -> None:
        started, saved = time.perf_counter() - self.seconds, time.perf_counter()
        self.net.train()
        batches = self._batches()
        try:
            while self.progress < 1.0:
                phase = self._phase()
                if phase == "channels" and not self.sorted:
                    self._sort_channels()
                images, labels = next(batches)
                loss = self._step(images, labels, phase)
                self.step += 1
                self.seconds = time.perf_counter() - started
                report(self.progress, phase, loss)
                if time.perf_counter() - saved > self.plan.checkpoint_seconds:
                    self._look_at_loss()
                    self._save()
                    saved = time.perf_counter()
        except KeyboardInterrupt:
            if self.step and self.whole and math.isfinite(self.passes.value.item()):
                self._save()
            raise
        if self.step:
            self._look_at_loss()
        self._save()

    def _phase(self) -> str:
        """What is elastic now; only a once-for-all network begins with less than everything."""
        once_for_all = isinstance(self.net, OnceForAllNet)
        return self.plan.phase(self.progress) if once_for_all else "channels"

    def _look_at_loss(self) -> None:
        """Ends training that diverged, before anything of it is saved."""
        self.loss = self.passes.value.item()
        if not math.isfinite(self.loss):
            raise InvalidArgumentError(
                f"learning_rate={self.plan.learning_rate}: training diverged at step {self.step}; "
                "use a lower one"
            )

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.plan.batch_size
        while True:
            yield from self.data.training_batches(size, self.generator, device=self.device)

    def _step(self, images: Tensor, labels: Tensor, phase: str) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.progress)
        images, labels = self._taught(images, labels)
        self.passes.add_up(self.optimizer, images, labels, phase)
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.whole = False
        self.optimizer.step()
        self.whole = True
        if self.device == "cpu" or self.step % LOSS_EVERY == 0:  # a GPU is not waited for
            self._look_at_loss()
        return self.loss

    @torch.no_grad()
    def _taught(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images, mixed if planned, and what is to be learned: classes or probabilities."""
        if self.plan.mixed:
            images, own = mixed_images(images, self.plan.mixed, self.generator)
            if self.teacher is None:
                labels = mixed_labels(labels, own, self.data.num_classes)
        if self.teacher is not None:
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
                labels = self.teacher(images.clone())  # which it may write into
            labels = labels.float().softmax(1)
        return images, labels

    def _sort_channels(self) -> None:
        """Orders expanded channels by importance, and the momentum with them."""
        assert isinstance(self.net, OnceForAllNet)
        self.whole = False
        for block in self.net.elastic_blocks():
            order = block.sort_channels()
            rows = (
                block.expand.weight, block.expand_norm.weight, block.expand_norm.bias,
                block.depthwise.weight, block.depthwise_norm.weight, block.depthwise_norm.bias,
            )  # fmt: skip
            for parameter in rows:
                self._reorder_momentum(parameter, order, axis=0)
            self._reorder_momentum(block.project.weight, order, axis=1)
        self.sorted = self.whole = True

    def _reorder_momentum(self, parameter: Tensor, order: Tensor, *, axis: int) -> None:
        buffer = self.optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            buffer.copy_(buffer.index_select(axis, order))

    def _save(self) -> None:
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        tensors["generator"] = self.generator.get_state()
        about = {
            "kind": "training",
            "fingerprint": self.fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "sorted": self.sorted,
            "statistics": AUGMENTED if self.augmented else "whole images",
            "rng": self.rng.bit_generator.state,
        }
        write_checkpoint(self.file, tensors, about)

    def resume(self) -> None:
        if not self.file.exists():
            return
        tensors, about = read_checkpoint(self.file)
        if about.get("fingerprint") != self.fingerprint:
            names = ("space", "data", "seed", "plan", "teacher")
            theirs = json.loads(str(about.get("fingerprint") or "[0, 0, 0, 0]"))
            ours = json.loads(self.fingerprint)
            pairs = zip_longest(theirs, ours)
            other = [
                name + (_changes(a, b) if name == "plan" else "")
                for name, (a, b) in zip(names, pairs, strict=False)
                if a != b
            ]
            raise CheckpointError(
                f"{self.file} is of another run (of another {' and '.join(other)}); "
                "choose another folder, or remove it to start again"
            )
        state = {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
        self.net.load_state_dict(state)
        for name, parameter in self.net.named_parameters():
            if f"momentum.{name}" in tensors:
                buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.generator.set_state(tensors["generator"])
        self.rng.bit_generator.state = about["rng"]
        self.augmented = about.get("statistics") == AUGMENTED  # else studies of it would change
        self.step, self.seconds, self.sorted = about["step"], about["seconds"], about["sorted"]


def _changes(theirs: Any, ours: Any) -> str:
    """What two plans differ in."""
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return ""
    found = [
        f"{name} {theirs.get(name, 0)}, now {ours.get(name, 0)}"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]
    return f": {'; '.join(found)}"
