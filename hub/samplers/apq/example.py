"""A heat sink before a fan, light and cool: its mass is known, its temperature is measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import optunahub

ROOT = str(Path(__file__).resolve().parents[2])
# from this folder; from the registry it is optunahub.load_module("samplers/apq")
module = optunahub.load_local_module("samplers/apq", registry_root=ROOT)
WIDTH, WATTS, PASCAL = 0.1, 150.0, 60.0  # m, also in depth; heat; the fan's pressure at rest
CONDUCTIVITY = {"aluminium": 201.0, "copper": 390.0}  # W/(m K)


def mass_kg(p: Mapping[str, Any]) -> Any:
    """Of one set of parameters, or `(n,)` of `n` at once as arrays: this is what is known."""
    metal = p["fins"] * p["thickness_mm"] * p["height_mm"] * 1e-6 + WIDTH * p["base_mm"] * 1e-3
    return np.where(np.asarray(p["material"]) == "copper", 8960, 2700) * metal * WIDTH


def temperature_k(p: Mapping[str, Any]) -> float:
    """Rise above the incoming air: laminar flow between fins, as much as the fan can drive."""
    height, thickness = p["height_mm"] * 1e-3, p["thickness_mm"] * 1e-3
    air = WIDTH - p["fins"] * thickness
    gap = air / (p["fins"] - 1)
    linear, square = 2.2e-4 * WIDTH / gap**2, 0.9 + PASCAL * (air * height / 0.02) ** 2
    speed = (np.sqrt(linear**2 + 4 * square * PASCAL) - linear) / (2 * square)
    reynolds = speed * gap**2 / (1.6e-5 * WIDTH)
    entry = 0.59 * np.sqrt(reynolds * (1 + 3.65 / np.sqrt(reynolds)))
    transfer = 0.026 / gap * ((0.355 * reynolds) ** -3 + entry**-3) ** (-1 / 3)  # W/(m2 K)
    m = height * np.sqrt(2 * transfer / (CONDUCTIVITY[p["material"]] * thickness))
    surface = WIDTH * (air + 2 * p["fins"] * height * np.tanh(m) / m)
    base = p["base_mm"] * 1e-3 / (CONDUCTIVITY[p["material"]] * WIDTH**2)
    return float(WATTS * (1 / (transfer * surface) + base))


def measure(trial: optuna.Trial) -> tuple[float, float]:
    trial.suggest_int("fins", 5, 60)
    trial.suggest_float("height_mm", 5.0, 60.0)
    trial.suggest_float("thickness_mm", 0.4, 1.5, step=0.1)
    trial.suggest_float("base_mm", 2.0, 12.0)
    trial.suggest_categorical("material", list(CONDUCTIVITY))
    return float(mass_kg(trial.params)), temperature_k(trial.params)


if __name__ == "__main__":
    sampler = module.APQSampler(known={0: mass_kg}, seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(measure, n_trials=int(sys.argv[1]) if len(sys.argv) > 1 else 40)
    for t in sorted(study.best_trials, key=lambda t: t.values):
        sink = "{fins} fins {height_mm:.0f} x {thickness_mm:.1f} mm on {base_mm:.1f} mm {material}"
        print(f"{t.values[0]:.3f} kg {t.values[1]:5.1f} K  {sink.format(**t.params)}")
