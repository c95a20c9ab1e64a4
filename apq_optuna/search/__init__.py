"""Search: Pareto fronts, expected hypervolume improvement, the evolutionary engine."""

from apq_optuna.search.ehvi import KnownCostEHVI, SampledEHVI, expected_excess
from apq_optuna.search.evolution import EvolutionOptions, EvolutionResult, budgeted_score, evolve
from apq_optuna.search.front import FrontResult, evolve_front
from apq_optuna.search.pareto import hypervolume, hypervolume_growth, nondominated

__all__ = [
    "EvolutionOptions",
    "EvolutionResult",
    "FrontResult",
    "KnownCostEHVI",
    "SampledEHVI",
    "budgeted_score",
    "evolve",
    "evolve_front",
    "expected_excess",
    "hypervolume",
    "hypervolume_growth",
    "nondominated",
]
