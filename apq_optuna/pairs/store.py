"""fp32 pairs: `<architecture, accuracy>` samples from evaluating subnets without training.

They live in tables of our own beside Optuna's, keyed by the supernet's weights and the data
split, so that one database URL holds everything and any worker or study of the same supernet can
use them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from apq_optuna.errors import PairError
from apq_optuna.networks import Genotypes
from apq_optuna.pairs.quantized import QuantizedPairs
from apq_optuna.pairs.rows import PairRows, Pairs, Tables
from apq_optuna.space import SearchSpace

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


class PairStore(PairRows):
    """fp32 pairs of one supernet in a database.

    Args:
        url: The study's storage URL.
        supernet: The supernet whose pairs these are.
        split: Hash of the data split they were measured on; by default that of the images the
            supernet was trained on.
    """

    tables = Tables(_pairs, _protocols)

    def __init__(self, url: str, *, supernet: Supernet, split: str | None = None) -> None:
        self.supernet = supernet.weights_hash
        self.split = split or str(supernet.data_info.get("split_hash", ""))
        super().__init__(url, supernet.space)

    def _open(self) -> None:
        super()._open()
        self._make_tables()

    def _owner(self) -> dict[str, str]:
        return {"supernet": self.supernet, "split": self.split}

    def _stored_decisions(self) -> NDArray[np.bool_]:
        return np.array([not decision.quantization for decision in self.space.decisions])

    def __repr__(self) -> str:
        return f"PairStore({self.url!r}, supernet={self.supernet}, {len(self)} pairs)"

    def quantized(self, space: SearchSpace | None = None) -> QuantizedPairs:
        """Pairs of quantized networks of this supernet and split, which are calibrated only.

        Args:
            space: The space with the bit-widths; by default the supernet's.

        Raises:
            PairError: `space` has another architecture part.
        """
        if space is not None:
            self.check_space(space)
        return QuantizedPairs(
            self.url, space or self.space, supernet=self.supernet, split=self.split
        )

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
        if found := self._read(sa.select(_predictors.c.packed).where(where)):
            return AccuracyPredictor.from_bytes(found[0][0])
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
        with self._writing() as connection:
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
