"""What each command of `apq-optuna` does; its arguments are in `cli`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study

    from apq_optuna.data import ImageData
    from apq_optuna.hardware import CostTable
    from apq_optuna.supernet import OnceForAllNet

MOST_LOST = 20
"""Trials in a row without values after which a search gives up."""


def _threads(arguments: Any) -> None:
    if getattr(arguments, "threads", None):
        import torch

        torch.set_num_threads(arguments.threads)


def _folder(arguments: Any, *, make: bool = True) -> Path:
    """Where results of a run go."""
    name = str(arguments.run)
    folder = (
        Path("runs") / name.removeprefix("pretrained:")
        if name.startswith("pretrained:")
        else arguments.run
    )
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return Path(folder)


def _supernet(arguments: Any) -> OnceForAllNet:
    from apq_optuna.supernet import OnceForAllNet

    return OnceForAllNet.load(str(arguments.run).removeprefix("pretrained:"))


def _images(arguments: Any, trained_on: str | None = None, size: int | None = None) -> ImageData:
    from apq_optuna.data import load_data

    name = arguments.data or trained_on
    if not name:
        raise InvalidArgumentError("--data is needed: digits, cifar10 or folder:PATH")
    started = time.perf_counter()
    data = load_data(name, image_size=arguments.image_size or size, grayscale=arguments.grayscale)
    _say(
        f"{name}: {len(data.train)} training, {len(data.search_validation)} search-validation, "
        f"{len(data.test)} test images of {data.num_classes} classes, {data.image_size}x"
        f"{data.image_size}x{data.channels} ({time.perf_counter() - started:.1f} s)"
    )
    return data


def _supernet_images(arguments: Any, supernet: OnceForAllNet) -> ImageData:
    info = supernet.data_info
    if arguments.grayscale is None and supernet.spec.in_channels == 1:
        arguments.grayscale = True
    name = str(info.get("name") or "") or None
    size = supernet.spec.image_size if str(arguments.data or name).startswith("folder:") else None
    return _images(arguments, name, size)


def _url(arguments: Any) -> str:
    return arguments.storage or f"sqlite:///{_folder(arguments) / 'apq.db'}"


def _costs(name: str, supernet: OnceForAllNet) -> CostTable:
    from apq_optuna.hardware import DEVICES, CostTable

    if not name:
        name = "bitfusion-small" if supernet.spec.name == "digits" else "bitfusion"
    if name in DEVICES:
        return DEVICES[name]().table(supernet.space)
    if Path(name).suffix == ".json":
        return CostTable.load(name)
    raise InvalidArgumentError(
        f"--hardware {name!r}: choose from {sorted(DEVICES)}, or give a .json cost table"
    )


def _bar(total: float, text: str, **options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=text, mininterval=0.5, dynamic_ncols=True, **options)


def _program() -> Path:
    """How this program was called, for the commands it suggests."""
    called = Path(sys.argv[0])
    return called if called.name == "apq-optuna" else Path("apq-optuna")


def _say(text: str) -> None:
    print(text, flush=True)


def _load_study(arguments: Any) -> Study:
    from apq_optuna.storage import open_storage

    if arguments.storage is None and not (_folder(arguments, make=False) / "apq.db").exists():
        raise InvalidArgumentError(
            f"--run {arguments.run} has no study yet: there is no apq.db; run `search` first"
        )
    return _find_study(arguments.study, open_storage(_url(arguments)), "--study")


def _find_study(name: str, storage: Any, option: str) -> Study:
    import optuna

    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        names = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
        raise InvalidArgumentError(
            f"{option} {name!r} is not in {storage.url}; there are {names}"
        ) from error


# ---------------------------------------------------------------------- commands


def train(arguments: Any) -> None:
    from apq_optuna.supernet import TrainingPlan

    _threads(arguments)
    data = _images(arguments)
    plan = TrainingPlan(
        epochs=arguments.epochs,
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
    )
    _train_supernet(arguments, data, arguments.preset, plan)
    _say(f"next: {_program()} collect --run {arguments.run}")


def _train_supernet(arguments: Any, data: ImageData, preset: str, plan: Any) -> OnceForAllNet:
    import torch

    from apq_optuna.quantization import fp32_network
    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import OnceForAllNet, accuracy, train_supernet

    space = SearchSpace.preset(
        preset, image_size=data.image_size, in_channels=data.channels, num_classes=data.num_classes
    )
    torch.manual_seed(arguments.seed)
    net = OnceForAllNet(space)
    largest, smallest = (space.decode(space.extreme(largest=big)[0]) for big in (True, False))
    _say(
        f"supernet {preset}: {len(space.decisions)} decisions, {smallest.macs / 1e6:.2f} to "
        f"{largest.macs / 1e6:.2f} MMACs"
    )
    started = time.perf_counter()
    with _bar(100, "train", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:

        def show(progress: float, phase: str, loss: float) -> None:
            bar.set_postfix_str(f"{phase}, loss {loss:.3f}", refresh=False)
            bar.update(100 * progress - bar.n)

        train_supernet(
            net,
            data,
            plan,
            arguments.run,
            device=arguments.device,
            seed=arguments.seed,
            report=show,
        )
    accuracies = [
        accuracy(fp32_network(net, subnet, data, 512, 0), data) for subnet in (largest, smallest)
    ]
    _say(
        f"trained in {time.perf_counter() - started:.0f} s; search-validation accuracy without "
        f"finetuning: largest {accuracies[0]:.4f}, smallest {accuracies[1]:.4f}"
    )
    _say(f"saved in {arguments.run}")
    return net


def collect(arguments: Any) -> None:
    from apq_optuna.pairs import PairStore

    _threads(arguments)
    supernet = _supernet(arguments)
    store = PairStore(_url(arguments), supernet=supernet)
    if arguments.import_file is not None:
        count = store.import_npz(arguments.import_file)
        _say(f"imported {count} pairs; {len(store)} in {store.url}")
        return
    data = _supernet_images(arguments, supernet)
    _collect_pairs(
        arguments, supernet, data, store, arguments.pairs, arguments.images, arguments.workers
    )
    if arguments.export is not None:
        _say(f"exported to {store.export_npz(arguments.export)}")
    _say(f"next: {_program()} search --run {arguments.run}")


def _collect_pairs(
    arguments: Any, supernet: OnceForAllNet, data: ImageData, store: Any, pairs: int,
    images: int | None, workers: int,
) -> None:  # fmt: skip
    from apq_optuna.collect import collect_pairs
    from apq_optuna.supernet.training import resolve_device

    supernet.to(resolve_device(arguments.device))
    before = len(store)
    with _bar(pairs, "collect", unit="pair", initial=min(before, pairs)) as bar:
        collect_pairs(
            supernet, data, store, pairs, seed=arguments.seed, images=images, workers=workers,
            report=lambda done, value: bar.update(1),
        )  # fmt: skip
    found = store.load().accuracies
    _say(
        f"{len(found)} fp32 pairs: accuracy {found.min():.4f} to {found.max():.4f}, "
        f"mean {found.mean():.4f}"
    )
    if len(found) >= 50:
        _say_predictor(supernet, store)
    supernet.to("cpu")


def _say_predictor(supernet: OnceForAllNet, store: Any) -> None:
    """Quality of an fp32 predictor on a fifth of the pairs held out."""
    import numpy as np

    from apq_optuna.predictor import AccuracyPredictor, evaluate

    pairs = store.load()
    space = supernet.space
    features = store.features(space, pairs)
    order = np.random.default_rng(0).permutation(len(pairs))
    held, kept = np.split(order, [len(pairs) // 5])
    predictor = AccuracyPredictor(space.num_features, space.architecture_features)
    predictor.fit(features[kept], pairs.accuracies[kept], epochs=40)
    quality = evaluate(pairs.accuracies[held], *predictor.predict(features[held]))
    _say(
        f"fp32 predictor on {quality.rows} held-out pairs: pairwise accuracy "
        f"{quality.pairwise_accuracy:.3f}, Kendall tau {quality.kendall_tau:.3f}, RMSE "
        f"{quality.rmse:.4f}, 95 % coverage {quality.coverage:.2f}"
    )


def search(arguments: Any) -> None:
    from apq_optuna.quantization import FinetuneOptions

    _threads(arguments)
    supernet = _supernet(arguments)
    costs = _costs(arguments.hardware, supernet)
    data = _supernet_images(arguments, supernet)
    options = FinetuneOptions(steps=arguments.steps, learning_rate=arguments.finetune_rate)
    _run_study(
        arguments, supernet, data, costs, options, study_name=arguments.study,
        report=arguments.report, budgets=_budgets(arguments.budget),
        sources=arguments.source_study, kind=arguments.sampler, images=arguments.images,
        baselines=not arguments.no_baselines,
    )  # fmt: skip


def _budgets(texts: Sequence[str]) -> dict[str, float]:
    budgets = {}
    for text in texts:
        metric, _, limit = text.partition("=")
        try:
            budgets[metric] = float(limit)
        except ValueError:
            raise InvalidArgumentError(
                f"--budget {text!r}: write METRIC=LIMIT, e.g. latency_ms=2.0"
            ) from None
    return budgets


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
    baselines: bool = True,
) -> Study:  # fmt: skip
    import warnings

    import optuna
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    from apq_optuna._optuna import set_study_attribute
    from apq_optuna.objective import Objective
    from apq_optuna.pairs import PairStore
    from apq_optuna.report import ParetoReport, remember, stored_baselines, uniform_baselines
    from apq_optuna.storage import GRACE_SECONDS, open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    url = _url(arguments)
    storage = open_storage(url)
    store = PairStore(url, supernet=supernet)
    objective = Objective(
        supernet, data, costs, finetune=options, device=arguments.device, images=images
    )
    earlier = [_find_study(name, storage, "--source-study") for name in sources]
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
    _say(
        f"study {study_name!r} in {url}: {done} of {arguments.trials} trials done, "
        f"{len(store)} fp32 pairs, device {costs.device}"
    )
    if running := sum(trial.state == TrialState.RUNNING for trial in study.get_trials(False)):
        _say(
            f"{running} trials are running elsewhere; one whose worker is dead is failed "
            f"{GRACE_SECONDS} s after its last sign of life"
        )
    if baselines and not stored_baselines(study):
        _say("measuring the largest network at uniform 8, 6 and 4 bits")
        remember(study, supernet.space, uniform_baselines(objective, costs))
    path = report or _folder(arguments) / f"{study_name}.html"
    drawing = ParetoReport(path, space=supernet.space)
    started = time.perf_counter()
    with _bar(
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
    _say(f"report: {path}")
    program = _program()
    again = (
        "quickstart" if arguments.command == "quickstart" else f"search --run {arguments.run} ..."
    )
    _say(f"dashboard: {program.with_name('optuna-dashboard')} {url}")
    _say(f"resume or extend: {program} {again} --trials {2 * arguments.trials}")
    _say(f"next: {program} finetune --run {arguments.run} --study {study_name} --trial N")
    return study


def _completed(study: Study) -> int:
    from optuna.trial import TrialState

    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _say_front(study: Study, seconds: float) -> None:
    from apq_optuna.report import stored_baselines
    from apq_optuna.summary import summarise

    summary = summarise(study)
    _say(
        f"\nPareto front: {len(summary.front)} of {len(summary.values)} trials, hypervolume "
        f"{summary.hypervolume():.5g} ({seconds:.0f} s)"
    )
    _say(summary.table())
    for baseline in stored_baselines(study):
        values = ", ".join(f"{k} {v:.4f}" for k, v in baseline.items() if k != "name")
        _say(f"largest network, uniform {baseline['name']}: {values}")
    _say("")


def quickstart(arguments: Any) -> None:
    from apq_optuna.errors import CheckpointError
    from apq_optuna.pairs import PairStore
    from apq_optuna.quantization import FinetuneOptions
    from apq_optuna.supernet import OnceForAllNet, TrainingPlan

    started = time.perf_counter()
    _threads(arguments)
    arguments.data, arguments.image_size, arguments.grayscale = "digits", None, None
    data = _images(arguments)
    try:
        supernet = OnceForAllNet.load(arguments.run)
        _say(f"supernet: the trained one in {arguments.run}")
    except CheckpointError:
        plan = TrainingPlan(epochs=40, batch_size=64, learning_rate=0.05)
        supernet = _train_supernet(arguments, data, "digits", plan)
    store = PairStore(_url(arguments), supernet=supernet)
    _collect_pairs(arguments, supernet, data, store, 200, None, 1)
    costs = _costs("", supernet)
    options = FinetuneOptions(steps=30, learning_rate=3e-3)
    _run_study(arguments, supernet, data, costs, options, study_name="quickstart")
    _say(f"quickstart took {time.perf_counter() - started:.0f} s")


def report(arguments: Any) -> None:
    from apq_optuna.report import save_to_dashboard, study_figures, write_html

    study = _load_study(arguments)
    figures = study_figures(study, trial=arguments.trial)
    path = arguments.out or _folder(arguments) / f"{arguments.study}.html"
    write_html(study, figures, path)
    save_to_dashboard(study, figures)
    _say(f"report: {path}")
    _say(f"dashboard: {_program().with_name('optuna-dashboard')} {_url(arguments)}")


def finetune(arguments: Any) -> None:
    from apq_optuna._optuna import study_attribute
    from apq_optuna.finishing import finish
    from apq_optuna.quantization import load_network
    from apq_optuna.report import chosen_subnet
    from apq_optuna.summary import summarise
    from apq_optuna.supernet import accuracy

    _threads(arguments)
    supernet = _supernet(arguments)
    study = _load_study(arguments)
    chosen = chosen_subnet(summarise(study), supernet.space, arguments.trial)
    if chosen is None:
        raise InvalidArgumentError(f"--study {arguments.study!r} has no completed trial yet")
    number, subnet = chosen
    costs = _costs(arguments.hardware or study_attribute(study, "hardware") or "", supernet)
    data = _supernet_images(arguments, supernet)
    path = arguments.out or _folder(arguments) / f"finished-{number}"
    if (path / "network.safetensors").exists():
        raise InvalidArgumentError(
            f"--out {path} holds a finished network, tested once; choose another folder"
        )
    with _bar(1, f"finetune trial {number}", unit="step") as bar:

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
    _say(
        f"trial {number}: search-validation {measured['search_validation']:.4f} (fp32 before "
        f"quantization {measured['search_validation_fp32']:.4f}), test {measured['test']:.4f}"
    )
    priced = ", ".join(f"{name} {value:.4f}" for name, value in stored["costs"].items())
    _say(f"costs on {stored['device']}: {priced}")
    _say(f"saved in {path}; loaded again: search-validation {again:.4f}")
    _say(f'use it: apq_optuna.load_network("{path}")')


def hardware(arguments: Any) -> None:
    from apq_optuna.hardware import DEVICES, layers_of
    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import OnceForAllNet

    if arguments.action == "list":
        for name, make in DEVICES.items():
            _say(f"{name:18} {(make.__doc__ or '').splitlines()[0]}")
        return
    if arguments.device not in DEVICES:
        raise InvalidArgumentError(f"--device {arguments.device!r}: choose from {sorted(DEVICES)}")
    device = DEVICES[arguments.device]()
    if arguments.action == "price":
        from apq_optuna._torchvision import models

        try:
            model = models.get_model(arguments.model, weights=None)
        except ValueError as error:
            raise InvalidArgumentError(f"--model {arguments.model!r}: {error}") from error
        layers = layers_of(model, (3, arguments.image_size, arguments.image_size))
        ms, mj = device.network_cost(layers, arguments.bits, arguments.bits)
        energy = "" if mj is None else f", {mj:.4f} mJ"
        _say(f"{arguments.model}, {len(layers)} layers, W{arguments.bits}A{arguments.bits} on "
             f"{device.name}: {ms:.4f} ms{energy}")  # fmt: skip
        return
    if (arguments.preset is None) == (arguments.run is None):
        raise InvalidArgumentError("give either --preset or --run")
    space = (
        SearchSpace.preset(arguments.preset)
        if arguments.preset
        else OnceForAllNet.load(arguments.run).space
    )
    started = time.perf_counter()
    table = device.table(space)
    table.save(arguments.out)
    _say(f"{len(table.entries)} entries in {time.perf_counter() - started:.2f} s: {arguments.out}")
    _say(f"next: {_program()} search --hardware {arguments.out} --run RUN")
