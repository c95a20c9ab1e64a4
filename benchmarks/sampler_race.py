"""Hypervolume against trials: random, NSGA-II, TPE, GPSampler and ours on the same evaluations.

    python benchmarks/sampler_race.py --problems digits --workers 2
    python benchmarks/sampler_race.py --problems zdt1 zdt2 zdt3 dtlz2 beam --workers 2
    python benchmarks/sampler_race.py --problems cifar10 --images folder:PATH --workers 2
    python benchmarks/sampler_race.py --summary          # table, JSON and picture of what is there

Each run (problem, sampler, seed) is a file below `--out`; runs that are there are not repeated,
so a race goes on where it stopped. Finetuning is seeded by the network and its result is kept, so
every sampler sees the same value. Each run has one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler
from race_problems import NAMES, Problem, problem_of, threads

PEERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "TPE multivariate": lambda seed: optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=True
    ),
    "GPSampler": lambda seed: optuna.samplers.GPSampler(seed=seed),
}
LEFT_OUT = {("cifar10", "GPSampler"), ("cifar10", "TPE multivariate")}
OURS = "ours"


def run(problem: Problem, name: str, make: Callable[[int], BaseSampler], seed: int) -> dict:
    """One study; its values in order of trials and the seconds that asking took."""
    study = optuna.create_study(directions=problem.directions, sampler=make(seed))
    if problem.metric_names:
        study.set_metric_names(problem.metric_names)
    spent = 0.0

    def evaluate(trial: optuna.Trial) -> tuple[float, ...]:
        nonlocal spent
        started = time.perf_counter()
        values = problem.evaluate(trial)
        spent += time.perf_counter() - started
        return values

    started = time.perf_counter()
    study.optimize(evaluate, n_trials=problem.trials)
    seconds = time.perf_counter() - started
    return {
        "problem": problem.name, "sampler": name, "seed": seed,
        "values": [trial.values for trial in study.trials],
        "seconds": round(seconds, 2), "evaluating": round(spent, 2),
    }  # fmt: skip


def work(job: tuple[str, str, int, Path, str | None]) -> str:
    """Runs one job in a process of its own and writes its file."""
    problem_name, sampler, seed, out, images = job
    threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    problem = problem_of(problem_name, out, images)
    variants = {OURS: problem.make_ours, **problem.variants}
    result = run(problem, sampler, {**PEERS, **variants}[sampler], seed)
    path = file_of(out, problem_name, sampler, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return f"{problem_name} {sampler} seed {seed}: {result['seconds']:.0f} s"


def file_of(out: Path, problem: str, sampler: str, seed: int) -> Path:
    """Where a run is kept."""
    return out / "runs" / f"{problem}-{sampler.replace(' ', '_').replace(',', '')}-{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", default=[], choices=NAMES)
    parser.add_argument("--samplers", nargs="+", help=f"of {[*PEERS, OURS]} and variants of ours")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default the problem's 3 or 5")
    parser.add_argument("--images", help="folder:PATH, for cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/race"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="repeat runs that are there")
    parser.add_argument("--summary", action="store_true", help="table, race.json and race.png")
    arguments = parser.parse_args()
    jobs = []
    for name in arguments.problems:
        problem = problem_of(name, arguments.out, arguments.images)  # also trains what is lacking
        for seed in arguments.seeds or range(problem.seeds):
            for sampler in arguments.samplers or [*PEERS, OURS, *problem.variants]:
                there = file_of(arguments.out, name, sampler, seed).exists()
                left_out = (name, sampler) in LEFT_OUT and not arguments.samplers
                if (arguments.again or not there) and not left_out:
                    jobs.append((name, sampler, seed, arguments.out, arguments.images))
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.workers, maxtasksperchild=1) as pool:
        for done, line in enumerate(pool.imap_unordered(work, jobs), 1):
            print(f"[{done}/{len(jobs)}] {line}", flush=True)
    if arguments.summary:
        from race_summary import summarise

        summarise(arguments.out)


if __name__ == "__main__":
    main()
