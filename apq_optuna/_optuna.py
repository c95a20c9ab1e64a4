"""The only place that touches what Optuna does not document: raw trials, system attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optuna.samplers._base import _process_constraints_after_trial
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

PREFIX = "apq:"
CONFIRMED = "confirmed:"
"""Beginning of a study's attributes for trials measured again; their numbers follow."""

EXPORTED = "exported:"
"""Likewise, for what the exported files of trials took on some machine."""

CONSTRAINTS = "constraints"
"""Optuna's own attribute for constraint values; one prefixed with it and a colon for each name."""


def whole_study(study: Study) -> Study:
    """The study itself, where a pruner shows a part of it.

    `HyperbandPruner` gives the sampler one of its brackets, which has few of a study's attributes.
    """
    try:
        whole = object.__getattribute__(study, "_study")
    except AttributeError:
        return study
    return whole if isinstance(whole, Study) else study


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


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """Constraint values of a stored trial by name, as Optuna 5's `FrozenTrial.constraints`.

    Optuna 5 keeps each of `Trial.set_constraint` under a key of its own. What a sampler's
    `constraints_func` returned is one list in 4.x and 5.x alike (None where it raised); its
    values are named by their place.
    """
    stored = trial.system_attrs
    listed = {str(i): float(v) for i, v in enumerate(stored.get(CONSTRAINTS) or ())}
    prefix = CONSTRAINTS + ":"
    named = {k.removeprefix(prefix): float(v) for k, v in stored.items() if k.startswith(prefix)}
    return listed | named


def set_constraints(
    study: Study,
    trial: FrozenTrial,
    state: TrialState,
    function: Callable[[FrozenTrial], Sequence[float]],
) -> None:
    """Stores what a `constraints_func` says of a trial that ends, as Optuna's samplers do."""
    _process_constraints_after_trial(function, study, trial, state)


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


def confirmed_values(study: Study) -> dict[int, list[float]]:
    """First values of trials measured again with further seeds, by trial number."""
    stored = _of_trials(study, CONFIRMED)
    return {number: [float(value) for value in values] for number, values in stored.items()}


def exported_values(study: Study) -> dict[int, dict[str, Any]]:
    """What the exported files of trials took, by trial number."""
    return {number: dict(found) for number, found in _of_trials(study, EXPORTED).items()}


def _of_trials(study: Study, kind: str) -> dict[int, Any]:
    """A kind of our attributes of a study that is kept by trial number."""
    prefix = PREFIX + kind
    study = whole_study(study)
    stored = study._storage.get_study_system_attrs(study._study_id)
    return {
        int(key.removeprefix(prefix)): value
        for key, value in stored.items()
        if key.startswith(prefix)
    }


def set_study_attribute(study: Study, key: str, value: Any) -> None:
    """Writes one of our system attributes of a study."""
    study._storage.set_study_system_attr(study._study_id, PREFIX + key, value)
