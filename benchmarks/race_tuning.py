"""Problems for choosing constants of the sampler, never for judging it.

They are raced like the others (`--problems zdt4 pump`), but no figure of them is shown as a
result: a constant chosen on the race's own problems flatters the race. References lie a little
beyond the front's worst values where those are known, else about where random points end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import race_published as published
from race_base import Problem, minimised
from race_invented import choices, net, pump

TUNING: dict[str, Callable[[], Problem]] = {
    # two objectives
    "zdt4": partial(minimised, "zdt4", published.zdt(4, 8), (1.1, 150.0), (0.0, 0.0)),
    "zdt6": partial(minimised, "zdt6", published.zdt(6, 10), (1.1, 10.0), (0.2807, 0.0)),
    "branin-currin": partial(
        minimised, "branin-currin", published.branin_currin, (18.0, 6.0), (0.3979, 1.18)
    ),
    "truss": partial(minimised, "truss", published.truss, (3000.0, 0.042), (1237.8, 0.00276)),
    "pump": partial(minimised, "pump", pump, (20.0, 8.0), (2.0, 1.0)),
    "net": partial(minimised, "net", net, (0.5, 60.0), (0.05, 2.0)),
    "choices-1": partial(choices, 1),
    "choices-2": partial(choices, 2),
    # three and four
    "dtlz1": partial(minimised, "dtlz1", published.dtlz1(7), (150.0,) * 3, (0.0,) * 3),
    "dtlz7": partial(minimised, "dtlz7", published.dtlz7(8), (1.1, 1.1, 23.0), (0.0, 0.0, 2.6)),
    "wfg4": partial(minimised, "wfg4", published.wfg4(), (3.3, 5.5, 7.7), (0.0, 0.0, 0.0)),
    "vehicle": partial(
        minimised, "vehicle", published.vehicle, (1700.0, 11.8, 0.29), (1661.7, 6.14, 0.039)
    ),
    "car-side": partial(
        minimised, "car-side", published.car_side, (45.0, 4.5, 14.0, 12.0),
        (15.5, 3.58, 10.6, 0.0),
    ),
    # constraints
    "welded": partial(
        minimised, "welded", published.welded, (40.0, 0.015), (2.0, 0.0004),
        ("shear", "normal", "weld", "load"),
    ),
    # one objective
    "hartmann6": partial(minimised, "hartmann6", published.hartmann6, (0.0,), (-3.32237,)),
    "net-error": partial(minimised, "net-error", partial(net, costly=False), (0.9,), (0.05,)),
}  # fmt: skip
