"""Pairs `<network, accuracy>` that are measured without training, in the study's database."""

from apq_optuna.pairs.quantized import QuantizedPairs
from apq_optuna.pairs.rows import Pairs
from apq_optuna.pairs.store import FORMAT, PairStore

__all__ = ["FORMAT", "PairStore", "Pairs", "QuantizedPairs"]
