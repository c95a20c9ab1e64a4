"""Training passes of subnets recorded once and replayed, so that a GPU waits for no launches.

A pass of a small network is a thousand small kernels, which take longer to launch than to run. A
recorded pass is launched as one. Recording takes as long as some dozen passes, so random subnets
come from a pool that is renewed one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from apq_optuna.networks import Subnet

POOL = 64
"""Random subnets that are kept recorded."""

RENEW_EVERY = 32
"""Steps between two renewals of one of the pool."""

WARM_UP = 2
"""Passes before the first recording, in which libraries prepare themselves."""

Loss = Callable[[Subnet | None], Tensor]


class PassRecorder:
    """Runs passes that add to the gradients of a network, by replay wherever there is a record.

    Args:
        net: The network; its gradients are kept in place from now on.
        loss: The loss of a subnet; None is the largest one. It may only read tensors that stay
            where they are.
        warm_up: Subnets that between them have every shape that has to be prepared.
        rng: Decides which of the pool is used.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        warm_up: Sequence[Subnet | None],
        rng: np.random.Generator,
    ) -> None:
        self.loss, self.rng = loss, rng
        self.fixed: dict[Subnet | None, torch.cuda.CUDAGraph] = {}
        self.pool: list[torch.cuda.CUDAGraph] = []
        self.drawn = 0
        self.stream = torch.cuda.Stream()
        self.memory = torch.cuda.graph_pool_handle()
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                for subnet in warm_up:
                    self.loss(subnet).backward()
        torch.cuda.current_stream().wait_stream(self.stream)

    def run(self, subnet: Subnet | None) -> None:
        """A pass of a subnet that comes again and again."""
        if subnet not in self.fixed:
            self.fixed[subnet] = self._record(subnet)
        self.fixed[subnet].replay()

    def run_random(self, draw: Callable[[], Subnet]) -> None:
        """A pass of a random subnet, a new one now and then and one of the pool otherwise."""
        self.drawn += 1
        if len(self.pool) < POOL:
            self.pool.append(self._record(draw()))
            self.pool[-1].replay()
            return
        place = int(self.rng.integers(POOL))
        if self.drawn % RENEW_EVERY == 0:
            torch.cuda.synchronize()
            self.pool[place] = self._record(draw())
        self.pool[place].replay()

    def forget(self) -> None:
        """Drops the pool, for subnets of another phase."""
        torch.cuda.synchronize()
        self.pool.clear()
        self.fixed = {subnet: graph for subnet, graph in self.fixed.items() if subnet is None}

    def _record(self, subnet: Subnet | None) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.memory)
            self.loss(subnet).backward()
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph
