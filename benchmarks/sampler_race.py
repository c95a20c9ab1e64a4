"""Hypervolume against trials, and what asking costs, on the same evaluations for everyone.

    python benchmarks/sampler_race.py --problems digits --workers 2
    python benchmarks/sampler_race.py --problems zdt1 zdt2 zdt3 dtlz2 beam --workers 2
    python benchmarks/sampler_race.py --problems c2dtlz2 vessel dtlz2-4 drone --workers 2
    python benchmarks/sampler_race.py --problems zdt1 beam --samplers BoTorch SMAC
    python benchmarks/sampler_race.py --problems cifar10 --images folder:PATH --workers 2
    python benchmarks/sampler_race.py --summary       # table, JSON, pictures of what is there

Each run (problem, sampler, seed) is a file below `--out`; runs that are there are not repeated,
so a race goes on where it stopped. Finetuning is seeded by the network and its result is kept, so
every sampler sees the same value. Each run has one thread.

BoTorch and SMAC run only where `--samplers` names them (`pip install -e '.[peers]'`), BoTorch with
50 trials and 3 seeds. Problems with constraints need Optuna 5.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.samplers import BaseSampler
from race_peers import PEERS, Timed, check, defaults
from race_problems import NAMES, Problem, problem_of, threads

OURS = "ours"


class Job(NamedTuple):
    """One run; `trials` is None for the problem's."""

    problem: str
    sampler: str
    seed: int
    trials: int | None
    out: Path
    images: str | None


def run(problem: Problem, name: str, make: Callable[[int], BaseSampler], seed: int) -> dict:
    """One study: values and constraints in order of trials, and where its seconds went.

    `asking` is what the sampler took up to the end of each trial, `evaluating` the seconds in the
    objective without it.
    """
    sampler = Timed(make(seed))
    study = optuna.create_study(directions=problem.directions, sampler=sampler)
    if problem.metric_names:
        study.set_metric_names(problem.metric_names)
    spent, asking = 0.0, []

    def evaluate(trial: optuna.Trial) -> tuple[float, ...]:
        nonlocal spent
        started, before = time.perf_counter(), sampler.seconds
        values = problem.evaluate(trial)
        spent += time.perf_counter() - started - (sampler.seconds - before)
        return values

    def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        asking.append(round(sampler.seconds, 4))

    started = time.perf_counter()
    study.optimize(evaluate, n_trials=problem.trials, callbacks=[after])
    seconds = time.perf_counter() - started
    result = {
        "problem": problem.name, "sampler": name, "seed": seed,
        "directions": list(problem.directions), "reference": list(problem.reference),
        "ideal": list(problem.ideal), "values": [trial.values for trial in study.trials],
        "seconds": round(seconds, 2), "evaluating": round(spent, 2), "asking": asking,
    }  # fmt: skip
    if problem.constraints:
        result["constraints"] = [
            [trial.constraints[key] for key in problem.constraints] for trial in study.trials
        ]
    return result


def maker(problem: Problem, sampler: str) -> Callable[[int], BaseSampler]:
    """From a seed to a sampler of that name."""
    ours = {OURS: problem.make_ours, **problem.variants}
    if sampler in ours:
        return ours[sampler]
    if sampler not in PEERS:
        raise SystemExit(f"--samplers {sampler}: there are {', '.join([*PEERS, *ours])}")
    return lambda seed: PEERS[sampler].make(problem, seed)


def work(job: Job) -> str:
    """Runs one job in a process of its own and writes its file."""
    threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    problem = problem_of(job.problem, job.out, job.images)
    if job.trials is not None:
        problem = replace(problem, trials=job.trials)
    result = run(problem, job.sampler, maker(problem, job.sampler), job.seed)
    path = file_of(job.out, job.problem, job.sampler, job.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return f"{job.problem} {job.sampler} seed {job.seed}: {result['seconds']:.0f} s"


def file_of(out: Path, problem: str, sampler: str, seed: int) -> Path:
    """Where a run is kept."""
    return out / "runs" / f"{problem}-{sampler.replace(' ', '_').replace(',', '')}-{seed}.json"


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """The runs that are asked for and not there, seed by seed."""
    jobs = []
    for name in arguments.problems:
        problem = problem_of(name, arguments.out, arguments.images)  # also trains what is lacking
        samplers = arguments.samplers or [*defaults(name), OURS, *problem.variants]
        for sampler in samplers:
            maker(problem, sampler)
        for seed in arguments.seeds or range(problem.seeds):
            for sampler in samplers:
                peer = PEERS.get(sampler)
                if peer and peer.seeds and not arguments.seeds and seed >= peer.seeds:
                    continue
                trials = arguments.trials or (peer.trials if peer else None)
                there = file_of(arguments.out, name, sampler, seed).exists()
                if arguments.again or not there:
                    jobs.append(Job(name, sampler, seed, trials, arguments.out, arguments.images))
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", default=[], choices=NAMES)
    parser.add_argument("--samplers", nargs="+", help=f"of {[*PEERS, OURS]} and variants of ours")
    parser.add_argument("--seeds", type=int, nargs="+", help="by default the problem's 3 or 5")
    parser.add_argument("--trials", type=int, help="by default the problem's or the peer's")
    parser.add_argument("--images", help="folder:PATH, for cifar10 and own")
    parser.add_argument("--out", type=Path, default=Path("runs/race"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="repeat runs that are there")
    parser.add_argument("--summary", action="store_true", help="table, race.json and pictures")
    arguments = parser.parse_args()
    check(arguments.samplers or [])
    jobs = jobs_of(arguments)
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.workers, maxtasksperchild=1) as pool:
        for done, line in enumerate(pool.imap_unordered(work, jobs), 1):
            print(f"[{done}/{len(jobs)}] {line}", flush=True)
    if arguments.summary:
        from race_summary import summarise

        summarise(arguments.out)


if __name__ == "__main__":
    main()
