"""What every task of a run took: seconds, energy and CO2, in the run's database.

A task of scope `shared` is paid once for all devices (the supernet, its fp32 pairs), one of scope
`device` for every device or budget anew (search, finetuning, a device's measurements).
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from apq_optuna._energy import LedgerOptions, Meter
from apq_optuna.errors import InvalidArgumentError, StorageError
from apq_optuna.storage import create_engine, once_tables_exist

__all__ = [
    "Cost", "Costs", "Entry", "Ledger", "LedgerOptions", "LedgerRow", "as_csv", "as_json",
    "costs_of", "host_fingerprint",
]  # fmt: skip

SCHEMA = 1
"""Version of a row; a row of a later one is refused."""

SCOPES = ("shared", "device")
DEPLOYING = ("search", "confirm", "finetune")
"""Tasks that make a deployment; a comparison of methods, for one, is none."""

_metadata = sa.MetaData()
_rows = sa.Table(
    "apq_ledger",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("task", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(512), nullable=False),
    sa.Column("target", sa.String(512), nullable=False),
    sa.Column("scope", sa.String(8), nullable=False),
    sa.Column("started", sa.String(32), nullable=False),
    sa.Column("wall_s", sa.Float(53), nullable=False),
    sa.Column("processor_s", sa.Float(53), nullable=False),
    sa.Column("device", sa.String(512), nullable=False),
    sa.Column("threads", sa.Integer),
    sa.Column("host", sa.String(16), nullable=False),
    sa.Column("share", sa.Float(53)),
    sa.Column("units", sa.String(64), nullable=False),
    sa.Column("units_done", sa.Float(53)),
    sa.Column("kwh", sa.Float(53), nullable=False),
    sa.Column("grams_co2", sa.Float(53), nullable=False),
    sa.Column("energy_from", sa.String(16), nullable=False),
)


@dataclass(frozen=True)
class LedgerRow:
    """What one process spent on one task, without a break.

    Attributes:
        task: `train`, `collect`, `search`, `finetune`, `hardware` or another.
        subject: What it was done to: a study, a device, a folder.
        target: The device that a task of scope `device` is for.
        scope: `shared` or `device`.
        started: UTC, in ISO 8601.
        wall_s: Seconds on the clock.
        processor_s: Seconds of processors: of this process and of its children that have ended.
        device: What computed: the processor's name, or the GPU's.
        threads: CPU threads at the end; None where that is not known.
        host: Short hash that tells machines apart.
        share: What part of the task this row did, in [0, 1]; the rows of one that was stopped and
            gone on with add up to 1. None where it is not known.
        units: What is counted, such as `trials`.
        units_done: How many of them this row did; None where it is not known.
        kwh: Energy, the data centre's overhead included.
        grams_co2: CO2 equivalent of it.
        energy_from: `codecarbon` or `stated power`.
    """

    task: str
    subject: str
    target: str
    scope: str
    started: str
    wall_s: float
    processor_s: float
    device: str
    threads: int | None
    host: str
    share: float | None
    units: str
    units_done: float | None
    kwh: float
    grams_co2: float
    energy_from: str


@dataclass
class Entry:
    """What a task says of itself while it runs.

    Attributes:
        units_done: Units done by this process, in this task.
        units_total: Units the whole task has.
        share: What part of the task this is, where it is not one divided by the other.
        resumed: Whether a part of it was there already, and how much is not known.
    """

    units_done: float | None = None
    units_total: float | None = None
    share: float | None = None
    resumed: bool = False

    def part(self, ended: bool) -> float | None:
        """What part of the task was done, in [0, 1]."""
        part = self.share
        if part is None and self.units_total and self.units_done is not None:
            part = self.units_done / self.units_total
        if part is None:
            return 1.0 if ended and not self.resumed else None
        return min(max(part, 0.0), 1.0)


@dataclass(frozen=True)
class Cost:
    """Seconds on the clock and of processors, kWh, and grams of CO2 equivalent."""

    wall_s: float = 0.0
    processor_s: float = 0.0
    kwh: float = 0.0
    grams_co2: float = 0.0

    @staticmethod
    def of(rows: Sequence[LedgerRow]) -> Cost:
        """The sum of rows. Processes that work at once each count."""
        return Cost(*(sum(getattr(row, f.name) for row in rows) for f in fields(Cost)))

    @staticmethod
    def median(costs: Sequence[Cost]) -> Cost:
        """The median of each figure."""
        return Cost(*(statistics.median(getattr(c, f.name) for c in costs) for f in fields(Cost)))


@dataclass(frozen=True)
class Costs:
    """What the deployments of a run cost.

    Attributes:
        first: All that is shared, and the first device or budget; None before there is one.
        further: Each further device or budget: the median of what a deployment takes for itself.
        shared: The part that is paid once.
        deployments: How many devices and budgets there are.
    """

    first: Cost | None
    further: Cost | None
    shared: Cost
    deployments: int


class Ledger:
    """What tasks took, in a table beside the study's.

    Args:
        url: The study's storage URL. It is opened when something is read or recorded.
        options: How energy and CO2 are found.
        note: Told, as a line, what could not be recorded; by default a warning.
    """

    def __init__(
        self,
        url: str,
        options: LedgerOptions | None = None,
        *,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.url = url
        self.options = options or LedgerOptions()
        self._note = note or warnings.warn

    def __repr__(self) -> str:
        return f"Ledger({self.url!r})"

    @cached_property
    def _engine(self) -> sa.Engine:
        return create_engine(self.url)

    @contextlib.contextmanager
    def task(
        self,
        name: str,
        *,
        subject: str,
        scope: str,
        target: str = "",
        units: str = "",
        device: str = "",
        threads: int | None = None,
    ) -> Iterator[Entry]:
        """Records what the body of a `with` statement took, also when it is stopped.

        One that had nothing left to do leaves no row, nor does one that an error ended within a
        second. A killed process leaves none.

        Args:
            name: `train`, `collect`, `search`, `finetune`, `hardware` or another.
            subject: What it is done to.
            scope: `shared` or `device`.
            target: The device it is for.
            units: What `units_done` of the entry counts.
            device: What computes; by default this machine's processor.
            threads: CPU threads; by default torch's, where it is loaded.

        Raises:
            InvalidArgumentError: Another scope.
        """
        if scope not in SCOPES:
            raise InvalidArgumentError(f"scope={scope!r}: choose shared or device")
        entry = Entry()
        meter = Meter(self.options)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        wall, processor = time.perf_counter(), _processor_seconds()
        failure: BaseException | None = None
        try:
            yield entry
        except BaseException as error:
            failure = error
            raise
        finally:
            wall, processor = time.perf_counter() - wall, _processor_seconds() - processor
            kwh, grams, energy_from = meter.stop(wall)
            if not _is_nothing(entry, wall, failure):
                try:
                    self.record(LedgerRow(
                        task=name, subject=subject, target=target, scope=scope, started=started,
                        wall_s=wall, processor_s=processor, device=device or _processor_name(),
                        threads=_torch_threads() if threads is None else threads,
                        host=host_fingerprint(), share=entry.part(failure is None), units=units,
                        units_done=entry.units_done, kwh=kwh, grams_co2=grams,
                        energy_from=energy_from,
                    ))  # fmt: skip
                except Exception as error:  # the task is done, or has an error of its own
                    self._note(f"what {name!r} took could not be recorded: {error}")

    def record(self, row: LedgerRow) -> None:
        """Adds a row, and the table if it is not there yet.

        Raises:
            InvalidArgumentError: The URL is none of a database.
            StorageError: The database cannot be written.
        """
        values = {name: _fitting(name, value) for name, value in vars(row).items()}
        once_tables_exist(lambda: _metadata.create_all(self._engine))
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_rows), [values | {"version": SCHEMA}])

    def rows(self) -> list[LedgerRow]:
        """Every row, in the order they were recorded in.

        Raises:
            InvalidArgumentError: The URL is none of a database.
            StorageError: The database cannot be read, or holds rows of a later version.
        """
        if not sa.inspect(self._engine).has_table(_rows.name):
            return []
        columns = [_rows.c[field.name] for field in fields(LedgerRow)]
        query = sa.select(_rows.c.version, *columns).order_by(_rows.c.number)
        with self._engine.connect() as connection:
            found = connection.execute(query).all()
        if later := [row[0] for row in found if row[0] > SCHEMA]:
            raise StorageError(
                f"storage {self.url!r} has ledger rows of version {max(later)}; this version of "
                f"apq_optuna reads up to {SCHEMA}"
            )
        return [LedgerRow(*row[1:]) for row in found]

    def costs(self) -> Costs:
        """What the first deployment cost, and what each further device or budget does.

        A deployment is a subject (a study) on a target (a device): its search and finetuning. The
        measurements of a device count in the first deployment on it.
        """
        return costs_of(self.rows())


def costs_of(rows: Sequence[LedgerRow]) -> Costs:
    """See `Ledger.costs`."""
    shared = [row for row in rows if row.scope == "shared"]
    deployments: dict[tuple[str, str], list[LedgerRow]] = {}
    for row in sorted(rows, key=lambda row: row.started):
        if row.scope == "device" and row.task in DEPLOYING:
            deployments.setdefault((row.target, row.subject), []).append(row)
    measured = [row for row in rows if row.scope == "device" and row.task == "hardware"]
    for (target, _), own in deployments.items():
        own += [row for row in measured if row.target == target]
        measured = [row for row in measured if row.target != target]
    groups = list(deployments.values())
    return Costs(
        first=Cost.of(shared + groups[0]) if groups else None,
        further=Cost.median([Cost.of(group) for group in groups]) if groups else None,
        shared=Cost.of(shared),
        deployments=len(groups),
    )


def _is_nothing(entry: Entry, wall_s: float, failure: BaseException | None) -> bool:
    """Whether there is nothing to record: nothing was left to do, or bad input ended it."""
    if entry.units_done:
        return False
    if failure is None:
        return entry.units_done == 0
    return isinstance(failure, Exception) and wall_s < 1.0


def _fitting(name: str, value: Any) -> Any:
    """A value cut to its column: some databases refuse a longer one."""
    kind = _rows.c[name].type
    return value[: kind.length] if isinstance(kind, sa.String) else value


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else None


@cache
def _processor_name() -> str:
    from apq_optuna.export.measure import processor_name

    return processor_name()


@cache
def host_fingerprint() -> str:
    """Eight hexadecimal digits that tell this machine from others, without its name."""
    identity = ""
    with contextlib.suppress(OSError):
        identity = Path("/etc/machine-id").read_text().strip()
    parts = ("apq-optuna ledger", identity, platform.node(), _processor_name(), os.cpu_count())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def as_json(rows: Sequence[LedgerRow]) -> str:
    """Rows and what deployments cost, as JSON: `{"schema", "rows", "costs"}`."""
    costs = asdict(costs_of(rows))
    return json.dumps(
        {"schema": SCHEMA, "rows": [asdict(row) for row in rows], "costs": costs}, indent=1
    )


def as_csv(rows: Sequence[LedgerRow]) -> str:
    """Rows as CSV, with a line of names; empty where something is not known."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(LedgerRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return file.getvalue()
