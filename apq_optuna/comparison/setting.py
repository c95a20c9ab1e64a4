"""What every method of a comparison is given, and how its trials are run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from apq_optuna._files import alone
from apq_optuna._optuna import fixed_parameters, set_study_attribute, study_attribute
from apq_optuna.data import ImageData
from apq_optuna.errors import InfeasibleBudgetError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.objective import Objective
from apq_optuna.pairs import PairStore
from apq_optuna.quantization import ALIKE, FinetuneOptions, fold_network, fp32_network
from apq_optuna.supernet import OnceForAllNet, TrainingPlan, accuracy
from apq_optuna.supernet.devices import resolve_device

Tell = Callable[[str], None]

NOTES = "compare"
"""Name of the study that keeps what is no trial."""

MOST_LOST = 20
"""Trials in a row without values after which a method is given up."""

WITHIN = 1 + 1e-9
"""What a cost may be of its limit: sums round."""


@dataclass(frozen=True)
class Setting:
    """One case of a comparison: a budget and a seed, and all that methods share.

    Attributes:
        supernet: A trained once-for-all network.
        data: The images it was trained on.
        costs: Costs on the device.
        metric, limit: The budget.
        seed: Of samplers and searches.
        trials: Quantized networks that a method may measure.
        finetune: How each is finetuned.
        storage: Where the studies are.
        pairs: fp32 pairs of the supernet.
        folder: Where checkpoints go.
        epochs: Of the final finetuning.
        repeats: Further seeds that confirm the chosen trial.
        mobilenet_plan: How the fixed network is trained from scratch; None leaves it out.
        images: Most search-validation images a trial is judged on.
        device: `auto`, `cpu` or `cuda`.
        tell: Told what is being done.
    """

    supernet: OnceForAllNet
    data: ImageData
    costs: CostTable
    metric: str
    limit: float
    seed: int
    trials: int
    finetune: FinetuneOptions
    storage: BaseStorage
    pairs: PairStore
    folder: Path
    epochs: float = 3.0
    repeats: int = 2
    mobilenet_plan: TrainingPlan | None = None
    images: int | None = None
    device: str = "auto"
    tell: Tell = print

    @cached_property
    def conditions(self) -> str:
        """Short hash of all but budget and seed: only cases of the same compare."""
        finetune = asdict(self.finetune)
        if self.finetune.rates == ALIKE:  # as comparisons were before there was another
            del finetune["rates"]
        said = [
            self.costs.digest, self.supernet.weights_hash, self.data.split_hash,
            self.data.augment, self.trials, finetune, self.images, self.epochs,
            self.repeats, None if self.mobilenet_plan is None else self.mobilenet_plan.identity,
        ]  # fmt: skip
        if quantized := len(self.pairs.quantized()):  # joint search learns from them, too
            said.append(["quantized pairs", quantized])
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def case(self) -> str:
        """Budget, seed and conditions, as names of studies have them."""
        return f"{self.metric}={self.limit:g} seed {self.seed} [{self.conditions}]"

    def objective(
        self, supernet: OnceForAllNet | None = None, costs: CostTable | None = None
    ) -> Objective:
        """What measures a quantized network."""
        return Objective(
            supernet or self.supernet, self.data, costs or self.costs, finetune=self.finetune,
            images=self.images, device=self.device,
        )  # fmt: skip

    def price(self, rows: Genotypes) -> np.ndarray:
        """`(n, D)` genotypes to the budgeted cost, `(n,)`."""
        compiled = self.costs.compile(self.supernet.space)
        column = list(compiled.metric_names).index(self.metric)
        return np.asarray(compiled(rows)[:, column])

    def at_least(self, limit: float, cheapest: Genotypes) -> float:
        """A limit, raised to what the cheapest network of a stage takes."""
        prices = self.price(cheapest)
        return max(limit, float(prices[np.isfinite(prices)].min(initial=np.inf)) * 1.02)

    def run(
        self,
        name: str,
        sampler: BaseSampler,
        objective: Objective | Unquantized,
        trials: int,
        prescribed: Sequence[Mapping[str, Any]] = (),
    ) -> Study:
        """A study of so many completed trials, gone on with where it was.

        Args:
            name: Of the stage.
            sampler: What proposes.
            objective: What measures.
            trials: How many.
            prescribed: Parameters of each of its first trials, which the sampler completes.
        """
        study = optuna.create_study(
            study_name=f"compare: {name}", storage=self.storage, sampler=sampler,
            directions=objective.directions, load_if_exists=True,
        )  # fmt: skip
        # other processes may want the same stage; what still runs in it here is then dead
        with alone(self.folder / "locks" / name):
            if study.metric_names is None:
                study.set_metric_names(objective.metric_names)
            done, lost = _completed(study), 0
            if done < trials:
                self.tell(f"{name}: {done} of {trials} trials")
            while done < trials:
                for parameters in _missing(study, prescribed):
                    study.enqueue_trial(parameters)
                study.optimize(objective, n_trials=1)
                before, done = done, _completed(study)
                lost = 0 if done > before else lost + 1
                if lost >= MOST_LOST:
                    raise InfeasibleBudgetError(f"{name}: {lost} trials in a row gave no values")
        return study

    def best(self, study: Study) -> FrozenTrial:
        """The most accurate trial within the budget.

        Raises:
            InfeasibleBudgetError: None is within it.
        """
        column = ["accuracy", *self.costs.metric_names].index(self.metric)
        within = [
            trial
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if trial.values[column] <= self.limit * WITHIN
        ]
        if not within:
            raise InfeasibleBudgetError(
                f"{study.study_name!r}: no network within {self.metric}={self.limit:g}"
            )
        return max(within, key=lambda trial: float(trial.values[0]))

    def kept(self, name: str, work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` gave, in JSON types, and the seconds it took when it was done.

        Other processes that want the same wait for it.
        """
        with alone(self.folder / "locks" / name):
            return self._kept(name, work)

    def _kept(self, name: str, work: Callable[[], Any]) -> tuple[Any, float]:
        notes = self.notes()
        stored = study_attribute(notes, name)
        if stored is not None:
            return stored[0], float(stored[1])
        stopped = f"{name}, stopped"
        before = float(study_attribute(notes, stopped) or 0.0)
        started = time.perf_counter()
        try:
            result = work()
        except BaseException:  # what goes on from a checkpoint has cost this, too
            set_study_attribute(notes, stopped, before + time.perf_counter() - started)
            raise
        spent = before + time.perf_counter() - started
        set_study_attribute(notes, name, [result, spent])
        return result, spent

    def notes(self) -> Study:
        """The study without trials that keeps what is no trial."""
        return optuna.create_study(study_name=NOTES, storage=self.storage, load_if_exists=True)

    def with_limit(self, limit: float) -> Setting:
        """The same with another limit."""
        return replace(self, limit=limit)


def _completed(study: Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _missing(study: Study, prescribed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What no trial has that is completed or waiting, as often as it is prescribed."""
    states = (TrialState.COMPLETE, TrialState.WAITING)
    there = [fixed_parameters(trial) for trial in study.get_trials(False, states)]
    missing = []
    for parameters in map(dict, prescribed):
        if parameters in there:
            there.remove(parameters)
        else:
            missing.append(parameters)
    return missing


class Unquantized:
    """Accuracy of a subnet before quantization and without training, as AMC rewards it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.metric_names = ["accuracy"]
        self.directions: list[Literal["minimize", "maximize"]] = ["maximize"]

    def __call__(self, trial: Trial) -> float:
        """fp32 accuracy with BatchNorm statistics of its own, in [0, 1]."""
        s = self.setting
        s.supernet.to(resolve_device(s.device)).eval()
        subnet = s.supernet.space.suggest(trial)
        module = fp32_network(s.supernet, subnet, s.data, s.finetune.calibration_images, 0)
        return accuracy(fold_network(module), s.data, limit=s.images)
