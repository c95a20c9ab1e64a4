"""A comparison as a table in Markdown, a picture, and one HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.storages import BaseStorage
from plotly.subplots import make_subplots

from apq_optuna._files import replace_file
from apq_optuna._optuna import PREFIX
from apq_optuna.comparison.judging import RESULT, Judged
from apq_optuna.comparison.methods import METHODS
from apq_optuna.ledger import LedgerOptions
from apq_optuna.report.page import figure_div, plotting_script
from apq_optuna.report.plots import layout, title_of

COLOURS = ["#1f5fbf", "#d9730d", "#1b7837", "#7b3294", "#9aa0a6", "#5f6368", "#b2182b",
           "#2b8a8a", "#8c6d1f", "#444444"]  # fmt: skip
SYMBOLS = ["diamond", "square", "triangle-up", "circle", "cross", "x", "star", "hexagon",
           "triangle-down", "pentagon"]  # fmt: skip

_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em;
       color: #202124; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-size: .92em; }
td, th { padding: .2em .6em; text-align: right; white-space: nowrap; }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left; }
tr:nth-child(even) { background: #f4f6f8; } .quiet { color: #5f6368; }
"""


def results_of(storage: BaseStorage, conditions: str | None = None) -> list[Judged]:
    """Judged cases in a database, by budget, method and seed.

    Args:
        storage: The database.
        conditions: Of the setting; by default all, which need not compare.
    """
    prefix = f"{PREFIX}{RESULT}: "
    found = []
    for summary in optuna.get_all_study_summaries(storage):
        attributes = storage.get_study_system_attrs(summary._study_id)
        found += [Judged(**v) for k, v in attributes.items() if k.startswith(prefix)]
    found = [r for r in found if conditions is None or r.conditions == conditions]
    order = list(METHODS)
    return sorted(found, key=lambda r: (r.metric, -r.limit, order.index(r.method), r.seed))


def cases(results: Sequence[Judged]) -> list[tuple[tuple[str, float, str], list[Judged]]]:
    """Results by (metric, limit, method), seeds together, in their order."""
    groups: dict[tuple[str, float, str], list[Judged]] = {}
    for result in results:
        groups.setdefault((result.metric, result.limit, result.method), []).append(result)
    return list(groups.items())


def rows_of(results: Sequence[Judged], options: LedgerOptions) -> list[list[str]]:
    """The table, header first: a line for each budget and method."""
    names = list(next((r.costs for r in results if r.costs), {}) or {})
    header = ["budget", "method", "test accuracy", "range", "search-validation, confirmed",
              "of the trial", *names, "seconds", "Wh", "g CO2e", "seeds"]  # fmt: skip
    rows = [header]
    for (metric, limit, method), group in cases(results):
        there = [r for r in group if not r.missing]
        start = [f"{metric} {limit:g}", METHODS[method].title]
        if not there:
            rows.append([*start, "none", *[""] * (len(header) - 4), str(len(group))])
            continue
        test = np.array([r.test for r in there])
        seconds = float(np.median([r.seconds for r in there]))
        kwh = options.kwh(seconds)
        rows.append(
            [
                *start, f"{np.median(test):.4f}", f"{test.min():.4f} to {test.max():.4f}",
                f"{np.median([r.confirmed for r in there]):.4f}",
                f"{np.median([r.measured for r in there]):.4f}",
                *(f"{np.median([_cost(r, n) for r in there]):.4f}" for n in names),
                f"{seconds:.0f}", f"{1e3 * kwh:.3g}", f"{kwh * options.grams_per_kwh:.3g}",
                str(len(there)) + f" of {len(group)}" * (len(there) < len(group)),
            ]
        )  # fmt: skip
    return rows


def _cost(result: Judged, name: str) -> float:
    return (result.costs or {}).get(name, float("nan"))


def markdown(
    results: Sequence[Judged],
    options: LedgerOptions | None = None,
    shared: Mapping[str, float] | None = None,
) -> str:
    """The table in Markdown.

    Args:
        results: What `results_of` found.
        options: How energy and CO2 follow from seconds.
        shared: Seconds by name of what was done once for all devices and budgets.
    """
    options = options or LedgerOptions()
    rows = rows_of(results, options)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join([*lines, "", *(f"{line}  " for line in once(results, shared or {}))])


