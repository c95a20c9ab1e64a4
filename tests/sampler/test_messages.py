"""What a newcomer is told: the docstring's examples run, and what does nothing is said once."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError, StudyMismatchError
from apq_optuna.hardware import CostTable
from apq_optuna.space import SearchSpace

from .helpers import NAMES, SPACE, Measured, new_study

Params = Mapping[str, np.ndarray]
Told = Callable[[], list[str]]

PLAIN: dict[str, BaseDistribution] = {
    "w": IntDistribution(1, 16),
    "x": FloatDistribution(0.0, 1.0),
}


def objective(trial: optuna.Trial) -> tuple[float, float]:
    w, x = trial.suggest_int("w", 1, 16), trial.suggest_float("x", 0, 1)
    return (x - 0.3) ** 2 + 1 / w, 4.0 * w


def size(params: Params) -> np.ndarray:
    return 4.0 * params["w"]


def run(
    sampler: optuna.samplers.BaseSampler,
    trials: int = 12,
    objective: Callable[[optuna.Trial], Any] = objective,
    *,
    names: list[str] | None = None,
    directions: tuple[str, ...] = ("minimize", "minimize"),
) -> optuna.Study:
    study = optuna.create_study(study_name="s", directions=directions, sampler=sampler)
    if names:
        study.set_metric_names(names)
    study.optimize(objective, n_trials=trials)
    return study


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    """The warnings so far, but for those of parameters that had to be drawn independently."""
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "apq_optuna.sampler" and "not jointly" not in record.msg
    ]


@pytest.fixture
def earlier() -> optuna.Study:
    return run(optuna.samplers.RandomSampler(seed=0), 6)


# ------------------------------------------------------------------ the docstring


def test_the_examples_of_the_docstring_run() -> None:
    (examples,) = doctest.DocTestFinder(recurse=False).find(apq.APQSampler, "APQSampler")
    result = doctest.DocTestRunner().run(examples)
    assert result.attempted > 10
    assert result.failed == 0


def test_every_argument_is_explained_with_its_default() -> None:
    import inspect

    document = inspect.getdoc(apq.APQSampler) or ""
    arguments = document.split("Args:")[1].split("\n\n")[0]
    explained = re.split(r"\n    (?=\w+: )", arguments)[1:]
    signature = inspect.signature(apq.APQSampler.__init__)
    assert [text.split(":")[0] for text in explained] == list(signature.parameters)[1:]
    for text in explained:
        assert "by default" in text.lower()


# ------------------------------------------------------------------ refused where they are given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"space": PLAIN}, r"space=\{'w': .*must be a SearchSpace; SearchSpace.from_distrib"),
        ({"space": SPACE, "costs": apq.hardware.bitfusion_small()},
         r"costs=BitFusion.*: must be a cost table; device.table\(space\) makes one"),
        ({"known": size}, "known=.*: must be a dict by the name of a metric or an objective's"),
        ({"known": {1: 4.0}}, r"known\[1\]=4.0: must be a function of a dict of parameter arrays"),
        ({"known": {1: size}, "budgets": 64}, "budgets=64: must be a dict"),
        ({"reference": [1.0, 64.0]}, r"reference=\[1.0, 64.0\]: must be a dict"),
        ({"n_startup_trials": "ten"}, "n_startup_trials='ten': must be a whole number"),
        ({"constraints_func": [0.0]}, r"constraints_func=\[0.0\]: must be a function"),
        ({"independent_sampler": optuna.samplers.TPESampler},
         r"independent_sampler=<class .*must be a sampler itself, as TPESampler\(\) is"),
        ({"known": {"weights": size}, "budgets": {"weight": 64}}, r"\(is 'weights' meant\?\)"),
    ],
)  # fmt: skip
def test_another_kind_of_argument_is_refused_where_it_is_given(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        apq.APQSampler(**arguments)


# ------------------------------------------------------------------ refused by the study


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"known": {"sizes": size}}, r"no objective 'sizes', but .* \(is 'size' meant\?\)"),
        ({"known": {2: size}}, r"known: the study has no objective 2, but \['error', 'size'\]"),
        ({"reference": {"errors": 1}}, r"no objective 'errors', but .* \(is 'error' meant\?\)"),
        ({"known": {1: size}, "budgets": {"error": 1}},
         "'error' is not a known objective .*; what only a trial tells is limited by a constr"),
        ({"known": {1: size}, "budgets": {"sise": 64}}, r"'sise' .* \(is 'size' meant\?\)"),
    ],
)  # fmt: skip
def test_an_objective_that_is_not_there_is_told_before_a_trial_is_paid_for(
    arguments: dict[str, Any], message: str
) -> None:
    paid = []

    def costly(trial: optuna.Trial) -> tuple[float, float]:
        values = objective(trial)
        paid.append(values)
        return values

    with pytest.raises(StudyMismatchError, match=message):
        run(apq.APQSampler(seed=0, **arguments), objective=costly, names=["error", "size"])
    assert not paid


@pytest.mark.parametrize(
    "arguments",
    [{"known": {1: size, "size": lambda p: 3 * p["w"]}}, {"reference": {1: 64, "size": 32}}],
    ids=["known", "reference"],
)
def test_one_objective_given_twice_is_an_error(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="objective 1 is given twice, by its index and"):
        run(apq.APQSampler(seed=0, **arguments), names=["error", "size"])


@pytest.mark.parametrize("answer", [None, 3.0])
def test_constraints_that_are_no_sequence_are_named(answer: object) -> None:
    sampler = apq.APQSampler(constraints_func=lambda trial: answer)  # type: ignore[arg-type,return-value]
    with pytest.raises(InvalidArgumentError, match=f"returned {answer} for trial 0: return a seq"):
        run(sampler, 1)


@pytest.mark.parametrize("opened", ["once", "twice"])
def test_a_study_is_no_source_of_itself(opened: str, url: str) -> None:
    study = optuna.create_study(study_name="mine", storage=url, directions=["minimize"] * 2)
    study.optimize(objective, n_trials=3)
    source = optuna.load_study(study_name="mine", storage=url) if opened == "twice" else study
    study.sampler = apq.APQSampler(source=source, seed=0)
    for _ in range(2):  # and not only at first
        with pytest.raises(StudyMismatchError, match="source: 'mine' is this study; its own"):
            study.optimize(objective, n_trials=1)


# ------------------------------------------------------------------ told once a study


def only(told: list[str], pattern: str) -> None:
    assert len(told) == 1, told
    assert re.search(pattern, told[0]), told


@pytest.mark.parametrize("space", [None, PLAIN], ids=["undeclared", "declared"])
def test_a_budget_that_everything_meets_is_told(
    space: dict[str, BaseDistribution] | None, told: Told
) -> None:
    declared = SearchSpace.from_distributions(space) if space else None
    run(apq.APQSampler(declared, known={1: size}, budgets={1: 1e6}, seed=0), 15)
    said = [text for text in told() if "not kept before" not in text]
    only(said, r"study 's': budgets\['1'\]=1e\+06 excludes nothing: the largest .* is 64; is it")
    assert len(told()) == (1 if space else 2)


def test_a_budget_above_the_tables_largest_cost_is_told(measure: Measured, told: Told) -> None:
    sampler = apq.APQSampler(SPACE, costs=measure.costs, budgets={"latency_ms": 1e3}, seed=0)
    new_study(sampler).optimize(measure, n_trials=4)
    only(told(), r"budgets\['latency_ms'\]=1000 excludes nothing: the largest of all is 0\.2")


def test_a_first_trial_outside_the_budgets_is_told_before_it_runs(told: Told) -> None:
    sampler = apq.APQSampler(known={1: size}, budgets={1: 20}, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    batch = [study.ask() for _ in range(3)]
    for trial in batch:
        trial.suggest_int("w", 1, 16)
    only(told(), "budgets: not kept before a trial has completed.*SearchSpace.from_distributions")


def test_a_reference_that_nothing_reaches_is_told(measure: Measured, told: Told) -> None:
    sampler = apq.APQSampler(SPACE, costs=measure.costs, reference={"energy_mj": 1e-9}, seed=0)
    new_study(sampler).optimize(measure, n_trials=4)
    only(told(), r"reference\['energy_mj'\]=1e-09 is better than any configuration.*best of all")


@pytest.mark.parametrize(("direction", "value"), [("minimize", -1e3), ("maximize", 1e3)])
def test_a_reference_of_a_known_function_is_compared_in_its_direction(
    direction: str, value: float, told: Told
) -> None:
    for reference, said in ((value, 1), (-value, 0)):
        sampler = apq.APQSampler(
            SearchSpace.from_distributions(PLAIN), known={1: size}, reference={1: reference}
        )
        before = len(told())
        run(sampler, 3, directions=("minimize", direction))
        assert len(told()) - before == said


def test_a_source_without_trials_is_told(told: Told) -> None:
    empty = optuna.create_study(study_name="empty", directions=["minimize"] * 2)
    run(apq.APQSampler(source=empty, seed=0))
    only(told(), "study 's': source: study 'empty' has no completed trial with parameters")


def test_a_source_of_other_objectives_is_told(earlier: optuna.Study, told: Told) -> None:
    earlier.set_metric_names(["loss", "bytes"])
    run(apq.APQSampler(source=earlier, known={1: size}, seed=0), names=["error", "size"])
    only(told(), r"has objectives \['loss', 'bytes'\], of which none is predicted here: \['error")


def test_a_source_of_fewer_objectives_is_told_where_the_known_ones_are_left(told: Told) -> None:
    one = optuna.create_study(study_name="one")
    one.optimize(lambda trial: objective(trial)[0], n_trials=3)
    sampler = apq.APQSampler(source=one, known={0: lambda p: p["x"]}, seed=0)
    run(sampler, 3)
    only(told(), r"study 'one' has objectives \[0\], of which none is predicted here: \[1\]")


def test_a_source_where_all_is_known_is_told(earlier: optuna.Study, told: Told) -> None:
    run(
        apq.APQSampler(source=earlier, known={0: lambda p: 1 / p["w"], 1: size}, seed=0),
        objective=lambda t: (1 / t.suggest_int("w", 1, 16), 4.0 * t.params["w"]),
    )
    only(told(), "source: every objective is known, so there is nothing to learn")


def test_a_sources_parameters_of_other_ranges_are_told(told: Told) -> None:
    old = optuna.create_study(study_name="old", directions=["minimize"] * 2)
    for x in (0.1, 0.4, 2.0, 3.0, 4.0):
        old.enqueue_trial({"x": x})
    old.optimize(lambda t: (t.suggest_float("x", 0, 5), t.suggest_int("w", 1, 16)), n_trials=5)
    run(apq.APQSampler(source=old, seed=0), 15)
    only(told(), r"study 'old' has 3 of 5 trials outside this one's ranges, most by x, .*high=1.0")


def test_a_sources_parameters_of_another_kind_are_told(told: Told) -> None:
    old = optuna.create_study(study_name="old", directions=["minimize"] * 2)
    old.optimize(lambda t: (t.suggest_int("x", 0, 1), t.suggest_int("w", 1, 16)), n_trials=5)
    run(apq.APQSampler(source=old, seed=0), 15)
    only(told(), r"study 'old' teaches nothing of x, which is Int.* there, Float.* here$")


def test_a_known_function_that_trials_contradict_is_told(told: Told) -> None:
    run(apq.APQSampler(known={1: lambda params: 0.004 * params["w"]}, seed=0), 13)
    only(told(), r"known\['1'\] contradicts all of the last 10 trials, .* is it in another unit")


def test_a_known_function_that_is_about_right_is_not_told_of(told: Told) -> None:
    run(apq.APQSampler(known={1: lambda params: 4.001 * params["w"]}, seed=0), 13)
    assert not told()


def test_a_reference_that_no_trial_is_better_than_is_told(told: Told) -> None:
    run(apq.APQSampler(reference={0: -1.0}, seed=0), 13)
    only(told(), r"reference\['0'\]=-1: none of 10 completed trials is better, so none counts")


def test_a_space_of_a_study_that_has_other_parameters_is_told(
    digits_costs: CostTable, told: Told
) -> None:
    space = SearchSpace.from_distributions({"width": IntDistribution(1, 16)})
    run(apq.APQSampler(space, seed=0), 6, lambda t: (t.suggest_int("widths", 1, 16), 0.0))
    only(told(), r"space: none of 3 completed trials has a parameter .*\(is 'widths' meant\?\)")


def test_a_space_with_a_parameter_that_no_trial_has_is_told(told: Told) -> None:
    space = SearchSpace.from_distributions(PLAIN | {"layers": IntDistribution(1, 4)})
    run(
        apq.APQSampler(space, seed=0),
        6,
        lambda t: (*objective(t)[:1], float(t.suggest_int("n_layers", 1, 4))),
    )
    only(told(), r"none of 3 .*'layers' \(but \['n_layers'\].*\(is 'n_layers' meant\?\), so noth")


def test_costs_that_decide_nothing_are_told(measure: Measured, told: Told) -> None:
    sampler = apq.APQSampler(SPACE, costs=measure.costs, seed=0)
    run(sampler, 4, lambda trial: measure(trial)[0], directions=("maximize",))
    only(told(), "costs: the study has one objective, and .* latency_ms and energy_mj decide")


def test_constraints_without_values_are_told(told: Told) -> None:
    run(apq.APQSampler(constraints_func=lambda trial: [], seed=0), 4)
    only(told(), "constraints_func returned no values")


def test_too_few_pairs_are_told_once(measure: Measured, url: str, told: Told) -> None:
    store = apq.PairStore(url, supernet=apq.OnceForAllNet(SPACE), split="none")
    sampler = apq.APQSampler(SPACE, costs=measure.costs, source=store, seed=0)
    new_study(sampler).optimize(measure, n_trials=4)
    only(told(), "source: 0 fp32 pairs of supernet .* too few to transfer from")


def test_each_study_of_a_sampler_is_told(told: Told) -> None:
    sampler = apq.APQSampler(constraints_func=lambda trial: [], seed=0)
    for name in ("a", "b", "a"):
        study = optuna.create_study(study_name=name, sampler=sampler)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert [text.split(":")[0] for text in told()] == ["study 'a'", "study 'b'"]


# ------------------------------------------------------------------ nothing to be told


def branches(trial: optuna.Trial) -> tuple[float, float]:
    """The parameters of a branch, and ranges that follow, show late."""
    w, x = trial.suggest_int("w", 1, 16), trial.suggest_float("x", 0, 1)
    deep = trial.suggest_int("deep", 0, 1) and trial.suggest_int("d", 1, w)
    return x / w + deep, 4.0 * w


SILENT: dict[str, Callable[[optuna.Study], dict[str, Any]]] = {
    "nothing given": lambda earlier: {},
    "a budget that binds": lambda earlier: {
        "space": SearchSpace.from_distributions(PLAIN), "known": {1: size}, "budgets": {1: 20},
    },
    "a budget that just binds": lambda earlier: {
        "space": SearchSpace.from_distributions(PLAIN), "known": {1: size}, "budgets": {1: 63},
    },
    "a budget on what grows without end": lambda earlier: {
        "space": SearchSpace.from_distributions(PLAIN),
        "known": {1: lambda p: p["w"] / p["x"]}, "budgets": {1: 1e6},
    },
    "a loop in Python": lambda earlier: {
        "space": SearchSpace.from_distributions(PLAIN), "budgets": {1: 60},
        "known": {1: lambda p: np.array([4.0 * w / (16 // w) for w in p["w"].tolist()])},
    },
    "a reference within": lambda earlier: {
        "space": SearchSpace.from_distributions(PLAIN), "known": {1: size},
        "reference": {0: 0.5, 1: 64},
    },
    "a reference beyond": lambda earlier: {"known": {1: size}, "reference": {0: 99, 1: 1e9}},
    "a source": lambda earlier: {"source": earlier, "known": {1: size}},
    "two sources": lambda earlier: {"source": [earlier, earlier], "n_startup_trials": 4},
    "constraints": lambda earlier: {"constraints_func": lambda trial: [trial.params["x"] - 0.5]},
}  # fmt: skip


@pytest.mark.parametrize("case", SILENT)
@pytest.mark.parametrize("which", ["plain", "with branches"])
def test_no_false_alarm(case: str, which: str, earlier: optuna.Study, told: Told) -> None:
    arguments = SILENT[case](earlier)
    run(apq.APQSampler(seed=0, **arguments), 14, objective if which == "plain" else branches)
    assert told() == []


def test_no_false_alarm_in_a_joint_study(measure: Measured, told: Told) -> None:
    old = new_study(optuna.samplers.RandomSampler(seed=0))
    old.optimize(measure, n_trials=4)
    sampler = apq.APQSampler(
        SPACE, costs=measure.costs, budgets={"latency_ms": 0.1}, source=old, seed=0,
        reference={"energy_mj": 0.1, "accuracy": 0.1},
    )  # fmt: skip
    study = optuna.create_study(
        study_name="new", directions=["maximize", "minimize", "minimize"], sampler=sampler
    )
    study.set_metric_names(NAMES)
    study.optimize(measure, n_trials=5)
    assert told() == []


def test_one_trial_in_another_branch_is_no_other_study(told: Told) -> None:
    """Some trials have a parameter of the space, the first ones may have none."""
    space = SearchSpace.from_distributions({"w": IntDistribution(1, 16)})
    study = optuna.create_study(sampler=apq.APQSampler(space, seed=0))
    for number in range(6):
        trial = study.ask()
        value = trial.suggest_int("w", 1, 16) if number > 1 else trial.suggest_float("y", 0, 1)
        study.tell(trial, value)
    assert told() == []
