"""What a problem of the sampler race is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.distributions import BaseDistribution

import apq_optuna as apq

Values = tuple[float, ...]
Evaluate = Callable[[optuna.Trial], Values]
MakeSampler = Callable[[int], optuna.samplers.BaseSampler]


def plain(seed: int) -> optuna.samplers.BaseSampler:
    """Our sampler as it comes."""
    return apq.APQSampler(seed=seed)


@dataclass(frozen=True)
class Problem:
    """What is raced on.

    Attributes:
        name: Of the problem.
        directions: Of its objectives.
        reference: Hypervolume's reference point, in the objectives' own orientation.
        ideal: What bounds the box that hypervolume is a share of.
        evaluate: A trial to its values.
        make_ours: Our sampler for a seed.
        trials, seeds: Budget of each run and number of runs.
        metric_names: Names of the objectives.
        variants: Further samplers of this problem by name.
        constraints: Names of what `evaluate` gives to `Trial.set_constraint` (Optuna 5).
        space: The parameters, for peers that need them beforehand; None to find them by trials.
    """

    name: str
    directions: list[str]
    reference: Values
    ideal: Values
    evaluate: Evaluate
    make_ours: MakeSampler = plain
    trials: int = 100
    seeds: int = 5
    metric_names: list[str] | None = None
    variants: Mapping[str, MakeSampler] = field(default_factory=dict)
    constraints: tuple[str, ...] = ()
    space: Mapping[str, BaseDistribution] | None = None


def minimised(
    name: str,
    evaluate: Evaluate,
    reference: Values,
    ideal: Values,
    constraints: tuple[str, ...] = (),
) -> Problem:
    """A problem all of whose objectives are to be small."""
    directions = ["minimize"] * len(reference)
    return Problem(name, directions, reference, ideal, evaluate, constraints=constraints)


def vector(trial: optuna.Trial, variables: int) -> np.ndarray:
    """`(variables,)` parameters `x00`, `x01` and so on, each in [0, 1]."""
    return np.array([trial.suggest_float(f"x{i:02d}", 0.0, 1.0) for i in range(variables)])


def threads(count: int) -> None:
    """Every run with the same number of threads: sums come out the same."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
