"""What asking for several trials at a time costs: hypervolume beside asking for one at a time.

    python benchmarks/batches.py [--problems zdt1 beam] [--samplers ours TPE] [--workers 2]

A batch is `--size` times `study.ask`, all evaluated, then all told. Every run (problem, sampler,
size, seed) is a file below `--out`; runs that are there are not repeated. The table has medians
over seeds after 24, 48 and 96 trials, one at a time, in batches, and the ratio of the two; the
last lines are each sampler's mean ratio over problems and the least. With constraints a
share may be 0 one at a time: there is no ratio then, and the problem is not in the mean.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from race_peers import PEERS, check
from race_problems import SYNTHETIC, TUNING, Problem, problem_of, threads
from race_runs import curve
from sampler_race import OURS, maker

MARKS = (24, 48, 96)


class Job(NamedTuple):
    """One run."""

    problem: str
    sampler: str
    size: int
    seed: int
    trials: int
    out: Path

    @property
    def path(self) -> Path:
        """Where it is kept."""
        name = self.sampler.replace(" ", "_").replace(",", "")
        return self.out / "runs" / f"{self.problem}-{name}-{self.size}-{self.seed}.json"


class Held:
    """A trial whose constraints are set once its batch is told: nobody sees them before."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial, self.constraints = trial, dict[str, float]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def set_constraint(self, key: str, value: float) -> None:
        self.constraints[key] = value

    def release(self) -> None:
        """Sets what was held."""
        for key, value in self.constraints.items():
            self._trial.set_constraint(key, value)


def run(problem: Problem, sampler: optuna.samplers.BaseSampler, size: int, trials: int) -> dict:
    """Values and constraints of a study in which `size` trials are asked for at a time."""
    study = optuna.create_study(directions=problem.directions, sampler=sampler)
    started = time.perf_counter()
    while len(study.get_trials(deepcopy=False)) < trials:
        here = min(size, trials - len(study.get_trials(deepcopy=False)))
        asked = [Held(study.ask()) for _ in range(here)]
        # a trial is sampled when it first suggests something: all of them before any is told
        values = [problem.evaluate(held) for held in asked]  # type: ignore[arg-type]
        for held, value in zip(asked, values, strict=True):
            held.release()
            study.tell(held._trial, value)
    seconds = time.perf_counter() - started
    done = study.get_trials(deepcopy=False)
    result: dict[str, Any] = {"values": [t.values for t in done], "seconds": round(seconds, 2)}
    if problem.constraints:
        result["constraints"] = [[t.constraints[k] for k in problem.constraints] for t in done]
    return result


def work(job: Job) -> str:
    """Runs one job in a process of its own and writes its file."""
    threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    problem = problem_of(job.problem, job.out, None)
    result = run(problem, maker(problem, job.sampler)(job.seed), job.size, job.trials)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    job.path.write_text(json.dumps(result))
    return f"{job.problem} {job.sampler} by {job.size} seed {job.seed}: {result['seconds']:.0f} s"


def shares(job: Job) -> np.ndarray:
    """`(marks,)` shares of hypervolume of a run that is there, NaN beyond its end."""
    r = json.loads(job.path.read_text())
    line = curve(r["values"], job.problem, r.get("constraints"))
    return np.array([line[m - 1] if m <= len(line) else np.nan for m in MARKS])


def table(jobs: Sequence[Job], size: int) -> str:
    """Medians one at a time and in batches, and their ratio, in Markdown."""
    lines = [
        f"| problem | sampler | seeds | {' | '.join(map(str, MARKS))} | ratio at "
        f"{', '.join(map(str, MARKS))} |",
        "|" + "---|" * (len(MARKS) + 4),
    ]
    ratios: dict[str, list[np.ndarray]] = {}
    for problem, sampler in dict.fromkeys((job.problem, job.sampler) for job in jobs):
        mine = [job for job in jobs if (job.problem, job.sampler) == (problem, sampler)]
        each = {s: np.array([shares(j) for j in mine if j.size == s]) for s in (1, size)}
        single, batch = np.median(each[1], axis=0), np.median(each[size], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(single > 0, batch / single, np.nan)
        ratios.setdefault(sampler, []).append(ratio)
        pairs = zip(single, batch, strict=True)
        cells = ["" if np.isnan(a) else f"{a:.3f}, {b:.3f}" for a, b in pairs]
        shown = ", ".join("-" if np.isnan(r) else f"{r:.3f}" for r in ratio)
        lines.append(f"| {problem} | {sampler} | {len(each[1])} | {' | '.join(cells)} | {shown} |")
    for sampler, found in ratios.items():
        for word, of in (("mean", np.nanmean), ("least", np.nanmin)):
            known = [column[~np.isnan(column)] for column in np.array(found).T]
            shown = ", ".join(f"{of(c):.3f}" if len(c) else "-" for c in known)
            lines.append(f"| {word} | {sampler} | |{' |' * len(MARKS)} {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--problems", nargs="+", default=list(SYNTHETIC), choices=[*SYNTHETIC, *TUNING]
    )
    parser.add_argument("--samplers", nargs="+", default=[OURS], help=f"of {[*PEERS, OURS]}")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--trials", type=int, default=MARKS[-1])
    parser.add_argument("--size", type=int, default=8, help="trials asked for at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/batches"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="repeat runs that are there")
    arguments = parser.parse_args()
    check(arguments.samplers)
    jobs = [
        Job(problem, sampler, size, seed, arguments.trials, arguments.out)
        for problem in arguments.problems
        for seed in arguments.seeds
        for sampler in arguments.samplers
        for size in (1, arguments.size)
    ]
    wanted = [job for job in jobs if arguments.again or not job.path.exists()]
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.workers, maxtasksperchild=1) as pool:
        for done, line in enumerate(pool.imap_unordered(work, wanted), 1):
            print(f"[{done}/{len(wanted)}] {line}", flush=True)
    print(table(jobs, arguments.size))


if __name__ == "__main__":
    main()
