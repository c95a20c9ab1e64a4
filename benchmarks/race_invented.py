"""Problems of our own, of mixed and of conditional parameters; every objective is to be small."""

from __future__ import annotations

from itertools import product

import numpy as np
import optuna
from race_base import Problem, Values, minimised

MATERIALS = {"steel": (1.0, 1.0), "alloy": (0.7, 1.6), "resin": (1.5, 0.5), "glass": (1.2, 0.9)}


def beam(trial: optuna.Trial) -> Values:
    """A mixed-integer problem: sag against price of a braced beam, both to be small.

    Two categorical, four integer, one logarithmic and three linear parameters; the braces exist
    only in a braced beam.
    """
    sag, price = MATERIALS[trial.suggest_categorical("material", sorted(MATERIALS))]
    layers = trial.suggest_int("layers", 1, 12)
    height = trial.suggest_float("height", 0.1, 1.0)
    width = trial.suggest_float("width", 0.05, 0.5)
    cure = trial.suggest_float("cure", 1e-3, 1.0, log=True)
    bolts = trial.suggest_int("bolts", 2, 40, step=2)
    profile = trial.suggest_categorical("profile", ["box", "I", "solid"])
    form, mass = {"box": (1.3, 0.6), "I": (1.0, 0.7), "solid": (0.9, 1.4)}[profile]
    stiffness = layers**0.7 * height**2 * width / (sag * form)
    stiffness *= np.exp(-0.3 * np.log10(cure / 0.03) ** 2)
    cost = price * mass * layers * height * width + 0.004 * bolts + 0.05 * abs(np.log10(cure))
    stiffness *= 1 - np.exp(-bolts / 8)
    if trial.suggest_categorical("braced", [False, True]):
        braces = trial.suggest_int("braces", 1, 6)
        tilt = trial.suggest_float("tilt", 10.0, 80.0)
        stiffness *= 1 + 0.25 * np.sqrt(braces) * np.sin(np.radians(2 * tilt)) ** 2
        cost += 0.03 * braces
    return float(1 / (0.2 + stiffness)), float(cost)


STEELS = {  # allowed MPa, thousands per m^3, W per m and kelvin
    "carbon": (80.0, 16.0, 50.0), "stainless": (130.0, 30.0, 16.0),
    "duplex": (220.0, 42.0, 19.0), "nickel": (260.0, 70.0, 12.0),
}  # fmt: skip
HEADS = {  # stress beside a sphere's, surface and volume of both by r^2 and r^3, work on one
    "flat": (6.0, 2 * np.pi, 0.0, 0.5), "dished": (2.0, 2.76 * np.pi, 2 * np.pi / 3, 1.5),
    "round": (1.0, 4 * np.pi, 4 * np.pi / 3, 4.0),
}  # fmt: skip


def vessel(trial: optuna.Trial) -> Values:
    """Price (thousands) and lost heat (kW) of a vessel for 2 MPa, 180 kelvin above its room.

    Three categorical, three integer, two linear and one logarithmic parameter. Its steel may bear
    only so much, in MPa, and it has to hold 8 m^3; one random vessel in five does both.
    """
    allowed, price, conducts = STEELS[trial.suggest_categorical("steel", sorted(STEELS))]
    head, area, bulge, work = HEADS[trial.suggest_categorical("head", sorted(HEADS))]
    weld = {"spot": 0.7, "double": 0.85, "inspected": 1.0}[
        trial.suggest_categorical("weld", ["spot", "double", "inspected"])
    ]
    radius = trial.suggest_float("radius", 0.3, 1.5)  # m
    length = trial.suggest_float("length", 0.5, 6.0)  # m, without the heads
    shell = trial.suggest_int("shell", 1, 20) * 2e-3  # sheets of 2 mm
    cap = trial.suggest_int("cap", 1, 20) * 2e-3
    rings = trial.suggest_int("rings", 0, 10)
    wool = trial.suggest_float("wool", 0.01, 0.4, log=True)  # m
    hoop = 2.0 * radius / (shell * (1 + 0.04 * rings)) / weld  # MPa
    bulging = 2.0 * radius / (2 * cap) * head / weld
    trial.set_constraint("stress_mpa", float(max(hoop, bulging) - allowed))
    trial.set_constraint("volume_m3", float(8 - np.pi * radius**2 * length - bulge * radius**3))
    side, ends = 2 * np.pi * radius * length, area * radius**2
    sheets = side * shell + ends * cap + rings * 2 * np.pi * radius * 8e-4
    cost = price * sheets + 0.25 * (side + ends) * (1 + 9 * wool) + work
    cost += 10 * (weld - 0.7) ** 1.5 * (length + 4 * radius) + 0.1 * rings
    resistance = wool / 0.04 + shell / conducts + 0.1
    lost = 180 * (side + ends) / resistance / 1000 + 0.006 * conducts * (1 + rings / 5)
    return float(cost), float(lost)


