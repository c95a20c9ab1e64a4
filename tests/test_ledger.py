"""The ledger: what tasks took, also stopped ones, and what a further device costs."""

from __future__ import annotations

import csv
import importlib.util
import json
import multiprocessing
import platform
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError, StorageError
from apq_optuna.ledger import (
    Cost,
    Ledger,
    LedgerOptions,
    LedgerRow,
    as_csv,
    as_json,
    costs_of,
    host_fingerprint,
)
from apq_optuna.pairs import PairStore
from apq_optuna.supernet import OnceForAllNet

STATED = LedgerOptions(watts=100.0)
ROW = LedgerRow(
    task="search", subject="digits", target="bitfusion", scope="device",
    started="2026-01-01T00:00:00+00:00", wall_s=10.0, processor_s=20.0, device="a processor",
    threads=2, host="0123abcd", share=0.5, units="trials", units_done=5.0, kwh=0.001,
    grams_co2=0.4, energy_from="stated power",
)  # fmt: skip


@pytest.fixture
def ledger(url: str) -> Ledger:
    return Ledger(url, STATED)


# ---------------------------------------------------------------------- rows


@pytest.mark.parametrize("database", ["url", "postgresql"])
def test_rows_come_back(database: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(database)
    unknown = replace(ROW, threads=None, share=None, units_done=None)
    for row in (ROW, unknown):
        Ledger(url).record(row)
    assert Ledger(url).rows() == [ROW, unknown]


def test_a_long_name_is_cut_to_its_column(postgresql: str) -> None:
    Ledger(postgresql).record(replace(ROW, subject="x" * 2000))
    assert Ledger(postgresql).rows()[-1].subject == "x" * 512


def test_a_task_says_what_it_took(ledger: Ledger) -> None:
    with ledger.task("search", subject="digits", scope="device", units="trials") as entry:
        entry.units_done, entry.units_total = 3, 12
    (row,) = ledger.rows()
    assert (row.task, row.subject, row.scope) == ("search", "digits", "device")
    assert (row.units, row.units_done, row.share) == ("trials", 3, 0.25)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row.started)
    assert row.wall_s > 0 and row.processor_s >= 0 and row.threads
    assert row.kwh == pytest.approx(1.58 * row.wall_s / 3600 * 0.1)
    assert row.grams_co2 == pytest.approx(432.727 * row.kwh, rel=1e-5)
    assert row.energy_from == "stated power"
    assert row.device and row.host == host_fingerprint()


def test_a_stopped_task_and_its_rest_add_up(ledger: Ledger) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ledger.task("collect", subject="run", scope="shared", units="pairs") as entry,
    ):
        entry.units_done, entry.units_total = 4, 10
        raise KeyboardInterrupt
    with ledger.task("collect", subject="run", scope="shared", units="pairs") as entry:
        entry.units_done, entry.units_total = 6, 10
    assert [row.share for row in ledger.rows()] == [0.4, 0.6]


def test_a_share_is_known_or_not_given(ledger: Ledger) -> None:
    with ledger.task("whole", subject="x", scope="shared"):
        pass
    with ledger.task("rest", subject="x", scope="shared") as entry:
        entry.resumed = True
    with ledger.task("given", subject="x", scope="shared") as entry:
        entry.share, entry.units_done = 0.75, 3
    with pytest.raises(KeyboardInterrupt), ledger.task("cut", subject="x", scope="shared"):
        raise KeyboardInterrupt
    assert [row.share for row in ledger.rows()] == [1.0, None, 0.75, None]


def test_what_did_nothing_leaves_no_row(ledger: Ledger) -> None:
    with ledger.task("search", subject="s", scope="device") as entry:
        entry.units_done, entry.units_total = 0, 100  # all of them were there
    with (
        pytest.raises(InvalidArgumentError, match="bad"),
        ledger.task("search", subject="s", scope="device"),
    ):
        raise InvalidArgumentError("bad input")
    assert ledger.rows() == []
    with (
        pytest.raises(InvalidArgumentError, match="late"),
        ledger.task("search", subject="s", scope="device") as entry,
    ):
        entry.units_done = 1
        raise InvalidArgumentError("too late: it was paid for")
    assert [row.units_done for row in ledger.rows()] == [1]


def test_processors_of_children_count(ledger: Ledger) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: sum(range(1000))"
    with ledger.task("train", subject="run", scope="shared"):
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert ledger.rows()[0].processor_s >= 0.25  # counted in ticks of 10 ms


def test_another_scope_is_refused(ledger: Ledger) -> None:
    with pytest.raises(InvalidArgumentError, match="scope='all': choose shared or device"):
        ledger.task("train", subject="run", scope="all").__enter__()


