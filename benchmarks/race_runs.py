"""The runs of a race as they are read back: hypervolume after each trial, and what asking took."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from race_base import Values
from race_peers import PEERS
from race_problems import SYNTHETIC, TUNING

import apq_optuna as apq
from apq_optuna.search import hypervolume

OURS = ("ours", "ours, no source")
PROBLEMS = ("digits", "cifar10", "own", *SYNTHETIC, *TUNING)
MARKS = (10, 20, 50, 100)
"""Numbers of trials at which samplers are compared."""


@dataclass(frozen=True)
class Runs:
    """All seeds of one sampler on one problem, cut to the shortest.

    Attributes:
        curves: `(seeds, trials)` hypervolume after each trial, as a share of the box.
        asking: `(seeds, trials)` seconds in the sampler up to the end of each trial.
        seconds: `(seeds,)` of whole runs, evaluations included.
    """

    curves: np.ndarray
    asking: np.ndarray
    seconds: np.ndarray

    @property
    def trials(self) -> int:
        return self.curves.shape[1]

    def at(self, mark: int) -> np.ndarray | None:
        """`(seeds,)` shares after so many trials; None where runs were shorter."""
        return self.curves[:, mark - 1] if mark <= self.trials else None

    @property
    def per_ask(self) -> float:
        """Median seconds of asking per trial."""
        return float(np.median(self.asking[:, -1]) / self.trials)


Box = tuple[np.ndarray, Values, Values]
"""Signs of the objectives, reference and ideal."""


def told_box(run: dict[str, Any]) -> Box | None:
    """The box that a run says of its own problem; older runs say none."""
    if "reference" not in run:
        return None
    signs = np.array([1.0 if d == "minimize" else -1.0 for d in run["directions"]])
    return signs, tuple(run["reference"]), tuple(run["ideal"])


@cache
def box(problem: str) -> Box:
    """Signs of the objectives, reference and ideal of a problem."""
    if problem in SYNTHETIC or problem in TUNING:
        p = {**SYNTHETIC, **TUNING}[problem]()
        signs = np.array([1.0 if d == "minimize" else -1.0 for d in p.directions])
        return signs, p.reference, p.ideal
    space = apq.SearchSpace.preset(problem)
    device = apq.hardware.bitfusion_small() if problem == "digits" else apq.hardware.bitfusion()
    maxima = device.table(space).compile(space).maxima
    return np.array([-1.0, 1.0, 1.0]), (0.1, *map(float, maxima)), (1.0, 0.0, 0.0)


def curve(
    values: Sequence[Sequence[float]],
    problem: str,
    constraints: Sequence[Sequence[float]] | None = None,
    told: Box | None = None,
) -> np.ndarray:
    """`(trials,)` hypervolume after each trial, as a share of the box from reference to ideal.

    Only trials that keep all constraints (no value above 0) count. Each adds its own box less what
    the trials before it cover of that, which is quicker than all of them anew.
    """
    signs, reference, ideal = told or box(problem)
    points, corner = np.array(values) * signs, np.array(reference) * signs
    whole = float(np.prod(corner - np.array(ideal) * signs))
    counts = (points < corner).all(axis=1)
    if constraints is not None:
        counts &= (np.array(constraints) <= 0).all(axis=1)
    gains = np.zeros(len(points))
    for k in np.flatnonzero(counts):
        covered = np.maximum(points[:k][counts[:k]], points[k])
        if not (covered == points[k]).all(axis=1).any():
            gains[k] = np.prod(corner - points[k]) - hypervolume(covered, corner)
    return np.cumsum(gains) / whole


def _read(files: Sequence[Path]) -> Runs:
    curves, asking, seconds = [], [], []
    for path in files:
        r = json.loads(path.read_text())
        curves.append(curve(r["values"], r["problem"], r.get("constraints"), told_box(r)))
        n = len(r["values"])
        # runs of before asking was timed: all of it, the cheap evaluations included
        even = np.arange(1, n + 1) * (r["seconds"] / n)
        asking.append(np.array(r["asking"]) if "asking" in r else even)
        seconds.append(r["seconds"])
    shortest = min(map(len, curves))
    return Runs(
        np.array([c[:shortest] for c in curves]),
        np.array([a[:shortest] for a in asking]),
        np.array(seconds),
    )


def read(out: Path) -> dict[str, dict[str, Runs]]:
    """Every run below a folder by problem and sampler, in the order of `PROBLEMS` and peers."""
    files: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((out / "runs").glob("*.json")):
        r = json.loads(path.read_text())
        files[r["problem"]][r["sampler"]].append(path)
    order = [*PEERS, *OURS]
    return {
        problem: {
            sampler: _read(files[problem][sampler])
            for sampler in sorted(
                files[problem], key=lambda n: order.index(n) if n in order else len(order)
            )
        }
        for problem in PROBLEMS
        if problem in files
    }
