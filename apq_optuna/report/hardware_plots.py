"""Plotly figures of devices: one layer's costs, two devices, a predicted front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apq_optuna._files import replace_file
from apq_optuna.hardware.tables.compare import Comparison, LayerCosts
from apq_optuna.prediction import PredictedFront
from apq_optuna.report.page import figure_div, plotting_script
from apq_optuna.report.plots import BASELINE, BIT_COLOURS, DOMINATED, FRONT, layout, title_of

_DASHES = ("dot", "dash", "longdash", "dashdot", "longdashdot", "solid")


def layer_figure(found: LayerCosts) -> go.Figure:
    """Cost against channels, a line for each pair of bit-widths, and against bits, as a map."""
    m = len(found.metric_names)
    low, high = int(found.channels[0]), int(found.channels[-1])
    figure = make_subplots(
        m, 2, column_widths=[0.64, 0.36], horizontal_spacing=0.12, vertical_spacing=0.16,
        subplot_titles=[
            t for metric in found.metric_names
            for t in (title_of(metric), f"at {high} channels")
        ],
    )  # fmt: skip
    pairs = [(i, j) for i in range(len(found.bits)) for j in range(len(found.bits))]
    for row, _ in enumerate(found.metric_names):
        for i, j, name, dash in _curves(found, pairs, row):
            values = found.costs[i, j, :, row]
            figure.add_scatter(
                x=found.channels, y=values, mode="lines" if len(values) > 20 else "lines+markers",
                name=name, legendgroup=name, showlegend=row == 0,
                line={"color": _colour(found.bits[i]), "dash": dash,
                      "width": 3 if i == j else 1.3},
                hovertemplate=f"{name}, %{{x}} channels: %{{y:.4g}}<extra></extra>",
                row=row + 1, col=1,
            )  # fmt: skip
        last = found.costs[:, :, -1, row]
        figure.add_heatmap(
            x=[f"A{a}" for a in found.bits], y=[f"W{w}" for w in found.bits], z=last,
            text=[[f"{v:.3g}" if np.isfinite(v) else "" for v in line] for line in last],
            texttemplate="%{text}", colorscale="Blues", showscale=False, xgap=1, ygap=1,
            hovertemplate="%{y}%{x}: %{z:.4g}<extra></extra>", row=row + 1, col=2,
        )  # fmt: skip
        figure.update_xaxes(title_text="channels", row=row + 1, col=1)
        figure.update_yaxes(title_text=title_of(found.metric_names[row]), rangemode="tozero",
                            row=row + 1, col=1)  # fmt: skip
    kernel = f", kernel {found.kernel}" if found.elastic else ""
    title = f"{found.name} on {found.device}: {low} to {high} channels{kernel}"
    layout(figure, title, 160 + 360 * m)
    figure.update_layout(margin={"t": 90})
    return figure


def comparison_figure(found: Comparison) -> go.Figure:
    """The same networks on two devices, and which layers take the time on each."""
    figure = make_subplots(
        1, 2, column_widths=[0.58, 0.42], horizontal_spacing=0.2,
        subplot_titles=[
            f"{found.latencies.shape[1]} random networks, rank correlation "
            f"{found.rank_correlation:.2f}",
            "share of the latency",
        ],
    )  # fmt: skip
    first, second = found.names
    figure.add_scatter(
        x=found.latencies[0], y=found.latencies[1], mode="markers", showlegend=False,
        marker={"color": found.mean_bits, "colorscale": BIT_COLOURS, "size": 5, "cmin": 2,
                "cmax": 8, "colorbar": {"title": "mean<br>bits", "x": 0.47, "len": 0.9,
                                       "thickness": 14}},
        hovertemplate="%{x:.4g} ms, %{y:.4g} ms<extra></extra>", row=1, col=1,
    )  # fmt: skip
    figure.update_xaxes(title_text=f"{first}, ms", row=1, col=1)
    figure.update_yaxes(title_text=f"{second}, ms", row=1, col=1)
    for name, shares, colour in zip(found.names, found.shares, (FRONT, BASELINE), strict=True):
        figure.add_bar(
            x=list(found.kinds), y=shares, name=name, marker={"color": colour},
            hovertemplate=f"{name}, %{{x}}: %{{y:.0%}}<extra></extra>", row=1, col=2,
        )  # fmt: skip
    figure.update_yaxes(tickformat=".0%", row=1, col=2)
    layout(figure, f"{first} and {second}", 500)
    figure.update_layout(margin={"t": 90})
    return figure


def predicted_figure(front: PredictedFront) -> go.Figure:
    """A predicted front: accuracy with its 95 % interval against each cost."""
    m = len(front.metric_names)
    figure = make_subplots(1, m, shared_yaxes=True, horizontal_spacing=0.06)
    for column, metric in enumerate(front.metric_names, 1):
        figure.add_scatter(
            x=front.costs[:, column - 1], y=front.accuracy, mode="markers", name="predicted",
            showlegend=False, marker={"color": FRONT, "size": 7, "symbol": "diamond"},
            error_y={"array": 1.96 * front.spread, "color": DOMINATED, "thickness": 1},
            hovertemplate="%{x:.4g}: %{y:.4f}<extra></extra>", row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text=title_of(metric), row=1, col=column)
    figure.update_yaxes(title_text="predicted accuracy, 95 % interval", row=1, col=1)
    title = f"Front on {front.device}, predicted from {front.trials} trials"
    return layout(figure, title)


def write_figure(figure: go.Figure, path: Path) -> Path:
    """Writes a figure as a page that needs no network."""
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'></head><body>"
        f"{plotting_script()}{figure_div('figure', figure)}</body></html>"
    )
    replace_file(path, page.encode())
    return path


def _curves(
    found: LayerCosts, pairs: Sequence[tuple[int, int]], metric: int
) -> list[tuple[int, int, str, str]]:
    """(weight index, activation index, name, dash) of each curve; those alike are one."""
    alike: dict[bytes, list[tuple[int, int]]] = {}
    for i, j in pairs:
        values = found.costs[i, j, :, metric]
        if np.isfinite(values).any():
            alike.setdefault(values.tobytes(), []).append((i, j))
    curves = []
    for members in alike.values():
        names = [f"W{found.bits[i]}A{found.bits[j]}" for i, j in members]
        name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} alike"
        dash = _DASHES[members[0][1] % len(_DASHES)] if len(names) == 1 else "solid"
        curves.append((*members[-1], name, dash))
    return curves


def _colour(bits: int) -> str:
    return {2: "#7b3294", 4: "#d9730d", 6: "#5f6368", 8: "#1f5fbf"}.get(bits, "#1b7837")
