"""The problems of the sampler race by name, and the parameters of one of them.

`SYNTHETIC` and the networks are the race's own; those of `race_tuning` are for choosing constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import optuna
import race_published as published
from optuna.distributions import BaseDistribution
from race_base import Problem, Values, minimised, plain, threads
from race_invented import beam, drone, vessel
from race_networks import cifar10, digits, own
from race_tuning import TUNING

__all__ = [
    "NAMES", "SYNTHETIC", "TUNING", "Problem", "Values", "plain", "problem_of", "space_of",
    "threads",
]  # fmt: skip

SYNTHETIC: dict[str, Callable[[], Problem]] = {
    **{
        f"zdt{kind}": partial(
            minimised, f"zdt{kind}", published.zdt(kind), (11.0, 11.0),
            (0.0, -1.0 if kind == 3 else 0.0),
        )
        for kind in (1, 2, 3)
    },
    "dtlz2": partial(minimised, "dtlz2", published.dtlz2(), (2.0,) * 3, (0.0,) * 3),
    "beam": partial(minimised, "beam", beam, (5.0, 5.0), (0.0, 0.0)),
    # constraints
    "c2dtlz2": partial(
        minimised, "c2dtlz2", published.c2dtlz2(), (2.0,) * 3, (0.0,) * 3, ("c2",)
    ),
    "vessel": partial(
        minimised, "vessel", vessel, (60.0, 8.0), (0.0, 0.0), ("stress_mpa", "volume_m3")
    ),
    # four objectives
    "dtlz2-4": partial(minimised, "dtlz2-4", published.dtlz2(12, 4), (2.0,) * 4, (0.0,) * 4),
    "drone": partial(minimised, "drone", drone, (60.0, 4.0, 12.0, 55.0), (0.0, 0.4, 1.2, 34.0)),
}  # fmt: skip


def problem_of(name: str, folder: Path, images: str | None) -> Problem:
    """A problem by name."""
    if name in SYNTHETIC or name in TUNING:
        return {**SYNTHETIC, **TUNING}[name]()
    if name == "digits":
        return digits(folder)
    if images is None:
        raise SystemExit(f"{name}: give its images with --images folder:PATH")
    return own(folder, images) if name == "own" else cifar10(folder, images)


def space_of(problem: Problem, trials: int = 200) -> Mapping[str, BaseDistribution]:
    """Every parameter of a problem, conditional ones as if they always were there.

    Where the problem does not say, random trials are evaluated to see what they suggest: quick
    for a formula.
    """
    if problem.space is not None:
        return problem.space
    study = optuna.create_study(
        directions=problem.directions, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(problem.evaluate, n_trials=trials)
    return {k: v for trial in study.trials for k, v in trial.distributions.items()}


NAMES: Sequence[str] = (*SYNTHETIC, "digits", "cifar10", "own", *TUNING)
