"""Training a supernet and collecting its pairs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna.commands.common import (
    computing,
    ledger_of,
    program_path,
    run_folder,
    say,
    set_threads,
    storage_url,
    take_in_pairs,
)
from apq_optuna.commands.images import load_images, supernet_images
from apq_optuna.commands.models import net_of, teacher_of
from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from apq_optuna.data import ImageData
    from apq_optuna.supernet import OnceForAllNet, Supernet

TAUGHT_MIXED = 0.8
"""Share of mixed images where a teacher tells what is in them."""


def train(arguments: Any) -> None:
    from apq_optuna.supernet import PretrainedNet, TrainingPlan, load_net

    set_threads(arguments)
    if arguments.minutes is not None and arguments.epochs is not None:
        raise InvalidArgumentError("--minutes and --epochs: one of them")
    ledger_of(arguments)
    run_folder(arguments)  # where even a training that is stopped at once is told
    there = (Path(arguments.run) / "supernet.json").exists()
    own: Any = None
    if arguments.start:
        own = _earlier(arguments, there)
    elif arguments.model or there:
        own = net_of(arguments) if arguments.model else load_net(arguments.run, trusted=True)
    traced = isinstance(own, PretrainedNet)
    shares = TrainingPlan.shares
    if arguments.start and not traced:
        shares = (0.0, 0.0, 0.0, 1.0)  # it has been through the phases
    plan = TrainingPlan(
        epochs=(5.0 if traced else 20.0) if arguments.epochs is None else arguments.epochs,
        minutes=arguments.minutes,
        batch_size=arguments.batch_size,
        learning_rate=(0.01 if traced else 0.08)
        if arguments.learning_rate is None
        else arguments.learning_rate,
        mixed=(TAUGHT_MIXED if arguments.teacher else 0.0)
        if arguments.mixed is None
        else arguments.mixed,
        shares=shares,
        start=own.weights_hash if arguments.start else "",
    )
    if arguments.start:
        say(f"training the supernet of {arguments.start} for longer, into {arguments.run}")
        train_at(arguments, own, supernet_images(arguments, own), plan)
    elif traced:
        data = supernet_images(arguments, own)
        begun = "" if arguments.model else f", from its weights in {arguments.run}"
        say(f"finetuning {own.space.networks.name} with all its smaller networks{begun}")
        train_at(arguments, own, data, plan)
    else:
        data = load_images(arguments)
        train_supernet_at(arguments, data, arguments.preset, plan)
    say(f"next: {program_path()} collect --run {arguments.run}")


def _earlier(arguments: Any, there: bool) -> Supernet:
    """The supernet of `--start`, which goes into another folder."""
    from apq_optuna.supernet import load_net

    if arguments.model:
        raise InvalidArgumentError("--start and --model: one of them")
    if Path(arguments.start).resolve() == Path(arguments.run).resolve():
        raise InvalidArgumentError(
            f"--start {arguments.start}: its studies keep it as it is; give another --run"
        )
    if there and not (Path(arguments.run) / "training.safetensors").exists():
        raise InvalidArgumentError(f"{arguments.run} holds another network; give another --run")
    return load_net(arguments.start, trusted=True)


def train_supernet_at(arguments: Any, data: ImageData, preset: str, plan: Any) -> OnceForAllNet:
    import torch

    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import OnceForAllNet

    space = SearchSpace.preset(
        preset, image_size=data.image_size, in_channels=data.channels, num_classes=data.num_classes
    )
    torch.manual_seed(arguments.seed)
    net = OnceForAllNet(space)
    largest, smallest = (space.decode(space.extreme(largest=big)[0]) for big in (True, False))
    say(
        f"supernet {preset}: {len(space.decisions)} decisions, {smallest.macs / 1e6:.2f} to "
        f"{largest.macs / 1e6:.2f} MMACs"
    )
    train_at(arguments, net, data, plan)
    return net


def train_at(arguments: Any, net: Supernet, data: ImageData, plan: Any) -> None:
    """Trains in the run's folder, and says what came of it."""
    from apq_optuna.quantization import fp32_network
    from apq_optuna.supernet import accuracy, train_supernet

    space = net.space
    largest, smallest = (space.decode(space.extreme(largest=big)[0]) for big in (True, False))
    started = time.perf_counter()
    teacher = teacher_of(arguments, space, data)
    resumed = (Path(arguments.run) / "training.safetensors").exists()
    before: float | None = None if resumed else 0.0
    with ledger_of(arguments).task(
        "train", subject=str(arguments.run), scope="shared", units="steps",
        device=computing(arguments),
    ) as entry:  # fmt: skip
        entry.units_done = 0

        def told(done: float, phase: str, loss: float) -> None:
            nonlocal before
            before = done if before is None else before
            entry.units_done, entry.share = (entry.units_done or 0) + 1, done - before

        train_supernet(
            net, data, plan, arguments.run, device=arguments.device, seed=arguments.seed,
            precision=getattr(arguments, "precision", "auto"), teacher=teacher, report=told,
            progress=True,
        )  # fmt: skip
        accuracies = [
            accuracy(fp32_network(net, subnet, data, 512, 0), data)
            for subnet in (largest, smallest)
        ]
    if not entry.units_done:
        say("it was trained already, for as long as is asked")
    say(
        f"trained in {time.perf_counter() - started:.0f} s; search-validation accuracy without "
        f"finetuning: largest {accuracies[0]:.4f}, smallest {accuracies[1]:.4f}"
    )
    say(f"saved in {arguments.run}")


