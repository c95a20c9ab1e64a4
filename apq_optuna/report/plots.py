"""Plotly figures of a study: front, hypervolume history, networks, predictor calibration.

Colours: points of the search in grey, the front in blue, the uniform reference networks in orange;
no information is carried by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apq_optuna.report.summary import StudySummary
from apq_optuna.search import hypervolume_growth

FRONT, DOMINATED, BASELINE, RUNNING = "#1f5fbf", "#9aa0a6", "#d9730d", "#5f6368"
BIT_COLOURS = [
    [0.0, "#7b3294"], [0.35, "#c2a5cf"], [0.65, "#a6dba0"], [1.0, "#1b7837"],
]  # fmt: skip
_SYMBOLS = ("square", "triangle-up", "cross", "x", "star")
_TITLES = {
    "accuracy": "accuracy (search-validation)",
    "latency_ms": "latency (ms)",
    "energy_mj": "energy (mJ)",
}


def title_of(metric: str) -> str:
    """Axis title of a metric, with its unit."""
    return _TITLES.get(metric, metric.replace("_", " "))


def layout(figure: go.Figure, title: str, height: int = 460, *, right: int = 60) -> go.Figure:
    """Title, size and style that all figures share.

    Plotly's buttons stand in a column in the right margin, where they cover neither titles nor
    points; a figure with a colour bar needs a wider one.
    """
    figure.update_layout(
        title={"text": title, "x": 0.02, "xanchor": "left"}, template="plotly_white",
        height=height, margin={"t": 60, "b": 90, "r": right}, modebar={"orientation": "v"},
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
        font={"family": "system-ui, sans-serif", "size": 13},
    )  # fmt: skip
    return figure


def front_figure(summary: StudySummary, baselines: Sequence[Mapping[str, Any]] = ()) -> go.Figure:
    """The Pareto front: accuracy against each cost, one panel a cost.

    Args:
        summary: The study.
        baselines: Uniform networks: `name` and a value for each metric.
    """
    costs = summary.metric_names[1:] or ["trial"]
    figure = make_subplots(1, len(costs), shared_yaxes=True, horizontal_spacing=0.06)
    order = np.argsort(-summary.values[:, 0]) if len(summary.values) else np.zeros(0, int)
    on_front = np.zeros(len(summary.values), bool)
    on_front[summary.front] = True
    for column, metric in enumerate(costs, 1):
        x = (
            summary.values[:, column]
            if summary.metric_names[1:]
            else summary.numbers.astype(float)
        )
        for name, mask, colour, size, symbol in (
            ("trial", ~on_front, DOMINATED, 6, "circle"),
            ("Pareto front", on_front, FRONT, 10, "diamond"),
        ):
            chosen = [i for i in order if mask[i]]
            figure.add_scatter(
                x=x[chosen], y=summary.values[chosen, 0], mode="markers", name=name,
                legendgroup=name, showlegend=column == 1,
                marker={"color": colour, "size": size, "symbol": symbol,
                        "opacity": 0.55 if name == "trial" else 1.0},
                text=[summary.describe(int(i)) for i in chosen],
                hovertemplate="%{text}<extra></extra>", row=1, col=column,
            )  # fmt: skip
        again = [(i, found) for i in order if (found := summary.again(int(i))) is not None]
        if again:
            figure.add_scatter(
                x=x[[i for i, _ in again]], y=[mean for _, (mean, _, _) in again],
                error_y={"type": "data", "array": [np.nan_to_num(s) for _, (_, s, _) in again],
                         "thickness": 1.2, "width": 4},
                mode="markers", name="measured again (mean and deviation)",
                legendgroup="again", showlegend=column == 1,
                marker={"color": "white", "size": 8, "symbol": "diamond",
                        "line": {"color": FRONT, "width": 1.6}},
                text=[summary.describe(int(i)) for i, _ in again],
                hovertemplate="%{text}<extra></extra>", row=1, col=column,
            )  # fmt: skip
        # told apart by symbol and legend: beside the points, labels of equal costs would overlap
        for baseline, symbol in zip(baselines, cycle(_SYMBOLS), strict=False):
            name = f"largest network, {baseline['name']}"
            figure.add_scatter(
                x=[baseline[metric]], y=[baseline["accuracy"]], mode="markers", name=name,
                legendgroup=name, showlegend=column == 1,
                marker={"color": BASELINE, "size": 11, "symbol": symbol},
                hovertemplate=f"{name}<br>%{{x:.4g}}, %{{y:.4f}}<extra></extra>", row=1,
                col=column,
            )  # fmt: skip
        figure.update_xaxes(title_text=title_of(metric), row=1, col=column)
    figure.update_yaxes(title_text=title_of(summary.metric_names[0]), row=1, col=1)
    layout(figure, f"Pareto front of {len(summary.values)} trials")
    return figure.update_layout(margin={"b": 110})  # where it is narrow the legend has two rows


def hypervolume_figure(summary: StudySummary) -> go.Figure:
    """Hypervolume of the front after each trial."""
    figure = go.Figure()
    volumes = hypervolume_growth(summary.oriented(), summary.reference())
    figure.add_scatter(
        x=summary.numbers, y=volumes, mode="lines", line={"shape": "hv", "color": FRONT},
        name="hypervolume", hovertemplate="trial %{x}: %{y:.5g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="trial")
    figure.update_yaxes(title_text="hypervolume", rangemode="tozero")
    layout(figure, "Hypervolume over trials", 360)
    return figure.update_layout(margin={"b": 50})


def calibration_figure(summary: StudySummary) -> go.Figure | None:
    """Predicted against measured accuracy, with 95 % intervals; None before any prediction."""
    has = np.isfinite(summary.predicted[:, 0]) if len(summary.predicted) else np.zeros(0, bool)
    if not has.any():
        return None
    measured = summary.values[has, 0]
    mean, std = summary.predicted[has].T
    inside = float((np.abs(measured - mean) <= 1.96 * std).mean())
    figure = go.Figure()
    low, high = float(min(measured.min(), mean.min())), float(max(measured.max(), mean.max()))
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": RUNNING, "dash": "dot"},
        name="perfect", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=measured, y=mean, mode="markers", marker={"color": FRONT, "size": 7},
        error_y={"array": 1.96 * std, "color": DOMINATED, "thickness": 1},
        name="prediction before the trial, 95 %",
        text=[f"trial {n}" for n in summary.numbers[has]],
        hovertemplate="%{text}: measured %{x:.4f}, predicted %{y:.4f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="measured accuracy")
    figure.update_yaxes(title_text="predicted accuracy")
    return layout(figure, f"Predictor: {inside:.0%} of {len(measured)} trials inside 95 %", 420)


def latency_figure(summary: StudySummary) -> go.Figure | None:
    """Whole networks run for real against the table's sums; None where no trial was run."""
    names = ("table_latency_ms", "measured_latency_ms", "measured_spread_ms")
    kept = [
        (number, *(float(trial.user_attrs[name]) for name in names))
        for number, trial in zip(summary.numbers, summary.trials, strict=True)
        if all(name in trial.user_attrs for name in names)
    ]
    if not kept:
        return None
    numbers, table, measured, spread = (np.array(column) for column in zip(*kept, strict=True))
    error = float(np.abs(table / measured - 1).mean())
    figure = go.Figure()
    ends = [float(min(table.min(), measured.min())), float(max(table.max(), measured.max()))]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": RUNNING, "dash": "dot"}, name="equal",
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=table, y=measured, mode="markers", marker={"color": FRONT, "size": 7},
        error_y={"array": spread, "color": DOMINATED, "thickness": 1}, name="network, spread",
        text=[f"trial {n}" for n in numbers],
        hovertemplate="%{text}: table %{x:.4g} ms, measured %{y:.4g} ms<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text="latency from the table (ms)")
    figure.update_yaxes(title_text="measured on the device (ms)")
    title = f"Latency of {len(kept)} whole networks: the table is off by {error:.1%} on average"
    return layout(figure, title, 420)
