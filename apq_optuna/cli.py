"""The command line: `apq-optuna`, one command a step of the job."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna.errors import ApqError, InvalidArgumentError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study

    from apq_optuna.data import ImageData
    from apq_optuna.hardware import CostTable
    from apq_optuna.supernet import OnceForAllNet

_ABOUT = """\
Find the network that is best after it has been shaped, pruned and quantized for a chip.

The steps, in order; every one goes on where it was stopped:
  train      a once-for-all network on your images (once)
  collect    fp32 accuracy pairs from it, without training
  search     an Optuna study over architecture, channels and bit-widths together
  report     its Pareto front as an HTML page, and inside optuna-dashboard
  finetune   the trial you choose, finished, tested once and saved
and beside them:
  quickstart all of it on a small embedded data set, in about a minute
  hardware   list devices, build cost tables, price any torchvision model
"""

MOST_LOST = 20
"""Trials in a row without values after which a search gives up."""

_EXAMPLES = {
    "quickstart": "apq-optuna quickstart",
    "train": "apq-optuna train --data folder:images --preset cifar10 --run runs/mine --minutes 60",
    "collect": "apq-optuna collect --run runs/mine --pairs 1000 --workers 2",
    "search": "apq-optuna search --run runs/mine --hardware bitfusion --trials 100",
    "report": "apq-optuna report --run runs/mine --trial 17",
    "finetune": "apq-optuna finetune --run runs/mine --trial 17 --out finished",
    "hardware": "apq-optuna hardware build --device bitfusion --preset imagenet --out table.json",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (0, 2 for bad input, 130 when interrupted)."""
    arguments = _parser().parse_args(argv)
    try:
        status = arguments.run_command(arguments)
        return int(status or 0)
    except ApqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except UnboundLocalError as error:
        from apq_optuna.storage import lost_storage

        lost = lost_storage(error)
        if lost is None:
            raise
        print(f"error: {lost}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return 130


# ---------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("apq-optuna", description=_ABOUT, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[Any], int | None], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text.split(".")[0], description=text, formatter_class=form,
            epilog=f"example:\n  {_EXAMPLES[name]}",
        )  # fmt: skip
        sub.set_defaults(run_command=function)
        return sub

    quick = command(
        "quickstart", _quickstart,
        "The whole job on the embedded digits: train, collect, search, report.",
    )  # fmt: skip
    quick.add_argument("--run", type=Path, default=Path("runs/digits"), help="folder for results")
    quick.add_argument("--trials", type=int, default=60, help="trials of the study (default 60)")
    _common(quick)

    train = command(
        "train", _train,
        "Train a once-for-all network. It is trained once and serves every device and study.",
    )  # fmt: skip
    _data(train)
    train.add_argument("--preset", default="cifar10", help="digits, cifar10 (default) or imagenet")
    train.add_argument(
        "--run", type=Path, required=True, help="folder for the supernet and the study"
    )
    train.add_argument("--epochs", type=float, default=20.0, help="passes over the images")
    train.add_argument("--minutes", type=float, help="training time, instead of --epochs")
    train.add_argument("--batch-size", type=int, default=128)
    train.add_argument("--learning-rate", type=float, default=0.08, help="peak rate (SGD)")
    _common(train)

    collect = command(
        "collect", _collect,
        "Evaluate random subnets of the supernet, without training, as fp32 accuracy pairs.",
    )  # fmt: skip
    _data(collect)
    _run(collect)
    collect.add_argument("--pairs", type=int, default=1000, help="architectures (default 1000)")
    collect.add_argument(
        "--images", type=int, help="search-validation images a subnet is judged on"
    )
    collect.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    collect.add_argument("--import", dest="import_file", type=Path, metavar="FILE.npz",
                         help="add pairs that --export wrote elsewhere, and stop")  # fmt: skip
    collect.add_argument(
        "--export", type=Path, metavar="FILE.npz", help="also write all pairs there"
    )
    _common(collect)

    search = command(
        "search", _search,
        "Run, or go on with, a study. Several of these at once share the work of one study.",
    )  # fmt: skip
    _data(search)
    _run(search)
    search.add_argument("--study", default="search", help="name of the study (default: search)")
    search.add_argument("--hardware", default="", metavar="NAME|FILE",
                        help="a device of `hardware list`, or a cost table")  # fmt: skip
    search.add_argument(
        "--trials", type=int, default=100, help="completed trials to reach in total"
    )
    search.add_argument("--sampler", choices=("apq", "random", "nsga2", "tpe"), default="apq")
    search.add_argument("--budget", action="append", default=[], metavar="METRIC=LIMIT",
                        help="hard limit on a cost, e.g. latency_ms=2.0; repeatable")  # fmt: skip
    search.add_argument("--source-study", action="append", default=[], metavar="NAME",
                        help="an earlier study of the same supernet to learn from")  # fmt: skip
    search.add_argument("--steps", type=int, default=20, help="finetuning steps of a trial")
    search.add_argument("--finetune-rate", type=float, default=1e-3, help="finetuning rate (Adam)")
    search.add_argument("--images", type=int, help="search-validation images a trial is judged on")
    search.add_argument("--report", type=Path, help="HTML file (default: RUN/STUDY.html)")
    search.add_argument("--no-baselines", action="store_true",
                        help="skip the largest network at uniform 8, 6 and 4 bits")  # fmt: skip
    _common(search)

    report = command("report", _report, "Draw a study again, with the network of a chosen trial.")
    _run(report)
    report.add_argument("--study", default="search")
    report.add_argument(
        "--trial", type=int, help="trial whose network is drawn (default: the best)"
    )
    report.add_argument("--out", type=Path, help="HTML file (default: RUN/STUDY.html)")
    report.add_argument("--storage", help="database URL (default: sqlite file in RUN)")

    finetune = command(
        "finetune", _finetune,
        "Finish a trial: finetune it fully, measure it once on the test images, and save it.",
    )  # fmt: skip
    _data(finetune)
    _run(finetune)
    finetune.add_argument("--study", default="search")
    finetune.add_argument("--trial", type=int, help="trial to finish (default: most accurate)")
    finetune.add_argument("--epochs", type=float, default=10.0)
    finetune.add_argument("--hardware", default="", metavar="NAME|FILE",
                          help="device to price it on (default: the study's)")  # fmt: skip
    finetune.add_argument("--out", type=Path, help="folder (default: RUN/finished-TRIAL)")
    _common(finetune)

    hardware = command("hardware", _hardware, "Devices and cost tables.")
    kinds = hardware.add_subparsers(dest="action", required=True, metavar="ACTION")
    kinds.add_parser("list", help="devices that come with the package")
    build = kinds.add_parser("build", help="write the cost table of a search space")
    build.add_argument("--device", default="bitfusion")
    build.add_argument("--preset", help="search space of a preset")
    build.add_argument("--run", type=Path, help="search space of a trained supernet")
    build.add_argument("--out", type=Path, required=True, help="JSON file")
    price = kinds.add_parser("price", help="price a torchvision model")
    price.add_argument("--device", default="bitfusion")
    price.add_argument("--model", default="mobilenet_v2", help="name in torchvision.models")
    price.add_argument("--image-size", type=int, default=224)
    price.add_argument("--bits", type=int, default=8)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", help="database URL (default: sqlite file in RUN)")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True,
                        help="folder that `train` wrote, or a supernet of the package: "
                        "pretrained:cifar10 (results then go to runs/cifar10)")  # fmt: skip


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="digits, cifar10 or folder:PATH (default: as trained)")
    parser.add_argument("--image-size", type=int, help="resize a folder's images to this side")
    parser.add_argument("--grayscale", action="store_true", default=None,
                        help="convert a folder's images to grayscale")  # fmt: skip


