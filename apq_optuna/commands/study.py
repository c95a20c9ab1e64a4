"""Searching: a study run, or gone on with."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna._progress import progress_bar
from apq_optuna.commands.common import (
    budgets_of,
    completed_trials,
    computing,
    conditions_of_study,
    cost_table,
    find_study,
    ledger_of,
    program_path,
    quiet,
    run_folder,
    runs_whole,
    say,
    set_threads,
    share_cores,
    storage_url,
    take_in_pairs,
)
from apq_optuna.commands.images import supernet_images
from apq_optuna.commands.models import net_of
from apq_optuna.commands.predict import predict
from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import Trial

    from apq_optuna.data import ImageData
    from apq_optuna.hardware import CostTable, Device
    from apq_optuna.supernet import Supernet

MOST_LOST = 20
"""Trials in a row without values after which a search gives up."""


def search(arguments: Any) -> None:
    from apq_optuna.hardware import find_device
    from apq_optuna.quantization import FinetuneOptions

    set_threads(arguments)
    ledger = ledger_of(arguments)
    budgets = _budgets(arguments)
    if arguments.confirm is not None and arguments.confirm < 1:
        raise InvalidArgumentError(f"--confirm {arguments.confirm}: at least 1")
    if arguments.predict_only:
        if arguments.measure_on:
            raise InvalidArgumentError("--measure-on: --predict-only runs no networks")
        if arguments.into is not None and arguments.enqueue is None:
            raise InvalidArgumentError("--into goes with --enqueue")
        if arguments.enqueue is not None and arguments.enqueue < 1:
            raise InvalidArgumentError(f"--enqueue {arguments.enqueue}: at least 1")
        predict(arguments, budgets)
        return
    if arguments.enqueue is not None or arguments.into is not None:
        raise InvalidArgumentError("--enqueue and --into go with --predict-only")
    supernet = net_of(arguments)
    measured_on = find_device(arguments.measure_on) if arguments.measure_on else None
    # one that runs no networks at all the objective refuses
    measures = measured_on is not None and measured_on.runs_networks
    if measures and not runs_whole(measured_on, supernet.space, supernet):
        raise InvalidArgumentError(f"--measure-on {arguments.measure_on}: see above")
    costs = cost_table(arguments.hardware, supernet, run_folder(arguments), ledger)
    data = supernet_images(arguments, supernet)
    options = FinetuneOptions(
        steps=arguments.steps,
        learning_rate=_finetune_rate(arguments, supernet),
        averaging=arguments.averaging,
        rates=arguments.rates,
    )
    run_study(
        arguments, supernet, data, costs, options, study_name=arguments.study,
        report=arguments.report, budgets=budgets, sources=arguments.source_study,
        kind=arguments.sampler, images=arguments.images, baselines=not arguments.no_baselines,
        measured_on=measured_on, repeats=arguments.repeats,
    )  # fmt: skip


def _finetune_rate(arguments: Any, supernet: Supernet) -> float:
    """What is asked for, else what the study began with, else what is usual for the network."""
    from apq_optuna.quantization.finetune import PRETRAINED_RATE, FinetuneOptions
    from apq_optuna.supernet import PretrainedNet

    if arguments.finetune_rate is not None:
        return float(arguments.finetune_rate)
    begun_with = conditions_of_study(arguments).get("finetune learning_rate")
    if begun_with is not None:
        return float(begun_with)
    usual = FinetuneOptions().learning_rate
    return usual * PRETRAINED_RATE if isinstance(supernet, PretrainedNet) else usual


def _budgets(arguments: Any) -> dict[str, float]:
    budgets = budgets_of(arguments.budget)
    for metric in ("latency_ms", "energy_mj"):
        limit = getattr(arguments, f"max_{metric}")
        if limit is not None:
            budgets[metric] = min(limit, budgets.get(metric, limit))
    return budgets


def _sampler(kind: str, seed: int, supernet: Supernet, costs: CostTable, store: Any,
             budgets: dict[str, float], sources: Sequence[Study]) -> BaseSampler:  # fmt: skip
    import optuna

    from apq_optuna.sampler import APQSampler

    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    if kind == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return APQSampler(
        supernet.space, costs=costs, source=[store, *sources], budgets=budgets, seed=seed
    )


def run_study(
    arguments: Any, supernet: Supernet, data: ImageData, costs: CostTable, options: Any, *,
    study_name: str, report: Path | None = None, budgets: dict[str, float] | None = None,
    sources: Sequence[str] = (), kind: str = "apq", images: int | None = None,
    baselines: bool = True, measured_on: Device | None = None, repeats: int = 1,
) -> Study:  # fmt: skip
    import optuna
    from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    from apq_optuna._optuna import set_study_attribute
    from apq_optuna.objective import Objective, uniform_baselines
    from apq_optuna.pairs import PairStore
    from apq_optuna.report import ParetoReport, remember, stored_baselines
    from apq_optuna.storage import GRACE_SECONDS, open_storage

    quiet()
    url = storage_url(arguments)
    storage = open_storage(url)
    store = PairStore(url, supernet=supernet)
    objective = Objective(
        supernet,
        data,
        costs,
        finetune=options,
        device=arguments.device,
        images=images,
        repeats=repeats,
        measured_on=measured_on,
    )
    take_in_pairs(arguments, store)
    earlier = [find_study(name, storage, "--source-study") for name in sources]
    sampler = _sampler(kind, arguments.seed, supernet, costs, store, budgets or {}, earlier)
    study = optuna.create_study(
        study_name=study_name, storage=storage, directions=objective.directions, sampler=sampler,
        load_if_exists=True,
    )  # fmt: skip
    objective.check_study(study)
    if kind != "apq" and study.get_trials(deepcopy=False):
        sampler.reseed_rng()  # the same seed would begin with the trials that are there already
    if study.metric_names is None:
        study.set_metric_names(objective.metric_names)
    if arguments.command == "search":
        set_study_attribute(study, "hardware", arguments.hardware)
    done = completed_trials(study)
    calibrated = len(store.quantized())
    quantized = f" and {calibrated} quantized" if calibrated else ""
    say(
        f"study {study_name!r} in {url}: {done} of {arguments.trials} trials done, "
        f"{len(store)} fp32{quantized} pairs, device {costs.device}"
    )
    if running := sum(trial.state == TrialState.RUNNING for trial in study.get_trials(False)):
        say(
            f"{running} trials are running elsewhere; one whose worker is dead is failed "
            f"{GRACE_SECONDS} s after its last sign of life"
        )
    if baselines and not stored_baselines(study):
        say("measuring the largest network at uniform 8, 6 and 4 bits")
        remember(study, supernet.space, uniform_baselines(objective, costs))
    path = report or run_folder(arguments) / f"{study_name}.html"
    drawing = ParetoReport(path, space=supernet.space)
    started = time.perf_counter()
    with progress_bar(
        arguments.trials, "search", unit="trial", initial=min(done, arguments.trials)
    ) as bar, ledger_of(arguments).task(
        "search", subject=study_name, target=costs.device, scope="device", units="trials",
        device=computing(arguments),
    ) as entry:  # fmt: skip
        entry.units_done, entry.units_total = 0, arguments.trials
        lost = 0
        failed: tuple[int, BaseException] | None = None  # the trial that ended the last turn

        def count(study: Study, trial: Any) -> None:
            nonlocal lost
            if trial.state == TrialState.COMPLETE:
                lost = 0
                entry.units_done = (entry.units_done or 0) + 1
                bar.set_postfix_str(f"accuracy {trial.values[0]:.3f}", refresh=False)
                bar.update(1)
                return
            lost += 1
            if lost >= MOST_LOST:
                reason = trial.user_attrs.get("diverged") or trial.user_attrs.get("infeasible")
                raise InvalidArgumentError(
                    f"{lost} trials in a row gave no values; the last one: {reason}"
                )

        def measure(trial: Trial) -> tuple[float, ...] | float:
            nonlocal failed
            if not arguments.threads:
                share_cores()  # others may have come or gone
            try:
                return objective(trial)
            except TrialPruned:  # of a network that gave no values
                raise
            except BaseException as error:
                failed = trial.number, error
                raise

        while completed_trials(study) < arguments.trials:
            failed = None
            try:
                study.optimize(
                    measure,
                    callbacks=[
                        count,
                        drawing,
                        MaxTrialsCallback(arguments.trials, (TrialState.COMPLETE,)),
                    ],
                )
                break
            except ValueError as error:
                # Optuna's, which cannot tell a trial that another worker ended, hides what was
                if failed is None or failed[1] is error:
                    raise
                number, reason = failed
                if not isinstance(reason, UpdateFinishedTrialError):
                    raise reason from None
                text = (
                    f"trial {number} stood still, as when a machine sleeps, and another worker "
                    "took it for dead"
                )
                lost += 1
                if lost >= MOST_LOST:
                    raise InvalidArgumentError(
                        f"{lost} trials in a row gave no values; the last one: {text}"
                    ) from None
                say(f"{text}: going on with the next")
    if getattr(arguments, "confirm", None):
        from apq_optuna.confirming import confirm

        with ledger_of(arguments).task(
            "confirm", subject=study_name, target=costs.device, scope="device",
            device=computing(arguments),
        ):  # fmt: skip
            confirm(study, objective, arguments.confirm, progress=True)
    _say_front(study, time.perf_counter() - started)
    drawing.write(study)
    say(f"report: {path}")
    program = program_path()
    say(f"dashboard: {program.with_name('optuna-dashboard')} {url}")
    say(f"resume or extend: {program} {_extended(arguments)}")
    say(f"next: {program} finetune --run {arguments.run} --study {study_name} --trial N")
    return study


def _extended(arguments: Any) -> str:
    """The words of this command, with twice the trials."""
    words = list(arguments.words)
    while "--trials" in words:
        place = words.index("--trials")
        del words[place : place + 2]
    words = [word for word in words if not word.startswith("--trials=")]
    return shlex.join([*words, "--trials", str(2 * arguments.trials)])


def _say_front(study: Study, seconds: float) -> None:
    from apq_optuna.report import stored_baselines, summarise

    summary = summarise(study)
    say(
        f"\nPareto front: {len(summary.front)} of {len(summary.values)} trials, hypervolume "
        f"{summary.hypervolume():.5g} ({seconds:.0f} s)"
    )
    say(summary.table())
    for baseline in stored_baselines(study):
        values = ", ".join(f"{k} {v:.4f}" for k, v in baseline.items() if k != "name")
        say(f"largest network, uniform {baseline['name']}: {values}")
    say("")
