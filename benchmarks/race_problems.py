"""The problems of the sampler race: the same evaluation for whoever asks, kept in a file.

Notation:
    x   parameters in [0, 1]
    g   distance of a synthetic problem to its front
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import optuna

import apq_optuna as apq
from apq_optuna.space import SearchSpace

Values = tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """What is raced on.

    Attributes:
        name: Of the problem.
        directions: Of its objectives.
        reference: Hypervolume's reference point, in the objectives' own orientation.
        ideal: What bounds the box that hypervolume is a share of.
        evaluate: A trial to its values.
        make_ours: Our sampler for a seed.
        trials, seeds: Budget of each run and number of runs.
        metric_names: Names of the objectives.
    """

    name: str
    directions: list[str]
    reference: Values
    ideal: Values
    evaluate: Callable[[optuna.Trial], Values]
    make_ours: Callable[[int], optuna.samplers.BaseSampler]
    trials: int = 100
    seeds: int = 5
    metric_names: list[str] | None = None
    variants: Mapping[str, Callable[[int], optuna.samplers.BaseSampler]] = field(
        default_factory=dict
    )


# ---------------------------------------------------------------------- synthetic problems


def _vector(trial: optuna.Trial, n: int) -> np.ndarray:
    return np.array([trial.suggest_float(f"x{i:02d}", 0.0, 1.0) for i in range(n)])


def zdt(kind: int, variables: int = 30) -> Callable[[optuna.Trial], Values]:
    """ZDT1 to ZDT3 (Zitzler, Deb and Thiele, 2000), two objectives to minimise."""

    def evaluate(trial: optuna.Trial) -> Values:
        x = _vector(trial, variables)
        f, g = x[0], 1 + 9 * x[1:].mean()
        shape = {
            1: 1 - np.sqrt(f / g),
            2: 1 - (f / g) ** 2,
            3: 1 - np.sqrt(f / g) - f / g * np.sin(10 * np.pi * f),
        }[kind]
        return float(f), float(g * shape)

    return evaluate


def dtlz2(variables: int = 12, objectives: int = 3) -> Callable[[optuna.Trial], Values]:
    """DTLZ2 (Deb, Thiele, Laumanns and Zitzler, 2002): the front is an octant of the sphere."""

    def evaluate(trial: optuna.Trial) -> Values:
        x = _vector(trial, variables)
        angles, rest = x[: objectives - 1] * np.pi / 2, x[objectives - 1 :]
        radius = 1 + ((rest - 0.5) ** 2).sum()
        values = []
        for i in range(objectives):
            value = radius * np.cos(angles[: objectives - 1 - i]).prod()
            values.append(float(value * np.sin(angles[objectives - 1 - i]) if i else value))
        return tuple(values)

    return evaluate


MATERIALS = {"steel": (1.0, 1.0), "alloy": (0.7, 1.6), "resin": (1.5, 0.5), "glass": (1.2, 0.9)}


def beam(trial: optuna.Trial) -> Values:
    """A mixed-integer problem: sag against price of a braced beam, both to be small.

    Two categorical, four integer, one logarithmic and three linear parameters; the braces exist
    only in a braced beam.
    """
    sag, price = MATERIALS[trial.suggest_categorical("material", sorted(MATERIALS))]
    layers = trial.suggest_int("layers", 1, 12)
    height = trial.suggest_float("height", 0.1, 1.0)
    width = trial.suggest_float("width", 0.05, 0.5)
    cure = trial.suggest_float("cure", 1e-3, 1.0, log=True)
    bolts = trial.suggest_int("bolts", 2, 40, step=2)
    profile = trial.suggest_categorical("profile", ["box", "I", "solid"])
    form, mass = {"box": (1.3, 0.6), "I": (1.0, 0.7), "solid": (0.9, 1.4)}[profile]
    stiffness = layers**0.7 * height**2 * width / (sag * form)
    stiffness *= np.exp(-0.3 * np.log10(cure / 0.03) ** 2)
    cost = price * mass * layers * height * width + 0.004 * bolts + 0.05 * abs(np.log10(cure))
    stiffness *= 1 - np.exp(-bolts / 8)
    if trial.suggest_categorical("braced", [False, True]):
        braces = trial.suggest_int("braces", 1, 6)
        tilt = trial.suggest_float("tilt", 10.0, 80.0)
        stiffness *= 1 + 0.25 * np.sqrt(braces) * np.sin(np.radians(2 * tilt)) ** 2
        cost += 0.03 * braces
    return float(1 / (0.2 + stiffness)), float(cost)


def plain(seed: int) -> optuna.samplers.BaseSampler:
    return apq.APQSampler(seed=seed)


SYNTHETIC: dict[str, Callable[[], Problem]] = {
    **{
        f"zdt{kind}": lambda kind=kind: Problem(
            f"zdt{kind}", ["minimize"] * 2, (11.0, 11.0), (0.0, -1.0 if kind == 3 else 0.0),
            zdt(kind), plain,
        )
        for kind in (1, 2, 3)
    },
    "dtlz2": lambda: Problem(
        "dtlz2", ["minimize"] * 3, (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), dtlz2(), plain
    ),
    "beam": lambda: Problem("beam", ["minimize"] * 2, (5.0, 5.0), (0.0, 0.0), beam, plain),
}  # fmt: skip


# ---------------------------------------------------------------------- networks


class Remembered:
    """An objective whose values are kept by genotype, so that every sampler gets the same ones.

    A peer that repeats a network gets its stored value at once, which costs it nothing but the
    trial.
    """

    def __init__(self, objective: apq.Objective, path: Path) -> None:
        self.objective, self.space, self.path = objective, objective.supernet.space, path
        with self._open() as file:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("CREATE TABLE IF NOT EXISTS evaluated (key TEXT PRIMARY KEY, vals TEXT)")

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def __call__(self, trial: optuna.Trial) -> Values:
        subnet = self.space.suggest(trial)
        key = self.space.canonical(self.space.from_params(trial.params)[None])[0].tobytes().hex()
        with self._open() as file:
            found = file.execute("SELECT vals FROM evaluated WHERE key=?", (key,)).fetchone()
        if found is None:
            value, _ = self.objective.measure(subnet)
            assert self.objective.costs is not None
            values = (value, *self.objective.costs.network_cost(subnet.layers()))
            with self._open() as file:
                file.execute(
                    "INSERT OR IGNORE INTO evaluated VALUES (?, ?)", (key, json.dumps(values))
                )
            return values
        return tuple(json.loads(found[0]))


def digits(folder: Path) -> Problem:
    """The `digits` joint space on a small BitFusion, each trial finetuned for 30 steps."""
    run = folder / "digits"
    run.mkdir(parents=True, exist_ok=True)
    data = apq.load_data("digits")
    if not (run / "supernet.safetensors").exists():
        import torch

        torch.manual_seed(0)
        net = apq.OnceForAllNet(SearchSpace.preset("digits"))
        plan = apq.TrainingPlan(epochs=40, batch_size=64, learning_rate=0.05)
        apq.train_supernet(net, data, plan, run)
    supernet = apq.OnceForAllNet.load(run)
    options = apq.FinetuneOptions(steps=30, learning_rate=3e-3)
    costs = apq.hardware.bitfusion_small().table(supernet.space)
    return _network(run, supernet, data, costs, options, pairs=800, images=None)


def cifar10(folder: Path, images: str) -> Problem:
    """CIFAR-10 with the packaged supernet and pairs on BitFusion, finetuned for 10 steps."""
    run = folder / "cifar10"
    run.mkdir(parents=True, exist_ok=True)
    supernet = apq.OnceForAllNet.load("cifar10")
    options = apq.FinetuneOptions(steps=10, batch_size=64, calibration_images=256)
    costs = apq.hardware.bitfusion().table(supernet.space)
    problem = _network(
        run, supernet, apq.load_data(images), costs, options, pairs=None, images=1500
    )
    return Problem(**{**vars(problem), "trials": 60, "seeds": 3})


def _network(
    run: Path,
    supernet: apq.OnceForAllNet,
    data: apq.ImageData,
    costs: apq.CostTable,
    options: apq.FinetuneOptions,
    *,
    pairs: int | None,
    images: int | None,
) -> Problem:
    store = apq.PairStore(f"sqlite:///{run}/pairs.db", supernet=supernet)
    if pairs is not None:
        apq.collect_pairs(supernet, data, store, pairs)
    elif not len(store.load()):
        store.import_npz(Path(apq.__file__).parent / "pretrained" / "cifar10" / "pairs.npz")
    objective = apq.Objective(supernet, data, costs, finetune=options, images=images)
    maxima = costs.compile(supernet.space).maxima

    def ours(seed: int, source: object = store) -> optuna.samplers.BaseSampler:
        return apq.APQSampler(supernet.space, costs=costs, source=source, seed=seed)

    return Problem(
        run.name,
        list(objective.directions),
        (1 / data.num_classes, *map(float, maxima)),
        (1.0, *(0.0 for _ in maxima)),
        Remembered(objective, run / "evaluated.db"),
        ours,
        metric_names=objective.metric_names,
        variants={"ours, no source": lambda seed: ours(seed, None)},
    )


def problem_of(name: str, folder: Path, images: str | None) -> Problem:
    """A problem by name."""
    if name in SYNTHETIC:
        return SYNTHETIC[name]()
    if name == "digits":
        return digits(folder)
    if images is None:
        raise SystemExit("cifar10: give its images with --images folder:PATH")
    return cifar10(folder, images)


NAMES: Sequence[str] = (*SYNTHETIC, "digits", "cifar10")


def threads(count: int) -> None:
    """Every run with the same number of threads: sums come out the same."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