# ---------------------------------------------------------------------- the database


def test_it_shares_a_database(ledger: Ledger, url: str, supernet: OnceForAllNet) -> None:
    study = optuna.create_study(storage=apq.open_storage(url))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    store = PairStore(url, supernet=supernet)
    store.add(store.space.extreme(largest=True), np.array([0.5]))
    assert ledger.rows() == []  # reading makes no table
    names = sqlalchemy.inspect(sqlalchemy.create_engine(url)).get_table_names()
    assert "apq_ledger" not in names
    ledger.record(ROW)
    assert ledger.rows() == [ROW]
    assert len(store) == 1
    assert len(optuna.load_study(study_name=study.study_name, storage=url).trials) == 2


def _record(url: str) -> None:
    ledger = Ledger(url, STATED)
    with ledger.task("search", subject="s", scope="device", units="trials") as entry:
        entry.units_done = 1
        time.sleep(0.05)


def test_workers_that_begin_together_all_record(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_record, args=(url,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = Ledger(url).rows()
    assert len(rows) == 4 and len({row.host for row in rows}) == 1
    total = Cost.of(rows)
    assert total.wall_s == pytest.approx(sum(row.wall_s for row in rows))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("sqlite:////nowhere/at/all/apq.db", "unable to open database file"),
        ("apq.db", "is not a database URL"),
        ("postgresql+psycopg2://nobody@127.0.0.1:1/none", "went away"),
    ],
)
def test_a_lost_database_fails_no_task(bad: str, reason: str) -> None:
    told: list[str] = []
    ledger = Ledger(bad, STATED, note=told.append)
    with ledger.task("train", subject="run", scope="shared"):
        done = True
    assert done
    (note,) = told
    assert note.startswith("what 'train' took could not be recorded: ") and reason in note
    with pytest.raises((StorageError, InvalidArgumentError), match=reason):
        ledger.rows()
    with (  # without anybody to tell
        pytest.warns(UserWarning, match="could not be recorded"),
        Ledger(bad, STATED).task("train", subject="run", scope="shared"),
    ):
        pass


def test_rows_of_a_later_version_are_refused(ledger: Ledger, url: str) -> None:
    ledger.record(ROW)
    with sqlalchemy.create_engine(url).begin() as connection:
        connection.execute(sqlalchemy.text("update apq_ledger set version = 2"))
    with pytest.raises(StorageError, match=r"rows of version 2; .* reads up to 1"):
        ledger.rows()


def test_a_machine_is_told_apart_without_its_name(url: str) -> None:
    assert re.fullmatch("[0-9a-f]{8}", host_fingerprint())
    Ledger(url).record(replace(ROW, host=host_fingerprint()))
    path = Path(url.removeprefix("sqlite:///"))
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    if len(platform.node()) > 4:  # a shorter one may be there by chance
        assert platform.node().encode() not in stored


# ---------------------------------------------------------------------- what it adds up to


def row(task: str, seconds: float, **other: object) -> LedgerRow:
    scope = "shared" if task in ("train", "collect") else "device"
    plain = replace(ROW, task=task, scope=scope, subject="run", target="")
    return replace(plain, wall_s=seconds, kwh=seconds / 100, grams_co2=4 * seconds, **other)  # type: ignore[arg-type]


def test_first_and_further_deployments() -> None:
    rows = [
        row("train", 1000), row("train", 200), row("collect", 100),
        row("hardware", 50, subject="cpu", target="cpu", started="2026-01-01"),
        row("search", 30, subject="a", target="cpu", started="2026-01-02"),
        row("search", 10, subject="a", target="cpu", started="2026-01-03"),  # gone on with
        row("finetune", 20, subject="a", target="cpu", started="2026-01-04"),
        row("search", 70, subject="b", target="cpu", started="2026-01-05"),  # another budget
        row("search", 65, subject="c", target="array", started="2026-01-06"),
        row("compare", 9000, subject="amc", target="array", started="2026-01-07"),
    ]  # fmt: skip
    costs = costs_of(list(reversed(rows)))
    assert costs.deployments == 3
    assert costs.shared.wall_s == 1300
    assert costs.first is not None and costs.further is not None
    assert costs.first.wall_s == 1300 + 50 + 30 + 10 + 20
    assert costs.further.wall_s == 70  # of 110, 70 and 65
    assert costs.further.kwh == pytest.approx(0.7)
    assert costs.further.grams_co2 == pytest.approx(280)


