"""What earlier studies of other data sets are worth: on measured tables, beside other samplers.

    python benchmarks/transfer_race.py [--families hpolib hpobench] [--workers 2]
    python benchmarks/transfer_race.py --summary       # tables and pictures of what is there

Every data set of a family is a target, and each other one of the family its source: a study of
100 random trials, drawn anew for each seed. Each run (target, source, variant, seed) is a file
below `--out`; runs that are there are not repeated, so a race goes on where it stopped. The
tables are those of `hpo_tables`. Each run has one thread.

`known` tells the sampler the costs: true to life where that is the model's size (HPOLib), the
most that knowledge could bring where it is the time of training (HPOBench). `TPE, enqueued`
starts with the source's Pareto front. `several` are the studies of all others at once;
`unrelated` is the next data set's study with the values shuffled among its trials, and is alone
or the first of all (`several, one unrelated`). `two starts` is ours without a source and with the
two space-filling trials that one with a source has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from hpo_tables import DIRECTIONS, FAMILIES, Table, family_of, load
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial
from race_base import threads
from race_peers import PEERS
from transfer_summary import BASE, MARKS, NO_SOURCE, summarise

import apq_optuna as apq

SOURCE_TRIALS = 100
PEER_NAMES = ("random", "TPE", "TPE multivariate", "NSGA-II", "GPSampler")
PAIRED = ("ours + source", "ours, known + source", "TPE, enqueued")
KNOWN = "ours, known"
VARIANTS = ("ours", "ours, two starts", KNOWN, *BASE, *PEER_NAMES)


class Job(NamedTuple):
    """One run; `source` is `NO_SOURCE` where the variant is not run per pair."""

    target: str
    source: str
    variant: str
    seed: int
    trials: int
    out: Path

    @property
    def path(self) -> Path:
        """Where it is kept."""
        variant = self.variant.replace(",", "").replace(" + ", "+").replace(" ", "_")
        name = f"{self.target}-{variant}-{self.source.strip('-') or 'none'}-{self.seed}.json"
        return self.out / "runs" / family_of(self.target) / name

    def result(self) -> dict[str, Any] | None:
        """What is kept, if it has enough trials."""
        if not self.path.exists():
            return None
        kept = json.loads(self.path.read_text())
        return kept if len(kept["values"]) >= self.trials else None


@cache
def table(name: str, out: Path) -> Table:
    """A data set's table, read once a process."""
    return load(name, out / "tables")


def earlier(data: Table, seed: int, *, shuffled: bool = False) -> optuna.Study:
    """A study of random trials of a data set, for each seed another."""
    rng = np.random.default_rng([SOURCE_TRIALS, seed, *data.name.encode()])
    rows = rng.choice(len(data.error), SOURCE_TRIALS, replace=False)
    values = data.values(rng.permutation(rows) if shuffled else rows)
    study = optuna.create_study(directions=DIRECTIONS)
    for row, value in zip(rows, values.tolist(), strict=True):
        study.add_trial(
            create_trial(params=data.params(row), distributions=data.space, values=value)
        )
    return study


def sources_of(job: Job) -> list[optuna.Study]:
    """The earlier studies of a run."""
    family = FAMILIES[family_of(job.target)]
    if job.variant in PAIRED:
        return [earlier(table(job.source, job.out), job.seed)]
    others = [name for name in family if name != job.target]
    after = family[(family.index(job.target) + 1) % len(family)]
    found = []
    if "unrelated" in job.variant:
        found.append(earlier(table(after, job.out), job.seed, shuffled=True))
        others.remove(after)
    if "several" in job.variant:
        found += [earlier(table(name, job.out), job.seed) for name in others]
    return found


def study_of(job: Job, data: Table) -> optuna.Study:
    """An empty study with the variant's sampler."""
    sources = sources_of(job)
    if job.variant.startswith("ours"):
        known = {1: lambda params: data.cost[data.row(params)]}
        sampler: optuna.samplers.BaseSampler = apq.APQSampler(
            source=sources or None,
            known=known if job.variant.startswith(KNOWN) else None,
            n_startup_trials=2 if "two starts" in job.variant else None,
            seed=job.seed,
        )
    else:
        # of the peers, none uses the problem
        sampler = PEERS[BASE.get(job.variant, job.variant)].make(None, job.seed)  # type: ignore
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    if job.variant == "TPE, enqueued":
        for trial in sources[0].best_trials:
            study.enqueue_trial(trial.params)
    return study


