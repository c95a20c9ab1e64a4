"""Winners are lucky: the networks of a front measured again, with further seeds.

A front is picked from noisy measurements and so flatters itself: of networks that are equally
good, the luckiest are on it. Further measurements are not picked, and their mean is what a network
is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from apq_optuna._optuna import CONFIRMED, confirmed_values, set_study_attribute, trials_of
from apq_optuna._progress import progress_bar
from apq_optuna.errors import InvalidArgumentError, StudyMismatchError
from apq_optuna.objective import Objective
from apq_optuna.quantization import DivergedError
from apq_optuna.search import nondominated


def confirm(
    study: Study,
    objective: Objective,
    repeats: int,
    *,
    trials: Sequence[int] | None = None,
    progress: bool = False,
) -> dict[int, list[float]]:
    """Measures networks of a study with further seeds, and keeps what comes out with the study.

    A sampler takes the mean of all measurements of a trial, and knows that it is worth more than
    one; reports show mean and spread of the further ones. Measurements that are there already are
    not made again, so a stopped confirmation goes on.

    Args:
        study: Trials that `objective` measured.
        objective: The study's objective.
        repeats: Further seeds for each network, in all.
        trials: Numbers of completed trials; by default the front's.
        progress: Shows a bar with the measurements done and the time left.

    Returns:
        Further accuracies by trial number, earlier ones included; a network's end at the first
        seed at which its finetuning diverges.

    Raises:
        InvalidArgumentError: `repeats` below 1, or a trial that is not completed.
        StudyMismatchError: The study is of another objective.
    """
    if repeats < 1:
        raise InvalidArgumentError(f"repeats={repeats}: at least 1")
    objective.check_study(study)
    completed = {
        trial.number: trial for trial in trials_of(study) if trial.state == TrialState.COMPLETE
    }
    chosen = front_of(study) if trials is None else [int(number) for number in trials]
    if unknown := [number for number in chosen if number not in completed]:
        raise InvalidArgumentError(f"trials={unknown}: not completed trials of the study")
    space = objective.supernet.space
    done = confirmed_values(study)
    start = objective.repeats  # seeds before it are the trial's own
    total = len(chosen) * repeats
    there = sum(min(len(done.get(number, ())), repeats) for number in chosen)
    with progress_bar(total, "confirm", show=progress, unit="run", initial=there) as bar:
        for number in chosen:
            values = done.setdefault(number, [])
            subnet = space.decode(space.from_params(completed[number].params))
            for repeat in range(start + len(values), start + repeats):
                try:
                    values.append(objective.measure(subnet, repeat=repeat)[0])
                except DivergedError:
                    break
                set_study_attribute(study, f"{CONFIRMED}{number}", values)
                bar.update(1)
    return {number: done[number] for number in chosen if done[number]}


def front_of(study: Study) -> list[int]:
    """Numbers of the trials on a study's Pareto front, as they were measured at first.

    Raises:
        StudyMismatchError: The first objective is not maximised, as accuracy is.
    """
    if study.directions[0] != StudyDirection.MAXIMIZE:
        raise StudyMismatchError(f"study {study.study_name!r}: accuracy is maximised, and first")
    trials = [
        trial
        for trial in trials_of(study)
        if trial.state == TrialState.COMPLETE and np.isfinite(trial.values).all()
    ]
    if not trials:
        return []
    signs = [1.0 if d == StudyDirection.MINIMIZE else -1.0 for d in study.directions]
    values = np.array([trial.values for trial in trials], float) * signs
    return [trials[i].number for i in np.flatnonzero(nondominated(values))]
