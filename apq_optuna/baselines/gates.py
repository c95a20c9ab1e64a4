"""Two sampled paths of a once-for-all network at a time, behind gates that have gradients.

Notation:
    C   choices, one a block and one a stage
    g   gates, `(C, 2)`: of the two sampled candidates of every choice, the first open (1) and the
        second shut (0)
    o   candidates: a block's operations, or the depths of a stage

Equation numbers are those of Cai et al. (ICLR 2019).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from apq_optuna.baselines.paths import Paths
from apq_optuna.supernet import OnceForAllNet
from apq_optuna.supernet.elastic import ElasticBlock


def gate_gradient(p: Tensor, of_gates: Tensor) -> Tensor:
    """dL/dalpha of sampled candidates, from dL/dg; both and `p`, which sums to 1, are `(..., k)`.

    Eq. 4: dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i) = p_i (dL/dg_i - sum_j p_j dL/dg_j)
    """
    return p * (of_gates - (p * of_gates).sum(-1, keepdim=True))


@torch.no_grad()
def step_within_pairs(alpha: Tensor, optimizer: torch.optim.Optimizer, pairs: Tensor) -> None:
    """A step of alpha, `(C, N)`, after which each pair together has the share that it had.

    So the others keep their probability, as far as they have no gradient of their own: that of
    the expected cost, which needs no sampling, goes to all (section 3.2.1, and eq. 5).

    Args:
        alpha: The parameters.
        optimizer: Theirs.
        pairs: `(C, 2) int64`, the sampled candidates.
    """
    before = alpha.gather(1, pairs).logsumexp(1, keepdim=True)
    optimizer.step()
    moved = alpha.gather(1, pairs)
    alpha.scatter_(1, pairs, moved + before - moved.logsumexp(1, keepdim=True))


class TwoPaths:
    """Runs a supernet so that two candidates of every choice are compared (section 3.2.1).

    The supernet's own forward pass computes the open path; hooks behind its blocks compute the
    other candidates and put the gates in. A stage runs as deep as the deeper of its two depths.
    A choice that the open path does not use gets gradients of 0.

    Args:
        net: The supernet; it keeps the hooks, which do nothing in other passes.
        paths: Its choices.
    """

    def __init__(self, net: OnceForAllNet, paths: Paths) -> None:
        self.net, self.paths = net, paths
        for module in net.modules():
            if isinstance(module, ElasticBlock):
                module.register_forward_hook(self._mix)
        self._ends: dict[str, list[tuple[int, int]]] = {}
        for place, names in paths.ends.items():
            for depth, name in enumerate(names):
                self._ends.setdefault(name, []).append((place, depth))
        self._pairs: list[list[int]] | None = None
        self._gates = torch.zeros(0)
        self._short: dict[int, Tensor] = {}

    def __call__(self, images: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the open path, and the gates.

        Args:
            images: `(B, channels, H, W)`.
            pairs: `(C, 2) int64` candidates, the open one first; two that differ.

        Returns:
            `(B, num_classes)` logits, and `(C, 2)` gates, whose gradient the logits have.
        """
        self._pairs = pairs.tolist()
        self._gates = torch.eye(2, device=images.device)[0].repeat(len(pairs), 1)
        self._gates.requires_grad_()
        picks = pairs[:, 0].numpy().copy()
        for place in self.paths.ends:  # the deeper of two depths has the other in it
            picks[place] = max(self._pairs[place])
        try:
            logits = self.net(images, self.paths.subnet(picks))
        finally:
            self._pairs = None
        return logits, self._gates

    def _mix(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Eq. 3 behind every block: sum of g_i o_i(x) over the two candidates.

        What is behind a shut gate gets a gradient of 0, and so needs no graph.
        """
        pairs, gates = self._pairs, self._gates
        if pairs is None:
            return output
        x, given = inputs
        place = self.paths.place.get(given.name)
        if place is not None:
            kernel, channels = self.paths.operation(place, pairs[place][1])
            with torch.no_grad():
                shut = module.forward(x, replace(given, kernel=kernel, channels=channels))
            output = gates[place, 0] * output + gates[place, 1] * shut
        for place, depth in self._ends.get(given.name, ()):
            if depth == min(pairs[place]):
                self._short[place] = output
            elif depth == max(pairs[place]):
                short = self._short.pop(place)
                ways = (short, output) if pairs[place][0] < depth else (output, short)
                output = gates[place, 0] * ways[0] + gates[place, 1] * ways[1].detach()
        return output
