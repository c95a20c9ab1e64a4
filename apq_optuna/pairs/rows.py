"""Rows `<genotype, accuracy>` in tables of our own beside Optuna's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

from apq_optuna.errors import PairError
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace
from apq_optuna.storage import create_engine, once_tables_exist


@dataclass(frozen=True)
class Pairs:
    """Rows of a store.

    Attributes:
        genotypes: `(n, D) int32`, canonical; of fp32 pairs with bit-widths at their first choice.
        accuracies: `(n,) float64` in [0, 1].
    """

    genotypes: Genotypes
    accuracies: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.accuracies)


@dataclass(frozen=True)
class Tables:
    """The tables of one kind of pairs; in all of them the owner's columns come first.

    Attributes:
        rows: With `key`, `genotype` and `accuracy`.
        protocols: With `protocol`.
    """

    rows: sa.Table
    protocols: sa.Table


class PairRows:
    """Pairs of one owner in a database, each network once.

    Args:
        url: The study's storage URL.
        space: The space of the genotypes.
    """

    tables: ClassVar[Tables]

    def __init__(self, url: str, space: SearchSpace) -> None:
        self.url, self.space = url, space
        self._open()

    def _open(self) -> None:
        self._engine = create_engine(self.url)
        self._kept = self._stored_decisions()

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_engine"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def _owner(self) -> dict[str, str]:
        """Columns that tell whose rows are whose."""
        raise NotImplementedError

    def _stored_decisions(self) -> NDArray[np.bool_]:
        """Which decisions are part of a pair, `(D,)`."""
        raise NotImplementedError

    def _make_tables(self) -> None:
        once_tables_exist(lambda: self.tables.rows.metadata.create_all(self._engine))

    def _mine(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return sa.and_(*(table.c[name] == value for name, value in self._owner().items()))

    def _read(self, query: sa.Select[Any]) -> Sequence[Any]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    def _writing(self) -> AbstractContextManager[sa.Connection]:
        return self._engine.begin()

    def __len__(self) -> int:
        table = self.tables.rows
        found = self._read(sa.select(sa.func.count()).select_from(table).where(self._mine(table)))
        return int(found[0][0]) if found else 0

    @property
    def protocol(self) -> str | None:
        """How the pairs were measured; None before the first collection."""
        table = self.tables.protocols
        found = self._read(sa.select(table.c.protocol).where(self._mine(table)))
        return found[0][0] if found else None

    def agree(self, protocol: str) -> None:
        """Notes how pairs are measured, or checks that it is how they were measured before.

        Raises:
            PairError: They were measured otherwise, so that accuracies would not compare.
        """
        row = {**self._owner(), "protocol": protocol}
        with self._writing() as connection:
            connection.execute(self._insert_new(self.tables.protocols), [row])
        if (stored := self.protocol) != protocol:
            raise PairError(
                f"the pairs in {self.url} were measured with {stored}, not with {protocol}: "
                "use the same numbers, or another database"
            )

    # ------------------------------------------------------------------ rows

    def _pack(self, genotypes: Genotypes) -> list[bytes]:
        """What of canonical rows is part of a pair, one byte a decision."""
        rows = self.space.canonical(np.atleast_2d(genotypes))[:, self._kept].astype(np.uint8)
        return [row.tobytes() for row in rows]

    def add(self, genotypes: Genotypes, accuracies: NDArray[np.floating]) -> None:
        """Adds pairs; a network that is there already keeps its accuracy.

        Args:
            genotypes: `(n, D)`; bit-widths are ignored where the pairs are fp32.
            accuracies: `(n,)` in [0, 1].

        Raises:
            PairError: An accuracy outside [0, 1], or rows of another space.
        """
        accuracies = np.asarray(accuracies, float)
        if genotypes.shape != (len(accuracies), len(self._kept)):
            raise PairError(
                f"genotypes have shape {genotypes.shape}; expected "
                f"({len(accuracies)}, {len(self._kept)})"
            )
        if not ((accuracies >= 0) & (accuracies <= 1)).all():
            raise PairError("accuracies must lie in [0, 1]")
        if not len(accuracies):
            return
        rows = [
            {
                **self._owner(),
                "key": hashlib.md5(packed, usedforsecurity=False).hexdigest(),
                "genotype": packed,
                "accuracy": accuracy,
            }
            for packed, accuracy in zip(self._pack(genotypes), accuracies.tolist(), strict=True)
        ]
        with self._writing() as connection:
            connection.execute(self._insert_new(self.tables.rows), rows)

    def _insert_new(self, table: sa.Table) -> sa.Insert:
        """An insert that leaves rows with a known key alone."""
        if self._engine.dialect.name == "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        if self._engine.dialect.name == "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        return sa.insert(table).prefix_with("IGNORE")

    def load(self) -> Pairs:
        """Every pair of this owner, in a fixed order."""
        table = self.tables.rows
        query = (
            sa.select(table.c.genotype, table.c.accuracy)
            .where(self._mine(table))
            .order_by(table.c.key)
        )
        rows = self._read(query)
        genotypes = np.zeros((len(rows), len(self._kept)), np.int32)
        width = int(self._kept.sum())
        packed = np.frombuffer(b"".join(row[0] for row in rows), np.uint8)
        if packed.size != len(rows) * width:
            raise PairError(
                f"{self.url}: the pairs of supernet {self._owner()['supernet']} are of another "
                "space"
            )
        genotypes[:, self._kept] = packed.reshape(len(rows), width)
        return Pairs(genotypes, np.array([row[1] for row in rows], float))

    def missing(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """Which rows' networks are not in the store yet, `(n,) bool`."""
        table = self.tables.rows
        query = sa.select(table.c.genotype).where(self._mine(table))
        known = {row[0] for row in self._read(query)}
        return np.array([packed not in known for packed in self._pack(genotypes)], bool)
