"""Table, JSON and picture of the runs of a sampler race."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from race_problems import SYNTHETIC, Values

import apq_optuna as apq
from apq_optuna.search import hypervolume

OURS = ("ours", "ours, no source")
COLOURS = {
    "random": "#9aa0a6", "NSGA-II": "#b07aa1", "TPE": "#4e79a7", "TPE multivariate": "#76b7b2",
    "GPSampler": "#f28e2b", "ours": "#d62728", "ours, no source": "#59a14f",
}  # fmt: skip


def box(problem: str) -> tuple[np.ndarray, Values, Values]:
    """Signs of the objectives, reference and ideal of a problem."""
    if problem in SYNTHETIC:
        p = SYNTHETIC[problem]()
        return np.ones(len(p.directions)), p.reference, p.ideal
    space = apq.SearchSpace.preset(problem)
    device = apq.hardware.bitfusion_small() if problem == "digits" else apq.hardware.bitfusion()
    maxima = device.table(space).compile(space).maxima
    return np.array([-1.0, 1.0, 1.0]), (0.1, *map(float, maxima)), (1.0, 0.0, 0.0)


def curve(values: list[list[float]], problem: str) -> np.ndarray:
    """Hypervolume after each trial, as a share of the box from reference to ideal."""
    signs, reference, ideal = box(problem)
    points, corner = np.array(values) * signs, np.array(reference) * signs
    whole = float(np.prod(corner - np.array(ideal) * signs))
    return np.array([hypervolume(points[: k + 1], corner) / whole for k in range(len(points))])


def summarise(out: Path) -> None:
    """Reads every run below `out`; writes race.json, race.md and race.png."""
    curves: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((out / "runs").glob("*.json")):
        r = json.loads(path.read_text())
        curves[r["problem"]][r["sampler"]].append(curve(r["values"], r["problem"]))
        seconds[r["problem"]][r["sampler"]].append(r["seconds"])
    found: list[dict[str, Any]] = []
    lines = []
    for problem in [*(p for p in ("digits", "cifar10") if p in curves), *SYNTHETIC]:
        if problem not in curves:
            continue
        final = {n: float(np.median([c[-1] for c in cs])) for n, cs in curves[problem].items()}
        peers = {name: value for name, value in final.items() if name not in OURS}
        best = max(peers, key=lambda name: peers[name])
        for name in [name for name in COLOURS if name in final]:
            each = np.array(curves[problem][name])
            reached = [
                float(np.argmax(c >= peers[best]) + 1) if (c >= peers[best]).any() else np.inf
                for c in each
            ]
            low, high = np.quantile(each[:, -1], [0.25, 0.75])
            needed = float(np.median(reached))
            found.append(
                {
                    "problem": problem, "sampler": name, "seeds": len(each),
                    "trials": each.shape[1], "median": final[name],
                    "quartiles": [float(low), float(high)], "best peer": best,
                    "trials to the best peer's final": needed if np.isfinite(needed) else None,
                    "seconds of a run": float(np.median(seconds[problem][name])),
                    "curve": np.median(each, axis=0).round(5).tolist(),
                }
            )  # fmt: skip
            star = "**" if final[name] == max(final.values()) else ""
            needed_text = f"{needed:.0f}" if np.isfinite(needed) else "-"
            lines.append(
                f"| {problem} | {name} | {star}{final[name]:.4f}{star} ({low:.4f} to {high:.4f}) "
                f"| {needed_text} |"
            )
    head = "| problem | sampler | final hypervolume, median (quartiles) | trials to best peer's |"
    table = "\n".join([head, "|---|---|---|---|", *lines])
    print(table)
    (out / "race.md").write_text(table + "\n")
    (out / "race.json").write_text(json.dumps(found, indent=1))
    draw(curves).write_image(out / "race.png") if _has_kaleido() else draw(curves).write_html(
        out / "race.html", include_plotlyjs=True
    )


def _has_kaleido() -> bool:
    import importlib.util

    return importlib.util.find_spec("kaleido") is not None


def draw(curves: dict[str, dict[str, list[np.ndarray]]]) -> go.Figure:
    """Medians with quartiles, one panel a problem."""
    problems = [p for p in ("digits", "cifar10", *SYNTHETIC) if p in curves]
    columns = 4
    rows = -(-len(problems) // columns)
    figure = make_subplots(rows, columns, subplot_titles=problems, vertical_spacing=0.12)
    for i, problem in enumerate(problems):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        for name, colour in COLOURS.items():
            if name not in curves[problem]:
                continue
            each = np.array(curves[problem][name])
            x = np.arange(1, each.shape[1] + 1)
            low, middle, high = np.quantile(each, [0.25, 0.5, 0.75], axis=0)
            red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
            figure.add_scatter(
                x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", showlegend=False,
                line={"width": 0}, fillcolor=f"rgba({red},{green},{blue},0.12)",
                hoverinfo="skip", **at,
            )  # fmt: skip
            figure.add_scatter(
                x=x, y=middle, name=name, legendgroup=name, showlegend=i == 0,
                line={"color": colour, "width": 3 if name == "ours" else 1.6}, **at,
            )  # fmt: skip
        top = max(float(np.max(c)) for each in curves[problem].values() for c in each)
        bottom = min(float(c[9]) for each in curves[problem].values() for c in each)
        figure.update_yaxes(range=[bottom, top + 0.03 * (top - bottom)], **at)
    figure.update_xaxes(title_text="trials")
    figure.update_layout(
        template="plotly_white", width=1500, height=420 * rows, legend={"orientation": "h"},
        title="Hypervolume (share of the box), median and quartiles over seeds",
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    import sys

    summarise(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/race"))
