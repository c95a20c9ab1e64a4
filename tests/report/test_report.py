"""Reports: what is drawn, where it is kept, and that a browser shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import optuna
import pytest

import apq_optuna as apq
from apq_optuna._optuna import storage_of
from apq_optuna.data import ImageData
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware import CostTable
from apq_optuna.objective import uniform_baselines
from apq_optuna.report import remember, save_to_dashboard, stored_space, study_figures
from apq_optuna.report.network_plots import networks_figure, shortened
from apq_optuna.report.summary import summarise
from apq_optuna.supernet import OnceForAllNet
from tests.conftest import FAST

SPACE = apq.SearchSpace.preset("digits")


def finished_study(url: str, costs: CostTable, trials: int = 30) -> optuna.Study:
    study = optuna.create_study(
        study_name="drawn", storage=apq.open_storage(url),
        directions=["maximize", "minimize", "minimize"],
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    study.set_metric_names(["accuracy", "latency_ms", "energy_mj"])

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        subnet = SPACE.suggest(trial)
        trial.set_user_attr("predicted_mean", 0.5)
        trial.set_user_attr("predicted_std", 0.1)
        return (1 - 1e5 / subnet.bitops, *costs.network_cost(subnet.layers()))

    study.optimize(objective, n_trials=trials)
    return study


def test_the_summary_is_optunas_front(url: str, digits_costs: CostTable) -> None:
    study = finished_study(url, digits_costs)
    summary = summarise(study)
    assert {int(n) for n in summary.numbers[summary.front]} == {
        t.number for t in study.best_trials
    }
    assert summary.hypervolume() > 0
    assert len(summary.table().splitlines()) == len(summary.front) + 1


def test_every_figure_is_drawn(url: str, digits_costs: CostTable) -> None:
    study = finished_study(url, digits_costs)
    remember(study, SPACE, [{"name": "W8A8", "accuracy": 0.9, "latency_ms": 1, "energy_mj": 1}])
    figures = study_figures(study)
    assert list(figures) == [
        "pareto-front", "hypervolume", "calibration", "front-networks", "network",
    ]  # fmt: skip
    front = figures["pareto-front"]
    named = {trace.name: len(trace.x) for trace in front.data if trace.showlegend}
    assert named["Pareto front"] == len(study.best_trials)
    assert named["Pareto front"] + named["trial"] == 30
    assert named["largest network, W8A8"] == 1
    volume = np.array(figures["hypervolume"].data[0].y)
    assert (np.diff(volume) >= 0).all() and volume[-1] > 0


def test_labels_do_not_overlap_and_buttons_cover_no_title(
    url: str, digits_costs: CostTable
) -> None:
    study = finished_study(url, digits_costs)
    alike = {"accuracy": 0.9, "latency_ms": 1, "energy_mj": 1}
    remember(study, SPACE, [{"name": name, **alike} for name in ("W8A8", "W6A6", "W4A4")])
    figures = study_figures(study)
    uniform = [t for t in figures["pareto-front"].data if t.name.startswith("largest")]
    assert len({t.marker.symbol for t in uniform}) == len({t.name for t in uniform}) == 3
    assert all(t.mode == "markers" and t.text is None for t in uniform)
    for figure in figures.values():
        assert figure.layout.modebar.orientation == "v" and figure.layout.margin.r >= 60
    save_to_dashboard(study, figures)  # what is higher than its place there is cut off
    stored = storage_of(study).get_study_system_attrs(study._study_id)
    texts = ["".join(v for k, v in sorted(stored.items()) if f":apq-{n}:" in k) for n in figures]
    assert all(json.loads(text)["layout"]["height"] <= 470 for text in texts)


def test_a_chosen_trials_network_is_drawn_layer_by_layer(
    url: str, digits_costs: CostTable
) -> None:
    study = finished_study(url, digits_costs)
    subnet = SPACE.decode(SPACE.from_params(study.trials[7].params))
    figure = study_figures(study, space=SPACE, trial=7)["network"]
    assert figure.layout.title.text.startswith("Trial 7: accuracy")
    bars = {x: y for t in figure.data if t.type == "bar" for x, y in zip(t.x, t.y, strict=True)}
    assert list(bars.values()) != []
    for placed in subnet.layers():
        name = placed.name.replace("stage", "s").replace("block", "b")
        assert bars[name] == placed.layer.out_channels
    (heat,) = (t for t in figure.data if t.type == "heatmap")
    assert list(heat.z[0]) == [p.w_bits for p in subnet.layers()]
    assert list(heat.z[1]) == [p.a_bits for p in subnet.layers()]
    with pytest.raises(InvalidArgumentError, match="trial=99: the study has no completed trial"):
        study_figures(study, space=SPACE, trial=99)


def test_the_callback_keeps_report_and_dashboard_up_to_date(
    url: str, digits_costs: CostTable, tmp_path: Path
) -> None:
    study = finished_study(url, digits_costs)
    report = apq.ParetoReport(tmp_path / "out" / "report.html", space=SPACE, every_seconds=0)
    report(study, study.trials[-1])
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Pareto front of 30 trials" in text
    assert 'src="http' not in text  # nothing is fetched when it is opened
    attributes = study._storage.get_study_system_attrs(study._study_id)
    for name in ("pareto-front", "hypervolume", "network"):
        assert any(key.startswith(f"dashboard:plot_data:apq-{name}:") for key in attributes)


def test_a_study_remembers_its_space(url: str, digits_costs: CostTable) -> None:
    study = finished_study(url, digits_costs, trials=2)
    assert stored_space(study) is None
    remember(study, SPACE)
    again = optuna.load_study(study_name="drawn", storage=apq.open_storage(url))
    assert stored_space(again) == SPACE


def test_the_empty_study_has_an_empty_report(tmp_path: Path) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    apq.ParetoReport(tmp_path / "report.html", space=SPACE).write(study)
    assert "Trials: none yet" in (tmp_path / "report.html").read_text()


def test_uniform_networks_are_measured_like_trials(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> None:
    objective = apq.Objective(supernet, digits, digits_costs, finetune=FAST)
    baselines = uniform_baselines(objective, digits_costs)
    assert [b["name"] for b in baselines] == ["W8A8", "W6A6", "W4A4"]
    assert baselines[2]["latency_ms"] < baselines[0]["latency_ms"]
    assert baselines[0]["accuracy"] == objective.measure(supernet.largest.with_bits(8))[0]


def test_widths_a_device_lacks_are_left_out_of_the_uniform_networks(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable
) -> None:
    entries = {k: v for k, v in digits_costs.entries.items() if k[1:] != (6, 6)}
    partial = CostTable(entries, device="board")
    objective = apq.Objective(supernet, digits, partial, finetune=FAST)
    assert [b["name"] for b in uniform_baselines(objective, partial)] == ["W8A8", "W4A4"]


def test_the_designs_callback_draws_networks_without_being_told_the_space(
    supernet: OnceForAllNet, digits: ImageData, digits_costs: CostTable, tmp_path: Path, url: str
) -> None:
    objective = apq.Objective(supernet, digits, digits_costs, finetune=FAST)
    study = optuna.create_study(storage=apq.open_storage(url), directions=objective.directions)
    study.set_metric_names(objective.metric_names)
    report = apq.ParetoReport(tmp_path / "report.html")
    study.optimize(objective, n_trials=3, callbacks=[report])
    assert "front-networks" in study_figures(study)
    assert report._at_exit is not None  # the last trials came within the pause: drawn at the end
    report._at_exit()
    assert "Pareto front of 3 trials" in (tmp_path / "report.html").read_text()


# ---------------------------------------------------------------------- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def page(address: str, folder: Path) -> str:
    """The page's document after its scripts have run, in a headless browser."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", f"--user-data-dir={folder}", "--virtual-time-budget=10000",
        "--dump-dom", address,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@browser
