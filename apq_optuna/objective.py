"""`Objective`: a trial becomes a subnet, the subnet a quantized network, that its values."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
from optuna.exceptions import TrialPruned
from optuna.logging import get_logger
from optuna.study import Study
from optuna.trial import Trial

from apq_optuna._memory import keep_buffers
from apq_optuna._optuna import (
    running_trial_attribute,
    set_study_attribute,
    study_attribute,
)
from apq_optuna._progress import progress_bar
from apq_optuna.data import ImageData, usual_augment
from apq_optuna.errors import InvalidArgumentError, MissingCostError, StudyMismatchError
from apq_optuna.hardware import CostTable, Device, find_device
from apq_optuna.networks import Subnet
from apq_optuna.quantization import (
    ALIKE,
    AVERAGING,
    RATES,
    DivergedError,
    FinetuneOptions,
    finetune_quantized,
    fold_network,
    fp32_network,
    quantized_network,
)
from apq_optuna.supernet import SubnetModule, Supernet, accuracy
from apq_optuna.supernet.devices import resolve_device
from apq_optuna.supernet.modules import check_data

UNIFORM_BITS = (8, 6, 4)

ARITHMETIC = 2
"""Version of the order in which finetuning rounds. A study notes the one it began with; values of
two differ as those of two numbers of threads do, by less than two seeds."""

REPEAT_SEED = 1_000_003
"""Between the seeds of two finetunings of one network."""

_logger = get_logger("apq_optuna.objective")


class Objective:
    """Measures one configuration: accuracy after quantization-aware finetuning, costs looked up.

    Suggest, extract, recalibrate, fold, quantize, finetune a fixed number of steps, and evaluate
    on the search-validation split. Finetuning is seeded by the genotype: whoever tries a subnet
    measures the same. The test split is not touched.

    Args:
        supernet: A trained once-for-all network, or another supernet.
        data: The images it was trained on.
        costs: Costs of the layers on the target device; None measures accuracy alone.
        finetune: How each trial is finetuned.
        device: `auto`, `cpu` or `cuda`.
        images: Most search-validation images a trial is judged on; all by default.
        repeats: Seeds a trial is finetuned with. Its accuracy is their mean; `accuracies` and
            `accuracy_std` are user attributes. A trial takes as many times longer.
        measured_on: A device that runs whole networks, or its name: `cpu` runs what `export_onnx`
            writes. It runs each trial's at its end, and the
            trial keeps `measured_latency_ms` and `measured_spread_ms` beside `table_latency_ms`,
            the sum of the table, as user attributes. Values are the table's all the same; where
            the device fails, `not_measured` says why.
        progress: Shows a bar of each trial's finetuning steps, gone when it ends; beside it
            `Study.optimize(show_progress_bar=True)` shows one of the trials.

    Raises:
        DataError: The images do not fit the supernet.
        CostTableError: The table lacks layers of the supernet's space.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: ImageData,
        costs: CostTable | None = None,
        *,
        finetune: FinetuneOptions | None = None,
        device: str = "auto",
        images: int | None = None,
        repeats: int = 1,
        measured_on: Device | str | None = None,
        progress: bool = False,
    ) -> None:
        check_data(supernet, data)
        keep_buffers()
        self.device = resolve_device(device)
        self.supernet = supernet.to(self.device).eval()
        self.data = data
        self.costs = costs
        self.finetune = self._asked = finetune or FinetuneOptions()
        self.images = images
        self.repeats = repeats
        self.progress = progress
        if isinstance(measured_on, str):
            measured_on = find_device(measured_on)
        self.measured_on = measured_on
        if measured_on is not None and not measured_on.runs_networks:
            raise InvalidArgumentError(
                f"measured_on={measured_on.name!r}: this device runs no whole networks"
            )
        self._checked: Study | None = None
        if images is not None and images < 1:
            raise InvalidArgumentError(f"images={images}: at least 1")
        if repeats < 1:
            raise InvalidArgumentError(f"repeats={repeats}: at least 1")
        self._conditions = {
            "supernet": supernet.weights_hash,
            "data split": data.split_hash,
            "device": costs.device if costs else None,
            "cost table": costs.digest if costs else None,
            "images": images,
            "augmentation": data.augment,
            "arithmetic": ARITHMETIC,
            "repeats": repeats,
        }
        self._use(AVERAGING, RATES)
        if costs is not None:
            costs.compile(supernet.space)

    @property
    def metric_names(self) -> list[str]:
        """Names of the values, for `Study.set_metric_names`."""
        return ["accuracy", *(self.costs.metric_names if self.costs else ())]

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """Directions of the values, for `optuna.create_study`."""
        costs: list[Literal["minimize", "maximize"]] = ["minimize"] * (len(self.metric_names) - 1)
        return ["maximize", *costs]

    def _use(self, averaging: float, rates: str) -> None:
        """Finetunes so where nothing was asked for, and takes it into the conditions."""
        asked = self._asked
        filled: dict[str, Any] = {
            "averaging": averaging if asked.averaging is None else asked.averaging,
            "rates": rates if asked.rates is None else asked.rates,
        }
        self.finetune = replace(self.finetune, **filled)  # a script may have changed the rest
        for name, value in asdict(replace(asked, **filled)).items():
            self._conditions[f"finetune {name}"] = value

    def check_study(self, study: Study) -> None:
        """Checks that a study has this objective's values, or makes it this objective's if new.

        A study keeps the space and the conditions its values were measured under.

        Raises:
            StudyMismatchError: Its directions, metric names or conditions (supernet, data, costs,
                augmentation, finetuning) are others; says what to change.
        """
        directions = [direction.name.lower() for direction in study.directions]
        if directions != self.directions:
            raise StudyMismatchError(
                f"the study {study.study_name!r} has directions={directions}, this objective "
                f"gives {dict(zip(self.metric_names, self.directions, strict=True))}: create it "
                "with directions=objective.directions, or give it another study_name"
            )
        if study.metric_names is not None and study.metric_names != self.metric_names:
            raise StudyMismatchError(
                f"the study {study.study_name!r} has metric names {study.metric_names}, this "
                f"objective {self.metric_names}: use another study_name for other costs"
            )
        stored = study_attribute(study, "objective")
        if stored is None:
            self._use(AVERAGING, RATES)
            set_study_attribute(study, "objective", dict(self._conditions))
            set_study_attribute(study, "space", self.supernet.space.to_dict())
            self._checked = study
            return
        # one that says nothing of it did what was usual, or what its own images still do
        usual = usual_augment(self.data.name) or self.data.augment
        stored = {
            "augmentation": usual, "arithmetic": 1, "repeats": 1, "finetune averaging": 0.0,
            "finetune rates": ALIKE, **stored,
        }  # fmt: skip
        before = str(self.finetune.averaging), str(self.finetune.rates)
        self._use(float(stored["finetune averaging"]), str(stored["finetune rates"]))
        other = [
            f"{name} {stored.get(name)!r}, now {value!r}"
            for name, value in self._conditions.items()
            if stored.get(name) != value and name != "arithmetic"
        ]
        if not other and stored["arithmetic"] != ARITHMETIC:
            _logger.warning(
                "the study %r was begun when finetuning rounded in another order (arithmetic %s, "
                "now %s): the same network differs between the two by less than between two seeds",
                study.study_name, stored["arithmetic"], ARITHMETIC,
            )  # fmt: skip
        if other:
            self._use(float(before[0]), before[1])
            raise StudyMismatchError(
                f"the study {study.study_name!r} was measured under other conditions, so values "
                f"would not compare: {'; '.join(other)}. Use another study_name"
            )
        self._checked = study

    def __call__(self, trial: Trial) -> tuple[float, ...] | float:
        """Values of one trial: accuracy in [0, 1], then costs.

        A configuration the device has no cost for is pruned with the reason; a finetune that
        diverges gives NaN, which fails the trial. Either way the reason is a user attribute.
        """
        if trial.study is not self._checked:
            self.check_study(trial.study)
        started = time.perf_counter()
        subnet = self.supernet.space.suggest(trial)
        costs: tuple[float, ...] = ()
        if self.costs is not None:
            try:
                costs = self.costs.network_cost(subnet.layers())
            except MissingCostError as error:
                trial.set_user_attr("infeasible", str(error))
                raise TrialPruned(str(error)) from error
        try:
            network, before = self.network(subnet)
            value, attributes = self._judged(network, before)
            values = [value]
            values += [self.measure(subnet, repeat=k)[0] for k in range(1, self.repeats)]
            value = float(np.mean(values)) if self.repeats > 1 else value
            if self.repeats > 1:
                attributes["accuracies"] = values
                attributes["accuracy_std"] = float(np.std(values, ddof=1))
        except DivergedError as error:
            trial.set_user_attr("diverged", str(error))
            value, attributes = math.nan, {}
        else:
            if self.measured_on is not None and not math.isnan(value):
                attributes |= self._latencies(network, costs)
        attributes["seconds"] = round(time.perf_counter() - started, 3)
        if (predicted := running_trial_attribute(trial, "predicted")) is not None:
            attributes["predicted_mean"], attributes["predicted_std"] = predicted
        for name, attribute in attributes.items():
            trial.set_user_attr(name, attribute)
        return (value, *costs) if costs else value

    def measure(
        self, subnet: Subnet, *, finetune: FinetuneOptions | None = None, repeat: int = 0
    ) -> tuple[float, dict[str, Any]]:
        """Accuracy of a subnet on search-validation, and what is worth remembering of it.

        Args:
            subnet: The network.
            finetune: Other options than the objective's.
            repeat: 0 is the seed of a trial, others are further ones.

        Raises:
            DivergedError: Its finetuning diverged.
        """
        quantized, before = self.network(subnet, finetune=finetune, repeat=repeat)
        return self._judged(quantized, before)

    def network(
        self, subnet: Subnet, *, finetune: FinetuneOptions | None = None, repeat: int = 0
    ) -> tuple[SubnetModule, float]:
        """The quantized, finetuned network that `measure` judges, and its fp32 accuracy before.

        The same subnet and options give the same network.

        Raises:
            DivergedError: Its finetuning diverged.
        """
        options = finetune or self.finetune
        seed = (genotype_seed(subnet) + REPEAT_SEED * repeat) % 2**32
        module = fp32_network(self.supernet, subnet, self.data, options.calibration_images, seed)
        teacher = fold_network(module)
        before = accuracy(teacher, self.data, limit=self.images)
        quantized = quantized_network(module, subnet, self.data, options.calibration_images, seed)
        with progress_bar(
            options.steps, "finetune", show=self.progress, unit="step", leave=False
        ) as bar:
            finetune_quantized(
                quantized, self.data, options, seed=seed, teacher=teacher,
                report=lambda step, loss: bar.update(1),
            )  # fmt: skip
        return quantized, before

    def _judged(self, network: SubnetModule, before: float) -> tuple[float, dict[str, Any]]:
        subnet = network.description
        value = accuracy(network, self.data, limit=self.images)
        attributes = {
            "fp32_accuracy": before,
            "bitops": subnet.bitops,
            "macs": subnet.macs,
            "weight_bytes": subnet.weight_bytes,
        }
        return value, attributes

    def _latencies(self, network: SubnetModule, costs: tuple[float, ...]) -> dict[str, Any]:
        """What the real network takes, beside what the table says."""
        assert self.measured_on is not None
        try:
            (measured,) = self.measured_on.measure_networks([network])
        except Exception as error:  # a board that is gone must not cost the trial its accuracy
            return {"not_measured": f"{type(error).__name__}: {error}"}
        found = {
            "measured_latency_ms": measured.latency_ms,
            "measured_spread_ms": measured.spread_ms,
        }
        return found | ({"table_latency_ms": costs[0]} if costs else {})


def genotype_seed(subnet: Subnet) -> int:
    """A seed that depends on the network alone, the same in every process."""
    digest = hashlib.sha256(subnet.identity.encode()).digest()
    return int.from_bytes(digest[:4], "little")


def uniform_baselines(objective: Objective, costs: CostTable | None) -> list[dict[str, Any]]:
    """The largest network at uniform 8, 6 and 4 bits, measured exactly as a trial is.

    A width that the device does not run, or at which finetuning diverges, is left out.
    """
    space = objective.supernet.space
    largest = space.decode(space.extreme(largest=True)[0])
    results = []
    for bits in UNIFORM_BITS:
        subnet = largest.with_bits(bits)
        try:
            priced = costs.network_cost(subnet.layers()) if costs is not None else ()
            value, _ = objective.measure(subnet)
        except (MissingCostError, DivergedError):
            continue
        result: dict[str, Any] = {"name": f"W{bits}A{bits}", "accuracy": value}
        if costs is not None:
            result |= dict(zip(costs.metric_names, priced, strict=True))
        results.append(result)
    return results
