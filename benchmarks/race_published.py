"""Test problems from the literature, every objective to be small.

Notation:
    x   parameters in [0, 1]; where a problem has other bounds, they are scaled inside
    g   distance of a problem to its front
    M   number of objectives
"""

from __future__ import annotations

import numpy as np
import optuna
from race_base import Evaluate, Values, vector


def zdt(kind: int, variables: int = 30) -> Evaluate:
    """ZDT1 to 4 and 6 (Zitzler, Deb and Thiele, 2000), two objectives."""

    def evaluate(trial: optuna.Trial) -> Values:
        x = vector(trial, variables)
        f, rest = x[0], x[1:]
        if kind == 4:
            rest = 10 * rest - 5
            g = 1 + (rest**2 - 10 * np.cos(4 * np.pi * rest) + 10).sum()
        elif kind == 6:
            f = 1 - np.exp(-4 * f) * np.sin(6 * np.pi * f) ** 6
            g = 1 + 9 * rest.mean() ** 0.25
        else:
            g = 1 + 9 * rest.mean()
        shape = 1 - (f / g) ** 2 if kind in (2, 6) else 1 - np.sqrt(f / g)
        if kind == 3:
            shape -= f / g * np.sin(10 * np.pi * f)
        return float(f), float(g * shape)

    return evaluate


def _sphere(angles: np.ndarray, radius: float) -> Values:
    """`(M - 1,)` angles in radians to a point on the sphere's octant, equation 8 of DTLZ."""
    m = len(angles) + 1
    values = []
    for i in range(m):
        value = radius * np.cos(angles[: m - 1 - i]).prod()
        values.append(float(value * np.sin(angles[m - 1 - i]) if i else value))
    return tuple(values)


def _distance(rest: np.ndarray) -> float:
    """The distance g of DTLZ1, with eleven local fronts in every variable."""
    waves = (rest - 0.5) ** 2 - np.cos(20 * np.pi * (rest - 0.5))
    return float(100 * (len(rest) + waves.sum()))


def dtlz1(variables: int = 7, objectives: int = 3) -> Evaluate:
    """DTLZ1 (Deb, Thiele, Laumanns and Zitzler, 2002): the front is a plane, sum 0.5."""

    def evaluate(trial: optuna.Trial) -> Values:
        x = vector(trial, variables)
        place, scale = x[: objectives - 1], 0.5 * (1 + _distance(x[objectives - 1 :]))
        values = []
        for i in range(objectives):
            value = scale * place[: objectives - 1 - i].prod()
            values.append(float(value * (1 - place[objectives - 1 - i]) if i else value))
        return tuple(values)

    return evaluate


def dtlz2(variables: int = 12, objectives: int = 3) -> Evaluate:
    """DTLZ2 (Deb, Thiele, Laumanns and Zitzler, 2002): the front is an octant of the sphere."""

    def evaluate(trial: optuna.Trial) -> Values:
        x = vector(trial, variables)
        angles, rest = x[: objectives - 1] * np.pi / 2, x[objectives - 1 :]
        return _sphere(angles, 1 + ((rest - 0.5) ** 2).sum())

    return evaluate


def c2_constraint(values: Values, r: float) -> float:
    """C2-DTLZ2's constraint, met at 0 and below (Jain and Deb, 2014).

    It keeps balls of radius r around the ends of the axes on the front and around its middle.
    """
    f, m = np.array(values), len(values)
    ends = (f - 1) ** 2 + (f**2).sum() - f**2
    middle = ((f - 1 / np.sqrt(m)) ** 2).sum()
    return float(min(ends.min(), middle) - r**2)


def c2dtlz2(variables: int = 12, objectives: int = 3) -> Evaluate:
    """C2-DTLZ2: DTLZ2, of whose front most is forbidden; r is 0.4 with 3 objectives, else 0.5."""
    plain, r = dtlz2(variables, objectives), 0.4 if objectives == 3 else 0.5

    def evaluate(trial: optuna.Trial) -> Values:
        values = plain(trial)
        trial.set_constraint("c2", c2_constraint(values, r))
        return values

    return evaluate


