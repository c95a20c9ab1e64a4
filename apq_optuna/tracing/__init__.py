"""A torch model as a search space: what it does, which channels hang together, and whether so."""

from apq_optuna.tracing.trace import trace

__all__ = ["trace"]
