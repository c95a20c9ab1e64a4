"""The report: one HTML file that needs no network, and the same figures in optuna-dashboard."""

from __future__ import annotations

import atexit
import contextlib
import html
import importlib.util
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from apq_optuna._files import replace_file
from apq_optuna._optuna import EXPORTED, set_study_attribute, study_attribute
from apq_optuna.errors import ApqError, InvalidArgumentError
from apq_optuna.networks import Genotypes, Subnet
from apq_optuna.report import network_plots, plots
from apq_optuna.report.page import figure_div, plotting_script
from apq_optuna.report.summary import StudySummary, summarise
from apq_optuna.space import SearchSpace

DASHBOARD_PX = 470
"""Height of a figure's place in optuna-dashboard."""

_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: #202124; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; }
tr:nth-child(even) { background: #f4f6f8; } .quiet { color: #5f6368; }
"""


class ParetoReport:
    """A study callback that keeps a report up to date while the study runs.

    Args:
        path: The HTML file, rewritten whole.
        space: The joint space, to draw networks; an `Objective` leaves it in the study itself.
        every_seconds: Least time between two drawings. Trials that come sooner are drawn later, at
            the latest when the process ends; `write` draws at once.
        dashboard: Also save the figures into the study, for optuna-dashboard.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        space: SearchSpace | None = None,
        every_seconds: float = 10.0,
        dashboard: bool = True,
    ) -> None:
        self.path = Path(path)
        self.space = space
        self.every_seconds = every_seconds
        self.dashboard = dashboard
        self._last = 0.0
        self._lock = threading.Lock()
        self._at_exit: Callable[[], None] | None = None

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Optuna's callback; drawing takes at most about a tenth of the time."""
        due = time.monotonic() - self._last > self.every_seconds
        if trial.state != TrialState.COMPLETE or not self._lock.acquire(blocking=False):
            return  # another thread of this study is drawing
        try:
            if due:
                started = time.monotonic()
                self.write(study)
                self._last = time.monotonic()
                self.every_seconds = max(self.every_seconds, 10 * (self._last - started))
            self._draw_at_exit(study, stale=not due)
        finally:
            self._lock.release()

    def _draw_at_exit(self, study: Study, *, stale: bool) -> None:
        """Remembers to draw the last trials, which came too soon after the last drawing."""
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None
        if stale:
            self._at_exit = lambda: self._write_last(study)
            atexit.register(self._at_exit)

    def _write_last(self, study: Study) -> None:
        with contextlib.suppress(ApqError, OSError):  # the storage may be closed by then
            self.write(study)

    def write(self, study: Study) -> Path:
        """Draws the report now."""
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
            self._at_exit = None
        summary = summarise(study, self.space)
        figures = study_figures(study, summary=summary)
        write_html(study, figures, self.path, summary=summary)
        if self.dashboard:
            save_to_dashboard(study, figures)
        return self.path


def study_figures(
    study: Study,
    *,
    space: SearchSpace | None = None,
    trial: int | None = None,
    summary: StudySummary | None = None,
) -> dict[str, go.Figure]:
    """Every figure of a study, by id.

    Args:
        study: The study.
        space: The joint space, for pictures of networks; by default the one stored in the study.
        trial: Number of the trial whose network is drawn; by default the front's most accurate.
        summary: What `summarise` says of the study, if it was asked already.

    Raises:
        InvalidArgumentError: There is no such completed trial.
    """
    summary = summary or summarise(study, space)
    figures = {
        "pareto-front": plots.front_figure(summary, stored_baselines(study)),
        "hypervolume": plots.hypervolume_figure(summary),
    }
    calibration = plots.calibration_figure(summary)
    if calibration is not None:
        figures["calibration"] = calibration
    latency = plots.latency_figure(summary)
    if latency is not None:
        figures["latency"] = latency
    networks = front_networks(summary)
    if networks and summary.space is not None:
        figures["front-networks"] = network_plots.policy_figure(summary.space, networks)
    chosen = chosen_subnet(summary, trial)
    if chosen is not None:
        number, subnet = chosen
        i = int((summary.numbers == number).nonzero()[0][0])
        values = ", ".join(
            f"{name} {value:.4g}"
            for name, value in zip(summary.metric_names, summary.values[i], strict=True)
        )
        title = f"Trial {number}: {values}"
        figures["network"] = network_plots.network_figure(subnet, title)
    return figures


def front_networks(summary: StudySummary) -> list[tuple[int, Genotypes]]:
    """(trial number, genotype) of the front, most accurate first."""
    rows = ((int(summary.numbers[i]), summary.genotype(int(i))) for i in summary.front)
    return [(number, row) for number, row in rows if row is not None]


def chosen_subnet(summary: StudySummary, trial: int | None) -> tuple[int, Subnet] | None:
    """(trial number, subnet) of one completed trial, by default the front's most accurate.

    Raises:
        InvalidArgumentError: There is no such trial, or the study does not say of which space.
    """
    if trial is not None and trial not in summary.numbers:
        raise InvalidArgumentError(
            f"trial={trial}: the study has no completed trial of that number"
        )
    space = summary.space
    if space is None or space.family is None:
        if trial is not None:
            raise InvalidArgumentError("the study does not say which space its networks are of")
        return None
    if trial is None:
        networks = front_networks(summary)
        return (networks[0][0], space.decode(networks[0][1])) if networks else None
    i = int((summary.numbers == trial).nonzero()[0][0])
    return trial, space.decode(space.from_params(summary.trials[i].params))


