"""fp32 pairs: `<architecture, accuracy>` samples from evaluating subnets without training.

They live in tables of our own beside Optuna's, keyed by the supernet's weights and the data
split, so that one database URL holds everything and any worker or study of the same supernet can
use them.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite

from apq_optuna.errors import PairError
from apq_optuna.networks import Genotypes
from apq_optuna.space import SearchSpace
from apq_optuna.storage import create_engine, once_tables_exist

if TYPE_CHECKING:
    from apq_optuna.predictor import AccuracyPredictor
    from apq_optuna.supernet import Supernet

_metadata = sa.MetaData()
_pairs = sa.Table(
    "apq_pairs",
    _metadata,
    sa.Column("supernet", sa.String(16), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("genotype", sa.LargeBinary, nullable=False),
    sa.Column("accuracy", sa.Float(53), nullable=False),
)
_predictors = sa.Table(
    "apq_predictors",
    _metadata,
    sa.Column("supernet", sa.String(16), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("space", sa.String(16), primary_key=True),
    sa.Column("pairs", sa.Integer, primary_key=True),
    sa.Column("packed", sa.LargeBinary(1 << 28), nullable=False),
)

_protocols = sa.Table(
    "apq_pair_protocols",
    _metadata,
    sa.Column("supernet", sa.String(16), primary_key=True),
    sa.Column("split", sa.String(16), primary_key=True),
    sa.Column("protocol", sa.String(200), nullable=False),
)

FORMAT = "apq-pairs-1"


@dataclass(frozen=True)
class Pairs:
    """Rows of a store.

    Attributes:
        genotypes: `(n, D) int32`, canonical, bit-widths at their first choice.
        accuracies: `(n,) float64` in [0, 1].
    """

    genotypes: Genotypes
    accuracies: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.accuracies)


class PairStore:
    """fp32 pairs of one supernet in a database.

    Args:
        url: The study's storage URL.
        supernet: The supernet whose pairs these are.
        split: Hash of the data split they were measured on; by default that of the images the
            supernet was trained on.
    """

    def __init__(self, url: str, *, supernet: Supernet, split: str | None = None) -> None:
        self.url = url
        self.space: SearchSpace = supernet.space
        self.supernet = supernet.weights_hash
        self.split = split or str(supernet.data_info.get("split_hash", ""))
        self._open()

    def _open(self) -> None:
        self._engine = create_engine(self.url)
        once_tables_exist(lambda: _metadata.create_all(self._engine))
        decisions = self.space.decisions
        self._kept = np.array([not decision.quantization for decision in decisions])

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_engine"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"PairStore({self.url!r}, supernet={self.supernet}, {len(self)} pairs)"

    def _mine(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return sa.and_(table.c.supernet == self.supernet, table.c.split == self.split)

    def __len__(self) -> int:
        query = sa.select(sa.func.count()).select_from(_pairs).where(self._mine(_pairs))
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    @property
    def protocol(self) -> str | None:
        """How the pairs were measured; None before the first collection."""
        query = sa.select(_protocols.c.protocol).where(self._mine(_protocols))
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()

    def agree(self, protocol: str) -> None:
        """Notes how pairs are measured, or checks that it is how they were measured before.

        Raises:
            PairError: They were measured otherwise, so that accuracies would not compare.
        """
        row = {"supernet": self.supernet, "split": self.split, "protocol": protocol}
        with self._engine.begin() as connection:
            connection.execute(self._insert_new(_protocols), [row])
        if (stored := self.protocol) != protocol:
            raise PairError(
                f"the pairs in {self.url} were measured with {stored}, not with {protocol}: "
                "use the same numbers, or another database"
            )

    # ------------------------------------------------------------------ rows

    def _pack(self, genotypes: Genotypes) -> list[bytes]:
        """The architecture part of canonical rows, one byte a decision."""
        rows = self.space.canonical(np.atleast_2d(genotypes))[:, self._kept].astype(np.uint8)
        return [row.tobytes() for row in rows]

    def add(self, genotypes: Genotypes, accuracies: NDArray[np.floating]) -> None:
        """Adds pairs; an architecture that is there already keeps its accuracy.

        Args:
            genotypes: `(n, D)`; bit-widths are ignored.
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
                "supernet": self.supernet,
                "split": self.split,
                "key": hashlib.md5(packed, usedforsecurity=False).hexdigest(),
                "genotype": packed,
                "accuracy": accuracy,
            }
            for packed, accuracy in zip(self._pack(genotypes), accuracies.tolist(), strict=True)
        ]
        with self._engine.begin() as connection:
            connection.execute(self._insert_new(_pairs), rows)

    def _insert_new(self, table: sa.Table) -> sa.Insert:
        """An insert that leaves rows with a known key alone."""
        if self._engine.dialect.name == "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        if self._engine.dialect.name == "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        return sa.insert(table).prefix_with("IGNORE")

    def load(self) -> Pairs:
        """Every pair of this supernet and split, in a fixed order."""
        query = (
            sa.select(_pairs.c.genotype, _pairs.c.accuracy)
            .where(self._mine(_pairs))
            .order_by(_pairs.c.key)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        genotypes = np.zeros((len(rows), len(self._kept)), np.int32)
        width = int(self._kept.sum())
        packed = np.frombuffer(b"".join(row[0] for row in rows), np.uint8)
        if packed.size != len(rows) * width:
            raise PairError(
                f"{self.url}: the pairs of supernet {self.supernet} are of another space"
            )
        genotypes[:, self._kept] = packed.reshape(len(rows), width)
        return Pairs(genotypes, np.array([row[1] for row in rows], float))

    def missing(self, genotypes: Genotypes) -> NDArray[np.bool_]:
        """Which rows' architectures are not in the store yet, `(n,) bool`."""
        query = sa.select(_pairs.c.genotype).where(self._mine(_pairs))
        with self._engine.connect() as connection:
            known = {row[0] for row in connection.execute(query)}
        return np.array([packed not in known for packed in self._pack(genotypes)], bool)

    # ------------------------------------------------------------------ the fp32 predictor

    def features(self, space: SearchSpace, pairs: Pairs) -> NDArray[np.float32]:
        """Features of fp32 pairs in `space`: its quantization columns all zero.

        Raises:
            PairError: `space` has another architecture part.
        """
        self.check_space(space)
        features = space.features(pairs.genotypes)
        features[:, space.architecture_features :] = 0.0
        return features

    def check_space(self, space: SearchSpace) -> None:
        """Raises `PairError` unless `space` has this supernet's architectures."""
        if space.architecture_hash != self.space.architecture_hash:
            raise PairError(
                f"source: these pairs are of a supernet over another search space "
                f"({self.space.architecture_hash}) than the sampler's ({space.architecture_hash})"
            )

    def fp32_predictor(
        self, space: SearchSpace, pairs: Pairs, *, seed: int = 0, epochs: int = 60
    ) -> AccuracyPredictor:
        """The predictor fitted on `pairs`, from the database if some worker fitted it before.

        One fitted before keeps the seed and epochs it was fitted with.
        """
        from apq_optuna.predictor.mlp import AccuracyPredictor  # the one thing here with torch

        where = sa.and_(
            self._mine(_predictors),
            _predictors.c.space == space.hash,
            _predictors.c.pairs == len(pairs),
        )
        with self._engine.connect() as connection:
            packed = connection.execute(sa.select(_predictors.c.packed).where(where)).scalar()
        if packed is not None:
            return AccuracyPredictor.from_bytes(packed)
        predictor = AccuracyPredictor(space.num_features, space.architecture_features, seed=seed)
        predictor.fit(self.features(space, pairs), pairs.accuracies, epochs=epochs)
        packed = predictor.to_bytes(half=True)
        row: dict[str, object] = {
            "supernet": self.supernet,
            "split": self.split,
            "space": space.hash,
            "pairs": len(pairs),
            "packed": packed,
        }
        outdated = sa.and_(
            self._mine(_predictors),
            _predictors.c.space == space.hash,
            _predictors.c.pairs < len(pairs),
        )
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_predictors).where(outdated))
            connection.execute(self._insert_new(_predictors), [row])
        return AccuracyPredictor.from_bytes(packed)  # what the next worker will read

    def fp32_scorer(
        self, space: SearchSpace, pairs: Pairs
    ) -> Callable[[Genotypes], NDArray[np.float64]]:
        """Accuracy that the fp32 predictor expects of each genotype's architecture, `(n,)`."""
        from apq_optuna.predictor.transfer_learning import transferred

        return transferred(self.fp32_predictor(space, pairs)).scorer(space)

    # ------------------------------------------------------------------ files

    def export_npz(self, path: str | Path) -> Path:
        """Writes the pairs as a portable `.npz` (no pickles inside)."""
        pairs = self.load()
        path = Path(path).with_suffix(".npz")
        np.savez_compressed(
            path,
            format=np.array(FORMAT),
            supernet=np.array(self.supernet),
            split=np.array(self.split),
            architecture=np.array(self.space.architecture_hash),
            protocol=np.array(self.protocol or ""),
            genotypes=pairs.genotypes[:, self._kept].astype(np.uint8),
            accuracies=pairs.accuracies,
        )
        return path

    def import_npz(self, path: str | Path, *, protocol: str | None = None) -> int:
        """Adds the pairs of a file; returns how many there are in it.

        Args:
            path: What `export_npz` wrote.
            protocol: How they have to have been measured; by default as those that are here.

        Raises:
            PairError: Not such a file, or pairs of another supernet, split or protocol.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                fields = {name: archive[name] for name in archive.files}
            if str(fields["format"]) != FORMAT:
                raise PairError(f"{path} has format {fields['format']}; expected {FORMAT}")
            owner, split = str(fields["supernet"]), str(fields["split"])
            packed, accuracies = fields["genotypes"], fields["accuracies"]
            measured = str(fields["protocol"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise PairError(f"{path} is not a file of pairs: {error}") from error
        for what, theirs, ours in (
            ("supernet", owner, self.supernet), ("data split", split, self.split),
            ("protocol", measured, measured if protocol is None else protocol),
        ):  # fmt: skip
            if theirs != ours:
                raise PairError(f"{path} holds pairs of {what} {theirs}, not of {ours}")
        genotypes = np.zeros((len(accuracies), len(self._kept)), np.int32)
        genotypes[:, self._kept] = packed
        if measured:
            self.agree(measured)
        self.add(genotypes, accuracies)
        return len(accuracies)
