"""Storage: what a trial's bookkeeping costs, and 80,000 pairs.

python benchmarks/storage.py
"""

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
from _machine import describe

import apq_optuna as apq

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
describe()
space = apq.SearchSpace.preset("imagenet")
rows = space.sample(80_000, np.random.default_rng(0))


def objective(trial: optuna.Trial) -> float:
    value = float(space.suggest(trial).bitops)
    for i in range(8):
        trial.set_user_attr(f"attribute{i}", i)
    return value


def seconds_a_trial(storage: object, trials: int = 12) -> float:
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(storage=storage, sampler=sampler)  # type: ignore[arg-type]
    study.optimize(objective, n_trials=2)
    start = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return (time.perf_counter() - start) / trials


with tempfile.TemporaryDirectory() as folder:
    plain = seconds_a_trial(f"sqlite:///{folder}/plain.db")
    ours = seconds_a_trial(apq.open_storage(f"sqlite:///{folder}/ours.db"))
    print(
        f"a trial's storage on SQLite, 131 decisions, 8 attributes: {ours * 1e3:.0f} ms; "
        f"plain URL {plain * 1e3:.0f} ms; ratio {ours / plain:.2f}"
    )
    net = apq.OnceForAllNet(apq.SearchSpace.preset("cifar10"))
    cifar_rows = net.space.sample(80_000, np.random.default_rng(0))
    store = apq.PairStore(f"sqlite:///{folder}/pairs.db", supernet=net)
    start = time.perf_counter()
    store.add(cifar_rows, np.random.default_rng(0).random(80_000))
    written = time.perf_counter() - start
    start = time.perf_counter()
    count = len(store.load())
    print(
        f"80,000 pairs: written in {written:.2f} s, {count} distinct read in "
        f"{time.perf_counter() - start:.2f} s, "
        f"{Path(folder, 'pairs.db').stat().st_size / 2**20:.0f} MiB"
    )
