"""The only place that touches what Optuna does not document: raw trials, system attributes."""

from __future__ import annotations

from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

PREFIX = "apq:"


def trials_of(study: Study) -> list[FrozenTrial]:
    """Every trial of a study as it is stored now, not copied; they must not be changed."""
    return study._get_trials(deepcopy=False, use_cache=False)


def storage_of(study: Study) -> BaseStorage:
    """The open storage a study lives in, for other studies beside it."""
    return study._storage


def set_trial_attribute(study: Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Writes one of our system attributes of a running trial."""
    study._storage.set_trial_system_attr(trial._trial_id, PREFIX + key, value)


def trial_attribute(trial: FrozenTrial, key: str) -> Any:
    """Reads one of our system attributes of a stored trial; None where there is none."""
    return trial.system_attrs.get(PREFIX + key)


def running_trial_attribute(trial: Trial, key: str) -> Any:
    """Reads one of our system attributes of the trial an objective was given."""
    return trial.storage.get_trial_system_attrs(trial._trial_id).get(PREFIX + key)


def fixed_parameters(trial: FrozenTrial) -> dict[str, Any]:
    """What an enqueued trial prescribes."""
    fixed = trial.system_attrs.get("fixed_params", {})
    return dict(fixed) if isinstance(fixed, dict) else {}


def study_key(study: Study) -> tuple[int, int, str, str]:
    """Identity of a study in this process, also when one is deleted and made anew."""
    trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
    first = str(trials[0].datetime_start) if trials else ""
    return id(study._storage), study._study_id, study.study_name, first


def study_attribute(study: Study, key: str) -> Any:
    """Reads one of our system attributes of a study."""
    return study._storage.get_study_system_attrs(study._study_id).get(PREFIX + key)


def set_study_attribute(study: Study, key: str, value: Any) -> None:
    """Writes one of our system attributes of a study."""
    study._storage.set_study_system_attr(study._study_id, PREFIX + key, value)