def work(job: Job) -> tuple[Job, float]:
    """Runs one job, writes its file, and returns its seconds."""
    threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    data = table(job.target, job.out)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = {
            name: trial.suggest_categorical(name, d.choices)
            if isinstance(d, CategoricalDistribution)
            else trial.suggest_int(name, d.low, d.high)  # type: ignore[attr-defined]
            for name, d in data.space.items()
        }
        error, cost = data.values(data.row(params)).tolist()
        return error, cost

    started = time.perf_counter()
    study = study_of(job, data)
    study.optimize(objective, n_trials=job.trials)
    seconds = time.perf_counter() - started
    values = [trial.values for trial in study.trials]
    job.path.parent.mkdir(parents=True, exist_ok=True)
    part = job.path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"seconds": round(seconds, 2), "values": values}))
    part.replace(job.path)
    return job, seconds


def jobs_of(arguments: argparse.Namespace) -> list[Job]:
    """All runs that were asked for, seed by seed so that a race that is cut short has them all."""
    return [
        Job(target, source, variant, seed, arguments.trials, arguments.out)
        for seed in arguments.seeds
        for family in arguments.families
        for target in FAMILIES[family]
        if target in (arguments.targets or [target])
        for variant in arguments.variants
        for source in (FAMILIES[family] if variant in PAIRED else [NO_SOURCE])
        if source != target and source in (NO_SOURCE, *(arguments.sources or [source]))
    ]


def race(jobs: Sequence[Job], workers: int) -> None:
    """Runs what is not there yet."""
    wanted = [job for job in jobs if job.result() is None]
    print(f"{len(jobs) - len(wanted)} runs are there, {len(wanted)} to do", flush=True)
    for name in dict.fromkeys(name for job in wanted for name in FAMILIES[family_of(job.target)]):
        table(name, wanted[0].out)  # written before several processes look for it
    os.environ["OMP_NUM_THREADS"] = "1"  # from the start of the processes
    left: dict[str, int] = defaultdict(int)
    for job in wanted:
        left[job.variant] += 1
    took: dict[str, list[float]] = defaultdict(list)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, (job, seconds) in enumerate(pool.imap_unordered(work, wanted), 1):
            left[job.variant] -= 1
            took[job.variant].append(seconds)
            overall = float(np.mean([s for found in took.values() for s in found]))
            each = {v: float(np.mean(took[v])) if took[v] else overall for v in left}
            minutes = sum(count * each[v] for v, count in left.items()) / workers / 60
            of = "" if job.source == NO_SOURCE else f" from {job.source}"
            print(
                f"[{done}/{len(wanted)}] {job.target}{of}: {job.variant}, seed {job.seed}: "
                f"{seconds:.1f} s; about {minutes:.0f} min left",
                flush=True,
            )


def curves_of(jobs: Sequence[Job]) -> dict[tuple[str, str, str, int], np.ndarray]:
    """Shares of hypervolume of the runs that are there, by target, source, variant and seed."""
    return {
        (job.target, job.source, job.variant, job.seed): table(job.target, job.out).share(
            np.array(kept["values"][: job.trials])
        )
        for job in jobs
        if (kept := job.result()) is not None
    }


def main() -> None:
    names = [name for family in FAMILIES.values() for name in family]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--targets", nargs="+", choices=names, help="all by default")
    parser.add_argument("--sources", nargs="+", choices=names, help="of pairs, all by default")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--trials", type=int, default=MARKS[-1])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer-race"))
    parser.add_argument("--summary", action="store_true", help="only of what is there")
    arguments = parser.parse_args()
    jobs = jobs_of(arguments)
    if not arguments.summary:
        race(jobs, arguments.workers)
    for family in arguments.families:
        mine = [job for job in jobs if family_of(job.target) == family]
        summarise(curves_of(mine), family, arguments.variants, arguments.out)


if __name__ == "__main__":
    main()
