"""Checks the race's problems against points that are known to be on their fronts.

    python benchmarks/race_check.py

Prints a line a check and stops at the first that fails. Takes a few seconds; needs Optuna 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
import race_published as published
from optuna.samplers import RandomSampler
from race_base import Evaluate, Values
from race_problems import SYNTHETIC, TUNING
from race_runs import curve

from apq_optuna.search import hypervolume


def at(evaluate: Evaluate, x: Sequence[float]) -> tuple[Values, dict[str, float]]:
    """Values and constraints of a published problem at a point of the unit box."""
    params = {f"x{i:02d}": float(value) for i, value in enumerate(x)}
    trial = optuna.trial.FixedTrial(params)
    return evaluate(trial), dict(trial.constraints)  # type: ignore[arg-type]


def near(what: str, found: object, expected: object, tolerance: float = 1e-6) -> None:
    """Stops where two numbers, or two rows of them, differ."""
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance, err_msg=what)
    print("as expected:", what)


def fronts() -> None:
    """Points on the fronts of problems that have one in closed form."""
    half = [0.5] * 10
    near("ZDT1 has 1 - sqrt(f)", at(published.zdt(1), [0.25] + [0] * 29)[0], (0.25, 0.5))
    near("ZDT2 has 1 - f^2", at(published.zdt(2), [0.5] + [0] * 29)[0], (0.5, 0.75))
    near("ZDT3's wave", at(published.zdt(3), [0.25] + [0] * 29)[0], (0.25, 0.25))
    near("ZDT4 has 1 - sqrt(f)", at(published.zdt(4, 8), [0.25, *half[:7]])[0], (0.25, 0.5))
    f, g = at(published.zdt(6, 10), [0.1] + [0] * 9)[0]
    near("ZDT6 has 1 - f^2", g, 1 - f**2)
    near("DTLZ1 adds up to 0.5", sum(at(published.dtlz1(), [0.3, 0.6, *half[:5]])[0]), 0.5)
    for m, x in ((3, [0.3, 0.6]), (4, [0.3, 0.6, 0.1])):
        values = at(published.dtlz2(12, m), x + half[: 13 - m])[0]
        near(f"DTLZ2 of {m} lies on the sphere", np.square(values).sum(), 1.0)
    *fs, last = at(published.dtlz7(), [0.3, 0.6] + [0] * 6)[0]
    near("DTLZ7's front", last, 6 - sum(f * (1 + np.sin(3 * np.pi * f)) for f in fs))
    values = np.array(at(published.wfg4(), [0.3, 0.2] + [0.35] * 6)[0])
    near("WFG4's front", ((values / [2, 4, 6]) ** 2).sum(), 1.0)


def constraints() -> None:
    """C2-DTLZ2 allows the ends of the axes and the middle of the front, and nothing between."""
    half = [0.5] * 10
    middle = 2 / np.pi * np.arcsin(3**-0.5)
    for x, value in (
        ((0, 0), -0.16), ((0, 1), -0.16), ((1, 0.5), -0.16), ((middle, 0.5), -0.16),
        ((0, 0.5), 0.20700684), ((0.5, 0), 0.20700684), ((0.5, 1), 0.20700684),
    ):  # fmt: skip
        values, broken = at(published.c2dtlz2(), [*x, *half])
        near(f"C2-DTLZ2 at {np.round(values, 3)}", broken["c2"], value)
        near("  a point of the front", np.square(values).sum(), 1.0)
    size = [(0.2444 - 0.125) / 4.875, 6.1187 / 9.9, 8.1915 / 9.9, (0.2444 - 0.125) / 4.875]
    values, broken = at(published.welded, size)
    near("the cheapest welded beam", values[0], 2.3815, 1e-4)
    near("  which keeps all limits", max(0.0, *broken.values()), 0.0)


def others() -> None:
    """Single optima, and what every problem has to have."""
    best = [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]
    near("Hartmann's least value", at(published.hartmann6, best)[0], (-3.32237,), 1e-5)
    branin = at(published.branin_currin, [(np.pi + 5) / 15, 2.275 / 15])[0][0]
    near("Branin's least value", branin, 0.397887, 1e-5)
    near("the lightest truss", at(published.truss, [0] * 4)[0], (1237.8414, 0.04))
    near("the stiffest truss", at(published.truss, [1, 1, 0, 1])[0], (2886.36956, 0.00276142))
    for name, make in {**SYNTHETIC, **TUNING}.items():
        problem = make()
        study = optuna.create_study(directions=problem.directions, sampler=RandomSampler(seed=0))
        study.optimize(problem.evaluate, n_trials=200)
        values = [trial.values for trial in study.trials]
        assert problem.name == name
        assert all(set(t.constraints) == set(problem.constraints) for t in study.trials), name
        kept = [all(v <= 0 for v in trial.constraints.values()) for trial in study.trials]
        held = np.array(values)[kept][:100]
        assert (held >= problem.ideal).all(), f"{name}: beyond its ideal"
        corner, whole = np.array(problem.reference), np.subtract(problem.reference, problem.ideal)
        near(f"{name}: {np.mean(kept):.0%} of random points count, and their hypervolume",
             curve(held.tolist(), name)[-1],
             hypervolume(held, corner) / whole.prod())  # fmt: skip


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    fronts()
    constraints()
    others()
