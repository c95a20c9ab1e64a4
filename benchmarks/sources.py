"""What an earlier study of other images is worth: hypervolume against trials, with it and without.

    python benchmarks/sources.py [--seeds 6] [--trials 100] [--workers 2]

Six operations of five kinds each (15,625 networks), as in cell-based benchmarks. Accuracy is a
sum over operations and neighbouring pairs, seen through each data set's own scale: 0.8 to 0.9 in
the earlier study, 0.2 to 0.46 here, and 0.9 alike in order. The earlier study has 150 random
trials. `known` tells the sampler the costs; else it predicts them, too. Values are shares of the
best hypervolume there is, medians over seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import warnings
from itertools import product

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

import apq_optuna as apq
from apq_optuna.search import hypervolume

EDGES, KINDS = 6, 5
MARKS = (5, 10, 20, 30, 50, 100)
NAMES = [f"edge{i}" for i in range(EDGES)]
SOURCES = ("none", "related", "monotone", "negated", "shuffled", "related and shuffled")
ALL = np.array(list(product(range(KINDS), repeat=EDGES)))


def qualities(seed: int) -> np.ndarray:
    """What operations and pairs of neighbours are worth, of every network, in standard units."""
    rng = np.random.default_rng(seed)
    single = rng.normal(0, 1.0, (EDGES, KINDS)) + np.array([-1.5, -0.7, 0.0, 0.5, 0.6])
    pair = rng.normal(0, 0.5, (EDGES - 1, KINDS, KINDS))
    value = sum(single[e, ALL[:, e]] for e in range(EDGES))
    value = value + sum(pair[e, ALL[:, e], ALL[:, e + 1]] for e in range(EDGES - 1))
    return (value - value.mean()) / value.std()


def tables(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy in the earlier study, accuracy and cost here, of every network."""
    q, other = qualities(seed), qualities(seed + 1000)
    there = 0.8 + 0.1 / (1 + np.exp(-1.5 * q))
    here = 0.2 + 0.26 / (1 + np.exp(-(0.9 * q + 0.19**0.5 * other)))
    per_kind = np.array([0.0, 0.2, 1.0, 2.0, 4.0])
    noise = np.random.default_rng(seed + 7).uniform(0.98, 1.02, len(ALL))
    return there, here, per_kind[ALL].sum(axis=1) * noise


def number(params: dict[str, int]) -> int:
    """Row of a network in the tables."""
    return int(sum(params[name] * KINDS ** (EDGES - 1 - i) for i, name in enumerate(NAMES)))


def earlier(values: np.ndarray, costs: np.ndarray, rng: np.random.Generator) -> optuna.Study:
    """A study of 150 random networks with these accuracies and costs."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    space = dict.fromkeys(NAMES, CategoricalDistribution(tuple(range(KINDS))))
    for row in rng.choice(len(ALL), 150, replace=False):
        params = dict(zip(NAMES, ALL[row].tolist(), strict=True))
        study.add_trial(
            create_trial(params=params, distributions=space, values=[values[row], costs[row]])
        )
    return study


def sources_of(
    kind: str, there: np.ndarray, here: np.ndarray, cost: np.ndarray, seed: int
) -> list[optuna.Study]:
    """Earlier studies of a kind."""
    rng = np.random.default_rng(seed + 99)
    shuffled = rng.permutation(there)
    made = {
        "none": [],
        "related": [(there, cost)],
        "monotone": [(np.exp(20.0 * here), cost**3)],
        "negated": [(-here, -cost)],
        "shuffled": [(shuffled, rng.permutation(cost))],
        "related and shuffled": [(there, cost), (shuffled, rng.permutation(cost))],
    }
    return [earlier(*values, rng) for values in made[kind]]


def run(job: tuple[str, bool, int, int]) -> tuple[str, bool, list[float]]:
    """Shares of the best hypervolume at the marks."""
    kind, known, seed, trials = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    there, here, cost = tables(seed)
    place = KINDS ** np.arange(EDGES - 1, -1, -1)

    def costs(params: dict[str, np.ndarray]) -> np.ndarray:
        return cost[sum(params[name] * place[i] for i, name in enumerate(NAMES))]

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        row = number({name: trial.suggest_categorical(name, range(KINDS)) for name in NAMES})
        return float(here[row]), float(cost[row])

    sampler = apq.APQSampler(
        source=sources_of(kind, there, here, cost, seed), known={1: costs} if known else None,
        seed=seed,
    )  # fmt: skip
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=trials)
    corner = np.array([-0.2, cost.max()])
    best = hypervolume(np.column_stack([-here, cost]), corner)
    values = np.array([trial.values for trial in study.trials]) * [-1, 1]
    return kind, known, [hypervolume(values[:m], corner) / best for m in MARKS if m <= trials]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--costs", nargs="+", default=["known", "predicted"])
    parser.add_argument("--sources", nargs="+", default=SOURCES, choices=SOURCES)
    arguments = parser.parse_args()
    jobs = [
        (kind, known == "known", seed, arguments.trials)
        for known in arguments.costs
        for kind in arguments.sources
        for seed in range(arguments.seeds)
    ]
    found: dict[tuple[bool, str], list[list[float]]] = {}
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for kind, known, shares in pool.imap(run, jobs):
            found.setdefault((known, kind), []).append(shares)
    marks = [mark for mark in MARKS if mark <= arguments.trials]
    print(f"| costs | source | {' | '.join(map(str, marks))} |\n|{'---|' * (len(marks) + 2)}")
    for (known, kind), shares in found.items():
        middle = " | ".join(f"{value:.3f}" for value in np.median(shares, axis=0))
        print(f"| {'known' if known else 'predicted'} | {kind} | {middle} |")
    print(json.dumps({f"{k} {kind}": np.median(s, 0).tolist() for (k, kind), s in found.items()}))


if __name__ == "__main__":
    main()