# ---------------------------------------------------------------------- what a study remembers


def remember(
    study: Study, space: SearchSpace, baselines: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Stores the space and the uniform networks' values with the study, for later reports."""
    if study_attribute(study, "space") is None:
        set_study_attribute(study, "space", space.to_dict())
    if baselines:
        set_study_attribute(study, "baselines", [dict(b) for b in baselines])


def stored_baselines(study: Study) -> list[dict[str, Any]]:
    """The uniform networks `remember` stored."""
    return list(study_attribute(study, "baselines") or [])


def keep_measurement(study: Study, trial: int, found: Mapping[str, Any]) -> None:
    """Stores what a trial's exported file took somewhere; the latest counts in reports.

    Args:
        study: The study.
        trial: Number of a completed trial.
        found: From `export.measure_file`, here or elsewhere.

    Raises:
        InvalidArgumentError: There is no such trial, or `found` is no measurement.
    """
    if trial not in summarise(study).numbers:
        raise InvalidArgumentError(
            f"trial={trial}: the study has no completed trial of that number"
        )
    names = ("latency_ms", "spread_ms", "processor", "threads", "file", "sha256", "date")
    if missing := [name for name in names if name not in found]:
        raise InvalidArgumentError(
            f"found: no {missing[0]!r}; give what `apq-optuna hardware measure` wrote"
        )
    latency = found["latency_ms"]
    if not isinstance(latency, int | float) or not 0 < latency < float("inf"):
        raise InvalidArgumentError(f"found: latency_ms {latency!r} is no time")
    set_study_attribute(study, f"{EXPORTED}{trial}", {name: found[name] for name in names})


# ---------------------------------------------------------------------- files and dashboard


def write_html(
    study: Study,
    figures: Mapping[str, go.Figure],
    path: Path,
    space: SearchSpace | None = None,
    summary: StudySummary | None = None,
) -> None:
    """Writes figures and the front as one self-contained HTML file."""
    summary = summary or summarise(study, space)
    drawn = "".join(f"<section>{figure_div(name, f)}</section>" for name, f in figures.items())
    states = ", ".join(f"{n} {state.lower()}" for state, n in sorted(summary.states.items()))
    rows = [
        line.split() for line in summary.table().replace("mean bits", "mean-bits").splitlines()
    ]
    names = summary.metric_names
    for one in stored_baselines(study):  # beside the front, as the figures have them
        values = {name: f"{one[name]:.4f}" for name in names if name in one}
        rows.append([str(one["name"]), *(values.get(name, "") for name in rows[0][1:])])
    cells = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for row, tag in zip(rows, ["th"] + ["td"] * (len(rows) - 1), strict=True)
    )
    document = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(study.study_name)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(study.study_name)}</h1>"
        f"<p class='quiet'>Trials: {states or 'none yet'}. Accuracy is measured on "
        "search-validation images after quantization-aware finetuning; costs come "
        f"from the hardware table.{html.escape(_conditions(study))}</p>"
        f"{plotting_script()}{drawn}<h2>Front</h2><table>{cells}</table></body></html>"
    )
    replace_file(Path(path), document.encode())


def _conditions(study: Study) -> str:
    """What the study's values were measured under, as a sentence; empty if it does not say."""
    stored = study_attribute(study, "objective") or {}
    usual = {"finetune averaging": 0.0, "repeats": 1}
    told = [
        text.format(stored[name])
        for name, text in (
            ("device", "costs of {}"), ("images", "{} search-validation images"),
            ("finetune steps", "{} steps of finetuning"),
            ("finetune learning_rate", "a rate of {:g}"), ("finetune rates", "rates {}"),
            ("finetune averaging", "averaged share {:g}"), ("repeats", "seeds a trial: {}"),
        )
        if stored.get(name) is not None and stored[name] != usual.get(name)
    ]  # fmt: skip
    return f" Measured with: {'; '.join(told)}." if told else ""


def save_to_dashboard(study: Study, figures: Mapping[str, go.Figure]) -> None:
    """Saves figures into the study, where optuna-dashboard shows them."""
    save_plotly_graph_object = _saver()
    for name, figure in figures.items():
        slim = go.Figure(figure)
        # the template is most of a figure's size; what is higher than its place there is cut off
        slim.update_layout(template="none", height=min(figure.layout.height or 450, DASHBOARD_PX))
        slim.update_xaxes(automargin=True).update_yaxes(automargin=True)
        save_plotly_graph_object(study, slim, graph_object_id=f"apq-{name}")


def _saver() -> Callable[..., object]:
    """optuna-dashboard's function that saves a figure, without the server and scikit-learn that
    come with its package: they take longer to import than all figures to draw."""
    package = importlib.util.find_spec("optuna_dashboard")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder) / "_custom_plot_data.py"
        spec = importlib.util.spec_from_file_location("apq_optuna_dashboard_figures", file)
        if file.is_file() and spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            with contextlib.suppress(ImportError):
                spec.loader.exec_module(module)
            if hasattr(module, "save_plotly_graph_object"):
                saver: Callable[..., object] = module.save_plotly_graph_object
                return saver
    import optuna_dashboard  # where its files lie in another way

    whole: Callable[..., object] = optuna_dashboard.save_plotly_graph_object
    return whole
