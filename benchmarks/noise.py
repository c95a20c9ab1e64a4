"""How much of a trial's accuracy is the network, and how much is its seed.

    python benchmarks/noise.py --supernet cifar10 --data folder:DIR --networks 12 --seeds 3
    python benchmarks/noise.py ... --variant "averaging=0" --variant "averaging=0.5,steps=30"

Each variant finetunes the same random networks with the same seeds. Of the table networks x seeds:
spread is the deviation over networks (of their means, less what seeds add to it), noise the
deviation over seeds of one network, and `one seed` what is left of it where every network has the
same seed, whose part that is common to all then cancels out. Ratios are to the spread: below, what
a perfect predictor would put in order. Goes on from `--out`.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from _machine import describe

import apq_optuna as apq
from apq_optuna import objective as module
from apq_optuna.supernet import OnceForAllNet

DEFAULT = [
    f"{variant},rates=by-width"
    for variant in ("averaging=0", "averaging=0.5", "averaging=0,learning_rate=0.0005")
]


def parsed(variant: str) -> apq.FinetuneOptions:
    """`name=value,...` as options; whole numbers stay whole."""
    kinds = {field.name: str(field.type) for field in fields(apq.FinetuneOptions)}
    values: dict[str, Any] = {"rates": "alike"}  # as what says nothing of it was measured
    for text in variant.split(","):
        name, _, value = text.partition("=")
        kind = str if kinds[name].startswith("str") else int if kinds[name] == "int" else float
        values[name] = kind(value)
    return apq.FinetuneOptions(**values)


def decomposed(table: np.ndarray) -> dict[str, float]:
    """Of `(networks, seeds)` accuracies: spread, noise, and noise where seeds are shared."""
    networks, seeds = table.shape
    own = table.var(axis=1, ddof=1).mean()
    spread = max(table.mean(axis=1).var(ddof=1) - own / seeds, 1e-12)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    shared = (rest**2).sum() / ((networks - 1) * (seeds - 1))
    ordered = []
    for a in range(seeds):
        for b in range(seeds):
            if a != b:
                x, y = table[:, a], table[:, b]
                pairs = np.triu_indices(networks, 1)
                dx, dy = x[pairs[0]] - x[pairs[1]], y[pairs[0]] - y[pairs[1]]
                ordered.append(np.mean((dx * dy > 0) + 0.5 * (dx * dy == 0)))
    return {
        "accuracy": float(table.mean()), "spread": float(spread**0.5),
        "noise": float(own**0.5), "one_seed": float(shared**0.5),
        "orders": float(np.mean(ordered)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--supernet", default="runs/digits", metavar="RUN")
    parser.add_argument("--data", help="by default what the supernet was trained on")
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int)
    parser.add_argument("--steps", type=int, default=20, help="where a variant says nothing")
    parser.add_argument("--variant", action="append", help="name=value,...; repeatable")
    parser.add_argument("--out", type=Path, help="JSON of all accuracies; gone on with")
    arguments = parser.parse_args()
    describe()
    net = OnceForAllNet.load(arguments.supernet)
    data = apq.load_data(arguments.data or str(net.data_info["name"]))
    rows = net.space.sample(arguments.networks, np.random.default_rng(4242))
    subnets = [net.space.decode(row) for row in rows]
    done: dict[str, dict[str, list[float]]] = {}
    if arguments.out and arguments.out.exists():
        done = json.loads(arguments.out.read_text())
    variants = [
        v if "steps=" in v else f"{v},steps={arguments.steps}"
        for v in arguments.variant or DEFAULT
    ]
    for seed in range(arguments.seeds):  # by turns, so that all are equally far when stopped
        module.genotype_seed = lambda subnet, seed=seed: 1000 + seed  # type: ignore
        for variant in variants:
            objective = apq.Objective(
                net, data, None, finetune=parsed(variant), images=arguments.images
            )
            measured = done.setdefault(variant, {})
            for k, subnet in enumerate(subnets):
                if f"{k},{seed}" not in measured:
                    started = time.perf_counter()
                    value = objective.measure(subnet)[0]
                    measured[f"{k},{seed}"] = [value, time.perf_counter() - started]
                    if arguments.out:
                        arguments.out.write_text(json.dumps(done))
    print(f"{'variant':<52} {'accuracy':>8} {'spread':>7} {'noise':>7} {'ratio':>6} "
          f"{'one seed':>8} {'ratio':>6} {'orders':>6} {'s':>6}")  # fmt: skip
    for variant in variants:
        cells = [
            [done[variant][f"{k},{s}"] for s in range(arguments.seeds)]
            for k in range(len(subnets))
        ]
        found = decomposed(np.array(cells)[:, :, 0])
        seconds = float(np.median(np.array(cells)[:, :, 1]))
        print(f"{variant:<52} {found['accuracy']:>8.4f} {found['spread']:>7.4f} "
              f"{found['noise']:>7.4f} {found['noise'] / found['spread']:>6.2f} "
              f"{found['one_seed']:>8.4f} {found['one_seed'] / found['spread']:>6.2f} "
              f"{found['orders']:>6.3f} {seconds:>6.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
