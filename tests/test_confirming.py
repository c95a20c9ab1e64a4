"""Noise of a trial: repeats, averaging, and a front that is measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

import apq_optuna as apq
from apq_optuna._optuna import confirmed_values, set_study_attribute, study_attribute
from apq_optuna.confirming import front_of
from apq_optuna.data import ImageData
from apq_optuna.errors import InvalidArgumentError, StudyMismatchError
from apq_optuna.hardware import CostTable
from apq_optuna.predictor.gaussian import GaussianProcess
from apq_optuna.quantization import finetune_quantized, fp32_network, quantized_network
from apq_optuna.report import study_figures, summarise, write_html
from apq_optuna.sampler.history import History
from apq_optuna.supernet import OnceForAllNet

from .conftest import FAST


@pytest.fixture
def objective(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> apq.Objective:
    return apq.Objective(supernet, digits, digits_costs, finetune=FAST)


def new_study(objective: apq.Objective, url: str | None = None) -> optuna.Study:
    study = optuna.create_study(
        directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0),
        storage=apq.open_storage(url) if url else None, study_name="noise", load_if_exists=True,
    )  # fmt: skip
    study.set_metric_names(objective.metric_names)
    return study


def test_a_front_is_measured_again_and_goes_on(objective: apq.Objective, url: str) -> None:
    study = new_study(objective, url)
    study.optimize(objective, n_trials=5)
    front = front_of(study)
    assert set(front) == {trial.number for trial in study.best_trials}
    first = apq.confirm(study, objective, 1)
    assert {number: len(values) for number, values in first.items()} == dict.fromkeys(front, 1)
    both = apq.confirm(new_study(objective, url), objective, 2)
    assert all(len(values) == 2 and values[0] == first[n][0] for n, values in both.items())
    assert confirmed_values(study) == both
    space = objective.supernet.space
    subnet = space.decode(space.from_params(study.trials[front[0]].params))
    assert both[front[0]] == [objective.measure(subnet, repeat=k)[0] for k in (1, 2)]
    assert apq.confirm(study, objective, 1, trials=[front[0]]) == {front[0]: both[front[0]]}


def test_what_is_measured_again_counts_as_often(objective: apq.Objective) -> None:
    study = new_study(objective)
    study.optimize(objective, n_trials=3)
    before = History(objective.supernet.space, strict=True).read(study)
    set_study_attribute(study, "confirmed:1", [0.5, 0.7])
    after = History(objective.supernet.space, strict=True).read(study)
    assert before.measures.tolist() == [1, 1, 1] and after.measures.tolist() == [1, 3, 1]
    assert after.values[1, 0] == pytest.approx((before.values[1, 0] + 1.2) / 3)
    assert np.array_equal(after.values[:, 1:], before.values[:, 1:])
    sampler = apq.APQSampler(objective.supernet.space, costs=objective.costs, seed=0)
    again = optuna.create_study(
        directions=objective.directions, sampler=sampler, study_name="asks", storage=None
    )
    again.optimize(objective, n_trials=2)
    set_study_attribute(again, "confirmed:0", [0.4, 0.4, 0.4])
    again.optimize(objective, n_trials=1)
    assert len(again.trials) == 3


def test_reports_show_what_was_measured_again(objective: apq.Objective, tmp_path: Path) -> None:
    study = new_study(objective)
    study.optimize(objective, n_trials=4)
    number = front_of(study)[0]
    plain = summarise(study).table()
    set_study_attribute(study, f"confirmed:{number}", [0.25, 0.35])
    summary = summarise(study)
    assert "again" in summary.table() and "again" not in plain
    assert "0.3000 0.0707" in " ".join(summary.table().split())
    place = int(np.flatnonzero(summary.numbers == number)[0])
    assert "2 further seeds: 0.3 +- 0.071" in summary.describe(place)
    figures = study_figures(study)
    names = {trace.name for trace in figures["pareto-front"].data}
    assert "measured again (mean and deviation)" in names
    write_html(study, figures, tmp_path / "report.html")
    assert "0.3000" in (tmp_path / "report.html").read_text()


def test_confirming_has_clear_errors(objective: apq.Objective) -> None:
    study = new_study(objective)
    assert apq.confirm(study, objective, 3) == {}
    study.optimize(objective, n_trials=1)
    with pytest.raises(InvalidArgumentError, match="repeats=0: at least 1"):
        apq.confirm(study, objective, 0)
    with pytest.raises(InvalidArgumentError, match=r"trials=\[7\]: not completed"):
        apq.confirm(study, objective, 1, trials=[0, 7])
    with pytest.raises(StudyMismatchError, match="accuracy is maximised"):
        front_of(optuna.create_study(direction="minimize"))


def test_repeats_are_averaged(objective: apq.Objective, supernet: OnceForAllNet) -> None:
    several = apq.Objective(supernet, objective.data, objective.costs, finetune=FAST, repeats=3)
    study = new_study(several)
    study.optimize(several, n_trials=1)
    trial = study.trials[0]
    values = trial.user_attrs["accuracies"]
    assert len(values) == 3 and trial.values[0] == pytest.approx(np.mean(values))
    assert trial.user_attrs["accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    space = supernet.space
    subnet = space.decode(space.from_params(trial.params))
    assert values[0] == objective.measure(subnet)[0]
    assert len(apq.confirm(study, several, 1)[0]) == 1
    with pytest.raises(StudyMismatchError, match="repeats 3, now 1"):
        objective.check_study(study)
    with pytest.raises(InvalidArgumentError, match="repeats=0"):
        apq.Objective(supernet, objective.data, repeats=0)


def test_a_study_keeps_the_finetuning_it_began_with(objective: apq.Objective) -> None:
    old = new_study(objective)
    conditions = {**objective._conditions}
    del conditions["finetune averaging"], conditions["repeats"], conditions["finetune rates"]
    set_study_attribute(old, "objective", conditions)  # as before there was averaging
    objective.check_study(old)
    assert (objective.finetune.averaging, objective.finetune.rates) == (0.0, "alike")
    fresh = new_study(objective)
    objective.check_study(fresh)
    share = study_attribute(fresh, "objective")["finetune averaging"]
    assert share == objective.finetune.averaging
    assert study_attribute(fresh, "objective")["finetune rates"] == "by-width"
    asked = replace(FAST, averaging=0.25)
    other = apq.Objective(objective.supernet, objective.data, objective.costs, finetune=asked)
    with pytest.raises(StudyMismatchError, match="finetune averaging"):
        other.check_study(old)
    assert other.finetune.rates == "by-width"  # as it was


def test_an_objective_of_two_studies_measures_each_as_it_began(objective: apq.Objective) -> None:
    old, fresh = new_study(objective), new_study(objective)
    conditions = {**objective._conditions}
    del conditions["finetune rates"]
    set_study_attribute(old, "objective", conditions)
    objective.check_study(fresh)
    assert objective.finetune.rates == "by-width"
    objective.check_study(old)
    assert objective.finetune.rates == "alike"
    fresh.optimize(objective, n_trials=1)
    assert objective.finetune.rates == "by-width"


def test_the_last_steps_are_averaged(supernet: OnceForAllNet, digits: ImageData) -> None:
    subnet = supernet.space.decode(supernet.space.extreme(largest=False)[0])
    module = fp32_network(supernet, subnet, digits, 128, 0)

    def weights(steps: int, averaging: float) -> np.ndarray:
        options = replace(FAST, steps=steps, averaging=averaging)
        network = quantized_network(module, subnet, digits, 128, 0)
        finetune_quantized(network, digits, options, seed=0)
        return np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])

    one = [weights(k, 1 / k) for k in (1, 2, 3, 4)]  # a steady rate, only the last step
    expected = np.mean(one[2:], axis=0)
    assert np.allclose(weights(4, 0.5), expected, atol=1e-6)
    assert not np.allclose(weights(4, 0.5), weights(4, 0.0), atol=1e-6)
    with pytest.raises(InvalidArgumentError, match="averaging=2"):
        apq.FinetuneOptions(averaging=2)


def test_a_process_believes_means_of_many_more() -> None:
    rng = np.random.default_rng(0)
    z = rng.random((30, 2))
    y = np.sin(3 * z[:, 0]) + 0.3 * rng.standard_normal(30)
    one = GaussianProcess([np.arange(2)]).fit(z, y)
    often = np.ones(30)
    often[4] = 100.0
    other = GaussianProcess([np.arange(2)])
    other.scales = one.scales
    other.fit(z, y, iterations=0, measures=often)
    near, sure = other.predict(z[4:5])
    far, unsure = one.predict(z[4:5])
    assert abs(near[0] - y[4]) < abs(far[0] - y[4]) and sure[0] < unsure[0]
    # two rows at one place are one row measured twice, at their mean
    twice = np.concatenate([z, z[:1]]), np.concatenate([y, y[:1] + 0.2])
    mean = y.copy()
    mean[0] += 0.1
    counts = np.ones(30)
    counts[0] = 2.0
    pair, single = GaussianProcess([np.arange(2)]), GaussianProcess([np.arange(2)])
    pair.scales = single.scales = one.scales
    pair.zero_mean = single.zero_mean = True
    pair.fit(*twice, iterations=0, unit=1.0)
    single.fit(z, mean, iterations=0, unit=1.0, measures=counts)
    for ours, theirs in zip(pair.predict(z), single.predict(z), strict=True):
        assert np.allclose(ours, theirs, atol=1e-8)
    # gradient of the loss with unequal noise
    single.fit(z, mean, measures=counts)
    u = (mean - single.centre) / single.unit
    start = single.scales + 0.1
    _, slope = single._loss(start, u)
    for i in range(len(start)):
        step = np.zeros(len(start))
        step[i] = 1e-5
        numeric = (single._loss(start + step, u)[0] - single._loss(start - step, u)[0]) / 2e-5
        assert slope[i] == pytest.approx(numeric, rel=1e-4, abs=1e-5)
