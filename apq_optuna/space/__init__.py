"""The joint search space: decisions, genotypes, features, coordinates."""

from apq_optuna.space.activity import Activity, Inactivity
from apq_optuna.space.coordinates import Coordinates
from apq_optuna.space.features import FeatureMap, Features
from apq_optuna.space.space import SearchSpace

__all__ = ["Activity", "Coordinates", "FeatureMap", "Features", "Inactivity", "SearchSpace"]
