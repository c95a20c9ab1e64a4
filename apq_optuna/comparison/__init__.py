"""Joint search beside what it is compared with, on one supernet, one device and equal terms."""

from apq_optuna.comparison.judging import Judged, judge
from apq_optuna.comparison.methods import METHODS, Method
from apq_optuna.comparison.setting import Setting
from apq_optuna.comparison.tables import comparison_figure, markdown, results_of, write_page

__all__ = [
    "METHODS",
    "Judged",
    "Method",
    "Setting",
    "comparison_figure",
    "judge",
    "markdown",
    "results_of",
    "write_page",
]
