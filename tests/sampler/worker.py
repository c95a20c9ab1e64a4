"""One worker of `test_workers.py`: `python -m tests.worker URL TRIALS WAIT SEED`."""

from __future__ import annotations

import sys
import time

import numpy as np
import optuna
import torch
from optuna.trial import TrialState

import apq_optuna as apq

LIMIT = 0.05
"""Budget of every worker, ms."""


def opened(url: str) -> optuna.storages.BaseStorage:
    """The storage at `grpc:PORT`, `journal:PATH` or a database's URL, with short heartbeats."""
    if url.startswith("grpc:"):
        return optuna.storages.GrpcStorageProxy(host="localhost", port=int(url[5:]))
    if url.startswith("journal:"):
        backend = optuna.storages.journal.JournalFileBackend(url[8:])
        return optuna.storages.JournalStorage(backend)
    return apq.open_storage(url, heartbeat_interval=1, grace_period=5)


def main(url: str, trials: int, wait: float, seed: int) -> None:
    """Run `trials` trials of the study at `url`, each at least `wait` seconds long."""
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
        return accuracy, *costs.network_cost(subnet.layers())

    sampler = apq.APQSampler(
        space, costs=costs, budgets={"latency_ms": LIMIT}, n_startup_trials=6, seed=seed
    )
    done = 0

    def count(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        nonlocal done
        done += trial.state == TrialState.COMPLETE

    while done < trials:
        try:
            study = optuna.load_study(study_name="s", storage=opened(url), sampler=sampler)
            study.optimize(measure, n_trials=trials - done, callbacks=[count])
        except Exception as error:
            if not url.startswith("grpc:") or not is_away(error):
                raise
            time.sleep(0.2)


def is_away(error: BaseException | None) -> bool:
    """Whether an error says that the proxy cannot be reached."""
    import grpc

    while error is not None and not isinstance(error, grpc.RpcError):
        error = error.__cause__ or error.__context__
    return error is not None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