def drone(trial: optuna.Trial) -> Values:
    """Four objectives of a drone: what it lacks in flight of an hour, mass, price and noise.

    In minutes, kg, hundreds and dB. Three categorical, two integer and four further
    parameters, one of them of a ducted rotor only.
    """
    rotors = trial.suggest_categorical("rotors", [4, 6, 8])
    frame = trial.suggest_categorical("frame", ["carbon", "nylon", "wood"])
    heavy, dear = {"carbon": (0.6, 4.0), "nylon": (1.0, 1.0), "wood": (1.3, 0.6)}[frame]
    cells = trial.suggest_int("cells", 2, 8)
    charge = trial.suggest_float("charge", 0.5, 10.0, log=True)  # Ah
    blade = trial.suggest_float("blade", 0.05, 0.25)  # m
    pitch = trial.suggest_float("pitch", 0.3, 1.2)  # of the blade's radius
    poles = trial.suggest_int("poles", 6, 28, step=2)
    motor = 0.03 + 0.9 * blade**2 + 0.001 * poles
    mass = 0.15 + 0.035 * cells * charge + rotors * (motor + 0.6 * heavy * blade)
    price = 0.3 + 0.12 * cells * charge**0.9 + rotors * (0.08 + 0.03 * poles + dear * blade)
    merit = 0.75 * np.exp(-4 * (pitch - 0.7) ** 2) * (1 - np.exp(-poles / 8))
    quiet = 0.0
    if trial.suggest_categorical("ducted", [False, True]):
        depth = trial.suggest_float("depth", 0.1, 1.0)  # of the blade's radius
        mass += rotors * 1.2 * heavy * blade**2 * depth * 4
        merit *= 1 + 0.25 * np.sqrt(depth) * (1 - depth / 3)
        quiet, price = 6 * depth, price + 0.1 * rotors
    disk = rotors * np.pi * blade**2
    power = (9.81 * mass) ** 1.5 / np.sqrt(2 * 1.2 * disk) / merit + 5  # W, hovering
    minutes = 60 * 3.6 * cells * charge * 0.85 / power
    noise = 26 + 10 * np.log10(power) + 12.5 * np.log10(0.12 / blade) - quiet
    noise += 6 * (pitch - 0.5) ** 2
    return max(0.0, float(60 - minutes)), float(mass), float(price), float(noise)


def pump(trial: optuna.Trial) -> Values:
    """What a pump wastes (kW) against its price (thousands), for 60 m and mostly half flow.

    Three categorical, three integer, two logarithmic and two linear parameters; a throttle has an
    opening, a drive its least speed and perhaps the order of a filter.
    """
    motor = trial.suggest_categorical("motor", ["induction", "permanent", "series"])
    loss, price = {"induction": (0.12, 1.0), "permanent": (0.05, 1.9), "series": (0.2, 0.6)}[motor]
    stages = trial.suggest_int("stages", 1, 5)
    diameter = trial.suggest_float("diameter", 0.08, 0.4)  # m
    speed = trial.suggest_float("speed", 500.0, 6000.0, log=True)  # per minute
    blades = trial.suggest_int("blades", 3, 9)
    gap = trial.suggest_float("gap", 0.02, 0.5, log=True)  # mm
    finish = trial.suggest_categorical("finish", ["cast", "milled", "coated"])
    rough, finishing = {"cast": (0.10, 0.0), "milled": (0.05, 0.3), "coated": (0.03, 0.7)}[finish]
    tip = np.pi * diameter * speed / 60  # m/s
    head = stages * 0.5 * tip**2 / 9.81
    lost = loss + 2 * gap**0.7 / stages**0.3 + rough * (tip / 20) ** 1.5
    lost += 0.02 * (blades - 4 - 8 * diameter) ** 2 + min(np.log(head / 60) ** 2, 4.0)
    cost = price * (1 + 3 * diameter) + 0.25 * stages + 0.04 * blades + finishing
    cost += 0.02 / gap + 0.3 * (speed / 3000) ** 2
    control = trial.suggest_categorical("control", ["none", "throttle", "drive"])
    if control == "throttle":
        opening = trial.suggest_float("opening", 0.2, 1.0)
        lost += 0.2 + 0.6 * (opening - 0.55) ** 2
        cost += 0.15
    elif control == "drive":
        least = trial.suggest_float("least", 0.2, 0.9)
        lost += 0.06 + 0.8 * (least - 0.5) ** 2
        cost += 0.6 + 0.3 * (1 - least)
        if trial.suggest_categorical("filtered", [False, True]):
            lost -= 0.04 * np.sqrt(trial.suggest_int("order", 1, 4)) - 0.02
            cost += 0.1
    else:
        lost += 0.45
    return float(10 * lost), float(cost)


