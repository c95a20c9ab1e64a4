"""The race's problems that are networks: `digits`, CIFAR-10's supernet, one's own model."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import optuna
from race_base import Problem, Values

import apq_optuna as apq
from apq_optuna.quantization.finetune import PRETRAINED_RATE
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import PretrainedNet, Supernet, load_net

RACED = "cifar10-1"
"""The supernet of the race's results; values that are kept are of it."""


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
    options = apq.FinetuneOptions(steps=30, learning_rate=3e-3, rates="alike")
    costs = apq.hardware.bitfusion_small().table(supernet.space)
    return _network(run, supernet, data, costs, options, pairs=800, images=None)


def cifar10(folder: Path, images: str) -> Problem:
    """CIFAR-10 with a supernet and pairs of the package on BitFusion, finetuned for 10 steps."""
    run = folder / "cifar10"
    run.mkdir(parents=True, exist_ok=True)
    supernet = apq.OnceForAllNet.load(RACED)
    options = apq.FinetuneOptions(steps=10, batch_size=64, calibration_images=256, rates="alike")
    costs = apq.hardware.bitfusion().table(supernet.space)
    problem = _network(
        run, supernet, apq.load_data(images), costs, options, pairs=None, images=1500
    )
    return Problem(**{**vars(problem), "trials": 60, "seeds": 3})


def own(folder: Path, images: str) -> Problem:
    """A traced model of one's own, as `studies/own_model.py` leaves it, in `OUT/own`."""
    run = folder / "own"
    if not (run / "supernet.json").exists():
        raise SystemExit(f"own: {run} is to be a run's folder, such as studies/own_model.py makes")
    net = load_net(run, trusted=True)  # a folder of one's own: its module is imported
    if not isinstance(net, PretrainedNet):
        raise SystemExit(f"own: {run} has a once-for-all network, not a model of one's own")
    told = net.data_info
    data = apq.load_data(images, image_size=told["image_size"], mean=told["mean"], std=told["std"])
    rate = PRETRAINED_RATE * apq.FinetuneOptions().learning_rate  # as `search` has it
    options = apq.FinetuneOptions(
        steps=8, batch_size=64, calibration_images=128, learning_rate=rate, rates="alike"
    )
    costs = apq.hardware.bitfusion().table(net.space)
    problem = _network(
        run, net, data, costs, options, pairs=None, images=1000, url=f"sqlite:///{run}/apq.db"
    )
    return Problem(**{**vars(problem), "trials": 30, "seeds": 3})


def _network(
    run: Path,
    supernet: Supernet,
    data: apq.ImageData,
    costs: apq.CostTable,
    options: apq.FinetuneOptions,
    *,
    pairs: int | None,
    images: int | None,
    url: str | None = None,
) -> Problem:
    store = apq.PairStore(url or f"sqlite:///{run}/pairs.db", supernet=supernet)
    if pairs is not None:
        apq.collect_pairs(supernet, data, store, pairs)
    elif not len(store.load()):
        store.import_npz(Path(apq.__file__).parent / "pretrained" / RACED / "pairs.npz")
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
        space=supernet.space.distributions(),
        variants={"ours, no source": lambda seed: ours(seed, None)},
    )
