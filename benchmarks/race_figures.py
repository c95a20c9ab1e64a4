"""Pictures of a race: hypervolume against trials, and against the seconds that asking took.

    python benchmarks/race_figures.py [--out studies/figures]    # medians of results/race.json

`sampler_race.py` draws its own runs with quartiles; the rows kept in `results/` have the medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from race_runs import Runs

COLOURS = {
    "random": "#9aa0a6", "NSGA-II": "#b07aa1", "TPE": "#4e79a7", "TPE multivariate": "#76b7b2",
    "GPSampler": "#f28e2b", "BoTorch": "#9c755f", "SMAC": "#e6b800", "ours": "#d62728",
    "ours, no source": "#59a14f",
}  # fmt: skip
COLUMNS = 4


def _rgba(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def kept(path: Path) -> dict[str, dict[str, Runs]]:
    """The rows of a race.json as runs: one "seed" each, which is the median of all."""
    race: dict[str, dict[str, Runs]] = defaultdict(dict)
    for row in json.loads(path.read_text()):
        # rows of before asking was timed: all seconds, the evaluations included
        even = row["seconds of a run"] / row["trials"]
        asking = row.get("asking") or [even * (n + 1) for n in range(row["trials"])]
        race[row["problem"]][row["sampler"]] = Runs(
            np.array([row["curve"]]), np.array([asking]), np.array([row["seconds of a run"]])
        )
    return race


def draw(race: dict[str, dict[str, Runs]], *, seconds: bool = False) -> go.Figure:
    """Medians, with quartiles where there are several seeds, one panel a problem.

    Args:
        race: Runs by problem and sampler.
        seconds: Against the median seconds of asking so far, on a logarithmic axis, instead of
            against trials.
    """
    problems = list(race)
    columns = min(COLUMNS, len(problems))
    rows = -(-len(problems) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=problems, vertical_spacing=0.28 / rows if rows > 1 else 0.1
    )
    named: set[str] = set()
    for i, problem in enumerate(problems):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        samplers = race[problem]
        for name, runs in samplers.items():
            colour = COLOURS.get(name, "#000000")
            x = np.arange(1, runs.trials + 1, dtype=float)
            if seconds:
                x = np.maximum(np.median(runs.asking, axis=0), 1e-4)
            low, middle, high = np.quantile(runs.curves, [0.25, 0.5, 0.75], axis=0)
            figure.add_scatter(
                x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", showlegend=False,
                line={"width": 0}, fillcolor=_rgba(colour, 0.12), hoverinfo="skip",
                legendgroup=name, **at,
            )  # fmt: skip
            figure.add_scatter(
                x=x, y=middle, name=name, legendgroup=name, showlegend=name not in named,
                mode="lines", line={"color": colour, "width": 3 if name == "ours" else 1.6}, **at,
            )  # fmt: skip
            named.add(name)
        top = max(float(runs.curves.max()) for runs in samplers.values())
        start = [
            float(runs.curves[:, min(9, runs.trials - 1)].min()) for runs in samplers.values()
        ]
        bottom = min(start) if min(start) < top else 0.0
        figure.update_yaxes(range=[bottom, top + 0.03 * (top - bottom)], **at)
    axis = "seconds of asking" if seconds else "trials"
    kind = {"type": "log", "dtick": 1} if seconds else {"type": "linear"}
    figure.update_xaxes(title_text=axis, **kind)
    several = any(len(runs.curves) > 1 for samplers in race.values() for runs in samplers.values())
    shown = "median and quartiles over seeds" if several else "median over seeds"
    figure.update_layout(
        template="plotly_white", width=375 * max(columns, 2), height=100 + 340 * rows,
        legend={"orientation": "h", "y": -0.22 / rows, "yanchor": "top"},
        title=f"Hypervolume (share of the box) against {axis}, {shown}",
    )  # fmt: skip
    return figure


def write(race: dict[str, dict[str, Runs]], out: Path) -> None:
    """race.png and race-seconds.png below `out`; as HTML where kaleido is not installed."""
    if not race:
        return
    for name, seconds in (("race", False), ("race-seconds", True)):
        figure = draw(race, seconds=seconds)
        if importlib.util.find_spec("kaleido") is not None:
            figure.write_image(out / f"{name}.png")
        else:
            figure.write_html(out / f"{name}.html", include_plotlyjs=True)


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=here / "results" / "race.json")
    parser.add_argument("--out", type=Path, default=Path("runs/race"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(kept(arguments.rows), arguments.out)


if __name__ == "__main__":
    main()
