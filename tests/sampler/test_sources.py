"""What a sampler takes from elsewhere: fp32 pairs, earlier studies, and misleading ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError, StudyMismatchError
from apq_optuna.hardware import CostTable
from apq_optuna.pairs import PairStore
from apq_optuna.space import SearchSpace
from apq_optuna.supernet import OnceForAllNet

from .helpers import SPACE, Measured, new_study, rows


@pytest.fixture
def measure(digits_costs: CostTable) -> Measured:
    return Measured(digits_costs)


def test_fp32_pairs_are_a_source(measure: Measured, supernet: OnceForAllNet, url: str) -> None:
    store = PairStore(url, supernet=supernet)
    genotypes = SPACE.sample(60, np.random.default_rng(0))
    features = SPACE.features(genotypes)
    features[:, SPACE.architecture_features :] = 0
    store.add(genotypes, 1 / (1 + np.exp(-3 * features @ measure.weight)))
    sampler = apq.APQSampler(SPACE, costs=measure.costs, source=store, seed=0)
    study = new_study(sampler, url)
    study.optimize(measure, n_trials=5)
    predicted = [t.system_attrs.get("apq:predicted") for t in study.trials]
    assert all(mean > 0 and std > 0 for mean, std in predicted)  # from the first trial on


def test_before_the_first_trial_the_trend_is_fp32_less_what_bits_cost(
    measure: Measured, supernet: OnceForAllNet, url: str
) -> None:
    from apq_optuna.sampler.surrogate import Surrogate

    store = PairStore(url, supernet=supernet)
    genotypes = SPACE.sample(60, np.random.default_rng(0))
    store.add(genotypes, np.random.default_rng(1).random(60))
    base = store.fp32_predictor(SPACE, store.load())
    model = Surrogate(SPACE, fp32=store.fp32_scorer(SPACE, store.load()))
    wide, narrow = (SPACE.extreme(largest=True, bits=b) for b in (8, 2))
    fp32 = base.copy()
    fp32.weights[0][:, SPACE.architecture_features :] = 0
    expected = float(fp32.predict(SPACE.features(wide))[0][0])
    # four kinds of bit-width, 2^-6 of the noise of 2 bits at 8
    assert float(model.predict(wide)[0][0]) == pytest.approx(expected - 4 * 0.03 / 64, abs=1e-5)
    assert float(model.predict(narrow)[0][0]) == pytest.approx(expected - 4 * 0.03, abs=1e-5)


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


def test_a_study_with_other_bits_teaches_what_is_shared(digits_costs: CostTable) -> None:
    other = SearchSpace.preset("digits", bits=(4, 8))
    earlier = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    earlier.optimize(lambda trial: other.suggest(trial).macs / 1e6, n_trials=20)
    sampler = apq.APQSampler(SPACE, costs=digits_costs, source=earlier, seed=0)
    study = new_study(sampler)
    study.optimize(Measured(digits_costs), n_trials=5)
    assert len(set(rows(study))) == 5


def bowl(trial: optuna.Trial) -> float:
    x = [trial.suggest_float(f"x{i}", -5, 5) for i in range(6)]
    return float(sum((value - 1.5) ** 2 for value in x))


def best_after(source: optuna.Study | None, seed: int, trials: int) -> float:
    study = optuna.create_study(sampler=apq.APQSampler(source=source, seed=seed))
    study.optimize(bowl, n_trials=trials)
    return study.best_value


def earlier_bowl(*, shuffled: bool) -> optuna.Study:
    """Sixty random trials of the same function, scaled; or with their values shuffled."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    study.optimize(bowl, n_trials=60)
    values = np.array([trial.value for trial in study.trials]) * 2.0 + 3.0
    if shuffled:
        np.random.default_rng(0).shuffle(values)
    told = optuna.create_study(study_name="earlier")
    for trial, value in zip(study.trials, values, strict=True):
        told.add_trial(
            create_trial(params=trial.params, distributions=trial.distributions, value=value)
        )
    return told


def test_a_related_study_helps_and_a_misleading_one_does_not_hurt_for_long() -> None:
    seeds = range(3)
    related, shuffled = (earlier_bowl(shuffled=s) for s in (False, True))
    helped = np.median([best_after(related, seed, 8) for seed in seeds])
    alone = np.median([best_after(None, seed, 8) for seed in seeds])
    assert helped < alone / 2
    misled = np.median([best_after(shuffled, seed, 40) for seed in seeds])
    assert misled < 1.0  # of 54 on average for random points


