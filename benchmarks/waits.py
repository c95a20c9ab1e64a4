"""What a user waits for beside training and trials: seconds and bytes of small things.

    python benchmarks/waits.py [--run RUN]      RUN as `make quickstart` leaves it

`--help`, the import of the sampler, the report of a study of 1,000 trials and its size, a front
for another device from a finished study, the table of the paper's space, and a run's database.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from _machine import describe
from optuna.trial import create_trial

import apq_optuna as apq
from apq_optuna.hardware import bitfusion, bitfusion_small
from apq_optuna.report.report import remember

PROGRAM = Path(sys.executable).with_name("apq-optuna")


def quickest(function: Callable[[], object], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def run(*words: object) -> Callable[[], object]:
    return lambda: subprocess.run(list(map(str, words)), check=True, capture_output=True)


def stored(folder: Path, trials: int) -> str:
    """A study of the digits space with made-up accuracies and real costs."""
    space = apq.SearchSpace.preset("digits")
    rng = np.random.default_rng(0)
    rows = space.sample(trials, rng)
    costs = bitfusion_small().table(space).compile(space)(rows)
    accuracies = 0.98 - 0.02 * rng.gamma(2.0, size=trials) - 1e-3 / costs[:, 0]
    url = f"sqlite:///{folder / 'apq.db'}"
    study = optuna.create_study(
        study_name="search", storage=url, directions=["maximize", "minimize", "minimize"]
    )
    study.set_metric_names(["accuracy", "latency_ms", "energy_mj"])
    remember(study, space)
    distributions = space.distributions()
    found = []
    for row, accuracy, cost in zip(rows, accuracies, costs, strict=True):
        params = space.to_params(row)
        found.append(
            create_trial(
                params=params,
                distributions={name: distributions[name] for name in params},
                values=[float(accuracy), *map(float, cost)],
            )
        )
    study.add_trials(found)
    return url


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/digits"))
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    describe()
    print(f"--help: {quickest(run(PROGRAM, '--help')):.2f} s")
    load = run(sys.executable, "-c", "from apq_optuna import APQSampler")
    print(f"import of the sampler, from the start of Python: {quickest(load):.2f} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = stored(folder, arguments.trials)
        page = folder / "report.html"
        draw = run(PROGRAM, "report", "--run", folder, "--storage", url, "--out", page)
        print(
            f"report of {arguments.trials} trials: {quickest(draw):.2f} s from the command, "
            f"{page.stat().st_size / 1e6:.2f} MB"
        )
    space = apq.SearchSpace.preset("imagenet")
    seconds = quickest(lambda: bitfusion().table(space))
    print(f"BitFusion's table of the paper's space: {seconds:.2f} s")
    database = arguments.run / "apq.db"
    if not database.exists():
        print(f"{arguments.run} is no finished quickstart: no predicted front, no database")
        return
    with tempfile.TemporaryDirectory() as name:
        predict = run(
            PROGRAM, "search", "--run", arguments.run, "--study", "quickstart", "--predict-only",
            "--hardware", "bitfusion", "--report", Path(name) / "front.html",
        )  # fmt: skip
        print(f"--predict-only: {quickest(predict):.2f} s from the command")
    print(f"the quickstart's database: {database.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
