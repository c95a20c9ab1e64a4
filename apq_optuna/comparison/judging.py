"""The end of every method: its network confirmed, finetuned alike, and tested once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from apq_optuna._files import alone
from apq_optuna._optuna import set_study_attribute, study_attribute
from apq_optuna.comparison.methods import METHODS, Found
from apq_optuna.comparison.setting import Setting
from apq_optuna.confirming import confirm
from apq_optuna.errors import (
    CheckpointError,
    CostTableError,
    InfeasibleBudgetError,
    MissingCostError,
)
from apq_optuna.finishing import finish
from apq_optuna.networks import Subnet
from apq_optuna.quantization import DivergedError, load_network

RESULT = "compared"

NOTHING = (InfeasibleBudgetError, DivergedError, MissingCostError, CostTableError)
"""What leaves a case without a network rather than ending the comparison."""


@dataclass(frozen=True)
class Judged:
    """One line of a comparison.

    Attributes:
        method, metric, limit, seed: The case.
        measured: Accuracy of the chosen trial, picked as the best of many.
        confirmed: Mean accuracy of the same network with further seeds.
        test: Accuracy on the test split after the final finetuning.
        costs: By metric name.
        seconds: Of what was done for this device and budget alone, without the final finetuning,
            which is the same for all.
        shared: Seconds by name of what this method adds to what is done once.
        missing: Why there is no network; empty where there is one.
        conditions: Of the setting; only results that share them compare.
    """

    method: str
    metric: str
    limit: float
    seed: int
    measured: float = float("nan")
    confirmed: float = float("nan")
    test: float = float("nan")
    costs: dict[str, float] | None = None
    seconds: float = float("nan")
    shared: dict[str, float] | None = None
    missing: str = ""
    conditions: str = ""


def judge(setting: Setting, method: str) -> Judged:
    """Runs a method on a case, or goes on with it, and judges what it found.

    Args:
        setting: The case.
        method: A key of `METHODS`.

    Two that judge the same case at once wait for each other.
    """
    s = setting
    with alone(s.folder / "locks" / f"{method} {s.case}"):
        stored = study_attribute(s.notes(), f"{RESULT}: {method}, {s.case}")
        if stored is not None:
            return Judged(**stored)
        result = _judged(s, method)
        set_study_attribute(s.notes(), f"{RESULT}: {method}, {s.case}", asdict(result))
        return result


def _judged(s: Setting, method: str) -> Judged:
    case: dict[str, Any] = {
        "method": method, "metric": s.metric, "limit": s.limit, "seed": s.seed,
        "conditions": s.conditions,
    }  # fmt: skip
    try:
        found = METHODS[method].run(s)
        trial = s.best(found.study)
        return _finished(s, method, found, trial, case)
    except NOTHING as error:
        return Judged(**case, missing=str(error))


def _finished(
    s: Setting, method: str, found: Found, trial: FrozenTrial, case: dict[str, Any]
) -> Judged:
    objective = s.objective(found.supernet)
    values = [float(trial.values[0])]
    if s.repeats:
        again = confirm(found.study, objective, s.repeats, trials=[trial.number])
        values = again.get(trial.number, values)
    space = found.supernet.space
    subnet = space.decode(space.from_params(trial.params))
    folder = s.folder / "finished" / f"{method}-{s.metric}-{s.limit:g}-{s.seed}-{s.conditions}"
    about = _tested(folder, subnet)
    if about is None:
        about = _finish(s, method, found, trial, subnet, folder)
    return Judged(
        **case,
        measured=float(trial.values[0]),
        confirmed=float(np.mean(values)),
        test=about["accuracy"]["test"],
        costs=about["costs"],
        seconds=found.seconds,
        shared=dict(found.shared),
    )


def _tested(folder: Path, subnet: Subnet) -> dict[str, Any] | None:
    """What is stored beside a network that was finished and tested before a stop."""
    try:
        network = load_network(folder)
    except CheckpointError:
        return None
    return network.about if network.description.identity == subnet.identity else None


def _finish(
    s: Setting, method: str, found: Found, trial: FrozenTrial, subnet: Subnet, folder: Path
) -> dict[str, Any]:
    s.tell(f"{METHODS[method].title}, {s.case}: final finetuning of trial {trial.number}")
    _, about = finish(
        found.supernet, s.data, subnet, folder, epochs=s.epochs, costs=s.costs, device=s.device,
        overwrite=True,
    )  # fmt: skip
    return about
