"""Collects pairs: subnets of a trained supernet, evaluated without training, in floating point or
right after calibration."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import numpy as np
import torch

from apq_optuna._memory import keep_buffers
from apq_optuna._progress import progress_bar
from apq_optuna.data import ImageData
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import Genotypes
from apq_optuna.pairs import PairStore, QuantizedPairs
from apq_optuna.quantization import (
    fold_network,
    fp32_network,
    quantized_network,
)
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import Supernet, accuracy
from apq_optuna.supernet.modules import check_data

WRITE_SECONDS = 5.0
CALIBRATION_IMAGES = 512


def protocol_of(images: int | None, calibration_images: int = CALIBRATION_IMAGES) -> str:
    """What a store notes of how its pairs were measured."""
    return f"{images or 'all'} images, {calibration_images} for statistics"


def images_of(protocol: str) -> int | None:
    """The number of images that `protocol_of` was given."""
    count = protocol.split()[0]
    return None if count == "all" else int(count)


def collect_pairs(
    supernet: Supernet,
    data: ImageData,
    store: PairStore,
    n: int,
    *,
    seed: int = 0,
    images: int | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    workers: int = 1,
    report: Callable[[int, float], None] | None = None,
    progress: bool = False,
) -> int:
    """Evaluates the largest, the smallest and random subnets until the store has the `n` of a
    seed.

    The sequence depends on the seed alone and pairs are written every few seconds, so a stopped
    run goes on where it was, and a longer one extends a shorter one.

    Args:
        supernet: Trained; evaluated on the device it is on.
        data: Accuracy is measured on its search-validation split.
        store: Where pairs go.
        n: Architectures.
        seed: Of the sequence.
        images: Most search-validation images to use; all by default.
        calibration_images: Training images for BatchNorm statistics.
        workers: Processes, one thread each; 1 stays in this process with all threads.
        report: Called after each new pair with the number done and its accuracy.
        progress: Shows a bar with the pairs done and the time left.

    Returns:
        How many pairs were new.

    Raises:
        InvalidArgumentError: Counts that make no sense.
        DataError: The images are not the supernet's.
        PairError: The store's pairs were measured on other numbers of images.
    """
    settings = _Settings(images, calibration_images, seed)
    _check(supernet, data, n, workers, settings)
    store.agree(protocol_of(images, calibration_images))
    wanted = architectures(supernet, n, seed)
    return _collect(supernet, data, store, wanted, settings, workers, report, progress)


def collect_quantized_pairs(
    supernet: Supernet,
    data: ImageData,
    store: PairStore,
    n: int,
    *,
    seed: int = 0,
    images: int | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    workers: int = 1,
    report: Callable[[int, float], None] | None = None,
    progress: bool = False,
) -> int:
    """Evaluates quantized subnets, calibrated but not finetuned, until the store has the `n` of a
    seed.

    The largest and the smallest at every uniform width come first, then random ones. Stops and
    goes on as `collect_pairs` does. A network whose calibration does not end in finite numbers is
    not stored.

    Args:
        supernet: Trained; evaluated on the device it is on.
        data: Accuracy is measured on its search-validation split.
        store: The supernet's; pairs go to its `quantized()`.
        n: Networks.
        seed: Of the sequence.
        images: Most search-validation images to use; all by default.
        calibration_images: Training images for BatchNorm statistics and step sizes.
        workers: Processes, one thread each; 1 stays in this process with all threads.
        report: Called after each new network with the number done and its accuracy.
        progress: Shows a bar with the pairs done and the time left.

    Returns:
        How many networks were measured.

    Raises:
        InvalidArgumentError: Counts that make no sense.
        DataError: The images are not the supernet's.
        PairError: The store's quantized pairs were measured on other numbers of images.
    """
    settings = _Settings(images, calibration_images, seed, quantized=True)
    _check(supernet, data, n, workers, settings)
    pairs = store.quantized(supernet.space)
    pairs.agree(protocol_of(images, calibration_images))
    wanted = quantized_networks(supernet.space, n, seed)
    return _collect(supernet, data, pairs, wanted, settings, workers, report, progress)


def architectures(supernet: Supernet, n: int, seed: int) -> Genotypes:
    """The first `n` distinct architectures of a seed: the largest, the smallest, then random ones.

    Fewer where the space has fewer.
    """
    space = supernet.space
    bits = np.array([decision.quantization for decision in space.decisions])
    extremes = [space.extreme(largest=True), space.extreme(largest=False)]
    rows = _sequence(space, extremes, n, seed)
    rows[:, bits] = 0
    return _distinct(space, rows, n)


def quantized_networks(space: SearchSpace, n: int, seed: int) -> Genotypes:
    """The first `n` distinct networks of a seed, bit-widths included: the largest and the smallest
    at every uniform width that all layers have, the widest first, then random ones.

    Fewer where the space has fewer.
    """
    searched = [decision for decision in space.decisions if decision.quantization]
    uniform = [b for b in space.bits if all(b in decision.choices for decision in searched)]
    extremes = [
        space.extreme(largest=largest, bits=b)
        for b in reversed(uniform)
        for largest in (True, False)
    ]
    return _distinct(space, _sequence(space, extremes, n, seed), n)


def _sequence(space: SearchSpace, first: list[Genotypes], n: int, seed: int) -> Genotypes:
    """Rows that a longer list begins with, too, as random ones are drawn in blocks of one size."""
    rng = np.random.default_rng(seed)
    return np.concatenate([*first, *(space.sample(1024, rng) for _ in range(-(-n // 1024) + 1))])


def _distinct(space: SearchSpace, rows: Genotypes, n: int) -> Genotypes:
    rows = space.canonical(rows)
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)[:n]]


@dataclass(frozen=True)
class _Settings:
    """How networks are measured."""

    images: int | None
    calibration_images: int
    seed: int
    quantized: bool = False


def _check(supernet: Supernet, data: ImageData, n: int, workers: int, settings: _Settings) -> None:
    images, calibration_images = settings.images, settings.calibration_images
    if n < 1 or workers < 1:
        raise InvalidArgumentError(f"n={n}, workers={workers}: both must be at least 1")
    if (images is not None and images < 1) or calibration_images < 1:
        raise InvalidArgumentError(
            f"images={images}, calibration_images={calibration_images}: both must be at least 1"
        )
    check_data(supernet, data)


def _collect(
    supernet: Supernet,
    data: ImageData,
    store: PairStore | QuantizedPairs,
    wanted: Genotypes,
    settings: _Settings,
    workers: int,
    report: Callable[[int, float], None] | None,
    progress: bool,
) -> int:
    """Measures those of the wanted rows `(n, D)` that the store has not; how many there were."""
    keep_buffers()
    todo = wanted[store.missing(wanted)]
    buffer: list[tuple[np.ndarray, float]] = []
    written = time.perf_counter()
    there = len(wanted) - len(todo)
    bar = progress_bar(len(wanted), "collect", show=progress, unit="pair", initial=there)
    try:
        for done, (row, value) in enumerate(_measure(supernet, data, todo, settings, workers), 1):
            if math.isfinite(value):
                buffer.append((row, value))
            bar.update(1)
            if report is not None:
                report(done, value)
            if time.perf_counter() - written > WRITE_SECONDS:
                _write(store, buffer)
                written = time.perf_counter()
    finally:  # also when stopped by Ctrl-C
        bar.close()
        _write(store, buffer)
    return len(todo)


def _write(store: PairStore | QuantizedPairs, buffer: list[tuple[np.ndarray, float]]) -> None:
    if buffer:
        store.add(np.stack([row for row, _ in buffer]), np.array([value for _, value in buffer]))
        buffer.clear()


def _evaluate(
    supernet: Supernet,
    data: ImageData,
    row: Genotypes,
    settings: _Settings,
) -> float:
    """Accuracy of one network; NaN where calibration found no finite step sizes."""
    calibration, seed = settings.calibration_images, settings.seed
    subnet = supernet.space.decode(row)
    module = fp32_network(supernet, subnet, data, calibration, seed)
    if not settings.quantized:
        return accuracy(fold_network(module), data, limit=settings.images)
    network = quantized_network(module, subnet, data, calibration, seed)
    steps = [p for name, p in network.named_parameters() if name.endswith("_scale")]
    if not all(bool(torch.isfinite(step).all()) for step in steps):
        return math.nan
    return accuracy(network, data, limit=settings.images)


def _measure(
    supernet: Supernet,
    data: ImageData,
    rows: Genotypes,
    settings: _Settings,
    workers: int,
) -> Iterator[tuple[np.ndarray, float]]:
    if workers == 1 or len(rows) < 2:
        for row in rows:
            yield row, _evaluate(supernet, data, row, settings)
        return
    try:
        ForkingPickler.dumps(supernet)
    except Exception as error:  # whatever somebody's model has in it
        raise InvalidArgumentError(
            f"workers={workers}: the model cannot be sent to other processes ({error}); workers=1"
        ) from error
    context = torch.multiprocessing.get_context("spawn")
    arguments = (supernet, data, settings)
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        accuracies: Iterable[float] = pool.map(_work, rows, chunksize=4)
        yield from zip(rows, accuracies, strict=True)


_state: tuple[Supernet, ImageData, _Settings] | None = None


def _start_worker(supernet: Supernet, data: ImageData, settings: _Settings) -> None:
    global _state
    torch.set_num_threads(1)
    keep_buffers()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state = supernet, data, settings


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _work(row: Genotypes) -> float:
    assert _state is not None
    return _evaluate(_state[0], _state[1], row, _state[2])
