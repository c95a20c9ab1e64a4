"""The passes of one training step: the largest network, the smallest, and random ones between.

The largest learns labels and, without a teacher, tells the others what it says of the same images
(the sandwich rule and in-place distillation of Yu et al., ECCV 2020). On a GPU passes are recorded
once and replayed (`graphs`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apq_optuna.networks import MobileSubnet, Subnet
from apq_optuna.supernet.graphs import PassRecorder
from apq_optuna.supernet.modules import Supernet
from apq_optuna.supernet.network import OnceForAllNet
from apq_optuna.supernet.plan import TrainingPlan
from apq_optuna.supernet.pretrained.net import PretrainedNet

_ELASTIC = {
    "largest": (), "kernel": ("kernel",), "depth": ("kernel", "depth"),
    "channels": ("kernel", "depth", "channels"),
}  # fmt: skip


class Passes:
    """Adds up the gradients of a supernet's networks.

    Args:
        net: The supernet, on `device`.
        plan: Of which the random networks a step and the label smoothing are used.
        rng: Draws the random networks.
        device: `cpu` or a GPU.
        half: Whether activations are bfloat16 (autocast).
        taught: Whether a teacher from outside tells all of them what to say.
    """

    def __init__(
        self,
        net: Supernet,
        plan: TrainingPlan,
        rng: np.random.Generator,
        device: str = "cpu",
        *,
        half: bool = False,
        taught: bool = False,
    ) -> None:
        self.net, self.plan, self.rng, self.device = net, plan, rng, device
        self.half, self.taught = half, taught
        self.gpu = device.startswith("cuda")
        self.recorder: PassRecorder | None = None
        self.recorded = ""
        self.refused = self.trusted = False  # whether a traced model's records are no good, or are
        self.value = self.told = torch.zeros(())

    def add_up(
        self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, phase: str
    ) -> None:
        """Leaves the gradients of a step in the parameters, and the largest network's loss in
        `value`.

        Args:
            optimizer: Whose gradients they are.
            images: `(B, C, H, W)`.
            labels: Classes `(B,)`, or probabilities `(B, num_classes)`.
            phase: What is elastic: `largest`, `kernel`, `depth` or `channels`.
        """
        if self.gpu and isinstance(self.net, OnceForAllNet):
            self._recorded(self.net, optimizer, images, labels, phase)
        elif not (self.gpu and self._replayed(optimizer, images, labels)):
            optimizer.zero_grad(set_to_none=True)
            self.images, self.labels = images, labels
            self.loss(None).backward()
            for subnet in self.sandwich(phase) if phase != "largest" else ():
                self.loss(subnet).backward()

    def loss(self, subnet: Subnet | None) -> Tensor:
        """Of the largest network on labels, which then teaches; of others on what it says.

        A teacher from outside tells all of them.
        """
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.half):
            logits = self.net(self.images, subnet)
        logits = logits.float()
        if subnet is not None:
            return F.cross_entropy(logits, self.labels if self.taught else self.told)
        smoothing = 0.0 if self.taught else self.plan.label_smoothing
        loss = F.cross_entropy(logits, self.labels, label_smoothing=smoothing)
        self.value, self.told = loss.detach(), logits.detach().softmax(1)
        return loss

    def sandwich(self, phase: str, random: int | None = None) -> list[Subnet]:
        """The smallest network of a phase and random ones, choices not yet open at the largest."""
        space = self.net.space
        rows = np.concatenate(
            [
                space.extreme(largest=False),
                space.sample(self.plan.random_subnets if random is None else random, self.rng),
            ]
        )
        largest = space.extreme(largest=True)[0]
        for column, decision in enumerate(space.decisions):
            if decision.role not in _ELASTIC[phase]:
                rows[:, column] = largest[column]
        return [space.decode(row) for row in space.canonical(rows)]

    def _recorded(
        self,
        net: OnceForAllNet,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        phase: str,
    ) -> None:
        """The passes of a step by replay; the batch goes where they read it."""
        if self.recorder is None:
            self.images, self.labels = images.clone(), labels.clone()
            kernels = sorted({k for stage in net.spec.stages for k in stage.kernels})
            every = [None, *(_with_kernels(net.largest, kernel) for kernel in kernels)]
            self.recorder = PassRecorder(net, self.loss, every, self.rng)
        if self.recorded != phase:
            self.recorder.forget()
            self.recorded = phase
            self.smallest = self.sandwich(phase, 0)[0]
        self.images.copy_(images)
        self.labels.copy_(labels)
        optimizer.zero_grad(set_to_none=False)
        self.recorder.run(None)
        if phase == "largest":
            return
        self.recorder.run(self.smallest)
        for _ in range(self.plan.random_subnets):
            self.recorder.run_random(lambda: self.sandwich(phase, 1)[1])

    def _replayed(self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> bool:
        """The passes of a step of a traced model by two records, if it has any.

        One is of the largest network and one of all others, which are the same layers with other
        zeros. Somebody's own layers may do what cannot be recorded, or be recorded wrongly: they
        are refused, or told from the second step's gradients.
        """
        if not isinstance(self.net, PretrainedNet) or not self.net.masked or self.refused:
            return False
        subnets = self.sandwich("channels")
        first = self.recorder is None
        try:
            if self.recorder is None:
                self.images, self.labels = images.clone(), labels.clone()
                self.recorder = PassRecorder(
                    self.net, self.loss, [None, subnets[0]], self.rng, foreign=True
                )
            self.images.copy_(images)
            self.labels.copy_(labels)
            if not first and not self.trusted:
                self.net.choose(subnets[-1], self.device)
                told = self.value, self.told  # which the records write
                self.refused = not (
                    self.recorder.follows(None) and self.recorder.follows(subnets[-1], "smaller")
                )
                self.value, self.told = told
                self.trusted = True
            if self.refused:
                self.recorder = None  # and the memory that it holds
                return False
            optimizer.zero_grad(set_to_none=False)
            self.recorder.run(None)
            for subnet in subnets:
                self.net.choose(subnet, self.device)
                self.recorder.run(subnet, "smaller")
        except RuntimeError as error:
            if not first or "out of memory" in str(error):
                raise
            self.refused = True
        return not self.refused


def _with_kernels(subnet: MobileSubnet, kernel: int) -> MobileSubnet:
    """A subnet with one kernel size wherever its family offers it."""
    stages = subnet.spec.stages
    blocks = (
        replace(b, kernel=kernel) if kernel in stages[b.stage].kernels else b
        for b in subnet.blocks
    )
    return replace(subnet, blocks=tuple(blocks))
