"""The picture of the OptunaHub page: the heat sink of the example, by several samplers.

    python hub/picture.py       needs kaleido, which is no part of the development environment

Left is the hypervolume against trials, right what one seed found in all of them. It takes a few
minutes, most of them GPSampler's, and prints the medians.
"""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.samplers import BaseSampler
from plotly.subplots import make_subplots

from apq_optuna.search import hypervolume, nondominated

HUB = Path(__file__).resolve().parent / "samplers" / "apq"
REFERENCE = np.array([2.0, 100.0])  # kg, K
TRIALS, SEEDS, MARKS = 50, 5, (10, 20, 30, 50)

example = runpy.run_path(str(HUB / "example.py"))
SAMPLERS: dict[str, tuple[str, Callable[[int], BaseSampler]]] = {
    "random": ("#9aa0a6", lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "NSGA-II": (
        "#b07aa1",
        lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    ),
    "TPE": ("#4e79a7", lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "GPSampler": ("#f28e2b", lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "APQSampler": (
        "#d62728",
        lambda seed: example["module"].APQSampler(known={0: example["mass_kg"]}, seed=seed),
    ),
}


def values_of(make: Callable[[int], BaseSampler], seed: int) -> np.ndarray:
    """`(TRIALS, 2)` kg and K of one study."""
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=make(seed))
    study.optimize(example["measure"], n_trials=TRIALS)
    return np.array([trial.values for trial in study.trials])


def growth(values: np.ndarray) -> list[float]:
    """Share of the box below the reference, after each trial."""
    box = float(REFERENCE.prod())
    return [hypervolume(values[: n + 1], REFERENCE) / box for n in range(len(values))]


def draw(studies: dict[str, list[np.ndarray]]) -> go.Figure:
    titles = (f"Hypervolume, median and quartiles of {SEEDS} seeds", f"{TRIALS} trials, one seed")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    for name, (colour, _) in SAMPLERS.items():
        curves = np.array([growth(values) for values in studies[name]])
        low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
        x = np.arange(1, TRIALS + 1)
        line = {"color": colour, "width": 3 if name == "APQSampler" else 1.8}
        figure.add_scatter(
            x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", showlegend=False,
            line={"width": 0}, fillcolor=colour, opacity=0.12, row=1, col=1,
        )  # fmt: skip
        figure.add_scatter(x=x, y=middle, mode="lines", name=name, line=line, row=1, col=1)
        values = studies[name][0]
        front = values[nondominated(values)]
        front = front[np.argsort(front[:, 0])]
        figure.add_scatter(
            x=front[:, 0], y=front[:, 1], mode="lines+markers", showlegend=False, row=1, col=2,
            line=line | {"shape": "hv"}, marker={"color": colour, "size": 7},
        )  # fmt: skip
    figure.update_xaxes(title_text="trials", row=1, col=1)
    figure.update_yaxes(title_text="share of 2 kg x 100 K", range=[0.4, 0.82], row=1, col=1)
    figure.update_xaxes(title_text="mass, kg", range=[0, 1.2], row=1, col=2)
    figure.update_yaxes(title_text="temperature rise, K", range=[0, 100], row=1, col=2)
    figure.update_layout(
        template="plotly_white", width=1100, height=440, font={"size": 14},
        legend={"orientation": "h", "y": -0.2}, margin={"l": 70, "r": 20, "t": 50, "b": 40},
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    studies = {
        name: [values_of(make, seed) for seed in range(SEEDS)]
        for name, (_, make) in SAMPLERS.items()
    }
    print("| sampler |" + "".join(f" {mark} trials |" for mark in MARKS))
    print("|---|" + "---|" * len(MARKS))
    for name, each in studies.items():
        median = np.median([growth(values) for values in each], axis=0)
        print(f"| {name} |" + "".join(f" {median[mark - 1]:.3f} |" for mark in MARKS))
    draw(studies).write_image(HUB / "images" / "heat_sink.png")
