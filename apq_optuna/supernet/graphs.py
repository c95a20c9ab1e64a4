"""Training passes of subnets recorded once and replayed, so that a GPU waits for no launches.

A pass of a small network is a thousand small kernels, which take longer to launch than to run. A
recorded pass is launched as one. Recording takes as long as some dozen passes, so random subnets
come from a pool that is renewed one at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

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
        foreign: Whether the network is somebody's own code, which may do what no record holds.

    Raises:
        RuntimeError: The network waits for the GPU within a pass, so that it cannot be recorded.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Loss,
        warm_up: Sequence[Subnet | None],
        rng: np.random.Generator,
        *,
        foreign: bool = False,
    ) -> None:
        self.net, self.loss, self.rng = net, loss, rng
        self.fixed: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.pool: list[torch.cuda.CUDAGraph] = []
        self.drawn = 0
        self.stream = torch.cuda.Stream()
        self.memory = torch.cuda.graph_pool_handle()
        for parameter in net.parameters():
            parameter.grad = None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for turn in range(WARM_UP):
                for subnet in warm_up:
                    with _refusing_waits(foreign and turn == WARM_UP - 1):
                        self.loss(subnet).backward()
        torch.cuda.current_stream().wait_stream(self.stream)
        for parameter in net.parameters():
            if parameter.grad is not None:  # what is not used stays without
                parameter.grad = torch.zeros_like(parameter)

    def run(self, subnet: Subnet | None, name: Hashable = None) -> None:
        """A pass of a subnet that comes again and again.

        Args:
            subnet: The subnet.
            name: Of subnets whose passes are the same, with other numbers in the same tensors.
        """
        key = name or subnet
        if key not in self.fixed:
            self.fixed[key] = self._record(subnet)
        self.fixed[key].replay()

    def follows(self, subnet: Subnet | None, name: Hashable = None) -> bool:
        """Whether a record of `run` gives the gradients that the pass itself gives now."""
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        found = []
        for run in (lambda: self.run(subnet, name), lambda: self.loss(subnet).backward()):
            for gradient in gradients:
                gradient.zero_()
            run()
            found.append(torch.cat([gradient.flatten() for gradient in gradients]))
        replayed, computed = found
        return bool((replayed - computed).norm() <= 0.05 * computed.norm())

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
            try:
                self.loss(subnet).backward()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph


@contextmanager
def _refusing_waits(refuse: bool) -> Iterator[None]:
    """Where asked for, whatever makes the processor wait for the GPU is an error."""
    if not refuse:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is new
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
