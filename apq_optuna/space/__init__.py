"""The joint search space: decisions, genotypes, features, and the networks they describe."""

from apq_optuna.space.coordinates import Coordinates
from apq_optuna.space.decisions import Decision
from apq_optuna.space.presets import PRESETS, network_spec
from apq_optuna.space.space import SearchSpace
from apq_optuna.space.subnet import (
    FIXED_BITS,
    FLOAT_BITS,
    Block,
    ConvLayer,
    NetworkSpec,
    PlacedLayer,
    StageSpec,
    Subnet,
)

__all__ = [
    "FIXED_BITS",
    "FLOAT_BITS",
    "PRESETS",
    "Block",
    "ConvLayer",
    "Coordinates",
    "Decision",
    "NetworkSpec",
    "PlacedLayer",
    "SearchSpace",
    "StageSpec",
    "Subnet",
    "network_spec",
]
