"""The comparison: every method on one case, judged once, gone on with, and drawn."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import apq_optuna as apq
from apq_optuna.cli import main
from apq_optuna.commands.compare import _as_begun as as_begun
from apq_optuna.comparison import (
    METHODS,
    Judged,
    Setting,
    comparison_figure,
    judge,
    markdown,
    results_of,
)
from apq_optuna.comparison.setting import WITHIN
from apq_optuna.comparison.tables import rows_of
from apq_optuna.ledger import Ledger, LedgerOptions

from ..conftest import FAST

LIMIT = 0.03
CHOSEN = ("sequential", "mobilenet", "joint", "paper", "uniform4", "architecture+pruning")
ARGUMENTS = [
    "--hardware", "bitfusion-small", "--budget", f"latency_ms={LIMIT}", "--seeds", "1",
    "--trials", "5", "--steps", "2", "--epochs", "0.3", "--confirm", "1",
    "--mobilenet-epochs", "1", "--images", "100",
    *(word for name in CHOSEN for word in ("--method", name)),
]  # fmt: skip


@pytest.fixture(scope="module")
def compared(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("compare") / "run"
    shutil.copytree(run_folder, run)
    pairs = ["--pairs", "60", "--images", "100"]
    assert main(["collect", "--run", str(run), *pairs]) == 0
    assert main(["compare", "--run", str(run), *ARGUMENTS]) == 0
    return run


def results(run: Path) -> list[Judged]:
    return results_of(apq.open_storage(f"sqlite:///{run}/apq.db"))


def test_every_method_ends_in_a_network_within_the_budget(compared: Path) -> None:
    found = {result.method: result for result in results(compared)}
    assert set(found) == set(CHOSEN)
    for name, result in found.items():
        assert not result.missing and result.costs is not None, name
        assert result.costs["latency_ms"] <= LIMIT * WITHIN, name
        assert 0 <= result.test <= 1 and 0 <= result.confirmed <= 1 and result.seconds > 0
        folder = f"{name}-latency_ms-{LIMIT:g}-0-{result.conditions}"
        network = apq.load_network(compared / "compare" / "finished" / folder)
        assert network.about["accuracy"]["test"] == result.test
    shared = {name for name, result in found.items() if result.shared}
    assert shared == {"paper", "mobilenet"}


def test_a_comparison_goes_on_and_measures_nothing_twice(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(compared)
    storage = apq.open_storage(f"sqlite:///{compared}/apq.db")
    trials = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(storage)}
    assert main(["compare", "--run", str(compared), *ARGUMENTS]) == 0
    assert results(compared) == before
    assert trials == {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(storage)}
    said = capsys.readouterr().out
    assert "| budget | method | test accuracy |" in said
    assert "Once for all devices and budgets: collect" in said
    page = (compared / "compare.html").read_text()
    assert METHODS["joint"].title in page and "http" not in page.split("<script")[0]
    assert (compared / "compare.md").read_text().startswith("| budget | method |")
    tasks = [row for row in Ledger(f"sqlite:///{compared}/apq.db").rows() if row.task == "compare"]
    assert {row.scope for row in tasks} == {"device"}


def test_stages_hold_what_those_before_them_found(compared: Path) -> None:
    storage = apq.open_storage(f"sqlite:///{compared}/apq.db")
    space = apq.OnceForAllNet.load(compared).space
    conditions = results(compared)[0].conditions

    def rows(name: str) -> np.ndarray:
        study = optuna.load_study(
            study_name=f"compare: {name}, latency_ms={LIMIT:g} seed 0 [{conditions}]",
            storage=storage,
        )
        return np.stack([space.from_params(trial.params) for trial in study.trials])

    role = np.array([decision.role for decision in space.decisions])
    haq = rows("sequential, HAQ")
    assert (haq[:, role != "bits"] == haq[0, role != "bits"]).all()
    amc = rows("sequential, AMC")
    still = (role == "depth") | (role == "kernel")
    assert (amc[:, still] == haq[0, still]).all()
    assert (amc[:, role == "bits"] == amc[0, role == "bits"]).all()
    later = rows("depth + kernel + channels done")
    assert (later[:, role != "bits"] == later[0, role != "bits"]).all()


def judged(method: str, seed: int, test: float, **more: object) -> Judged:
    values = {"metric": "latency_ms", "limit": 2.0, "measured": test, "confirmed": test,
              "costs": {"latency_ms": 1.5}, "seconds": 3600.0, "shared": {}}  # fmt: skip
    return Judged(method=method, seed=seed, test=test, **values | more)  # type: ignore[arg-type]


def test_the_table_has_medians_ranges_and_what_is_missing() -> None:
    rows = [judged("joint", s, t) for s, t in enumerate((0.7, 0.9, 0.8))]
    rows.append(Judged("uniform8", "latency_ms", 2.0, 0, missing="too costly"))
    table = rows_of(rows, LedgerOptions(watts=100.0))
    cells = dict(zip(table[0], table[1], strict=True))
    assert cells["test accuracy"] == "0.8000" and cells["range"] == "0.7000 to 0.9000"
    assert cells["Wh"] == "158" and cells["g CO2e"] == "68.4" and cells["seeds"] == "3"
    assert table[2][:3] == ["latency_ms 2", METHODS["uniform8"].title, "none"]
    assert "Once for all devices and budgets: train 5 s" in markdown(rows, shared={"train": 5.0})
    figure = comparison_figure(rows)
    assert [trace.name for trace in figure.data] == [METHODS["joint"].title]
    assert figure.data[0].y == (0.8,)
    comparison_figure([])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--budget METRIC=LIMIT is needed"),
        (["--budget", "fast"], "write METRIC=LIMIT"),
        (["--budget", "latency_ms=1", "--method", "magic"], "--method magic: choose from"),
        (["--budget", "latency=1"], "--budget latency: no cost of bitfusion-small"),
        (["--budget", "latency_ms=1e-9"], "the cheapest network takes 0.0111"),
        (["--budget", "latency_ms=1", "--trials", "1"], "--trials 1: at least 5"),
        (["--budget", "latency_ms=1", "--confirm", "-1"], "--confirm -1: at least 0"),
        (["--budget", "latency_ms=1", "--out", "x.md"], "--out x.md: the page"),
    ],
)
def test_bad_arguments_have_clear_errors(
    compared: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--run", str(compared), *words]) != 0
    assert message in capsys.readouterr().err


def test_without_pairs_there_is_nothing_to_search_with(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    for name in ("apq.db", "apq.db-wal", "apq.db-shm"):
        (run / name).unlink(missing_ok=True)
    assert main(["compare", "--run", str(run), "--budget", "latency_ms=1"]) != 0
    assert "fp32 pairs: run `collect` first" in capsys.readouterr().err


def setting(run: Path, limit: float, trials: int) -> Setting:
    net, data = apq.OnceForAllNet.load(run), apq.load_data("digits")
    storage = apq.open_storage(f"sqlite:///{run}/apq.db")
    return Setting(
        net, data, apq.hardware.bitfusion_small().table(net.space), "latency_ms", limit, 0, trials,
        FAST, storage, apq.PairStore(f"sqlite:///{run}/apq.db", supernet=net), run / "compare",
        images=50, tell=lambda text: None,
    )  # fmt: skip


def test_other_conditions_are_another_comparison(compared: Path) -> None:
    one, other = setting(compared, LIMIT, 5), setting(compared, LIMIT, 6)
    assert one.conditions != other.conditions
    assert one.conditions == setting(compared, 2 * LIMIT, 5).conditions
    storage = apq.open_storage(f"sqlite:///{compared}/apq.db")
    assert results_of(storage, other.conditions) == []
    assert results_of(storage, results(compared)[0].conditions) == results(compared)


def test_a_comparison_keeps_the_rates_that_it_began_with(compared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    asked = setting(run, 2 * LIMIT, 7)
    alike, by_width = (
        replace(asked, finetune=replace(FAST, rates=rates)) for rates in ("alike", "by-width")
    )
    assert as_begun(asked).conditions == by_width.conditions != alike.conditions

    # conditions as they were hashed when there was one rate for all
    finetune = {k: v for k, v in asdict(FAST).items() if k != "rates"}
    said = [
        asked.costs.digest, asked.supernet.weights_hash, asked.data.split_hash,
        asked.data.augment, 7, finetune, asked.images, asked.epochs, asked.repeats, None,
    ]  # fmt: skip
    former = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]
    assert alike.conditions == former

    first_stage = run / "compare" / f"retrained-{former}"  # all that is there of one stopped early
    first_stage.mkdir()
    assert as_begun(asked).finetune.rates == "alike"
    first_stage.rmdir()
    assert as_begun(asked).finetune.rates == "by-width"
    optuna.create_study(
        study_name=f"compare: joint, latency_ms=0.06 seed 3 [{former}]", storage=asked.storage
    )
    assert as_begun(asked).conditions == former  # for its other budgets and seeds, too
    assert as_begun(by_width).finetune.rates == "by-width"  # what is asked for is done


def test_calibrated_pairs_are_a_condition(compared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(compared, tmp_path / "run"))
    before = setting(run, LIMIT, 5)
    space = before.supernet.space
    rows = space.sample(3, np.random.default_rng(0))
    before.pairs.quantized().add(rows, np.full(3, 0.5))
    assert setting(run, LIMIT, 5).conditions != setting(compared, LIMIT, 5).conditions


def test_what_a_stop_lost_is_prescribed_again(compared: Path) -> None:
    s = setting(compared, LIMIT, 5)
    space = s.supernet.space
    rows = [space.extreme(largest=False, bits=bits)[0] for bits in (4, 6, 8)]
    prescribed = [space.to_params(row) for row in rows]
    objective = s.objective()
    calls = 0

    class Stopping:
        directions, metric_names = objective.directions, objective.metric_names

        def __call__(self, trial: optuna.Trial) -> object:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return objective(trial)

    sampler = optuna.samplers.RandomSampler(seed=0)
    with pytest.raises(KeyboardInterrupt):
        s.run("stopped", sampler, Stopping(), 3, prescribed)  # type: ignore[arg-type]
    killed = optuna.load_study(study_name="compare: stopped", storage=s.storage)
    killed.ask()  # a process that takes one, and is killed
    study = s.run("stopped", sampler, objective, 3, prescribed)
    states = (TrialState.COMPLETE,)
    found = [trial.params for trial in study.get_trials(deepcopy=False, states=states)]
    active = [space.to_params(space.from_params(params)) for params in found]
    assert sorted(map(str, active)) == sorted(map(str, prescribed))


def test_a_case_without_a_network_is_kept_and_told(compared: Path) -> None:
    s = setting(compared, 0.0125, 5)
    result = judge(s, "uniform8")
    assert "the cheapest network takes" in result.missing
    kept = results_of(s.storage, s.conditions)
    assert [r.missing for r in kept] == [result.missing]
    assert rows_of(kept, LedgerOptions())[1][2] == "none"


def test_a_device_of_few_widths_gives_pairs_it_runs(compared: Path) -> None:
    class Board(apq.hardware.Device):
        name = "board"
        bits = (4, 8)

        def cost(self, layer, w_bits, a_bits):  # type: ignore[no-untyped-def]
            w_bits, a_bits = self.check_bits(w_bits, a_bits)
            return layer.macs * (w_bits + a_bits) * 1e-8, None

    s = setting(compared, 1.0, 6)
    s = replace(s, costs=Board().table(s.supernet.space), repeats=0, epochs=0.1)
    result = judge(s, "paper")
    assert not result.missing and result.confirmed == result.measured
    assert "how long the supernet was trained" in judge(s, "mobilenet").missing
