"""Several workers, threads and processes on one study."""

from __future__ import annotations

import pickle

import numpy as np
import optuna
import pytest

import apq_optuna as apq

from .helpers import SPACE, Measured, new_study, rows


def test_a_second_process_goes_on_where_the_first_stopped(url: str, measure: Measured) -> None:
    for total in (14, 28):
        study = new_study(apq.APQSampler(SPACE, costs=measure.costs, n_startup_trials=8), url)
        study.optimize(measure, n_trials=14)
        assert len(study.trials) == total
    assert len(set(rows(study))) == 28


def test_threads_share_one_sampler(url: str, measure: Measured) -> None:
    sampler = apq.APQSampler(SPACE, costs=measure.costs, n_startup_trials=6, seed=0)
    study = new_study(sampler, url)
    study.optimize(measure, n_trials=16, n_jobs=2)
    assert len(set(rows(study))) == len(study.trials) == 16


def test_it_pickles_small_and_works_afterwards(measure: Measured) -> None:
    sampler = apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=4)
    study = new_study(sampler)
    study.optimize(measure, n_trials=8)
    packed = pickle.dumps(sampler)
    assert len(packed) < 1_000_000
    study.sampler = pickle.loads(packed)
    study.optimize(measure, n_trials=3)
    assert len(set(rows(study))) == 11


def test_two_workers_that_propose_the_same_do_not_both_try_it(url: str) -> None:
    """Two samplers of one seed on a tiny space: only their claims keep them apart."""
    from optuna.distributions import IntDistribution

    space = {"a": IntDistribution(0, 3), "b": IntDistribution(0, 3)}
    storage = apq.open_storage(url)
    optuna.create_study(study_name="s", storage=storage)
    studies = [
        optuna.load_study(
            study_name="s", storage=storage, sampler=apq.APQSampler(seed=0, n_startup_trials=1)
        )
        for _ in range(2)
    ]
    for trial in [studies[0].ask(space), studies[0].ask(space)]:  # so that the space is known
        studies[0].tell(trial, trial.params["a"] + trial.params["b"])
    for _ in range(6):
        trials = [study.ask() for study in studies]
        params = [(t.suggest_int("a", 0, 3), t.suggest_int("b", 0, 3)) for t in trials]
        assert params[0] != params[1]
        for study, trial, (a, b) in zip(studies, trials, params, strict=True):
            study.tell(trial, a + b)
    found = [(t.params["a"], t.params["b"]) for t in studies[0].trials]
    assert len(set(found[2:])) == 12


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("workers", [2, 6])
def test_workers_of_one_seed_are_never_near_each_other_in_a_continuous_space(
    url: str, workers: int, declared: bool
) -> None:
    """Near: within a hundredth of the range in every parameter."""
    from optuna.distributions import FloatDistribution

    space = {name: FloatDistribution(-5, 5) for name in "xyz"}
    storage = apq.open_storage(url, heartbeat_interval=None)
    optuna.create_study(study_name="s", storage=storage)
    given = apq.SearchSpace.from_distributions(space) if declared else None
    studies = [
        optuna.load_study(
            study_name="s", storage=storage,
            sampler=apq.APQSampler(given, seed=0, n_startup_trials=4),
        )
        for _ in range(workers)
    ]  # fmt: skip
    for _ in range(5):
        trials = [study.ask() for study in studies]
        points = np.array([[t.suggest_float(name, -5, 5) for name in "xyz"] for t in trials])
        apart = np.abs(points[:, None] - points[None]).max(axis=2) / 10 + np.eye(workers)
        assert apart.min() > 0.008  # cells are 0.01 apart, and values anywhere in them
        for study, trial, point in zip(studies, trials, points, strict=True):
            study.tell(trial, float(((point - 1) ** 2).sum()))


