"""Tables and a picture of a transfer race: medians of hypervolume, and what a source saves."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

Key = tuple[str, str, str, int]
"""Target, source, variant and seed of a run."""
Curves = Mapping[Key, np.ndarray]
"""`(trials,)` shares of the best hypervolume up to each trial, by run."""

MARKS = (5, 10, 20, 30, 60)
REACHED = (10, 20, 40, 60)
NO_SOURCE = "-"
BASE = {
    "ours + source": "ours", "ours, known + source": "ours, known", "TPE, enqueued": "TPE",
    "ours + several": "ours", "ours, known + several": "ours, known",
    "ours + several, one unrelated": "ours", "ours + unrelated": "ours",
    "ours, known + unrelated": "ours, known",
}  # fmt: skip
"""Variants with a source, and what they are without."""
COLOURS = {
    "random": "#9aa0a6", "NSGA-II": "#b07aa1", "TPE": "#4e79a7", "TPE multivariate": "#76b7b2",
    "TPE, enqueued": "#4e79a7", "GPSampler": "#f28e2b", "ours": "#d62728",
    "ours, two starts": "#ff9da7", "ours + source": "#d62728", "ours, known": "#59a14f",
    "ours, known + source": "#59a14f",
    "ours + several": "#9c755f", "ours, known + several": "#b6992d",
    "ours + several, one unrelated": "#d4a6c8", "ours + unrelated": "#e6b800",
    "ours, known + unrelated": "#f1ce63",
}  # fmt: skip


def shares_table(curves: Curves, variants: Iterable[str], marks: list[int]) -> str:
    """Median share at the marks, over targets, sources and seeds."""
    lines = [
        f"| variant | runs | {' | '.join(map(str, marks))} |",
        "|" + "---|" * (len(marks) + 2),
    ]
    for variant in variants:
        mine = np.array([curve for key, curve in curves.items() if key[2] == variant])
        middle = " | ".join(f"{np.median(mine[:, m - 1]):.3f}" for m in marks)
        lines.append(f"| {variant} | {len(mine)} | {middle} |")
    return "\n".join(lines)


def saved_table(curves: Curves, variants: Iterable[str], marks: list[int]) -> str:
    """Of variants with a source, beside the same without: how much sooner and higher they are.

    A run is beside that without a source of its target and seed, and is left out where there is
    none. Trials are to what the other has after `REACHED`; the median counts a run that never has
    as much as infinite. A pair of target and source has lost at a mark where its mean difference
    over seeds is below 0 by more than twice its standard error.
    """
    end = marks[-1]
    reached = [mark for mark in REACHED if mark <= end]
    lines = [
        f"| variant | without | runs | trials to what that has after {_listed(reached)} "
        f"| difference at {_listed(marks)} | pairs | of them lost at {_listed(marks)} |",
        "|" + "---|" * 7,
    ]
    for variant in variants:
        pairs: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
        for (target, source, name, seed), curve in curves.items():
            base = curves.get((target, NO_SOURCE, BASE.get(variant, ""), seed))
            if name == variant and base is not None:
                pairs.setdefault((target, source), []).append((curve[:end], base[:end]))
        if not pairs:
            continue
        both = np.array([each for found in pairs.values() for each in found])  # (runs, 2, n)
        until = [_middle([_first(curve, base[m - 1]) for curve, base in both]) for m in reached]
        columns = [m - 1 for m in marks]
        off = (both[:, 0] - both[:, 1])[:, columns].mean(axis=0)
        lost = np.zeros(len(marks), int)
        for found in pairs.values():
            apart = np.array([curve - base for curve, base in found])[:, columns]
            if len(apart) > 1:
                error = apart.std(axis=0, ddof=1) / len(apart) ** 0.5
                lost += apart.mean(axis=0) < -2 * error
        lines.append(
            f"| {variant} | {BASE[variant]} | {len(both)} "
            f"| {_listed(f'{u:.0f}' if np.isfinite(u) else f'over {end}' for u in until)} "
            f"| {_listed(f'{o:+.3f}' for o in off)} | {len(pairs)} | {_listed(lost)} |"
        )
    return "\n".join(lines)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _first(curve: np.ndarray, level: float) -> float:
    """Trials to a level; infinite where it is never reached."""
    there = np.flatnonzero(curve >= level)
    return float(there[0] + 1) if len(there) else np.inf


def _middle(values: list[float]) -> float:
    """The median, of an even number the lower one: infinite ones have no mean."""
    return sorted(values)[(len(values) - 1) // 2]


def draw(curves: Curves, variants: Iterable[str], family: str) -> go.Figure:
    """Medians over sources and seeds against trials, a panel a target; with a source dashed."""
    targets = list(dict.fromkeys(key[0] for key in curves))
    columns = 2 if len(targets) <= 4 else 4
    rows = -(-len(targets) // columns)
    titles = [target.replace("_", " ") for target in targets]
    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.14)
    for i, target in enumerate(targets):
        for variant in variants:
            mine = [
                curve for key, curve in curves.items() if (key[0], key[2]) == (target, variant)
            ]
            if not mine:
                continue
            middle = np.median(mine, axis=0)
            figure.add_scatter(
                x=np.arange(1, len(middle) + 1), y=middle, name=variant, legendgroup=variant,
                showlegend=i == 0, mode="lines", row=i // columns + 1, col=i % columns + 1,
                line={
                    "color": COLOURS[variant], "width": 2.5 if variant.startswith("ours") else 1.4,
                    "dash": "dash" if variant in BASE else "solid",
                },
            )  # fmt: skip
    figure.update_xaxes(title_text="trials", row=rows)
    figure.update_layout(
        template="plotly_white", width=1200, height=110 + 320 * rows,
        title=f"{family}: share of the best hypervolume, median over sources and seeds",
    )  # fmt: skip
    return figure


def summarise(curves: Curves, family: str, variants: Iterable[str], out: Path) -> None:
    """Prints the tables and writes transfer-FAMILY.html below `out`, .png where kaleido is."""
    there = {key[2] for key in curves}
    variants = [variant for variant in variants if variant in there]
    if not variants:
        return
    trials = min(len(curve) for curve in curves.values())
    curves = {key: curve[:trials] for key, curve in curves.items()}
    marks = [mark for mark in MARKS if mark <= trials] or [trials]
    print(f"\n{family}, median share of the best hypervolume after trials:\n")
    print(shares_table(curves, variants, marks))
    print(f"\n{family}, beside the same without a source:\n")
    print(saved_table(curves, variants, marks))
    figure = draw(curves, variants, family)
    figure.write_html(out / f"transfer-{family}.html", include_plotlyjs=True)
    if importlib.util.find_spec("kaleido") is not None:
        figure.write_image(out / f"transfer-{family}.png")
