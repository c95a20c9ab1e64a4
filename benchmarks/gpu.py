"""Steps of supernet training on a GPU: the largest network alone, then the whole sandwich.

python benchmarks/gpu.py [--data digits] [--preset cifar10] [--batch 1024] [--steps 100]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from _machine import describe

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.supernet.training import _Trainer


def milliseconds(
    preset: str, data: ImageData, batch: int, phase: str, steps: int, half: bool
) -> float:
    """Of a step, all launches waited for; the recording of random subnets is part of it."""
    torch.manual_seed(0)
    net = apq.OnceForAllNet(apq.SearchSpace.preset(preset)).to("cuda").train()
    plan = apq.TrainingPlan(epochs=1000, batch_size=batch, random_subnets=2, learning_rate=0.05)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(net, data, plan, Path(folder), "cuda", half)
        batches = trainer._batches()
        for step in range(steps + 3):
            if step == 3:
                torch.cuda.synchronize()
                started = time.perf_counter()
            trainer._step(*next(batches), phase)
            trainer.step += 1
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps * 1e3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--data", default="digits", help="images of the preset's size")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    describe()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here")
    print(torch.cuda.get_device_name())
    images = apq.load_data(arguments.data).on("cuda")
    for half in (True, False):
        for phase in ("largest", "channels"):
            took = milliseconds(
                arguments.preset, images, arguments.batch, phase, arguments.steps, half
            )
            print(f"{'bfloat16' if half else 'float32'}, {phase}: {took:.1f} ms a step")
