"""Joint search beside what it is compared with."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apq_optuna.commands.common import (
    computing,
    cost_table,
    ledger_of,
    load_supernet,
    quiet,
    run_folder,
    say,
    set_threads,
    share_cores,
    storage_url,
    take_in_pairs,
)
from apq_optuna.commands.images import supernet_images
from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from apq_optuna.comparison import Setting
    from apq_optuna.supernet import OnceForAllNet, TrainingPlan

LEAST_SECONDS = 1.0
"""What takes less was read rather than measured."""


def compare(arguments: Any) -> None:
    from apq_optuna.comparison import METHODS, Setting, judge, markdown, results_of, write_page
    from apq_optuna.comparison.tables import shared_seconds
    from apq_optuna.pairs import PairStore
    from apq_optuna.quantization import FinetuneOptions
    from apq_optuna.storage import open_storage

    set_threads(arguments)
    quiet()
    cases = _cases(arguments)
    for option, least in (("trials", 5), ("seeds", 1), ("confirm", 0), ("steps", 0)):
        if getattr(arguments, option) < least:
            raise InvalidArgumentError(
                f"--{option} {getattr(arguments, option)}: at least {least}"
            )
    if arguments.out is not None and arguments.out.suffix == ".md":
        raise InvalidArgumentError(f"--out {arguments.out}: the page; the table goes beside it")
    chosen = arguments.method or list(METHODS)
    if unknown := [name for name in chosen if name not in METHODS]:
        raise InvalidArgumentError(f"--method {unknown[0]}: choose from {', '.join(METHODS)}")
    ledger = ledger_of(arguments)
    from apq_optuna.supernet import OnceForAllNet

    supernet = load_supernet(arguments)
    if not isinstance(supernet, OnceForAllNet):
        raise InvalidArgumentError(
            f"--run {arguments.run}: ProxylessNAS and MobileNetV2 need a once-for-all network; "
            "a model of one's own is searched by `search`, or by HAQSampler and AMCSampler"
        )
    folder = run_folder(arguments) / "compare"
    costs = cost_table(arguments.hardware, supernet, run_folder(arguments), ledger)
    compiled = costs.compile(supernet.space)
    for metric, limit in cases:
        if metric not in costs.metric_names:
            raise InvalidArgumentError(
                f"--budget {metric}: no cost of {costs.device}, which has "
                f"{', '.join(costs.metric_names)}"
            )
        least_cost = float(compiled.minima[list(compiled.metric_names).index(metric)])
        if limit < least_cost:
            raise InvalidArgumentError(
                f"--budget {metric}={limit:g}: the cheapest network takes {least_cost:.6g}"
            )
    data = supernet_images(arguments, supernet)
    url = storage_url(arguments)
    storage = open_storage(url)
    store = PairStore(url, supernet=supernet)
    take_in_pairs(arguments, store)
    if len(store) < 50:
        raise InvalidArgumentError(
            f"--run {arguments.run} has {len(store)} fp32 pairs: run `collect` first"
        )
    plan = _mobilenet_plan(arguments, supernet)
    options = FinetuneOptions(
        steps=arguments.steps,
        learning_rate=arguments.finetune_rate,
        averaging=arguments.averaging,
        rates=arguments.rates,
    )
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    say(
        f"{len(chosen)} methods, {len(cases)} budgets, {len(seeds)} seeds, {arguments.trials} "
        f"trials each on {costs.device}; a stopped comparison goes on with the same command"
    )
    started = time.perf_counter()
    done, total = 0, len(chosen) * len(cases) * len(seeds)
    for seed in seeds:
        for metric, limit in cases:
            for method in chosen:
                setting = _as_begun(Setting(
                    supernet, data, costs, metric, limit, seed, arguments.trials, options,
                    storage, store, folder, arguments.epochs, arguments.confirm, plan,
                    arguments.images, arguments.device, say,
                ))  # fmt: skip
                if not arguments.threads:
                    share_cores()
                with ledger.task(
                    "compare", subject=f"{method}, {setting.case}", scope="device",
                    target=costs.device, device=computing(arguments),
                ) as entry:  # fmt: skip
                    begun = time.perf_counter()
                    result = judge(setting, method)
                    if time.perf_counter() - begun < LEAST_SECONDS:
                        entry.units_done = 0  # it was done before, or cannot be
                done += 1
                told = result.missing or (
                    f"test {result.test:.4f}, confirmed {result.confirmed:.4f}, "
                    f"{result.seconds:.0f} s"
                )
                passed = time.perf_counter() - started
                say(f"[{done}/{total}, {passed:.0f} s] {METHODS[method].title}: {told}")
    results = results_of(storage, setting.conditions)
    shared = shared_seconds(ledger.rows())
    text = markdown(results, ledger.options, shared)
    out = arguments.out or run_folder(arguments) / "compare.html"
    about = (
        f"{costs.device}, {arguments.trials} trials a method, {arguments.steps} finetuning steps "
        f"each, {arguments.epochs:g} epochs of final finetuning."
    )
    write_page(results, out, options=ledger.options, shared=shared, about=about)
    out.with_suffix(".md").write_text(text + "\n")
    say(f"\n{text}\n\npage: {out}\ntable: {out.with_suffix('.md')}")


def _cases(arguments: Any) -> list[tuple[str, float]]:
    cases = []
    for text in arguments.budget:
        metric, _, limit = text.partition("=")
        try:
            cases.append((metric, float(limit)))
        except ValueError:
            raise InvalidArgumentError(
                f"--budget {text!r}: write METRIC=LIMIT, e.g. latency_ms=2.0"
            ) from None
    if not cases:
        raise InvalidArgumentError("--budget METRIC=LIMIT is needed, once for each budget")
    return cases


def _as_begun(setting: Setting) -> Setting:
    """The setting with the rates that its comparison began with, if none are asked for."""
    import optuna

    from apq_optuna.quantization import ALIKE, RATES

    if setting.finetune.rates is not None:
        return setting
    before = replace(setting, finetune=replace(setting.finetune, rates=ALIKE))
    names = optuna.get_all_study_names(setting.storage)
    begun = any(f"[{before.conditions}]" in name for name in names)
    if begun or any(setting.folder.rglob(f"*-{before.conditions}")):  # of its first stages
        return before
    return replace(setting, finetune=replace(setting.finetune, rates=RATES))


def _mobilenet_plan(arguments: Any, supernet: OnceForAllNet) -> TrainingPlan | None:
    """As long a training as the supernet's: told on the command line, or by its checkpoint."""
    from apq_optuna.supernet import TrainingPlan

    if arguments.mobilenet_epochs is not None:
        return TrainingPlan(epochs=arguments.mobilenet_epochs)
    file = run_folder(arguments) / "training.json"
    if not file.exists():
        return None
    _, _, _, plan, *teacher = json.loads(json.loads(file.read_text())["fingerprint"])
    if teacher:
        say("note: the supernet had a teacher and mixed images, MobileNetV2 has labels")
        plan = plan | {"mixed": 0.0}
    if not plan["shares"][0]:
        say("note: the supernet went on from another one (train --start): MobileNetV2 is trained "
            "as long as its last part; see --mobilenet-epochs")  # fmt: skip
    return TrainingPlan(**plan | {"shares": tuple(plan["shares"]), "start": ""})
