"""A training step of a supernet: seconds by kind of layer, beside the matrix product rate.

    python benchmarks/training.py [--preset cifar10] [--batch 128]
    python benchmarks/training.py --against DIR      # by turns with another commit's package

With `--against` the losses of the same steps are compared, too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _machine import describe
from before_after import by_turns, keep_buffers, table
from torch.profiler import ProfilerActivity, profile

import apq_optuna as apq
from apq_optuna.supernet import OnceForAllNet

KINDS = {
    "aten::native_batch_norm": "BatchNorm, forward",
    "aten::native_batch_norm_backward": "BatchNorm, backward",
    "aten::threshold_backward": "ReLU, backward",
    "aten::clamp_min_": "ReLU, forward",
}


class Steps:
    """Training steps of one network on random images."""

    def __init__(self, preset: str, batch: int) -> None:
        torch.manual_seed(0)
        space = apq.SearchSpace.preset(preset)
        self.net = OnceForAllNet(space).train()
        channels, size, _ = space.networks.input_shape
        images = torch.randn(batch, channels, size, size)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(space.networks.num_classes, (batch,))
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.02, 0.9, nesterov=True)
        largest = space.decode(space.extreme(largest=True)[0])
        smallest = space.decode(space.extreme(largest=False)[0])
        self.subnets = {"largest": largest, "smallest": smallest}

    def step(self, name: str) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.net(self.images, self.subnets[name]), self.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        return loss.item()


def measured(preset: str, batch: int, repeats: int) -> tuple[dict[str, float], list[float]]:
    """Median seconds a step of each network, and the losses of the largest one's first steps."""
    steps = Steps(preset, batch)
    seconds: dict[str, float] = {}
    losses: list[float] = []
    for name in steps.subnets:
        took = []
        for _ in range(repeats):
            started = time.perf_counter()
            losses.append(steps.step(name))
            took.append(time.perf_counter() - started)
        seconds[f"{name}, median"] = float(np.median(took))
        seconds[f"{name}, quickest"] = float(np.min(took))
    return seconds, losses


def by_kind(preset: str, batch: int, repeats: int) -> dict[str, float]:
    """Seconds a step of the largest network in each kind of layer."""
    steps = Steps(preset, batch)
    steps.step("largest")
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        for _ in range(repeats):
            steps.step("largest")
    found: dict[str, float] = {}
    for event in seen.key_averages(group_by_input_shape=True):
        kind = KINDS.get(event.key)
        shapes = [s for s in event.input_shapes if isinstance(s, (list, tuple)) and len(s) == 4]
        if event.key in ("aten::convolution_backward", "aten::mkldnn_convolution") and shapes:
            weight = shapes[-1]
            way = "backward" if event.key.endswith("backward") else "forward"
            if weight[1] == 1 and weight[0] >= 4096:
                kind = "depthwise weights, backward"  # images beside channels
            elif weight[1] == 1:
                kind = f"depthwise {weight[2]}x{weight[3]}, {way}"
            else:
                kind = f"{weight[2]}x{weight[3]}, {way}"
        if kind is None or event.self_cpu_time_total <= 0:
            kind = "all else"
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / repeats
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3, help="with --against")
    parser.add_argument("--against", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="seconds and losses as one line")
    arguments = parser.parse_args()
    if arguments.json:
        keep_buffers()
        print(json.dumps(measured(arguments.preset, arguments.batch, arguments.repeats)))
        return
    describe()
    if arguments.against:
        given = ["--preset", arguments.preset, "--batch", str(arguments.batch)]
        given += ["--repeats", str(arguments.repeats)]
        before, after = by_turns(__file__, given, arguments.against, arguments.rounds)
        print(table([r[0] for r in before], [r[0] for r in after]))
        apart = np.abs(np.array(before[0][1]) - np.array(after[0][1]))
        furthest = apart[: arguments.repeats].max()
        print(
            f"losses of {arguments.repeats} steps: {apart[0]:.1e} apart in the first, at most "
            f"{furthest:.1e}"
        )
        return
    keep_buffers()
    seconds, _ = measured(arguments.preset, arguments.batch, arguments.repeats)
    for name, value in seconds.items():
        print(f"{name}: {value:.3f} s a step of {arguments.batch} images")
    for kind, value in by_kind(arguments.preset, arguments.batch, 3).items():
        print(f"  {1e3 * value:7.1f} ms  {kind}")


if __name__ == "__main__":
    main()
