"""The objective: what a trial measures, and how it fails."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.data import ImageData
from apq_optuna.errors import StudyMismatchError
from apq_optuna.hardware import CostTable
from apq_optuna.objective import genotype_seed
from apq_optuna.supernet import OnceForAllNet

from .conftest import FAST


@pytest.fixture
def objective(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> apq.Objective:
    return apq.Objective(supernet, digits, digits_costs, finetune=FAST)


def study_for(objective: apq.Objective, seed: int = 0) -> optuna.Study:
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    study.set_metric_names(objective.metric_names)
    return study


def test_a_trial_has_its_values_and_attributes(
    objective: apq.Objective, digits_costs: CostTable
) -> None:
    study = study_for(objective)
    study.optimize(objective, n_trials=2)
    trial = study.trials[0]
    space = objective.supernet.space
    subnet = space.decode(space.from_params(trial.params))
    assert 0 <= trial.values[0] <= 1
    assert tuple(trial.values[1:]) == digits_costs.network_cost(subnet.layers())
    assert trial.user_attrs["macs"] == subnet.macs
    assert trial.user_attrs["bitops"] == subnet.bitops
    assert 0 < trial.user_attrs["fp32_accuracy"] <= 1
    assert trial.user_attrs["seconds"] > 0


def test_whoever_tries_a_subnet_measures_the_same(objective: apq.Objective) -> None:
    first = study_for(objective)
    first.optimize(objective, n_trials=1)
    second = study_for(objective, seed=1)
    second.enqueue_trial(first.trials[0].params)
    second.optimize(objective, n_trials=1)
    assert second.trials[0].values == first.trials[0].values


def test_seeds_depend_on_the_network(objective: apq.Objective) -> None:
    space = objective.supernet.space
    rows = np.unique(space.sample(200, np.random.default_rng(0)), axis=0)
    assert len({genotype_seed(space.decode(row)) for row in rows}) == len(rows)


def test_the_test_split_is_not_touched(objective: apq.Objective, digits: ImageData) -> None:
    class Sealed:
        def __len__(self) -> int:
            raise AssertionError("the test split was touched")

        images = labels = property(__len__)

    object.__setattr__(digits, "test", sealed := digits.test)
    try:
        object.__setattr__(digits, "test", Sealed())
        study_for(objective).optimize(objective, n_trials=1)
    finally:
        object.__setattr__(digits, "test", sealed)


def test_what_the_device_cannot_run_is_pruned_with_the_reason(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> None:
    entries = {k: v for k, v in digits_costs.entries.items() if k[1:] != (2, 8)}
    partial = CostTable(entries, device="board")
    objective = apq.Objective(supernet, digits, partial, finetune=FAST)
    space = supernet.space
    study = study_for(objective)
    params = space.to_params(space.extreme(largest=False)[0])
    study.enqueue_trial(params | {"stage1.block1.pw_w_bits": 2})
    study.optimize(objective, n_trials=1)
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert "cost table of 'board' has no convolution" in trial.user_attrs["infeasible"]
    assert "W2A8" in trial.user_attrs["infeasible"]

    sampler = apq.APQSampler(space, costs=partial, seed=0, n_startup_trials=4)
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    study.set_metric_names(objective.metric_names)
    study.optimize(objective, n_trials=8)  # the sampler never proposes such a configuration
    assert {t.state for t in study.trials} == {TrialState.COMPLETE}


def test_a_diverged_finetune_fails_its_trial_not_the_study(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> None:
    supernet.classifier.weight.data[0, 0] = math.nan
    objective = apq.Objective(supernet, digits, digits_costs, finetune=FAST)
    study = study_for(objective)
    study.optimize(objective, n_trials=2)
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 2
    assert "the loss became nan at step 1 of 2" in study.trials[0].user_attrs["diverged"]


@pytest.mark.parametrize(
    ("directions", "names", "message"),
    [
        (["minimize"] * 3, None, r"has directions=\['minimize', .*'accuracy': 'maximize'"),
        (["maximize"], None, r"has directions=\['maximize'\]"),
        (["maximize", "minimize", "minimize"], ["a", "b", "c"], r"metric names \['a', 'b', 'c'\]"),
    ],
)
def test_a_study_of_other_values_is_refused_before_any_work(
    objective: apq.Objective, directions: list[str], names: list[str] | None, message: str
) -> None:
    study = optuna.create_study(directions=directions)
    if names:
        study.set_metric_names(names)
    with pytest.raises(StudyMismatchError, match=message):
        study.optimize(objective, n_trials=1)
    assert study.trials[0].params == {}


@pytest.mark.parametrize("change", ["steps", "images", "costs", "supernet"])
def test_values_of_other_conditions_are_not_mixed(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable, url: str, change: str
) -> None:
    first = apq.Objective(supernet, digits, digits_costs, finetune=FAST)
    study = optuna.create_study(storage=apq.open_storage(url), directions=first.directions)
    study.set_metric_names(first.metric_names)
    study.optimize(first, n_trials=1)
    options, images, costs, message = FAST, None, digits_costs, "images None, now 50"
    if change == "steps":
        options, message = apq.FinetuneOptions(steps=3, batch_size=32), "finetune steps 2, now 3"
    elif change == "images":
        images = 50
    elif change == "costs":
        costs, message = apq.hardware.bitfusion().table(supernet.space), "device 'bitfusion-small'"
    else:
        supernet.classifier.bias.data += 1
        message = f"supernet '{first._conditions['supernet']}', now"
    second = apq.Objective(supernet, digits, costs, finetune=options, images=images)
    with pytest.raises(StudyMismatchError, match=f"{message}.*Use another study_name"):
        study.optimize(second, n_trials=1)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert study.trials[1].params == {}


def test_accuracy_alone_is_one_objective(supernet: OnceForAllNet, digits: ImageData) -> None:
    objective = apq.Objective(supernet, digits, finetune=FAST)
    assert (objective.metric_names, objective.directions) == (["accuracy"], ["maximize"])
    study = optuna.create_study(direction="maximize", sampler=apq.APQSampler(supernet.space))
    study.optimize(objective, n_trials=1)
    assert 0 <= study.best_value <= 1


def test_limits_on_images_are_kept(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> None:
    objective = apq.Objective(supernet, digits, digits_costs, finetune=FAST, images=50)
    value, _ = objective.measure(supernet.largest)
    assert round(value * 50, 6) == round(value * 50)


def test_a_study_of_another_arithmetic_goes_on_and_is_told(
    objective: apq.Objective, caplog: pytest.LogCaptureFixture
) -> None:
    """Finetuning rounds in another order since: by less than a seed makes, but it is said."""
    from apq_optuna._optuna import set_study_attribute, study_attribute

    study = optuna.create_study(directions=objective.directions)
    objective.check_study(study)
    objective.check_study(study)
    assert not caplog.records
    conditions = study_attribute(study, "objective")
    assert conditions.pop("arithmetic") == 2
    set_study_attribute(study, "objective", conditions)
    objective.check_study(study)
    assert "was begun when finetuning rounded in another order" in caplog.text
