"""Between which values a known function is, for what is said of budgets and references."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from apq_optuna.sampler.advice import Ends, ends_of
from apq_optuna.sampler.known import KnownObjectives
from apq_optuna.space import SearchSpace

Params = Mapping[str, np.ndarray]


def ends(
    distributions: dict[str, BaseDistribution], function: Callable[[Params], np.ndarray]
) -> Ends | None:
    space = SearchSpace.from_distributions(distributions)
    return ends_of(KnownObjectives(space, None, [], {0: function}, ["f"]), None).get("f")


# what a function is of, the function, and the largest value it has
SPREAD: dict[
    str, tuple[dict[str, BaseDistribution], Callable[[Params], np.ndarray], float]
] = {
    "many categories": (
        {f"c{i}": CategoricalDistribution((8, 1, 64, 2, 16)) for i in range(60)},
        lambda p: sum(p.values()), 60 * 64,
    ),
    "a product": (
        {f"n{i}": IntDistribution(1, 64) for i in range(6)},
        lambda p: np.prod([v.astype(float) for v in p.values()], axis=0), 64.0**6,
    ),
    "falling in some": (
        {f"y{i}": FloatDistribution(0, 1) for i in range(20)},
        lambda p: sum((-1) ** i * p[f"y{i}"] for i in range(20)), 10.0,
    ),
    "a narrow peak": (
        {"a": FloatDistribution(-5, 5), "b": FloatDistribution(-5, 5)},
        lambda p: 100 * np.exp(-20 * (p["a"] - p["b"]) ** 2 - (p["a"] - 2) ** 2), 100.0,
    ),
    "layers that are there": (
        {"depth": IntDistribution(1, 12)} | {f"w{i}": IntDistribution(1, 512) for i in range(12)},
        lambda p: sum(np.where(p["depth"] > i, p[f"w{i}"] ** 2, 0) for i in range(12)),
        12 * 512**2,
    ),
    "without end": ({"x": FloatDistribution(0, 1)}, lambda p: 1 / p["x"], np.inf),
}  # fmt: skip


@pytest.mark.parametrize("case", SPREAD)
def test_the_largest_value_is_within_the_margin(case: str) -> None:
    distributions, function, largest = SPREAD[case]
    found = ends(distributions, function)
    assert found is not None
    assert found.high <= largest * 1.001 <= found.high + found.margin


def test_a_small_space_is_looked_at_whole() -> None:
    space = {"a": IntDistribution(0, 9), "c": CategoricalDistribution((3, -7, 5))}
    assert ends(space, lambda p: p["a"] * p["c"]) == Ends(-63.0, 45.0)


def test_a_function_that_raises_somewhere_has_no_ends() -> None:
    def fails(params: Params) -> np.ndarray:
        if (params["w"] == 16).any():
            raise ValueError("too wide")
        return params["w"]

    assert ends({"w": IntDistribution(1, 16), "x": FloatDistribution(0, 1)}, fails) is None
