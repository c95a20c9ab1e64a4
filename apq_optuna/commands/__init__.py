"""What each command of `apq-optuna` does; their arguments are in `cli`."""

from apq_optuna.commands.hardware import hardware
from apq_optuna.commands.prepare import collect, train
from apq_optuna.commands.study import finetune, quickstart, report, search

__all__ = ["collect", "finetune", "hardware", "quickstart", "report", "search", "train"]