# ---------------------------------------------------------------------- pieces


def _threads(arguments: Any) -> None:
    if getattr(arguments, "threads", None):
        import torch

        torch.set_num_threads(arguments.threads)


def _folder(arguments: Any) -> Path:
    """Where results of a run go."""
    name = str(arguments.run)
    folder = (
        Path("runs") / name.removeprefix("pretrained:")
        if name.startswith("pretrained:")
        else arguments.run
    )
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


def _say(text: str) -> None:
    print(text, flush=True)


def _load_study(arguments: Any) -> Study:
    from apq_optuna.storage import open_storage

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


def _train(arguments: Any) -> None:
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
    _say(f"next: apq-optuna collect --run {arguments.run}")


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


def _collect(arguments: Any) -> None:
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
    _say(f"next: apq-optuna search --run {arguments.run}")


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


def _search(arguments: Any) -> None:
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
    from apq_optuna.storage import open_storage

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
    if study.metric_names is None:
        study.set_metric_names(objective.metric_names)
    if arguments.command == "search":
        set_study_attribute(study, "hardware", arguments.hardware)
    done = _completed(study)
    _say(
        f"study {study_name!r} in {url}: {done} of {arguments.trials} trials done, "
        f"{len(store)} fp32 pairs, device {costs.device}"
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
    _say(f"dashboard: optuna-dashboard {url}")
    _say(f"resume or extend: the same command with a larger --trials (now {arguments.trials})")
    _say(f"next: apq-optuna finetune --run {arguments.run} --study {study_name} --trial N")
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


def _quickstart(arguments: Any) -> None:
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


def _report(arguments: Any) -> None:
    from apq_optuna.report import save_to_dashboard, study_figures, write_html

    study = _load_study(arguments)
    figures = study_figures(study, trial=arguments.trial)
    path = arguments.out or _folder(arguments) / f"{arguments.study}.html"
    write_html(study, figures, path)
    save_to_dashboard(study, figures)
    _say(f"report: {path}")
    _say(f"dashboard: optuna-dashboard {_url(arguments)}")


def _finetune(arguments: Any) -> None:
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
    _say(f"costs on {stored['device']}: {stored['costs']}")
    _say(f"saved in {path}; loaded again: search-validation {again:.4f}")
    _say(f'use it: apq_optuna.load_network("{path}")')


def _hardware(arguments: Any) -> None:
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
    _say(f"next: apq-optuna search --hardware {arguments.out} --run RUN")


if __name__ == "__main__":
    sys.exit(main())