def told(study: optuna.Study, values: np.ndarray, **options: object) -> optuna.Study:
    """The trials of a study with other values."""
    other = optuna.create_study(**options)
    for trial, value in zip(study.trials, values, strict=True):
        other.add_trial(
            create_trial(
                params=trial.params, distributions=trial.distributions, value=float(value)
            )
        )
    return other


@pytest.fixture(scope="module")
def random_bowl() -> optuna.Study:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    study.optimize(bowl, n_trials=80)
    return study


def median_best(source: object, trials: int, seeds: int = 3) -> float:
    return float(np.median([best_after(source, seed, trials) for seed in range(seeds)]))  # type: ignore[arg-type]


MONOTONE = {
    "scaled": lambda v: 0.001 * v - 7.0,
    "a logarithm": np.log,
    "a power": lambda v: v**5,
    "squashed": lambda v: 0.8 + 0.1 * np.tanh(v / 100),
    "ties": lambda v: np.round(v / 15.0),
    "infinite": lambda v: np.where(v > np.quantile(v, 0.8), np.inf, v),
}


@pytest.mark.parametrize("kind", MONOTONE)
def test_only_the_order_of_a_sources_values_counts(kind: str, random_bowl: optuna.Study) -> None:
    values = np.array([trial.value for trial in random_bowl.trials], float)
    source = told(random_bowl, MONOTONE[kind](values))
    assert median_best(source, 8) < median_best(None, 8) / 2


@pytest.mark.parametrize("kind", ["times -1", "shuffled", "constant"])
def test_a_source_that_misleads_costs_ten_trials_at_most(
    kind: str, random_bowl: optuna.Study
) -> None:
    values = np.array([trial.value for trial in random_bowl.trials], float)
    wrong = {
        "times -1": -values, "shuffled": np.random.default_rng(1).permutation(values),
        "constant": np.ones_like(values),
    }[kind]  # fmt: skip
    misled = median_best(told(random_bowl, wrong), 30)
    assert misled <= max(1.5 * median_best(None, 20), 0.5)


def test_each_of_several_sources_has_its_own_ranks_and_slope(random_bowl: optuna.Study) -> None:
    values = np.array([trial.value for trial in random_bowl.trials], float)
    good, huge = told(random_bowl, values), told(random_bowl, 1e9 * values)
    wrong = told(random_bowl, np.random.default_rng(1).permutation(values))
    assert median_best([good, huge], 8) < median_best(None, 8) / 2
    assert median_best([huge, wrong], 16) < median_best(None, 16)


def test_a_source_that_is_maximised_says_the_same_of_what_is_good(
    random_bowl: optuna.Study,
) -> None:
    """Without names: an accuracy there, an error here."""
    values = np.array([trial.value for trial in random_bowl.trials], float)
    source = told(random_bowl, -values, direction="maximize")
    assert median_best(source, 8) < median_best(None, 8) / 2


def test_of_several_objectives_the_one_of_the_same_name_is_meant() -> None:
    from apq_optuna.sampler.sources import earlier_rows

    space = SearchSpace.from_distributions({"x": FloatDistribution(0, 1)})
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_metric_names(["size", "accuracy"])
    for x in (0.1, 0.2, 0.9):
        study.add_trial(
            create_trial(
                params={"x": x}, distributions={"x": FloatDistribution(0, 1)}, values=[x, x + 5]
            )
        )
    for name, index, first in (("accuracy", 0, 5.1), ("size", 1, 0.1), ("1", 1, 5.1)):
        found = earlier_rows(space, study, name, index, True)
        assert found is not None
        assert abs(found.values[0]) == pytest.approx(first)
        assert not found.comparable
    assert earlier_rows(space, study, "latency_ms", 0, True) is None  # not the one in its place


def test_accuracies_of_the_same_supernet_and_images_stay_as_they_are(measure: Measured) -> None:
    from apq_optuna._optuna import set_study_attribute
    from apq_optuna.sampler.sources import earlier_rows

    study = new_study(optuna.samplers.RandomSampler(seed=0))
    study.optimize(measure, n_trials=12)
    here = {"supernet": "a", "data split": "b", "device": "cpu"}
    set_study_attribute(study, "objective", here | {"device": "bitfusion"})
    found = earlier_rows(SPACE, study, "accuracy", 0, True, here)
    assert found is not None
    assert found.comparable
    for what in ("supernet", "data split"):
        other = earlier_rows(SPACE, study, "accuracy", 0, True, here | {what: "c"})
        assert other is not None
        assert not other.comparable
    costs = earlier_rows(SPACE, study, "latency_ms", 1, False, here)
    assert costs is not None
    assert not costs.comparable  # another device's


