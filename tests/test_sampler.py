"""The sampler: Optuna's own contract, the joint space, and everything a study can throw at it."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.errors import (
    InfeasibleBudgetError,
    InvalidArgumentError,
    StudyMismatchError,
)
from apq_optuna.hardware import CostTable
from apq_optuna.pairs import PairStore
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet

SPACE = SearchSpace.preset("digits")
NAMES = ["accuracy", "latency_ms", "energy_mj"]
DIRECTIONS = ["maximize", "minimize", "minimize"]
Make = Callable[[], BaseSampler]


class TestContractWithoutArguments(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self) -> Make:
        return apq.APQSampler


class TestContractWithJointSpace(
    BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase
):
    @pytest.fixture
    def sampler(self, digits_costs: CostTable) -> Make:
        return lambda: apq.APQSampler(SPACE, costs=digits_costs)


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


def test_fp32_pairs_are_a_source(measure: Measured, supernet: OnceForAllNet, url: str) -> None:
    store = PairStore(url, supernet=supernet)
    genotypes = SPACE.sample(60, np.random.default_rng(0))
    features = SPACE.features(genotypes)
    features[:, SPACE.architecture_features :] = 0
    store.add(genotypes, 1 / (1 + np.exp(-3 * features @ measure.weight)))
    sampler = apq.APQSampler(SPACE, costs=measure.costs, source=store, n_startup_trials=4, seed=0)
    study = new_study(sampler, url)
    study.optimize(measure, n_trials=8)
    predicted = [t.system_attrs.get("apq:predicted") for t in study.trials]
    assert predicted[:4] == [None] * 4
    assert all(mean > 0 and std > 0 for mean, std in predicted[4:])


def test_an_earlier_study_is_a_source(measure: Measured) -> None:
    earlier = new_study(optuna.samplers.RandomSampler(seed=0))
    earlier.optimize(measure, n_trials=60)
    sampler = apq.APQSampler(
        SPACE, costs=measure.costs, source=earlier, n_startup_trials=2, seed=0
    )
    study = new_study(sampler)
    study.optimize(measure, n_trials=10)
    errors = [abs(t.system_attrs["apq:predicted"][0] - t.values[0]) for t in study.trials[2:]]
    assert np.median(errors) < 0.15


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


def test_a_source_of_another_space_is_refused(digits_costs: CostTable) -> None:
    other = optuna.create_study(study_name="other")
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    sampler = apq.APQSampler(SPACE, costs=digits_costs, source=other, seed=0)
    with pytest.raises(
        StudyMismatchError, match="none of the 2 completed trials of study 'other'"
    ):
        new_study(sampler).optimize(Measured(digits_costs), n_trials=1)


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