def collect(arguments: Any) -> None:
    from apq_optuna.collect import images_of, protocol_of
    from apq_optuna.pairs import PairStore

    if arguments.quantized < 0:
        raise InvalidArgumentError(f"--quantized {arguments.quantized}: cannot be negative")
    set_threads(arguments)
    ledger_of(arguments)
    supernet = net_of(arguments)
    store = PairStore(storage_url(arguments), supernet=supernet)
    if arguments.import_file is not None:
        count = store.import_npz(arguments.import_file)
        say(f"imported {count} pairs; {len(store)} in {store.url}")
        return
    data = supernet_images(arguments, supernet)
    images = arguments.images
    asked = None if images is None else protocol_of(images)
    if protocol := take_in_pairs(arguments, store, asked):
        images = images_of(protocol)  # new pairs have to compare with those
    collect_pairs_of(arguments, supernet, data, store, arguments.pairs, images, arguments.workers)
    if arguments.quantized:
        _collect_quantized(arguments, supernet, data, store)
    if arguments.export is not None:
        say(f"exported to {store.export_npz(arguments.export)}")
    say(f"next: {program_path()} search --run {arguments.run}")


def collect_pairs_of(
    arguments: Any, supernet: Supernet, data: ImageData, store: Any, pairs: int,
    images: int | None, workers: int,
) -> None:  # fmt: skip
    from apq_optuna.collect import collect_pairs
    from apq_optuna.supernet.devices import resolve_device

    supernet.to(resolve_device(arguments.device))
    with _collecting(arguments, "pairs", pairs, workers) as told:
        collect_pairs(
            supernet, data, store, pairs, seed=arguments.seed, images=images, workers=workers,
            report=told, progress=True,
        )  # fmt: skip
    found = store.load().accuracies
    say(
        f"{len(found)} fp32 pairs: accuracy {found.min():.4f} to {found.max():.4f}, "
        f"mean {found.mean():.4f}"
    )
    if len(found) < pairs:
        say("the space has no more architectures")
    if len(found) >= 50:
        _say_predictor(supernet, store)
    supernet.to("cpu")


def _collect_quantized(arguments: Any, supernet: Supernet, data: ImageData, store: Any) -> None:
    from apq_optuna.collect import collect_quantized_pairs
    from apq_optuna.supernet.devices import resolve_device

    supernet.to(resolve_device(arguments.device))
    with _collecting(arguments, "quantized pairs", arguments.quantized, arguments.workers) as told:
        collect_quantized_pairs(
            supernet, data, store, arguments.quantized, seed=arguments.seed,
            images=arguments.images, workers=arguments.workers, report=told, progress=True,
        )  # fmt: skip
    found = store.quantized().load().accuracies
    accuracies = (
        f": accuracy {found.min():.4f} to {found.max():.4f}, mean {found.mean():.4f}"
        if len(found)
        else ""
    )
    say(f"{len(found)} quantized pairs, calibrated and not finetuned, in {store.url}{accuracies}")
    supernet.to("cpu")


@contextlib.contextmanager
def _collecting(
    arguments: Any, units: str, total: int, workers: int
) -> Iterator[Callable[[int, float], None]]:
    """An entry of the ledger; gives what is to be called after each of its units."""
    with ledger_of(arguments).task(
        "collect", subject=str(arguments.run), scope="shared", units=units,
        device=computing(arguments), threads=workers if workers > 1 else None,
    ) as entry:  # fmt: skip
        entry.units_done, entry.units_total = 0, total

        def told(done: int, accuracy: float) -> None:
            entry.units_done = done

        yield told


def _say_predictor(supernet: Supernet, store: Any) -> None:
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
    say(
        f"fp32 predictor on {quality.rows} held-out pairs: pairwise accuracy "
        f"{quality.pairwise_accuracy:.3f}, Kendall tau {quality.kendall_tau:.3f}, RMSE "
        f"{quality.rmse:.4f}, 95 % coverage {quality.coverage:.2f}"
    )