def test_a_browser_draws_the_report(url: str, digits_costs: CostTable, tmp_path: Path) -> None:
    study = finished_study(url, digits_costs)
    remember(study, SPACE)
    apq.ParetoReport(tmp_path / "report.html").write(study)
    document = page((tmp_path / "report.html").as_uri(), tmp_path / "profile")
    assert document.count('class="main-svg"') >= 5
    assert "latency (ms)" in document


@browser
def test_a_browser_opens_the_dashboard(url: str, digits_costs: CostTable, tmp_path: Path) -> None:
    from wsgiref.simple_server import make_server

    from optuna_dashboard import wsgi

    study = finished_study(url, digits_costs)
    apq.ParetoReport(tmp_path / "report.html", space=SPACE).write(study)
    server = make_server("127.0.0.1", 0, wsgi(study._storage))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/dashboard/studies/{study._study_id}"
        document = page(address, tmp_path / "profile")
    finally:
        server.shutdown()
        thread.join()
    assert "apq-pareto-front" in document or "Pareto front of 30 trials" in document


def test_bars_stand_in_the_order_of_the_layers() -> None:
    rows = SPACE.extreme(largest=True)
    figure = networks_figure(SPACE, [("largest", rows[0])])
    (bars,) = figure.data
    names = [text.split(":")[0].rsplit(".", 1)[1] for text in bars.hovertext]
    assert names[:4] == ["expand", "depthwise"] * 2 and list(bars.x) == sorted(bars.x)


def test_names_are_shortened_only_as_long_as_they_stay_apart() -> None:
    assert shortened(["stage2.block1.expand", "stem"]) == ["s2.b1.expand", "stem"]
    assert shortened(["block1.conv1", "branch1.conv1"]) == ["block1.conv1", "branch1.conv1"]


def test_mean_bits_are_known_from_the_sampler_too(digits_costs: CostTable) -> None:
    sampler = apq.APQSampler(SPACE, costs=digits_costs, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    study.optimize(
        lambda trial: (0.5, *digits_costs.network_cost(SPACE.suggest(trial).layers())), n_trials=2
    )
    assert 2 <= summarise(study).mean_bits(0) <= 8
