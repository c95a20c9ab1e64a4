"""How good a sum of measured layers is as the latency of a whole network on this machine.

    python benchmarks/cpu_estimate.py [--preset cifar10] [--networks 40] [--between 60]

Measures the table of a space layer by layer, then random whole networks twice, with minutes
between. Reports the error and rank correlation of the sum, and of the sum corrected by k
measured networks: on the networks not used for it, over many draws of the k.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from _machine import describe
from scipy.stats import spearmanr

from apq_optuna.hardware import CPU, CostTable, fit_correction, random_networks
from apq_optuna.hardware.tables.calibrate import calibration_networks
from apq_optuna.space import SearchSpace

DRAWS = 500

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--preset", default="cifar10")
parser.add_argument("--bits", type=int, nargs="+", help="of the space, e.g. 32 for float")
parser.add_argument("--networks", type=int, default=40)
parser.add_argument("--between", type=float, default=60.0, help="seconds between the two runs")
parser.add_argument("--pause", type=float, default=10.0, help="seconds between rounds of a run")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--table", type=Path, help="a table measured before, instead of a new one")
parser.add_argument("--out", type=Path, help="JSON file of everything measured")
arguments = parser.parse_args()
describe()

space = SearchSpace.preset(arguments.preset, bits=arguments.bits)
device = CPU(threads=arguments.threads, pause_s=arguments.pause)
started = time.perf_counter()
if arguments.table:
    table = CostTable.load(arguments.table)
    if "correction" in table.provenance:
        parser.error(f"{arguments.table} is corrected already; build it with --networks 0")
else:
    table = device.table(space)
    print(
        f"table: {len(table.entries)} entries, {len({key[0] for key in table.entries})} layers, "
        f"in {time.perf_counter() - started:.0f} s"
    )
networks = random_networks(space, arguments.networks)
chosen = calibration_networks(table, space, 10)
summed, summed_chosen = (
    np.array([table.network_cost(network.layers())[0] for network in each])
    for each in (networks, chosen)
)
runs = []
for run in range(2):
    if run:
        time.sleep(arguments.between)
    begun = time.strftime("%H:%M:%S")
    found = device.measure([*networks, *chosen])
    runs.append(found)
    n = len(networks)
    y = np.array([each.latency_ms for each in found[:n]])
    spread = np.array([each.spread_ms for each in found[:n]])
    print(
        f"\nrun {run + 1} at {begun}: {n} random networks, {y.min():.4f} to {y.max():.4f} ms, "
        f"stated spread {np.mean(spread / y):.1%} on average"
    )
    error = np.abs(summed / y - 1)
    print(
        f"  sum of layers: mean error {error.mean():.1%}, largest {error.max():.1%}, rank "
        f"correlation {spearmanr(summed, y).statistic:.4f}"
    )
    rng = np.random.default_rng(0)
    for k in (3, 5, 10):
        errors, worst, ranks = [], [], []
        for _ in range(DRAWS):
            order = rng.permutation(n)
            used, rest = order[:k], order[k:]
            fixed = fit_correction(summed[used], y[used])
            left = np.abs(fixed(summed[rest]) / y[rest] - 1)
            errors.append(left.mean())
            worst.append(left.max())
            ranks.append(spearmanr(fixed(summed[rest]), y[rest]).statistic)
        print(
            f"  corrected by {k} random ones: mean error on the rest {np.median(errors):.1%} "
            f"(median of {DRAWS} draws; 95 % of draws below {np.quantile(errors, 0.95):.1%}), "
            f"largest {np.median(worst):.1%}, rank correlation {np.median(ranks):.4f}"
        )
    # as `apq-optuna hardware build` does it: k that are spread from cheap to dear
    apart = np.array([each.latency_ms for each in found[n:]])
    for k in (3, 5, 10):
        used = np.unique(np.linspace(0, 9, k).round().astype(int))
        fixed = fit_correction(summed_chosen[used], apart[used])
        left = np.abs(fixed(summed) / y - 1)
        print(
            f"  corrected by {k} spread ones: mean error on all {n} {left.mean():.1%}, largest "
            f"{left.max():.1%} (x{fixed.scale:.3f}, {fixed.overhead_ms:+.4f} ms)"
        )
first, second = (np.array([each.latency_ms for each in run[:n]]) for run in runs)
allowed = sum(np.array([each.spread_ms for each in run[:n]]) for run in runs)
apart = np.abs(first - second)
print(
    f"\nthe two runs: {np.mean(apart <= allowed):.0%} of the networks within both stated spreads; "
    f"mean difference {np.mean(apart / first):.1%}, largest {np.max(apart / first):.1%}, rank "
    f"correlation {spearmanr(first, second).statistic:.4f}"
)
if arguments.out:
    arguments.out.write_text(
        json.dumps(
            {
                "provenance": table.provenance,
                "summed_ms": summed.tolist(),
                "runs": [[each.rounds for each in run[:n]] for run in runs],
            }
        )
    )