def test_ranks_become_normal_scores() -> None:
    from apq_optuna.sampler.trends import normal_scores

    z = normal_scores(np.array([3.0, np.inf, -np.inf, 3.0, 7.0]))
    assert z[0] == z[3]
    assert z[2] < z[0] < z[4] < z[1]
    assert np.isfinite(z).all()
    assert normal_scores(np.array([5.0])) == pytest.approx([0.0])
    many = normal_scores(np.random.default_rng(0).random(2000) ** 9)
    assert many.mean() == pytest.approx(0.0, abs=1e-9)
    assert many.std() == pytest.approx(1.0, abs=0.01)


def test_a_source_may_have_only_some_of_the_parameters() -> None:
    earlier = optuna.create_study()
    distribution = FloatDistribution(-5, 5)
    for x in np.linspace(-5, 5, 21):
        earlier.add_trial(
            create_trial(
                params={"x0": x, "gone": 1.0},
                distributions={"x0": distribution, "gone": distribution},
                value=(x - 1.5) ** 2,
            )
        )
    study = optuna.create_study(sampler=apq.APQSampler(source=earlier, seed=0))
    study.optimize(bowl, n_trials=8)
    late = [abs(trial.params["x0"] - 1.5) for trial in study.trials[3:]]
    assert np.median(late) < 1.0


def test_a_source_without_a_shared_parameter_is_refused(digits_costs: CostTable) -> None:
    other = optuna.create_study(study_name="other")
    other.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    message = r"study 'other' shares no parameter with this search space: it has \['x'\]"
    with pytest.raises(StudyMismatchError, match=message):
        apq.APQSampler(SPACE, costs=digits_costs, source=other, seed=0)
    study = optuna.create_study(sampler=apq.APQSampler(source=other, n_startup_trials=2))
    with pytest.raises(StudyMismatchError, match="leave it out, or name and bound"):
        study.optimize(lambda trial: trial.suggest_float("x", 2, 3), n_trials=4)


def test_a_source_of_a_narrower_range_says_where_to_start_in_a_wider_one() -> None:
    earlier = optuna.create_study()
    for x in np.linspace(0, 5, 21):
        earlier.add_trial(
            create_trial(
                params={"x0": x, "kind": "b"},
                distributions={
                    "x0": FloatDistribution(0, 5), "kind": CategoricalDistribution(["a", "b"]),
                },
                value=(x - 1.5) ** 2,
            )
        )  # fmt: skip

    def wider(trial: optuna.Trial) -> float:
        trial.suggest_categorical("kind", ["b", "c"])
        return (trial.suggest_float("x0", -20, 20) - 1.5) ** 2

    nearest = []
    for seed in range(3):
        study = optuna.create_study(sampler=apq.APQSampler(source=earlier, seed=seed))
        study.optimize(wider, n_trials=8)
        nearest.append(study.best_value)
    assert np.median(nearest) < 0.25  # a fortieth of the range


def test_pairs_need_their_space(supernet: OnceForAllNet, url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="fp32 pairs need the search space"):
        apq.APQSampler(source=PairStore(url, supernet=supernet))


def test_a_source_of_other_bits_is_learned_in_the_encoding_it_is_asked_in() -> None:
    from apq_optuna.sampler.sources import earlier_rows

    joint = apq.SearchSpace.preset("digits")
    other = apq.SearchSpace.from_family(dataclasses.replace(joint.family, bits=(4, 8)))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: float(other.suggest(trial).macs), n_trials=20)
    found = earlier_rows(joint, study, "0", 0, False)
    assert found is not None
    part, rows = found.space, found.genotypes
    names = [decision.name for decision in part.decisions]
    assert 0 < len(names) < len(joint.decisions)
    inactive = ~other.active(np.stack([other.from_params(t.params) for t in study.trials]))
    columns = [other.column[name] for name in names]
    assert inactive[:, columns].any()
    assert (rows[inactive[:, columns]] == 0).all()
