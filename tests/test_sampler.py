"""The sampler on the joint space and on plain ones, and everything a study can throw at it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.errors import (
    InfeasibleBudgetError,
    InvalidArgumentError,
    StudyMismatchError,
)
from apq_optuna.hardware import CostTable
from apq_optuna.space import SearchSpace

SPACE = SearchSpace.preset("digits")
NAMES = ["accuracy", "latency_ms", "energy_mj"]
DIRECTIONS = ["maximize", "minimize", "minimize"]


# ---------------------------------------------------------------------- the joint space


class Measured:
    """A quick stand-in for training: accuracy made up from the genotype, costs from the table."""

    def __init__(self, costs: CostTable) -> None:
        self.costs = costs
        self.weight = np.random.default_rng(0).normal(0.01, 0.02, SPACE.num_features)

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        subnet = SPACE.suggest(trial)
        features = SPACE.features(SPACE.from_params(trial.params)[None])[0]
        accuracy = float(1 / (1 + np.exp(-3 * features @ self.weight)))
        return (accuracy, *self.costs.network_cost(subnet.layers()))


@pytest.fixture
def measure(digits_costs: CostTable) -> Measured:
    return Measured(digits_costs)


def new_study(sampler: BaseSampler, url: str | None = None, **options: object) -> optuna.Study:
    storage = apq.open_storage(url) if url else None
    study = optuna.create_study(
        study_name="s", storage=storage, directions=DIRECTIONS, sampler=sampler,
        load_if_exists=True, **options,
    )  # fmt: skip
    study.set_metric_names(NAMES)
    return study


def rows(study: optuna.Study) -> list[bytes]:
    return [SPACE.from_params(t.params).tobytes() for t in study.trials]


def hypervolume_of(study: optuna.Study, costs: CostTable) -> float:
    from apq_optuna.search import hypervolume

    values = np.array([t.values for t in study.trials]) * [-1, 1, 1]
    return hypervolume(values, np.array([-0.1, *costs.compile(SPACE).maxima]))


def test_no_configuration_is_tried_twice(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0))
    study.optimize(measure, n_trials=40)
    assert len(set(rows(study))) == 40


def test_it_finds_more_than_random_search(measure: Measured) -> None:
    volumes = {}
    for name, make in {
        "ours": lambda seed: apq.APQSampler(SPACE, costs=measure.costs, seed=seed),
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    }.items():
        studies = [new_study(make(seed)) for seed in (0, 1)]
        for study in studies:
            study.optimize(measure, n_trials=40)
        volumes[name] = np.mean([hypervolume_of(study, measure.costs) for study in studies])
    assert volumes["ours"] > volumes["random"]


def test_the_same_seed_gives_the_same_trials(measure: Measured) -> None:
    found = []
    for seed in (3, 3, 4):
        study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=seed))
        study.optimize(measure, n_trials=20)
        found.append(rows(study))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_a_budget_is_never_broken(measure: Measured) -> None:
    limit = 0.04
    sampler = apq.APQSampler(SPACE, costs=measure.costs, budgets={"latency_ms": limit}, seed=0)
    study = new_study(sampler)
    study.optimize(measure, n_trials=25)
    assert max(t.values[1] for t in study.trials) <= limit


@pytest.mark.parametrize("seed", range(6))
def test_a_device_of_one_bit_width_is_searched(digits_costs: CostTable, seed: int) -> None:
    only_8 = {k: v for k, v in digits_costs.entries.items() if k[1:] == (8, 8)}
    costs = CostTable(only_8, device="board")
    sampler = apq.APQSampler(SPACE, costs=costs, seed=seed, n_startup_trials=3)
    study = new_study(sampler)
    study.optimize(Measured(costs), n_trials=6)
    assert len(set(rows(study))) == 6
    bits = {v for t in study.trials for k, v in t.params.items() if k.endswith("_bits")}
    assert bits == {8}


def test_startup_trials_see_every_bit_width(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=12))
    study.optimize(measure, n_trials=12)
    means = [np.mean([v for k, v in t.params.items() if "bits" in k]) for t in study.trials]
    assert max(means) - min(means) > 3


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


def test_extra_parameters_ride_along(measure: Measured) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        return measure(trial)

    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=5))
    study.optimize(objective, n_trials=10)
    assert len({t.params["lr"] for t in study.trials}) == 10


def test_enqueued_trials_are_completed_around_what_they_fix(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=3))
    whole = SPACE.to_params(SPACE.extreme(largest=True)[0])
    study.enqueue_trial(whole)
    for _ in range(5):
        study.enqueue_trial({"stage2.depth": 2, "stage2.block2.pw_w_bits": 2})
    study.optimize(measure, n_trials=6)
    assert study.trials[0].params == whole
    assert all(t.params["stage2.block2.pw_w_bits"] == 2 for t in study.trials[1:])
    assert len(set(rows(study))) == 6


def test_partial_fixed_sampler(measure: Measured) -> None:
    inner = apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=3)
    sampler = optuna.samplers.PartialFixedSampler({"stage1.depth": 2}, inner)
    study = new_study(sampler)
    study.optimize(measure, n_trials=6)
    assert all(t.params["stage1.depth"] == 2 for t in study.trials)


def test_failed_pruned_and_infinite_trials_do_no_harm(measure: Measured) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        values = measure(trial)
        if trial.number % 4 == 1:
            return (float("nan"), *values[1:])
        if trial.number % 4 == 2:
            raise optuna.TrialPruned
        if trial.number == 3:
            return (float("inf"), *values[1:])
        return values

    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=4))
    study.optimize(objective, n_trials=24)
    states = {t.state for t in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED}
    assert len(set(rows(study))) == 24


def test_a_small_space_is_exhausted_without_repeats() -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_int("a", 0, 3) + trial.suggest_categorical("b", [0, 1, 2])

    study = optuna.create_study(sampler=apq.APQSampler(seed=0, n_startup_trials=3))
    study.optimize(objective, n_trials=14)
    found = [(t.params["a"], t.params["b"]) for t in study.trials]
    assert len(set(found)) == 12  # the first trial is sampled independently, then none twice


def test_it_pickles_small_and_works_afterwards(measure: Measured) -> None:
    sampler = apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=4)
    study = new_study(sampler)
    study.optimize(measure, n_trials=8)
    packed = pickle.dumps(sampler)
    assert len(packed) < 1_000_000
    study.sampler = pickle.loads(packed)
    study.optimize(measure, n_trials=3)
    assert len(set(rows(study))) == 11


def test_a_plain_space_with_a_known_objective() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        return (x - 0.3) ** 2 + y, x

    sampler = apq.APQSampler(known={1: lambda params: params["x"]}, seed=0, n_startup_trials=8)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=25)
    assert min(t.values[0] for t in study.trials) < 0.1


# ---------------------------------------------------------------------- bad input


def test_a_budget_nothing_meets_is_an_error(digits_costs: CostTable) -> None:
    with pytest.raises(
        InfeasibleBudgetError, match=r"budgets\['latency_ms'\]=0.001: the cheapest .* takes 0\.01"
    ):
        apq.APQSampler(SPACE, costs=digits_costs, budgets={"latency_ms": 0.001})
    with pytest.raises(InvalidArgumentError, match="'ram' is not a known objective; known are"):
        apq.APQSampler(SPACE, costs=digits_costs, budgets={"ram": 1.0})


def test_budgets_that_exclude_each_other_are_an_error(measure: Measured) -> None:
    """Each can be met alone: small is quick, but here only large networks are called green."""
    size = {"green": lambda params: -params["stage2.block1.channels"].astype(float)}
    compiled = measure.costs.compile(SPACE)
    budgets = {"latency_ms": float(compiled.minima[0]) * 1.001, "green": -24.0}
    sampler = apq.APQSampler(SPACE, costs=measure.costs, known=size, budgets=budgets, seed=0)
    study = optuna.create_study(directions=[*DIRECTIONS, "minimize"], sampler=sampler)
    study.set_metric_names([*NAMES, "green"])
    with pytest.raises(InfeasibleBudgetError, match="no configuration that meets all was found"):
        study.optimize(lambda trial: (*measure(trial), 0.0), n_trials=1)
    assert study.trials[0].state == TrialState.FAIL


@pytest.mark.parametrize(
    ("directions", "names", "message"),
    [
        (["maximize", "minimize"], None, "the study has 2 objectives, the costs make it 3"),
        (["maximize", "maximize", "minimize"], None, r"objective 1 \(latency_ms\) .* maximised"),
        (DIRECTIONS, ["accuracy", "latency_ms", "size"], "without 'energy_mj' of the cost table"),
    ],
)
def test_a_study_of_other_objectives_is_refused(
    measure: Measured, directions: list[str], names: list[str] | None, message: str
) -> None:
    study = optuna.create_study(
        directions=directions, sampler=apq.APQSampler(SPACE, costs=measure.costs, seed=0)
    )
    if names:
        study.set_metric_names(names)
    with pytest.raises(StudyMismatchError, match=message):
        study.optimize(lambda trial: measure(trial)[: len(directions)], n_trials=3)
    assert study.trials[0].state == TrialState.COMPLETE  # what was stored before stays
    assert study.trials[-1].state != TrialState.COMPLETE


def test_a_study_of_another_space_is_refused(measure: Measured, url: str) -> None:
    other = SearchSpace.preset("digits", bits=(4, 8))

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        return (0.5, *measure.costs.network_cost(other.suggest(trial).layers()))

    study = new_study(apq.APQSampler(other, costs=measure.costs, seed=0), url)
    study.optimize(objective, n_trials=3)
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0), url)
    with pytest.raises(StudyMismatchError, match=r"trial 0 has .*_bits as .* another study_name"):
        study.optimize(measure, n_trials=1)
    assert [t.state for t in study.trials[:3]] == [TrialState.COMPLETE] * 3


def test_known_objectives_must_return_one_finite_value_a_row() -> None:
    def run(function: Callable[..., object]) -> None:
        sampler = apq.APQSampler(known={0: function}, seed=0, n_startup_trials=2)
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.params["x"]), n_trials=5)

    with pytest.raises(InvalidArgumentError, match=r"known\['0'\] returned shape \(1, 2\) for"):
        run(lambda params: np.zeros((1, 2)))
    with pytest.raises(InvalidArgumentError, match="returned NaN"):
        run(lambda params: params["x"] * np.nan)


def test_arguments_that_do_not_fit_are_named(digits_costs: CostTable, url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="costs: a cost table needs the search space"):
        apq.APQSampler(costs=digits_costs)
    with pytest.raises(InvalidArgumentError, match="n_startup_trials=0: at least 1"):
        apq.APQSampler(n_startup_trials=0)


def test_in_other_peoples_studies_it_is_just_a_sampler(digits_costs: CostTable) -> None:
    study = optuna.create_study(sampler=apq.APQSampler(SPACE, costs=digits_costs, seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", -5, 5) ** 2, n_trials=30)
    assert study.best_value < 0.5
    assert FloatDistribution(-5, 5) == study.trials[0].distributions["x"]


def test_one_sampler_serves_two_studies_of_one_name() -> None:
    sampler = apq.APQSampler(seed=0, n_startup_trials=2)
    for _ in range(2):
        study = optuna.create_study(study_name="a", sampler=sampler)
        study.optimize(lambda trial: trial.suggest_int("x", 0, 7), n_trials=8)
        assert len({trial.params["x"] for trial in study.trials[1:]}) >= 6


def test_known_names_matter_only_where_the_space_is_used(digits_costs: CostTable) -> None:
    known = {"size": lambda params: params["stage2.block1.channels"].astype(float)}
    sampler = apq.APQSampler(SPACE, costs=digits_costs, known=known, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    with pytest.raises(StudyMismatchError, match="known: the study has no objective 'size'"):
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: SPACE.suggest(trial).macs, n_trials=3)


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


def test_reseeding_reaches_the_inner_sampler() -> None:
    inner = optuna.samplers.RandomSampler(seed=0)
    sampler = apq.APQSampler(independent_sampler=inner, seed=0)
    state = inner._rng.rng.get_state()[1].tolist()
    sampler.reseed_rng()
    assert inner._rng.rng.get_state()[1].tolist() != state


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_draws_the_same_whatever_its_hash_seed(hash_seed: str) -> None:
    script = """