def dtlz7(variables: int = 8, objectives: int = 3) -> Evaluate:
    """DTLZ7: 2^(M-1) separate pieces of front."""

    def evaluate(trial: optuna.Trial) -> Values:
        x = vector(trial, variables)
        f = x[: objectives - 1]
        g = 1 + 9 * x[objectives - 1 :].mean()
        h = objectives - (f / (1 + g) * (1 + np.sin(3 * np.pi * f))).sum()
        return (*map(float, f), float((1 + g) * h))

    return evaluate


def wfg4(position: int = 2, distance: int = 6, objectives: int = 3) -> Evaluate:
    """WFG4 (Huband, Hingston, Barone and While, 2006): many hills, a concave front.

    `position` is a multiple of M - 1. The optimum has 0.35 in every distance parameter.
    """

    def evaluate(trial: optuna.Trial) -> Values:
        x = vector(trial, position + distance)
        far = np.abs(x - 0.35) / (2 * (np.floor(0.35 - x) + 0.35))
        t = (1 + np.cos(122 * np.pi * (0.5 - far)) + 40 * far**2) / 12  # s_multi, A=30, B=10
        groups = t[:position].reshape(objectives - 1, -1).mean(axis=1)
        angles, away = groups * np.pi / 2, t[position:].mean()
        values = []
        for m in range(1, objectives + 1):
            shape = np.sin(angles[: objectives - m]).prod()
            shape *= np.cos(angles[objectives - m]) if m > 1 else 1.0
            values.append(float(away + 2 * m * shape))
        return tuple(values)

    return evaluate


def branin_currin(trial: optuna.Trial) -> Values:
    """Branin beside Currin's exponential, 2 variables (Belakaria, Deshwal and Doppa, 2019)."""
    x, y = vector(trial, 2)
    a, b = 15 * x - 5, 15 * y
    branin = (b - 5.1 * a**2 / (4 * np.pi**2) + 5 * a / np.pi - 6) ** 2
    branin += 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10
    currin = 2300 * x**3 + 1900 * x**2 + 2092 * x + 60
    currin *= (1 - np.exp(-0.5 / max(y, 1e-9))) / (100 * x**3 + 500 * x**2 + 4 * x + 20)
    return float(branin), float(currin)


def truss(trial: optuna.Trial) -> Values:
    """Volume and displacement of a truss of four bars (Cheng and Li, 1999; RE21).

    In cm^3 and cm: a load of 10 kN, bars of 200 cm and of 1 to 3 cm^2, 2e5 kN/cm^2.
    """
    low = np.array([1, 2**0.5, 2**0.5, 1])
    a, b, c, d = low + (3 - low) * vector(trial, 4)
    root = 2**0.5
    volume = 200 * (2 * a + root * b + c**0.5 + d)
    return float(volume), float(0.01 * (2 / a + 2 * root / b - 2 * root / c + 2 / d))


def vehicle(trial: optuna.Trial) -> Values:
    """Mass, acceleration and intrusion of a car that crashes (Liao et al., 2008; RE34)."""
    a, b, c, d, e = 1 + 2 * vector(trial, 5)
    mass = 1640.2823 + 2.3573285 * a + 2.3220035 * b + 4.5688768 * c
    mass += 7.7213633 * d + 4.4559504 * e
    acceleration = 6.5856 + 1.15 * a - 1.0427 * b + 0.9738 * c + 0.8364 * d
    acceleration += -0.3695 * a * d + 0.0861 * a * e + 0.3628 * b * d
    acceleration += -0.1106 * a**2 - 0.3437 * c**2 + 0.1764 * d**2
    intrusion = -0.0551 + 0.0181 * a + 0.1024 * b + 0.0421 * c - 0.0073 * a * b
    intrusion += 0.024 * b * c - 0.0118 * b * d - 0.0204 * c * d - 0.008 * c * e
    intrusion += -0.0241 * b**2 + 0.0109 * d**2
    return float(mass), float(acceleration), float(intrusion)