def test_one_deployment_and_none() -> None:
    shared = [row("train", 100), row("hardware", 5, subject="cpu", target="cpu")]
    none = costs_of(shared)
    assert (none.first, none.further, none.deployments) == (None, None, 0)
    assert none.shared.wall_s == 100
    one = costs_of([*shared, row("search", 7, subject="a", target="array")])
    assert one.first is not None and one.further is not None
    assert (one.first.wall_s, one.further.wall_s) == (107, 7)
    assert costs_of([]).shared == Cost()


def test_the_ledgers_costs_are_those_of_its_rows(ledger: Ledger) -> None:
    ledger.record(ROW)
    assert ledger.costs() == costs_of([ROW])
    assert ledger.costs().further == Cost(10.0, 20.0, 0.001, 0.4)


def test_files() -> None:
    rows = [ROW, replace(ROW, share=None, subject='a "study", mine')]
    (first, second) = csv.DictReader(as_csv(rows).splitlines())
    assert float(first["wall_s"]) == 10.0 and first["task"] == "search"
    assert second["share"] == "" and second["subject"] == 'a "study", mine'
    stored = json.loads(as_json(rows))
    assert stored["schema"] == 1
    assert [LedgerRow(**one) for one in stored["rows"]] == rows
    assert stored["costs"]["deployments"] == 2
    assert stored["costs"]["first"]["wall_s"] == 10.0


# ---------------------------------------------------------------------- energy


def test_stated_power_is_the_papers_formula() -> None:
    assert LedgerOptions(watts=1000.0).kwh(3600) == pytest.approx(1.58)
    assert LedgerOptions(watts=1000.0, pue=1.0).kwh(1800) == pytest.approx(0.5)
    assert LedgerOptions().kwh(3600) == pytest.approx(1.58 * 0.065)
    assert LedgerOptions().grams_per_kwh == pytest.approx(433, abs=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LedgerOptions(watts=-1.0), r"watts=-1.0: must be positive"),
        (lambda: LedgerOptions(watts=float("nan")), "watts=nan: must be positive"),
        (lambda: LedgerOptions(pue=0.5), "pue=0.5: at least 1"),
        (lambda: LedgerOptions(grams_per_kwh=-1), "grams_per_kwh=-1: cannot be negative"),
    ],
)
def test_bad_options_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_options_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APQ_WATTS", "240")
    monkeypatch.setenv("APQ_COUNTRY", "FRA")
    assert LedgerOptions.of_environment() == LedgerOptions(watts=240.0, country="FRA")
    assert LedgerOptions.of_environment(5.0).watts == 5.0
    monkeypatch.setenv("APQ_WATTS", "much")
    with pytest.raises(InvalidArgumentError, match="APQ_WATTS='much': a number of watts"):
        LedgerOptions.of_environment()


def test_a_broken_codecarbon_breaks_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "codecarbon", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "codecarbon.py").write_text("raise RuntimeError('no sensors here')")
    with Ledger(url).task("train", subject="run", scope="shared"):
        pass
    assert Ledger(url).rows()[0].energy_from == "stated power"


_TRACKED = """
    import sys

    asked = []

    def hear(event, about):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            asked.append((event, about))

    sys.addaudithook(hear)
    from apq_optuna.ledger import Ledger, LedgerOptions

    for country in ("", "FRA"):
        ledger = Ledger("sqlite:///apq.db", LedgerOptions(country=country))
        with ledger.task("train", subject="run", scope="shared"):
            sum(range(30_000_000))
    for row in ledger.rows():
        print(row.energy_from, row.kwh, row.grams_co2)
    print(asked)
"""


def test_codecarbon_finds_energy_and_asks_nobody(tmp_path: Path) -> None:
    """The real one, told by its own configuration to save, send and ask."""
    if importlib.util.find_spec("codecarbon") is None:
        pytest.skip("codecarbon, the extra `carbon`, is not installed")
    (tmp_path / ".codecarbon.config").write_text(
        "[codecarbon]\nemissions_endpoint = http://127.0.0.1:9/\noutput_methods = csv,api\n"
        "electricitymaps_api_token = x\nco2_signal_api_token = y\nsave_to_file = true\n"
        "allow_multiple_runs = false\nlog_level = debug\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_TRACKED)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *rows, asked = done.stdout.splitlines()
    assert asked == "[]" and "codecarbon" not in done.stderr
    intensities = []
    for line in rows:
        found, kwh, grams = line.split()
        assert found == "codecarbon" and float(kwh) > 0
        intensities.append(float(grams) / float(kwh))
    assert intensities[0] == pytest.approx(432.7, abs=0.1)
    assert intensities[1] < 150  # France
    assert {path.name for path in tmp_path.iterdir()} <= {
        ".codecarbon.config", "apq.db", "apq.db-wal", "apq.db-shm",
    }  # fmt: skip