def once(results: Sequence[Judged], shared: Mapping[str, float]) -> list[str]:
    """What is done once for all devices and budgets, a line each."""
    lines = [f"Once for all devices and budgets: {name} {s:.0f} s" for name, s in shared.items()]
    extra: dict[str, float] = {}
    for result in results:
        for name, seconds in (result.shared or {}).items():
            extra[f"{METHODS[result.method].title}: {name}"] = seconds
    return [*lines, *(f"Once, {name} {seconds:.0f} s" for name, seconds in extra.items())]


def comparison_figure(results: Sequence[Judged]) -> go.Figure:
    """Test accuracy of every method against its costs: medians over seeds, and their range."""
    names = list(next((r.costs for r in results if r.costs), {}) or {"latency_ms": 0.0})
    figure = make_subplots(1, len(names), shared_yaxes=True, horizontal_spacing=0.05)
    methods = [m for m in METHODS if any(r.method == m and not r.missing for r in results)]
    for place, method in enumerate(methods):
        groups = [
            [r for r in group if not r.missing]
            for (_, _, name), group in cases(results)
            if name == method
        ]
        groups = [group for group in groups if group]
        test = [np.array([r.test for r in group]) for group in groups]
        for column, name in enumerate(names, 1):
            x = [float(np.median([_cost(r, name) for r in group])) for group in groups]
            y = [float(np.median(t)) for t in test]
            figure.add_scatter(
                x=x, y=y, mode="markers+lines", name=METHODS[method].title, legendgroup=method,
                showlegend=column == 1, line={"width": 1, "dash": "dot"},
                marker={"color": COLOURS[place % len(COLOURS)], "size": 9,
                        "symbol": SYMBOLS[place % len(SYMBOLS)]},
                error_y={"type": "data", "symmetric": False, "thickness": 1, "width": 3,
                         "array": [float(t.max()) - m for t, m in zip(test, y, strict=True)],
                         "arrayminus": [m - float(t.min()) for t, m in zip(test, y, strict=True)]},
                row=1, col=column,
            )  # fmt: skip
            figure.update_xaxes(title_text=title_of(name), row=1, col=column)
    figure.update_yaxes(title_text="test accuracy", row=1, col=1)
    layout(figure, "Accuracy after the same final finetuning: median and range over seeds", 560)
    return figure.update_layout(margin={"b": 170})


def write_page(
    results: Sequence[Judged],
    path: Path,
    *,
    options: LedgerOptions | None = None,
    shared: Mapping[str, float] | None = None,
    about: str = "",
) -> Path:
    """Writes table and picture as one HTML file that needs no network."""
    options = options or LedgerOptions()
    rows = rows_of(results, options)
    cells = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for row, tag in zip(rows, ["th"] + ["td"] * (len(rows) - 1), strict=True)
    )
    missing = dict.fromkeys(
        f"{METHODS[r.method].title}, {r.metric} {r.limit:g}: {r.missing}"
        for r in results
        if r.missing
    )
    notes = [*once(results, shared or {}), *missing]
    document = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Comparison</title>"
        f"<style>{_STYLE}</style></head><body><h1>Comparison</h1><p class='quiet'>"
        f"{html.escape(about)}</p>{plotting_script()}"
        f"<section>{figure_div('comparison', comparison_figure(results))}</section>"
        f"<table>{cells}</table>{''.join(f'<p>{html.escape(n)}</p>' for n in notes)}"
        "<p class='quiet'>Test accuracy: the chosen network after the final finetuning, tested "
        "once. Confirmed: the same network's trial with further seeds, so without the luck of "
        "the pick. Every method measures as many quantized networks, but for the paper's search, "
        "which ends at 84, and uniform bits, which take a predictor's best four; AMC has as many "
        "evaluations without quantization besides. Seconds, energy and CO2: of what a further "
        "device or budget costs (the marginal cost), without the final finetuning, which is the "
        "same for all.</p>"
        "</body></html>"
    )
    replace_file(path, document.encode())
    return path


def shared_seconds(rows: Sequence[Any]) -> dict[str, float]:
    """Seconds by task of a ledger's rows of scope `shared`."""
    found: dict[str, float] = {}
    for row in rows:
        if row.scope == "shared":
            found[row.task] = found.get(row.task, 0.0) + row.wall_s
    return found
