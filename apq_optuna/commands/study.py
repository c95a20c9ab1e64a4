"""Searching, and what comes after: the report and the finished network."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apq_optuna.commands.common import (
    cost_table,
    file_name,
    find_study,
    load_images,
    load_supernet,
    program_path,
    progress_bar,
    run_folder,
    say,
    set_threads,
    storage_url,
    stored_study,
    supernet_images,
)
from apq_optuna.commands.prepare import collect_pairs_of, train_supernet_at
from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study

    from apq_optuna.data import ImageData
    from apq_optuna.hardware import CostTable, Device
    from apq_optuna.prediction import PredictedFront
    from apq_optuna.supernet import OnceForAllNet

MOST_LOST = 20
"""Trials in a row without values after which a search gives up."""


def search(arguments: Any) -> None:
    from apq_optuna.hardware import find_device
    from apq_optuna.quantization import FinetuneOptions

    set_threads(arguments)
    budgets = _budgets(arguments)
    if arguments.predict_only:
        if arguments.measure_on:
            raise InvalidArgumentError("--measure-on: --predict-only runs no networks")
        if arguments.into is not None and arguments.enqueue is None:
            raise InvalidArgumentError("--into goes with --enqueue")
        if arguments.enqueue is not None and arguments.enqueue < 1:
            raise InvalidArgumentError(f"--enqueue {arguments.enqueue}: at least 1")
        _predict(arguments, budgets)
        return
    if arguments.enqueue is not None or arguments.into is not None:
        raise InvalidArgumentError("--enqueue and --into go with --predict-only")
    supernet = load_supernet(arguments)
    measured_on = find_device(arguments.measure_on) if arguments.measure_on else None
    costs = cost_table(arguments.hardware, supernet, run_folder(arguments))
    data = supernet_images(arguments, supernet)
    options = FinetuneOptions(steps=arguments.steps, learning_rate=arguments.finetune_rate)
    _run_study(
        arguments, supernet, data, costs, options, study_name=arguments.study,
        report=arguments.report, budgets=budgets, sources=arguments.source_study,
        kind=arguments.sampler, images=arguments.images, baselines=not arguments.no_baselines,
        measured_on=measured_on,
    )  # fmt: skip


def _budgets(arguments: Any) -> dict[str, float]:
    budgets = {}
    for text in arguments.budget:
        metric, _, limit = text.partition("=")
        try:
            budgets[metric] = float(limit)
        except ValueError:
            raise InvalidArgumentError(
                f"--budget {text!r}: write METRIC=LIMIT, e.g. latency_ms=2.0"
            ) from None
    for metric in ("latency_ms", "energy_mj"):
        limit = getattr(arguments, f"max_{metric}")
        if limit is not None:
            budgets[metric] = min(limit, budgets.get(metric, limit))
    return budgets


def _predict(arguments: Any, budgets: dict[str, float]) -> None:
    """The front on a device, from what a study has learned: no images, no training."""
    from apq_optuna._optuna import storage_of
    from apq_optuna.pairs import PairStore
    from apq_optuna.prediction import predicted_front

    _quiet()
    supernet = load_supernet(arguments)
    study = stored_study(arguments)
    costs = cost_table(arguments.hardware, supernet, run_folder(arguments))
    store = PairStore(storage_url(arguments), supernet=supernet)
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
        _enqueue(arguments, study, front, budgets)
    from apq_optuna.hardware_plots import predicted_figure, write_figure

    file = f"predicted-{arguments.study}-{file_name(costs.device)}.html"
    path = arguments.report or run_folder(arguments) / file
    say(f"picture: {write_figure(predicted_figure(front), path)}")


def _enqueue(
    arguments: Any, study: Study, front: PredictedFront, budgets: dict[str, float]
) -> None:
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
    for option, condition in (
        ("--steps", "finetune steps"), ("--finetune-rate", "finetune learning_rate"),
        ("--images", "images"),
    ):  # fmt: skip
        if conditions.get(condition) is not None:
            words += [option, str(conditions[condition])]
    for metric, limit in budgets.items():
        words += ["--budget", f"{metric}={limit!r}"]
    words += ["--trials", str(max(_completed(target) + waiting, 1))]
    say(f"  {program_path()} {shlex.join(words)}")


def _sampler(kind: str, seed: int, supernet: OnceForAllNet, costs: CostTable, store: Any,
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


def _run_study(
    arguments: Any, supernet: OnceForAllNet, data: ImageData, costs: CostTable, options: Any, *,
    study_name: str, report: Path | None = None, budgets: dict[str, float] | None = None,
    sources: Sequence[str] = (), kind: str = "apq", images: int | None = None,
    baselines: bool = True, measured_on: Device | None = None,
) -> Study:  # fmt: skip
    import optuna
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    from apq_optuna._optuna import set_study_attribute
    from apq_optuna.objective import Objective
    from apq_optuna.pairs import PairStore
    from apq_optuna.report import ParetoReport, remember, stored_baselines, uniform_baselines
    from apq_optuna.storage import GRACE_SECONDS, open_storage

    _quiet()
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
        measured_on=measured_on,
    )
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
    done = _completed(study)
    say(
        f"study {study_name!r} in {url}: {done} of {arguments.trials} trials done, "
        f"{len(store)} fp32 pairs, device {costs.device}"
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
    ) as bar:
        lost = 0

        def count(study: Study, trial: Any) -> None:
            nonlocal lost
            if trial.state == TrialState.COMPLETE:
                lost = 0
                bar.set_postfix_str(f"accuracy {trial.values[0]:.3f}", refresh=False)
                bar.update(1)
                return
            lost += 1
            if lost >= MOST_LOST:
                reason = trial.user_attrs.get("diverged") or trial.user_attrs.get("infeasible")
                raise InvalidArgumentError(
                    f"{lost} trials in a row gave no values; the last one: {reason}"
                )

        if done < arguments.trials:
            study.optimize(
                objective,
                callbacks=[
                    count,
                    drawing,
                    MaxTrialsCallback(arguments.trials, (TrialState.COMPLETE,)),
                ],
            )
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


def _quiet() -> None:
    """Optuna's own messages, which say what ours do."""
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _completed(study: Study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _say_front(study: Study, seconds: float) -> None:
    from apq_optuna.report import stored_baselines
    from apq_optuna.summary import summarise

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


def quickstart(arguments: Any) -> None:
    from apq_optuna.errors import CheckpointError
    from apq_optuna.pairs import PairStore
    from apq_optuna.quantization import FinetuneOptions
    from apq_optuna.supernet import OnceForAllNet, TrainingPlan

    started = time.perf_counter()
    set_threads(arguments)
    arguments.data, arguments.image_size, arguments.grayscale = "digits", None, None
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
    _run_study(arguments, supernet, data, costs, options, study_name="quickstart")
    say(f"quickstart took {time.perf_counter() - started:.0f} s")


def report(arguments: Any) -> None:
    from apq_optuna.report import save_to_dashboard, study_figures, write_html

    study = stored_study(arguments)
    figures = study_figures(study, trial=arguments.trial)
    path = arguments.out or run_folder(arguments) / f"{arguments.study}.html"
    write_html(study, figures, path)
    save_to_dashboard(study, figures)
    say(f"report: {path}")
    say(f"dashboard: {program_path().with_name('optuna-dashboard')} {storage_url(arguments)}")


def finetune(arguments: Any) -> None:
    from apq_optuna._optuna import study_attribute
    from apq_optuna.finishing import finish
    from apq_optuna.quantization import load_network
    from apq_optuna.report import chosen_subnet
    from apq_optuna.summary import summarise
    from apq_optuna.supernet import accuracy

    set_threads(arguments)
    supernet = load_supernet(arguments)
    study = stored_study(arguments)
    chosen = chosen_subnet(summarise(study), supernet.space, arguments.trial)
    if chosen is None:
        raise InvalidArgumentError(f"--study {arguments.study!r} has no completed trial yet")
    number, subnet = chosen
    named = arguments.hardware or study_attribute(study, "hardware") or ""
    costs = cost_table(named, supernet, run_folder(arguments))
    data = supernet_images(arguments, supernet)
    path = arguments.out or run_folder(arguments) / f"finished-{number}"
    if (path / "network.safetensors").exists():
        raise InvalidArgumentError(
            f"--out {path} holds a finished network, tested once; choose another folder"
        )
    with progress_bar(1, f"finetune trial {number}", unit="step") as bar:

        def show(step: int, steps: int, loss: float) -> None:
            bar.total = steps
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        _, stored = finish(
            supernet, data, subnet, path, epochs=arguments.epochs, costs=costs,
            device=arguments.device, about={"study": arguments.study, "trial": number},
            report=show,
        )  # fmt: skip
    measured = stored["accuracy"]
    again = accuracy(load_network(path), data)
    say(
        f"trial {number}: search-validation {measured['search_validation']:.4f} (fp32 before "
        f"quantization {measured['search_validation_fp32']:.4f}), test {measured['test']:.4f}"
    )
    priced = ", ".join(f"{name} {value:.4f}" for name, value in stored["costs"].items())
    say(f"costs on {stored['device']}: {priced}")
    say(f"saved in {path}; loaded again: search-validation {again:.4f}")
    say(f'use it: apq_optuna.load_network("{path}")')
