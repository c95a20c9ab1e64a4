"""What each command of `apq-optuna` does; their arguments are in `cli`."""

from apq_optuna.commands.cache import cache
from apq_optuna.commands.compare import compare
from apq_optuna.commands.export import export
from apq_optuna.commands.hardware import hardware
from apq_optuna.commands.ledger import ledger
from apq_optuna.commands.models import trace
from apq_optuna.commands.prepare import collect, train
from apq_optuna.commands.quickstart import quickstart
from apq_optuna.commands.results import finetune, report
from apq_optuna.commands.study import search

__all__ = [
    "cache",
    "collect",
    "compare",
    "export",
    "finetune",
    "hardware",
    "ledger",
    "quickstart",
    "report",
    "search",
    "trace",
    "train",
]