def net(trial: optuna.Trial, *, costly: bool = True) -> Values:
    """A made-up network's error, and the seconds its training takes: hyperparameters as usual.

    Three categorical, three integer and four further parameters, most of them logarithmic; only
    SGD has a momentum. With too high a learning rate training diverges: an error of 0.9.
    """
    width = trial.suggest_int("width", 8, 512, log=True)
    depth = trial.suggest_int("depth", 1, 6)
    batch = trial.suggest_int("batch", 16, 512, log=True)
    rate = np.log10(trial.suggest_float("rate", 1e-4, 1.0, log=True))
    decay = np.log10(trial.suggest_float("decay", 1e-6, 1e-1, log=True))
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam", "rmsprop"])
    activation = trial.suggest_categorical("activation", ["relu", "tanh", "gelu"])
    schedule = trial.suggest_categorical("schedule", ["constant", "step", "cosine"])
    best = {"sgd": -1.2, "adam": -2.7, "rmsprop": -3.0}[optimizer]
    if optimizer == "sgd":
        best += np.log10(1.1 - trial.suggest_float("momentum", 0.0, 0.99))
    best += 0.5 * np.log10(batch / 64) - 0.15 * (depth - 2)
    off = rate - best
    capacity = np.log2(width) + 0.8 * depth
    over = max(0.0, capacity - 8) * np.exp(-2.5 * dropout - 0.5 * max(decay + 5, 0.0))
    error = 0.06 + 0.5 * np.exp(-0.38 * capacity) + 0.012 * over + 0.03 * dropout**2
    error += 0.01 * max(decay + 3, 0.0) ** 2 + 0.02 * (activation == "tanh") * depth**0.5
    error += 0.03 * off**2 - 0.008 * (activation == "gelu")
    error += {"constant": 0.02, "step": 0.008, "cosine": 0.0}[schedule]
    seconds = 2 + 4e-3 * width**1.5 * depth * (1 + 64 / batch) ** 0.5
    if off > 0.9:
        error = 0.9
    error = min(float(error), 0.9)
    return (error, float(seconds)) if costly else (error,)


def choices(seed: int, places: int = 5, kinds: int = 4) -> Problem:
    """A table of all combinations: an error of single choices and of all pairs, and a price.

    The price rises with the kind, unlike the error, and depends on the place, too.
    """
    rng = np.random.default_rng(seed)
    every = np.array(list(product(range(kinds), repeat=places)))
    worth = sum(rng.normal(0, 1, kinds)[every[:, i]] for i in range(places))
    for i in range(places):
        for j in range(i):
            worth = worth + rng.normal(0, 0.35, (kinds, kinds))[every[:, i], every[:, j]]
    per_kind, scale = np.cumsum(rng.gamma(2, 1, kinds)), rng.uniform(0.5, 2, places)
    price = (per_kind[every] * scale).sum(axis=1) * rng.uniform(0.97, 1.03, len(every))
    worth = (worth - worth.mean()) / worth.std() + 0.3 * (price - price.mean()) / price.std()
    error = 0.05 + 0.5 / (1 + np.exp(1.2 * worth))
    table = np.column_stack([error, price])

    def evaluate(trial: optuna.Trial) -> Values:
        row = 0
        for i in range(places):
            row = row * kinds + trial.suggest_categorical(f"place{i}", list(range(kinds)))
        return tuple(table[row].tolist())

    reference, ideal = table.max(axis=0) * 1.01, table.min(axis=0)
    return minimised(f"choices-{seed}", evaluate, tuple(reference), tuple(ideal))