def welded(trial: optuna.Trial) -> Values:
    """Price and bend of a welded beam (Deb, 1991; Ray and Liew, 2002), four constraints.

    Weld h, length l, height t and width b, in inches; 6000 lb at 14 inches.
    """
    x = vector(trial, 4)
    h, b = 0.125 + 4.875 * x[[0, 3]]
    length, t = 0.1 + 9.9 * x[[1, 2]]
    reach = np.sqrt(0.25 * (length**2 + (h + t) ** 2))
    moment = 6000 * (14 + length / 2)
    polar = 2**0.5 * h * length * (length**2 / 12 + 0.25 * (h + t) ** 2)
    direct, twist = 6000 / (2**0.5 * h * length), moment * reach / polar
    shear = np.sqrt(direct**2 + direct * twist * length / reach + twist**2)
    trial.set_constraint("shear", float(shear - 13600))  # psi
    trial.set_constraint("normal", float(504000 / (b * t**2) - 30000))  # psi
    trial.set_constraint("weld", float(h - b))  # inches
    trial.set_constraint("load", float(6000 - 64746.022 * (1 - 0.0282346 * t) * t * b**3))  # lb
    price = 1.10471 * h**2 * length + 0.04811 * t * b * (14 + length)
    return float(price), float(2.1952 / (t**3 * b))


def car_side(trial: optuna.Trial) -> Values:
    """Mass, force on the belly, speed of the pillar, broken limits of a car (RE41).

    Jain and Deb (2014), with the ten limits summed as a fourth objective as Tanabe and Ishibuchi
    (2020) do.
    """
    low = np.array([0.5, 0.45, 0.5, 0.5, 0.875, 0.4, 0.4])
    a, b, c, d, e, f, g = low * (1 + 2 * vector(trial, 7))
    mass = 1.98 + 4.9 * a + 6.67 * b + 6.98 * c + 4.01 * d + 1.78 * e + 1e-5 * f + 2.73 * g
    force = 4.72 - 0.5 * d - 0.19 * b * c
    middle = 10.58 - 0.674 * a * b - 0.67275 * b
    front = 16.45 - 0.489 * c * g - 0.843 * e * f
    over = [
        1.16 - 0.3717 * b * d - 0.0092928 * c - 1,
        0.261 - 0.0159 * a * b - 0.06486 * a - 0.019 * b * g + 0.0144 * c * e
        + 0.0154464 * f - 0.32,
        0.214 + 0.00817 * e - 0.0587118 * a + 0.03099 * b * f - 0.018 * b * g + 0.030408 * c
        - 0.00364 * e * f - 0.018 * b**2 - 0.32,
        0.74 - 0.61 * b - 0.031296 * c - 0.031872 * g + 0.227 * b**2 - 0.32,
        28.98 + 3.818 * c - 4.2 * a * b + 1.27296 * f - 2.68065 * g - 32,
        35.31728 + 2.95 * c - 5.057 * a * b - 3.795 * b - 3.4431 * g - 32,
        46.36 - 9.9 * b - 4.4505 * a - 32,
        force - 4, middle - 9.9, front - 15.7,
    ]  # fmt: skip
    broken = sum(max(0.0, float(value)) for value in over)
    return float(mass), float(force), float((middle + front) / 2), broken


def hartmann6(trial: optuna.Trial) -> Values:
    """Hartmann's function of six variables; its least value is -3.32237."""
    a = np.array(
        [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8],
         [17, 8, 0.05, 10, 0.1, 14]]
    )  # fmt: skip
    p = 1e-4 * np.array(
        [[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
         [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]]
    )  # fmt: skip
    x = vector(trial, 6)
    wells = np.exp(-(a * (x - p) ** 2).sum(axis=1))
    return (-float(np.array([1.0, 1.2, 3.0, 3.2]) @ wells),)