import optuna, apq_optuna as apq
optuna.logging.set_verbosity(optuna.logging.ERROR)
space = apq.SearchSpace.preset("digits")
costs = apq.hardware.bitfusion_small().table(space)
sampler = apq.APQSampler(space, costs=costs, seed=5, n_startup_trials=3)
study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
def measure(trial):
    subnet = space.suggest(trial)
    return (subnet.macs % 97 / 97, *costs.network_cost(subnet.layers()))
study.optimize(measure, n_trials=7)
print([space.from_params(t.params).tolist() for t in study.trials])
plain = optuna.create_study(sampler=apq.APQSampler(seed=5, n_startup_trials=3))
plain.optimize(lambda t: t.suggest_float("x", 0, 1) + t.suggest_categorical("c", (0, 1)), 8)
print([t.params["x"] for t in plain.trials])
"""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    found = {
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
            check=True,
        ).stdout
        for environment in (environment, environment | {"PYTHONHASHSEED": "42"})
    }  # fmt: skip
    assert len(found) == 1


def test_a_constant_objective_is_searched_without_repeats(measure: Measured) -> None:
    study = new_study(apq.APQSampler(SPACE, costs=measure.costs, seed=0, n_startup_trials=3))
    study.optimize(lambda trial: (0.5, *measure(trial)[1:]), n_trials=10)
    assert len(set(rows(study))) == 10
    plain = optuna.create_study(sampler=apq.APQSampler(seed=0, n_startup_trials=3))
    plain.optimize(lambda trial: 0.0 * trial.suggest_float("x", 0, 1, log=False), n_trials=10)
    assert len({trial.params["x"] for trial in plain.trials}) == 10


def test_conditional_parameters_are_searched_jointly() -> None:
    """The optimum is in the branch: a sampler that draws it independently would not get near."""

    def objective(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return 1.0 + trial.suggest_float("p", 0, 1)
        return (trial.suggest_float("q", 0, 1) - 0.37) ** 2 + (
            trial.suggest_float("r", 1e-5, 1e-1, log=True) - 1e-3
        ) ** 2

    study = optuna.create_study(sampler=apq.APQSampler(seed=0))
    study.optimize(objective, n_trials=50)
    assert study.best_value < 1e-3
    late = [trial.params["kind"] for trial in study.trials[25:]]
    assert late.count("b") > 15


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_any_number_of_predicted_objectives(objectives: int) -> None:
    centres = np.linspace(0.2, 0.8, objectives)

    def objective(trial: optuna.Trial) -> list[float]:
        x = trial.suggest_float("x", 0, 1)
        n = trial.suggest_int("n", 1, 1000, log=True)
        kind = trial.suggest_categorical("kind", ["good", "bad"])
        return [(x - c) ** 2 + abs(np.log10(n) - 1) + (kind == "bad") for c in centres]

    study = optuna.create_study(
        directions=["minimize"] * objectives, sampler=apq.APQSampler(seed=0)
    )
    study.optimize(objective, n_trials=35)
    late = study.trials[20:]
    assert sum(trial.params["kind"] == "good" for trial in late) > 10
    assert min(sum(trial.values) for trial in late) < 0.5 * objectives


def test_constraints_set_by_the_trial_are_respected() -> None:
    """x + y >= 1 is known only from trials; the best feasible value is 1."""

    def objective(trial: optuna.Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.set_constraint("sum", 1.0 - x - y)
        return x + y

    study = optuna.create_study(sampler=apq.APQSampler(seed=0))
    study.optimize(objective, n_trials=40)
    late = [t.params["x"] + t.params["y"] for t in study.trials[20:]]
    assert sum(value >= 1.0 for value in late) >= 10
    assert min(value for value in late if value >= 1.0) < 1.05


def test_a_known_function_that_raises_is_named() -> None:
    def broken(params: dict[str, np.ndarray]) -> np.ndarray:
        return params["no such parameter"]

    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=apq.APQSampler(known={1: broken}, n_startup_trials=1)
    )
    with pytest.raises(InvalidArgumentError, match=r"known\['1'\] raised KeyError"):
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), 0.0), n_trials=4)


def test_one_name_two_spaces_without_a_network_is_just_two_spaces(url: str) -> None:
    """In a plain study parameters may change their range; what still fits is learned from."""
    for high in (1.0, 2.0):
        study = optuna.create_study(
            study_name="s", storage=url, load_if_exists=True,
            sampler=apq.APQSampler(seed=0, n_startup_trials=2),
        )  # fmt: skip
        study.optimize(
            lambda t, high=high: t.suggest_float("x", 0, high) + t.suggest_int("n", 0, 9), 6
        )
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12


def test_choices_may_be_tuples_of_any_length() -> None:
    known = {1: lambda params: np.array([float(sum(h)) for h in params["hidden"]])}
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=apq.APQSampler(known=known, seed=0)
    )

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        hidden = trial.suggest_categorical("hidden", [(50,), (20, 50), (10, 20)])
        return abs(trial.suggest_float("x", 0, 1) - 0.5), float(sum(hidden))

    study.optimize(measure, n_trials=6)
    assert {trial.values[1] for trial in study.trials} <= {50.0, 70.0, 30.0}


def test_known_objectives_are_given_parameters_of_one_value_too() -> None:
    known = {1: lambda params: params["layers"] * params["width"]}
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=apq.APQSampler(known=known, seed=0)
    )

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        layers, width = trial.suggest_int("layers", 1, 9), trial.suggest_int("width", 8, 8)
        return 1 / layers, layers * width

    study.optimize(measure, n_trials=4)
    assert len(study.trials) == 4


def test_an_infinite_known_value_meets_no_budget() -> None:
    known = {"size": lambda params: np.where(params["w"] > 8, np.inf, params["w"])}
    space = apq.SearchSpace.from_distributions(
        {"w": optuna.distributions.IntDistribution(1, 16),
         "x": optuna.distributions.FloatDistribution(0, 1)}
    )  # fmt: skip
    study = optuna.create_study(
        directions=["minimize"] * 3,
        sampler=apq.APQSampler(space, known=known, budgets={"size": 8}, seed=1),
    )
    study.set_metric_names(["a", "b", "size"])

    def measure(trial: optuna.Trial) -> tuple[float, float, float]:
        w, x = trial.suggest_int("w", 1, 16), trial.suggest_float("x", 0, 1)
        return -w * x, w * x * x, w

    study.optimize(measure, n_trials=12)
    assert max(trial.params["w"] for trial in study.trials) <= 8


def test_enqueued_values_beyond_a_budget_are_tried_with_a_warning() -> None:
    space = {
        "w": optuna.distributions.IntDistribution(1, 16),
        "x": optuna.distributions.FloatDistribution(0, 1),
    }
    study = optuna.create_study(
        directions=["minimize"] * 2,
        sampler=apq.APQSampler(
            apq.SearchSpace.from_distributions(space),
            known={"size": lambda params: params["w"]}, budgets={"size": 8}, seed=0,
        ),
    )  # fmt: skip
    study.set_metric_names(["loss", "size"])

    def measure(trial: optuna.Trial) -> tuple[float, float]:
        w = trial.suggest_int("w", 1, 16)
        return trial.suggest_float("x", 0, 1) / w, w

    study.optimize(measure, n_trials=3)
    study.enqueue_trial({"w": 16})
    with pytest.warns(UserWarning, match="the parameters that this trial fixes"):
        study.optimize(measure, n_trials=1)
    assert study.trials[-1].params["w"] == 16
    study.optimize(measure, n_trials=3)
    assert max(trial.params["w"] for trial in study.trials[4:]) <= 8


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
