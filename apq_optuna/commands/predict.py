"""The front on another device or budget, from what a study has learned."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any, Literal

from apq_optuna.commands.common import (
    completed_trials,
    cost_table,
    file_name,
    find_study,
    ledger_of,
    load_supernet,
    program_path,
    quiet,
    run_folder,
    say,
    storage_url,
    stored_study,
    take_in_pairs,
)

if TYPE_CHECKING:
    from optuna.study import Study

    from apq_optuna.prediction import PredictedFront
    from apq_optuna.supernet import Supernet


def predict(arguments: Any, budgets: dict[str, float]) -> None:
    """The front on a device, from what a study has learned: no images, no training."""
    from apq_optuna._optuna import storage_of
    from apq_optuna.pairs import PairStore
    from apq_optuna.prediction import predicted_front

    quiet()
    ledger = ledger_of(arguments)
    supernet = load_supernet(arguments)
    study = stored_study(arguments)
    costs = cost_table(arguments.hardware, supernet, run_folder(arguments), ledger)
    store = PairStore(storage_url(arguments), supernet=supernet)
    take_in_pairs(arguments, store)
    earlier = [
        find_study(name, storage_of(study), "--source-study") for name in arguments.source_study
    ]
    front = predicted_front(
        study, supernet.space, costs, source=[store, *earlier], budgets=budgets,
        seed=arguments.seed,
    )  # fmt: skip
    limits = ", ".join(f"{metric} <= {limit:g}" for metric, limit in budgets.items())
    say(
        f"predicted front on {costs.device}{' with ' * bool(limits)}{limits}: {len(front)} "
        f"networks out of {front.evaluated} looked at, from {front.trials} trials of study "
        f"{study.study_name!r}; {min(len(front), 16)} of them, +- is one standard deviation:\n"
        f"{front.table()}"
    )
    say(
        f"{time.perf_counter() - arguments.started:.1f} s from the command to this front; "
        "nothing was trained"
    )
    if arguments.enqueue is not None:
        _enqueue(arguments, supernet, study, front, budgets)
    from apq_optuna.report.hardware_plots import predicted_figure, write_figure

    file = f"predicted-{arguments.study}-{file_name(costs.device)}.html"
    path = arguments.report or run_folder(arguments) / file
    say(f"picture: {write_figure(predicted_figure(front), path)}")


def _enqueue(
    arguments: Any, supernet: Supernet, study: Study, front: PredictedFront,
    budgets: dict[str, float],
) -> None:  # fmt: skip
    import optuna
    from optuna.trial import TrialState

    from apq_optuna._optuna import storage_of, study_attribute

    name = arguments.into or f"{study.study_name}-{front.device}"
    directions: list[Literal["minimize", "maximize"]] = ["minimize"] * len(front.metric_names)
    directions = ["maximize", *directions]
    target = optuna.create_study(
        study_name=name, storage=storage_of(study), directions=directions, load_if_exists=True
    )
    added = front.enqueue(target, arguments.enqueue)
    waiting = len(target.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
    known = f" ({arguments.enqueue - added} of them were there already)" * (
        added < arguments.enqueue
    )
    say(f"{added} of the most accurate networks enqueued in study {name!r}{known}; run them:")
    words = ["search", "--run", str(arguments.run), "--study", name]
    words += ["--storage", arguments.storage] if arguments.storage else []
    words += ["--data", arguments.data] if arguments.data else []
    words += ["--hardware", arguments.hardware] if arguments.hardware else []
    words += ["--source-study", study.study_name]
    # as the study was measured, or its accuracies would not compare
    conditions = study_attribute(study, "objective") or {}
    conditions = {"finetune rates": "alike", **conditions}
    usual = {"--averaging": 0.0, "--repeats": 1, "--rates": "by-width"}
    for option, condition in (
        ("--steps", "finetune steps"), ("--finetune-rate", "finetune learning_rate"),
        ("--images", "images"), ("--averaging", "finetune averaging"), ("--repeats", "repeats"),
        ("--rates", "finetune rates"),
    ):  # fmt: skip
        if conditions.get(condition) not in (None, usual.get(option)):
            words += [option, str(conditions[condition])]
    if conditions.get("augmentation") not in (None, supernet.data_info.get("augment")):
        words += ["--augment", conditions["augmentation"]]
    for metric, limit in budgets.items():
        words += ["--budget", f"{metric}={limit!r}"]
    words += ["--trials", str(max(completed_trials(target) + waiting, 1))]
    say(f"  {program_path()} {shlex.join(words)}")
