"""What every method of a comparison is given, and how its trials are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import FrozenTrial, Trial, TrialState

from apq_optuna._optuna import set_study_attribute, study_attribute
from apq_optuna.data import ImageData
from apq_optuna.errors import InfeasibleBudgetError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Genotypes
from apq_optuna.objective import Objective
from apq_optuna.pairs import PairStore
from apq_optuna.quantization import FinetuneOptions, fold_network, fp32_network
from apq_optuna.supernet import OnceForAllNet, TrainingPlan, accuracy

Tell = Callable[[str], None]

NOTES = "compare"
"""Name of the study that keeps what is no trial."""

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
    mobilenet_plan: TrainingPlan | None = None
    images: int | None = None
    device: str = "auto"
    tell: Tell = print

    @property
    def case(self) -> str:
        """The budget and the seed, as names of studies have them."""
        return f"{self.metric}={self.limit:g} seed {self.seed}"

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
        return max(limit, float(self.price(cheapest).min()) * 1.02)

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
        if not study.get_trials(deepcopy=False):
            for parameters in prescribed:
                study.enqueue_trial(dict(parameters))
            study.set_metric_names(objective.metric_names)
        done = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        if done < trials:
            self.tell(f"{name}: {done} of {trials} trials")
            study.optimize(
                objective, callbacks=[MaxTrialsCallback(trials, (TrialState.COMPLETE,))]
            )
        return study

    def best(self, study: Study) -> FrozenTrial:
        """The most accurate trial within the budget.

        Raises:
            InfeasibleBudgetError: None is within it.
        """
        column = (study.metric_names or [self.metric]).index(self.metric)
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
        """What `work` gave, in JSON types, and the seconds it took when it was done."""
        notes = self.notes()
        stored = study_attribute(notes, name)
        if stored is None:
            started = time.perf_counter()
            result = work()
            stored = [result, time.perf_counter() - started]
            set_study_attribute(notes, name, stored)
        return stored[0], float(stored[1])

    def notes(self) -> Study:
        """The study without trials that keeps what is no trial."""
        return optuna.create_study(study_name=NOTES, storage=self.storage, load_if_exists=True)

    def with_limit(self, limit: float) -> Setting:
        """The same with another limit."""
        return replace(self, limit=limit)


class Unquantized:
    """Accuracy of a subnet before quantization and without training, as AMC rewards it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.metric_names = ["accuracy"]
        self.directions: list[Literal["minimize", "maximize"]] = ["maximize"]

    def __call__(self, trial: Trial) -> float:
        """fp32 accuracy with BatchNorm statistics of its own, in [0, 1]."""
        s = self.setting
        subnet = s.supernet.space.suggest(trial)
        module = fp32_network(s.supernet, subnet, s.data, s.finetune.calibration_images, 0)
        return accuracy(fold_network(module), s.data, limit=s.images)
