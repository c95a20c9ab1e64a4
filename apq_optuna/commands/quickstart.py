"""The whole job on the embedded digits."""

from __future__ import annotations

import time
from typing import Any

from apq_optuna.commands.common import (
    cost_table,
    ledger_of,
    run_folder,
    say,
    set_threads,
    storage_url,
)
from apq_optuna.commands.images import load_images
from apq_optuna.commands.prepare import collect_pairs_of, train_supernet_at
from apq_optuna.commands.study import run_study


def quickstart(arguments: Any) -> None:
    from apq_optuna.errors import CheckpointError
    from apq_optuna.pairs import PairStore
    from apq_optuna.quantization import FinetuneOptions
    from apq_optuna.supernet import OnceForAllNet, TrainingPlan

    started = time.perf_counter()
    set_threads(arguments)
    ledger_of(arguments)
    arguments.data, arguments.image_size, arguments.grayscale = "digits", None, None
    arguments.fit, arguments.skip_broken = None, None
    data = load_images(arguments)
    try:
        supernet = OnceForAllNet.load(arguments.run)
        say(f"supernet: the trained one in {arguments.run}")
    except CheckpointError:
        plan = TrainingPlan(epochs=40, batch_size=64, learning_rate=0.05)
        supernet = train_supernet_at(arguments, data, "digits", plan)
    store = PairStore(storage_url(arguments), supernet=supernet)
    collect_pairs_of(arguments, supernet, data, store, 200, None, 1)
    costs = cost_table("", supernet, run_folder(arguments))
    options = FinetuneOptions(steps=30, learning_rate=3e-3)
    run_study(arguments, supernet, data, costs, options, study_name="quickstart")
    say(f"quickstart took {time.perf_counter() - started:.0f} s")
