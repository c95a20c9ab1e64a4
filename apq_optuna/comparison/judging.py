"""The end of every method: its network confirmed, finetuned alike, and tested once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from apq_optuna._optuna import set_study_attribute, study_attribute
from apq_optuna.comparison.methods import METHODS
from apq_optuna.comparison.setting import Setting
from apq_optuna.confirming import confirm
from apq_optuna.errors import InfeasibleBudgetError
from apq_optuna.finishing import finish

RESULT = "compared"


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


def judge(setting: Setting, method: str, *, epochs: float, repeats: int) -> Judged:
    """Runs a method on a case, or goes on with it, and judges what it found.

    Args:
        setting: The case.
        method: A key of `METHODS`.
        epochs: Of the final finetuning.
        repeats: Further seeds that confirm the chosen trial.
    """
    s = setting
    case: dict[str, Any] = {
        "method": method, "metric": s.metric, "limit": s.limit, "seed": s.seed,
    }  # fmt: skip
    key = f"{RESULT}: {method}, {s.case}"
    stored = study_attribute(s.notes(), key)
    if stored is not None:
        return Judged(**stored)
    try:
        found = METHODS[method].run(s)
        trial = s.best(found.study)
    except InfeasibleBudgetError as error:
        return Judged(**case, missing=str(error))
    objective = s.objective(found.supernet, found.costs)
    values = confirm(found.study, objective, repeats, trials=[trial.number])
    space = found.supernet.space
    subnet = space.decode(space.from_params(trial.params))
    folder = s.folder / "finished" / f"{method}-{s.metric}-{s.limit:g}-{s.seed}"
    s.tell(f"{METHODS[method].title}, {s.case}: final finetuning of trial {trial.number}")
    _, about = finish(
        found.supernet, s.data, subnet, folder, epochs=epochs, costs=found.costs, device=s.device
    )
    result = Judged(
        **case,
        measured=float(trial.values[0]),
        confirmed=float(np.mean(values.get(trial.number, [trial.values[0]]))),
        test=about["accuracy"]["test"],
        costs=about["costs"],
        seconds=found.seconds,
        shared=dict(found.shared),
    )
    set_study_attribute(s.notes(), key, asdict(result))
    return result
