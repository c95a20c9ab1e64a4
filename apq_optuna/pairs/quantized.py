"""Quantized pairs that cost an evaluation: accuracies right after calibration, without finetuning.

They live in tables of their own, keyed by the supernet's weights, the data split and the whole
space: bit-widths are part of such a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from apq_optuna.pairs.rows import PairRows, Tables
from apq_optuna.space import SearchSpace

_metadata = sa.MetaData()


def _owner_columns() -> list[sa.Column[str]]:
    return [
        sa.Column(name, sa.String(16), primary_key=True) for name in ("supernet", "split", "space")
    ]


_pairs = sa.Table(
    "apq_quantized_pairs",
    _metadata,
    *_owner_columns(),
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("genotype", sa.LargeBinary, nullable=False),
    sa.Column("accuracy", sa.Float(53), nullable=False),
)
_protocols = sa.Table(
    "apq_quantized_protocols",
    _metadata,
    *_owner_columns(),
    sa.Column("protocol", sa.String(200), nullable=False),
)


class QuantizedPairs(PairRows):
    """Calibrated pairs of one supernet and space in a database.

    The tables are made when the first pair is written; before, there are no pairs.

    Args:
        url: The study's storage URL.
        space: The whole space, bit-widths included.
        supernet: Hash of the supernet's weights.
        split: Hash of the data split.
    """

    tables = Tables(_pairs, _protocols)

    def __init__(self, url: str, space: SearchSpace, *, supernet: str, split: str) -> None:
        self.supernet, self.split = supernet, split
        self._there = False
        super().__init__(url, space)

    def _read(self, query: sa.Select[Any]) -> Sequence[Any]:
        self._there = self._there or sa.inspect(self._engine).has_table(_pairs.name)
        return super()._read(query) if self._there else []

    def _writing(self) -> AbstractContextManager[sa.Connection]:
        self._make_tables()
        return super()._writing()

    def _owner(self) -> dict[str, str]:
        return {"supernet": self.supernet, "split": self.split, "space": self.space.hash}

    def _stored_decisions(self) -> NDArray[np.bool_]:
        return np.ones(len(self.space.decisions), bool)

    def __repr__(self) -> str:
        return f"QuantizedPairs({self.url!r}, supernet={self.supernet}, {len(self)} pairs)"
