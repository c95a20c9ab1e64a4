"""The joint search space: decisions, genotypes, features, coordinates.

Networks as values are in `apq_optuna.networks`; the names that were here before they had a room of
their own still are.
"""

from apq_optuna.networks import (
    FLOAT_BITS,
    PRESETS,
    ConvLayer,
    Decision,
    PlacedLayer,
    StageSpec,
    Subnet,
)
from apq_optuna.networks import MobileFamily as NetworkSpec
from apq_optuna.networks import preset_family as network_spec
from apq_optuna.networks.blocks import Block
from apq_optuna.networks.mobile import FIXED_BITS
from apq_optuna.space.activity import Activity, Inactivity
from apq_optuna.space.coordinates import Coordinates
from apq_optuna.space.effects import Effects
from apq_optuna.space.features import FeatureMap, Features
from apq_optuna.space.space import SearchSpace

__all__ = [
    "FIXED_BITS",
    "FLOAT_BITS",
    "PRESETS",
    "Activity",
    "Block",
    "ConvLayer",
    "Coordinates",
    "Decision",
    "Effects",
    "FeatureMap",
    "Features",
    "Inactivity",
    "NetworkSpec",
    "PlacedLayer",
    "SearchSpace",
    "StageSpec",
    "Subnet",
    "network_spec",
]
