"""Several processes on one study: on PostgreSQL, SQLite, a journal file and the gRPC proxy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import apq_optuna as apq
from tests.sampler.worker import LIMIT, opened

SPACE = apq.SearchSpace.preset("digits")
ROOT = Path(__file__).parent.parent.parent


def create(url: str) -> optuna.Study:
    study = optuna.create_study(
        study_name="s", storage=opened(url), directions=["maximize", "minimize", "minimize"]
    )
    study.set_metric_names(["accuracy", "latency_ms", "energy_mj"])
    return study


def start(url: str, workers: int, trials: int, wait: float = 0.0) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            # equal seeds: only what they see of each other keeps workers apart
            [sys.executable, "-m", "tests.sampler.worker", url, str(trials), str(wait), "0"],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(workers)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def check(trials: list[optuna.trial.FrozenTrial], completed: int) -> None:
    """All distinct, none over the budget."""
    good = [t for t in trials if t.state == TrialState.COMPLETE]
    assert len(good) == completed
    rows = [SPACE.from_params(trial.params).tobytes() for trial in good]
    assert len(set(rows)) == completed
    assert max(trial.values[1] for trial in good) <= LIMIT


class Proxy:
    """Optuna's storage proxy, served by a process of its own from a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        script = textwrap.dedent(f"""
            import optuna, apq_optuna as apq
            storage = apq.open_storage("sqlite:///{self.folder}/apq.db")
            storage = optuna.storages.get_storage(storage)  # with its cache
            optuna.storages.run_grpc_proxy_server(storage, host="localhost", port={self.port})
        """)
        self.server = subprocess.Popen(
            [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True
        )
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", self.port)) == 0:
                    return
            assert self.server.poll() is None, self.server.communicate()[1]
            time.sleep(0.1)

    def stop(self) -> None:
        self.server.kill()
        self.server.communicate()


@pytest.fixture
def grpc_proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path)
    yield proxy
    proxy.stop()


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> str:
    if kind == "postgresql":
        base: str = request.getfixturevalue("postgresql")
        return fresh_database(base)
    if kind == "grpc":
        proxy: Proxy = request.getfixturevalue("grpc_proxy")
        return f"grpc:{proxy.port}"
    return f"journal:{tmp_path}/j.log" if kind == "journal" else f"sqlite:///{tmp_path}/apq.db"


def fresh_database(base: str) -> str:
    """A database of its own on the test's server."""
    import sqlalchemy as sa

    name = f"workers{np.random.default_rng().integers(1 << 40)}"
    engine = sa.create_engine(base, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return sa.make_url(base).set(database=name).render_as_string(hide_password=False)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "journal", "grpc"])
def test_workers_never_try_one_network_twice(url_of: str) -> None:
    study = create(url_of)
    finish(start(url_of, 3, 6))
    check(study.trials, 18)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_worker_costs_its_own_trial_only(url_of: str) -> None:
    study = create(url_of)
    doomed, *others = start(url_of, 3, 5, wait=0.3)
    while sum(t.state == TrialState.RUNNING for t in study.trials) < 3:
        assert all(process.poll() is None for process in others)
        time.sleep(0.05)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    finish(others)
    trials = study.trials
    done = sum(t.state == TrialState.COMPLETE for t in trials)
    assert len(trials) - done <= 1
    assert done >= 10
    check(trials, done)


def test_a_service_that_comes_and_goes_costs_what_was_in_flight(grpc_proxy: Proxy) -> None:
    study = create(f"grpc:{grpc_proxy.port}")
    workers = start(f"grpc:{grpc_proxy.port}", 2, 5, wait=0.2)
    while sum(t.state == TrialState.COMPLETE for t in study.trials) < 3:
        assert all(process.poll() is None for process in workers)
        time.sleep(0.05)
    grpc_proxy.stop()
    time.sleep(0.5)
    grpc_proxy.start()
    finish(workers)
    trials = opened(f"sqlite:///{grpc_proxy.folder}/apq.db").get_all_trials(study._study_id)
    done = sum(t.state == TrialState.COMPLETE for t in trials)
    assert 10 <= done <= 12  # a trial that was told but never heard of is made up for
    check(trials, done)
    assert len(trials) <= 12  # a worker's own trial at most, left running
