"""A trial: seconds by stage, beside another commit's package, and what its values differ by.

    python benchmarks/trial.py --supernet RUN                          # of `make quickstart`
    python benchmarks/trial.py --supernet cifar10 --data folder:DIR    # the packaged one
    python benchmarks/trial.py ... --against DIR

With `--against` both measure the same networks with the same seeds, by turns. Two versions that
round in another order differ as two seeds do, or by less: the mean difference of accuracy between
versions stands beside that between seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from _machine import describe
from before_after import by_turns, keep_buffers, table

import apq_optuna as apq
from apq_optuna import objective as module
from apq_optuna.supernet import OnceForAllNet

STAGES = ("fp32_network", "fold_network", "quantized_network", "finetune_quantized", "accuracy")


def measured(arguments: argparse.Namespace) -> tuple[dict[str, float], list[list[float]]]:
    """Mean seconds of a trial and of its stages, and accuracies by seed and network."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    net = OnceForAllNet.load(arguments.supernet)
    data = apq.load_data(arguments.data or str(net.data_info["name"]))
    options = apq.FinetuneOptions(steps=arguments.steps)
    objective = apq.Objective(net, data, None, finetune=options, images=arguments.images)
    rows = net.space.sample(arguments.networks, np.random.default_rng(0))
    subnets = [net.space.decode(row) for row in rows]
    objective.measure(subnets[0])
    spent = dict.fromkeys(("trial", *STAGES), 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name] += time.perf_counter() - started
            return result

        return call

    for name in STAGES:
        if hasattr(module, name):
            setattr(module, name, timed(name, getattr(module, name)))
    seed_of = module.genotype_seed
    values = []
    for seed in range(arguments.seeds):
        module.genotype_seed = lambda subnet, seed=seed: seed_of(subnet) + seed  # type: ignore
        measure = timed("trial", objective.measure)
        values.append([measure(subnet)[0] for subnet in subnets])
    count = arguments.seeds * len(subnets)
    return {name: seconds / count for name, seconds in spent.items()}, values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--supernet", default="runs/digits", metavar="RUN")
    parser.add_argument("--data", help="by default what the supernet was trained on")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--images", type=int, help="of search-validation; all by default")
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="with --against")
    parser.add_argument("--against", type=Path, metavar="DIR")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.json:
        keep_buffers()
        print(json.dumps(measured(arguments)))
        return
    describe()
    given = ["--supernet", arguments.supernet, "--steps", str(arguments.steps)]
    given += ["--networks", str(arguments.networks), "--seeds", str(arguments.seeds)]
    given += ["--data", arguments.data] if arguments.data else []
    given += ["--images", str(arguments.images)] if arguments.images else []
    if not arguments.against:
        keep_buffers()
        seconds, values = measured(arguments)
        for name, value in seconds.items():
            print(f"{name}: {value:.3f} s")
        print("accuracies", np.round(values, 4).tolist())
        return
    before, after = by_turns(__file__, given, arguments.against, arguments.rounds)
    print(table([r[0] for r in before], [r[0] for r in after]))
    old, new = np.array(before[0][1]), np.array(after[0][1])
    print(f"accuracy, mean: before {old.mean():.4f}, after {new.mean():.4f}")
    print(f"mean difference between versions, same seed: {np.abs(old - new).mean():.4f}")
    if len(old) > 1:
        of_seeds = np.abs(np.diff(old, axis=0)).mean(), np.abs(np.diff(new, axis=0)).mean()
        print(f"between seeds, same version: before {of_seeds[0]:.4f}, after {of_seeds[1]:.4f}")


if __name__ == "__main__":
    main()
