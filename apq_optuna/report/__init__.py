"""Figures, the HTML report, and the same in optuna-dashboard."""

from apq_optuna.report.report import (
    ParetoReport,
    keep_measurement,
    remember,
    save_to_dashboard,
    stored_baselines,
    study_figures,
    write_html,
)
from apq_optuna.report.summary import StudySummary, stored_space, summarise

__all__ = [
    "ParetoReport",
    "StudySummary",
    "keep_measurement",
    "remember",
    "save_to_dashboard",
    "stored_baselines",
    "stored_space",
    "study_figures",
    "summarise",
    "write_html",
]
