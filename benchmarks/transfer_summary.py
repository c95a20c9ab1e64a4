"""Tables and a picture of a transfer race: medians of hypervolume, and what a source saves."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

Key = tuple[str, str, str, int]
"""Target, source, variant and seed of a run."""
Curves = Mapping[Key, np.ndarray]
"""`(trials,)` shares of the best hypervolume up to each trial, by run."""

MARKS = (5, 10, 20, 30, 60)
NO_SOURCE = "-"
BASE = {
    "ours + source": "ours", "ours, known + source": "ours, known", "TPE, enqueued": "TPE",
    "ours + several": "ours", "ours + unrelated": "ours",
}  # fmt: skip
"""Variants with a source, and what they are without."""
COLOURS = {
    "random": "#9aa0a6", "NSGA-II": "#b07aa1", "TPE": "#4e79a7", "TPE multivariate": "#76b7b2",
    "TPE, enqueued": "#4e79a7", "GPSampler": "#f28e2b", "ours": "#d62728",
    "ours + source": "#d62728", "ours, known": "#59a14f", "ours, known + source": "#59a14f",
    "ours + several": "#9c755f", "ours + unrelated": "#e6b800",
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
    """Of variants with a source: trials to what the same has without, and pairs that lost.

    A run is beside that without a source of its target and seed, and is left out where there is
    none. A run that never has as much counts as infinite in the median. A pair of target and
    source has lost at a mark where its median over seeds is below.
    """
    end = marks[-1]
    lines = [
        f"| variant | without | runs | trials to what that has after {end} | never | pairs "
        f"| pairs below it at {', '.join(map(str, marks))} |",
        "|" + "---|" * 7,
    ]
    for variant in variants:
        pairs: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
        for (target, source, name, seed), curve in curves.items():
            base = curves.get((target, NO_SOURCE, BASE.get(variant, ""), seed))
            if name == variant and base is not None:
                pairs.setdefault((target, source), []).append((curve, base))
        if not pairs:
            continue
        until = []
        for curve, base in (both for found in pairs.values() for both in found):
            reached = np.flatnonzero(curve[:end] >= base[end - 1])
            until.append(reached[0] + 1 if len(reached) else np.inf)
        each = np.array([np.median(found, axis=0) for found in pairs.values()])  # (pairs, 2, n)
        lost = (each[:, 0] < each[:, 1]).mean(axis=0)
        middle = np.sort(until)[(len(until) - 1) // 2]  # the lower one: of no two a mean
        shown = f"{middle:.0f}" if np.isfinite(middle) else f"over {end}"
        lines.append(
            f"| {variant} | {BASE[variant]} | {len(until)} | {shown} | {np.isinf(until).sum()} "
            f"| {len(pairs)} | {', '.join(f'{lost[m - 1]:.2f}' for m in marks)} |"
        )
    return "\n".join(lines)


def draw(curves: Curves, variants: Iterable[str], family: str) -> go.Figure:
    """Medians against trials; with a source dashed."""
    figure = go.Figure()
    for variant in variants:
        mine = np.array([curve for key, curve in curves.items() if key[2] == variant])
        figure.add_scatter(
            x=np.arange(1, mine.shape[1] + 1), y=np.median(mine, axis=0), name=variant,
            mode="lines", line={
                "color": COLOURS[variant], "width": 3 if variant.startswith("ours") else 1.6,
                "dash": "dash" if variant in BASE else "solid",
            },
        )  # fmt: skip
    figure.update_xaxes(title_text="trials")
    figure.update_layout(
        template="plotly_white", width=900, height=560,
        title=f"{family}: share of the best hypervolume, median over data sets and seeds",
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
