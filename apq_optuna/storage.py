"""Storage for studies: an Optuna `RDBStorage` tuned for many small writes, with a heartbeat."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage
from sqlalchemy.engine import ExceptionContext

from apq_optuna.errors import InvalidArgumentError, StorageError

T = TypeVar("T")

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 120


class WalConnection(sqlite3.Connection):
    """A SQLite connection with a write-ahead log.

    A trial with 131 parameters is some 150 commits. With the log and `synchronous=NORMAL` a commit
    does not wait for the disk; after a power cut the last ones may be missing, the database is
    still whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA busy_timeout=60000")
        self._use_log()
        self.execute("PRAGMA synchronous=NORMAL")

    def _use_log(self) -> None:
        """Turns the log on; only a new database needs it.

        The switch wants the database alone and does not wait for its turn, so workers that open a
        new one together have to try again.
        """
        for _ in range(200):
            try:
                self.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                time.sleep(0.05)
        self.execute("PRAGMA journal_mode=WAL")


def engine_options(url: str) -> dict[str, Any]:
    """Keyword arguments for `sqlalchemy.create_engine` that suit many small writes."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60, "factory": WalConnection}}
    return {"pool_pre_ping": True}


def create_engine(url: str) -> sqlalchemy.Engine:
    """An engine for the tables of our own, with the same settings and errors as the study's."""
    try:
        engine = sqlalchemy.create_engine(url, **engine_options(url))
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise _bad_url(url, error) from error
    sqlalchemy.event.listen(engine, "handle_error", _on_error)
    return engine


def open_storage(
    url: str,
    *,
    heartbeat_interval: int | None = HEARTBEAT_SECONDS,
    grace_period: int | None = GRACE_SECONDS,
) -> RDBStorage:
    """Opens the database that holds studies, and makes its tables if it is new.

    Args:
        url: `sqlite:///FILE`, or a server: `postgresql+psycopg2://USER@HOST/NAME`.
        heartbeat_interval: Seconds between signs of life of a running trial; None is no heartbeat.
        grace_period: Seconds after the last one until another worker fails the trial.

    Raises:
        InvalidArgumentError: Not a database URL, or its driver is not installed.
        StorageError: The database cannot be opened; also later, whenever it goes away.
    """
    if "://" not in url:
        raise _bad_url(url, None)
    if url.startswith("sqlite:///") and url != "sqlite:///":
        folder = Path(url.removeprefix("sqlite:///").split("?")[0]).parent
        if not folder.is_dir():
            raise StorageError(f"storage={url!r}: there is no folder {folder}")

    def connect() -> RDBStorage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs=engine_options(url),
                heartbeat_interval=heartbeat_interval,
                grace_period=grace_period if heartbeat_interval is not None else None,
            )

    try:
        storage = once_tables_exist(connect)
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        raise _bad_url(url, error) from error
    except sqlalchemy.exc.DBAPIError as error:
        raise StorageError(f"storage={url!r} cannot be opened: {error.orig}") from error
    sqlalchemy.event.listen(storage.engine, "handle_error", _on_error)
    return storage


def once_tables_exist(make: Callable[[], T]) -> T:
    """Calls `make`, which creates missing tables, and again if another worker was quicker.

    "Create if missing" is a look followed by a creation, and workers that start together all find
    the table missing; all but one then fail on a table that by now is there.
    """
    for pause in (0.1, 0.3, 1.0):
        try:
            return make()
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError,
                sqlalchemy.exc.IntegrityError) as error:  # fmt: skip
            if not any(word in str(error.orig) for word in ("already exists", "duplicate key",
                                                            "UNIQUE constraint")):  # fmt: skip
                raise
            time.sleep(pause)
    return make()


def lost_storage(error: BaseException | None) -> StorageError | None:
    """The report of a lost database behind an error, if that is what is behind it.

    Optuna reads the trial once more while it handles such an error and may raise another on top.
    """
    while error is not None:
        if isinstance(error, StorageError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _bad_url(url: str, error: Exception | None) -> InvalidArgumentError:
    reason = f": {error}" if error else ""
    return InvalidArgumentError(
        f"storage={url!r} is not a database URL such as sqlite:///apq.db or "
        f"postgresql+psycopg2://user@host/name{reason}"
    )


def _on_error(context: ExceptionContext) -> None:
    """Turns the driver's report of a lost database into one error that says what to do."""
    error = context.original_exception
    if "already exists" in str(error):  # two workers making the same tables: see once_tables_exist
        return None
    unreachable = context.connection is None and isinstance(
        context.sqlalchemy_exception, sqlalchemy.exc.OperationalError
    )
    if isinstance(error, sqlite3.OperationalError) or context.is_disconnect or unreachable:
        url = context.engine.url.render_as_string(hide_password=True) if context.engine else ""
        raise StorageError(
            f"storage {url!r} went away: {context.original_exception}. Finished trials are kept; "
            "once it is back, run the same command again to go on"
        ) from context.original_exception
    return None