def test_what_is_drawn_depends_on_the_seed_and_the_trial_alone(measure: Measured) -> None:
    """A study that goes on in another process does not begin with the same draws again."""

    def drawn(parts: list[int]) -> list[bytes]:
        study = new_study(None)
        for trials in parts:
            study.sampler = apq.APQSampler(SPACE, costs=measure.costs, n_startup_trials=6, seed=3)
            study.optimize(measure, n_trials=trials)
        return rows(study)

    assert drawn([6]) == drawn([3, 3])


def test_reseeding_reaches_the_inner_sampler() -> None:
    inner = optuna.samplers.RandomSampler(seed=0)
    sampler = apq.APQSampler(independent_sampler=inner, seed=0)
    state = inner._rng.rng.get_state()[1].tolist()
    sampler.reseed_rng()
    assert inner._rng.rng.get_state()[1].tolist() != state


def test_a_claim_of_another_space_is_not_read() -> None:
    study = optuna.create_study(sampler=apq.APQSampler(seed=0))

    def narrow(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 0, 9)

    study.optimize(narrow, n_trials=4)
    study.ask().suggest_float("x", 0, 1)  # its worker is killed here

    def wide(trial: optuna.Trial) -> float:
        return (
            trial.suggest_float("x", 0, 2)
            + trial.suggest_int("n", 0, 9)
            + trial.suggest_categorical("a", [0.0, 1.0])
        )

    study.optimize(wide, n_trials=6)
    assert len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == 10


@pytest.mark.parametrize("dimensions", [1, 2, 4])
def test_who_is_late_takes_the_next_best_place_not_a_random_one(dimensions: int) -> None:
    """Another worker claims the same peak between ranking and claiming."""
    from optuna.distributions import FloatDistribution

    from apq_optuna.sampler.sampler import APQSampler

    names = [f"x{i}" for i in range(dimensions)]
    space = apq.SearchSpace.from_distributions(dict.fromkeys(names, FloatDistribution(0, 1)))
    study = optuna.create_study(sampler=apq.APQSampler(space, seed=0))

    def value(trial: optuna.Trial) -> float:
        return sum((trial.suggest_float(name, 0, 1) - 0.37) ** 2 for name in names)

    study.optimize(value, n_trials=25)
    other = study.ask()
    tries = 0

    class Late(APQSampler):
        @staticmethod
        def _take(study, trial, proposer, row):  # type: ignore[no-untyped-def]
            nonlocal tries
            tries += 1
            if tries == 1:
                APQSampler._take(study, other._cached_frozen_trial, proposer, row)
            return APQSampler._take(study, trial, proposer, row)

    study.sampler = Late(space, seed=0)
    late = study.ask()
    point = np.array([late.suggest_float(name, 0, 1) for name in names])
    assert tries <= 6
    if dimensions < 4:  # there 25 trials are few, and the next best is a corner
        assert np.abs(point - 0.37).max() < 0.25


def test_a_running_trial_that_was_prescribed_whole_is_seen() -> None:
    from optuna.distributions import FloatDistribution

    from apq_optuna.sampler.history import History

    space = apq.SearchSpace.from_distributions(
        {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    )
    study = optuna.create_study(sampler=apq.APQSampler(space, seed=0))
    study.enqueue_trial({"x": 0.37, "y": 0.61})
    trial = study.ask()
    trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    assert len(History(space, strict=True).read(study).running) == 1


def test_a_claim_is_seen_from_a_space_that_has_grown_since(url: str) -> None:
    from optuna.distributions import FloatDistribution

    from apq_optuna.sampler.history import claim_of, claimed_row

    one = apq.SearchSpace.from_distributions({"x": FloatDistribution(0, 1)})
    two = apq.SearchSpace.from_distributions(
        {"x": FloatDistribution(0, 2), "y": FloatDistribution(0, 1)}
    )
    claim = claim_of(one, one.from_params({"x": 0.5}))
    trial = optuna.trial.create_trial(value=0.0, system_attrs={"apq:claim": claim})
    row = claimed_row(trial, two)
    assert row is not None
    assert abs(two.to_params(row)["x"] - 0.5) < 0.01
