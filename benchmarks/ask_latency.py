"""Seconds per `study.ask(distributions)` against completed trials, beside the peers.

    python benchmarks/ask_latency.py [--trials 10 100 1000 5000] [--samplers ours TPE ...]

131 integer and categorical parameters (the paper's space) and three objectives to minimise, none
known. For each number of completed trials, a fresh process: the first ask of a new sampler is the
cold start, then the mean of several rounds of tell and ask. Ours takes as many rounds as reach its
next refit, so that the mean in memory has one in it; on SQLite 30. `ours, costs` knows latency and
energy from the table, as in the main job. Peak memory is the process's.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import sqlite3
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import create_trial

import apq_optuna as apq
from apq_optuna.sampler.process import GROWTH

SAMPLERS = ("ours", "ours, costs", "random", "NSGA-II", "TPE", "TPE multivariate", "GPSampler")


def made(name: str, space: apq.SearchSpace) -> optuna.samplers.BaseSampler:
    """A sampler by its name."""
    if name == "ours, costs":
        costs = apq.hardware.bitfusion().table(space)
        return apq.APQSampler(space, costs=costs, seed=0)
    return {
        "ours": lambda: apq.APQSampler(seed=0),
        "random": lambda: optuna.samplers.RandomSampler(seed=0),
        "NSGA-II": lambda: optuna.samplers.NSGAIISampler(seed=0),
        "TPE": lambda: optuna.samplers.TPESampler(seed=0),
        "TPE multivariate": lambda: optuna.samplers.TPESampler(seed=0, multivariate=True),
        "GPSampler": lambda: optuna.samplers.GPSampler(seed=0),
    }[name]()


def values(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Three smooth objectives, `(n, 3)`."""
    return np.asarray(np.tanh(features @ weights))


def fill(path: str, indices: np.ndarray, outcomes: np.ndarray) -> None:
    """Completed trials like the file's one, written in one transaction into Optuna's tables.

    Args:
        indices: `(t, d)` indices of the choices, in the order of the stored trial's parameters.
        outcomes: `(t, m)` values.

    Optuna's `add_trials` takes a transaction a trial and a query a parameter: minutes for 5,000.
    """
    with sqlite3.connect(path) as database:
        told = database.execute(
            "SELECT study_id, state, datetime_start, datetime_complete FROM trials"
        ).fetchone()
        parameters = database.execute(
            "SELECT param_name, distribution_json FROM trial_params ORDER BY param_id"
        ).fetchall()
        database.executemany(
            "INSERT INTO trials (trial_id, number, study_id, state, datetime_start, "
            "datetime_complete) VALUES (?, ?, ?, ?, ?, ?)",
            ((number + 1, number, *told) for number in range(1, len(indices) + 1)),
        )
        database.executemany(
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
            "VALUES (?, ?, ?, ?)",
            (
                (trial, name, float(index), distribution)
                for trial, row in enumerate(indices, start=2)
                for (name, distribution), index in zip(parameters, row, strict=True)
            ),
        )
        database.executemany(
            "INSERT INTO trial_values (trial_id, objective, value, value_type) "
            "VALUES (?, ?, ?, 'FINITE')",
            (
                (trial, objective, float(value))
                for trial, row in enumerate(outcomes, start=2)
                for objective, value in enumerate(row)
            ),
        )


def measure(job: tuple[str, int, bool, int]) -> dict[str, object]:
    """One sampler at one number of trials, in a process of its own."""
    name, count, sqlite, rounds = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = apq.SearchSpace.preset("imagenet")
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, (space.num_features, 3))
    distributions = space.distributions()
    # every parameter is there in every trial, as the peers need it
    raw = (rng.random((count, len(space.decisions))) * space.sizes).astype(np.int32)
    features = space.features(space.canonical(raw))
    with tempfile.TemporaryDirectory() as folder:
        storage = apq.open_storage(f"sqlite:///{folder}/apq.db") if sqlite else None
        directions = ["minimize"] * 3
        if name == "ours, costs":
            directions = ["maximize", "minimize", "minimize"]
        study = optuna.create_study(
            storage=storage, directions=directions, sampler=made(name, space)
        )
        outcomes = values(features, weights)
        kept = 1 if sqlite else count
        study.add_trials(
            [
                create_trial(
                    params={
                        d.name: d.choices[i] for d, i in zip(space.decisions, row, strict=True)
                    },
                    distributions=distributions,
                    values=[float(value) for value in outcome],
                )
                for row, outcome in zip(raw[:kept], outcomes[:kept], strict=True)
            ]
        )
        if sqlite:
            fill(f"{folder}/apq.db", raw[1:], outcomes[1:])
        started = time.perf_counter()
        trial = study.ask(distributions)
        cold = time.perf_counter() - started
        spent = []
        for _ in range(rounds):
            row = space.from_params(trial.params)
            study.tell(trial, values(space.features(row[None]), weights)[0].tolist())
            started = time.perf_counter()
            trial = study.ask(distributions)
            spent.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "sampler": name, "trials": count, "storage": "SQLite" if sqlite else "memory",
        "cold_s": round(cold, 4), "mean_s": round(float(np.mean(spent)), 4),
        "largest_s": round(max(spent), 4), "rounds": rounds, "peak_mib": round(peak),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000, 5000])
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--rounds", type=int, default=30, help="rounds of ours; peers take 10")
    parser.add_argument("--sqlite", action="store_true", help="also on a SQLite file")
    parser.add_argument("--limit", type=float, default=300, help="seconds a measurement may take")
    parser.add_argument("--out", type=Path, default=Path("runs/ask_latency.json"))
    arguments = parser.parse_args()
    from _machine import describe

    describe()
    print("sampler            trials  storage    cold s    mean s   largest  peak MiB")
    found = []
    context = multiprocessing.get_context("spawn")
    for name in arguments.samplers:
        for count in arguments.trials:
            for sqlite in (False, True) if arguments.sqlite else (False,):
                rounds = arguments.rounds if "ours" in name else 10
                if "ours" in name and not sqlite:
                    rounds = max(rounds, math.ceil((GROWTH - 1) * count) + 1)
                with context.Pool(1) as pool:
                    waiting = pool.apply_async(measure, ((name, count, sqlite, rounds),))
                    try:
                        r = waiting.get(arguments.limit)
                    except multiprocessing.TimeoutError:
                        print(f"{name:17s} {count:7d}  stopped after {arguments.limit:.0f} s")
                        continue
                    except Exception as error:  # a peer's own failure is a result, too
                        print(f"{name:17s} {count:7d}  failed: {type(error).__name__} {error}")
                        continue
                found.append(r)
                print(
                    f"{name:17s} {count:7d}  {r['storage']:7s} {r['cold_s']:8.3f}  "
                    f"{r['mean_s']:8.4f}  {r['largest_s']:8.3f}  {r['peak_mib']:8d}",
                    flush=True,
                )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
