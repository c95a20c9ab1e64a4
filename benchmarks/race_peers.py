"""Whom the sampler is raced against, and how long each thinks.

Those of Optuna run by default. BoTorch and SMAC run where `--samplers` names them: they are no
requirements of this project (`pip install -e '.[peers]'`), and BoTorch is slow.

All of Optuna 5's samplers here, BoTorch's too, read constraints from `Trial.set_constraint`; SMAC
is told of them in its own way, see `race_smac`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from race_base import Problem


@dataclass(frozen=True)
class Peer:
    """A sampler to race against.

    Attributes:
        make: From a problem and a seed to the sampler.
        needs: Modules beyond this project's requirements; with any it runs only if asked for.
        trials, seeds: Budget of each run and number of runs where they are its own, else the
            problem's.
    """

    make: Callable[[Problem, int], BaseSampler]
    needs: tuple[str, ...] = ()
    trials: int | None = None
    seeds: int | None = None


def botorch(problem: Problem, seed: int) -> BaseSampler:
    """qLogNEHVI, which optuna-integration has for several objectives but not as its default.

    Its defaults are qEHVI up to three objectives and EHVI or qParEGO beyond; with one objective
    LogEI stays. It models what every trial has: conditional parameters are drawn at random.
    """
    from optuna_integration import BoTorchSampler
    from optuna_integration.botorch import qnehvi_candidates_func

    several = len(problem.directions) > 1
    return BoTorchSampler(candidates_func=qnehvi_candidates_func if several else None, seed=seed)


def smac(problem: Problem, seed: int) -> BaseSampler:
    """SMAC3's random forest with ParEGO."""
    from race_smac import SMACSampler

    return SMACSampler(problem, seed)


PEERS: dict[str, Peer] = {
    "random": Peer(lambda _, seed: optuna.samplers.RandomSampler(seed=seed)),
    "NSGA-II": Peer(lambda _, seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20)),
    "TPE": Peer(lambda _, seed: optuna.samplers.TPESampler(seed=seed)),
    "TPE multivariate": Peer(
        lambda _, seed: optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    ),
    "GPSampler": Peer(lambda _, seed: optuna.samplers.GPSampler(seed=seed)),
    "BoTorch": Peer(botorch, needs=("optuna_integration", "botorch"), trials=50, seeds=3),
    "SMAC": Peer(smac, needs=("smac", "ConfigSpace")),
}
LEFT_OUT = {("cifar10", "GPSampler"), ("cifar10", "TPE multivariate")}


def defaults(problem: str) -> list[str]:
    """The peers of a problem that run without being asked for."""
    return [k for k, peer in PEERS.items() if not peer.needs and (problem, k) not in LEFT_OUT]


def check(names: Sequence[str]) -> None:
    """Stops with what to install where a peer that was asked for lacks a module."""
    for name in names:
        needs = PEERS[name].needs if name in PEERS else ()
        lacking = [module for module in needs if importlib.util.find_spec(module) is None]
        if lacking:
            raise SystemExit(
                f"--samplers {name}: pip install -e '.[peers]' (no {', '.join(lacking)} here)"
            )


class Timed(BaseSampler):
    """A sampler and the seconds it takes.

    A trial is sampled when it first suggests something, thus within the objective: the time
    between two evaluations says nothing of what asking costs.

    Attributes:
        seconds: Spent in the sampler so far.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self._sampler, self.seconds = sampler, 0.0

    def _call(self, method: str, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return getattr(self._sampler, method)(*arguments)
        finally:
            self.seconds += time.perf_counter() - started

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._call("infer_relative_search_space", study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._call("sample_relative", study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        return self._call("sample_independent", study, trial, name, distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._call("before_trial", study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._call("after_trial", study, trial, state, values)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()
