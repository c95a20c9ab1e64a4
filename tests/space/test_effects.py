"""Features of main effects."""

from __future__ import annotations

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from apq_optuna.space import Effects, SearchSpace

MIXED = SearchSpace.from_distributions(
    {
        "kind": CategoricalDistribution(("a", "b", "c", "d")),
        "rate": FloatDistribution(1e-4, 1.0, log=True),
        "layers": IntDistribution(1, 3),
        "fixed": IntDistribution(2, 2),
    }
)


def rows(space: SearchSpace, column: int) -> np.ndarray:
    """Every choice of one decision, the others at their first."""
    genotypes = np.zeros((int(space.sizes[column]), len(space.decisions)), np.int32)
    genotypes[:, column] = np.arange(len(genotypes))
    return genotypes


def of_decision(effects: Effects, genotypes: np.ndarray, group: int) -> np.ndarray:
    return effects(genotypes)[:, effects.groups == group]


@pytest.mark.parametrize("name", ["kind", "rate", "layers"])
def test_an_effect_sums_to_nothing_and_has_its_share_of_the_variance(name: str) -> None:
    effects = Effects(MIXED)
    column = MIXED.column[name]
    group = [d.name for d in MIXED.decisions if len(d.choices) > 1].index(name)
    found = of_decision(effects, rows(MIXED, column), group)
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=0.01)
    assert (found**2).sum(axis=1).mean() == pytest.approx(1 / 3, rel=1e-6)


def test_categories_are_alike_and_numbers_nearer_the_nearer_they_are() -> None:
    effects = Effects(MIXED)
    names = [d.name for d in MIXED.decisions if len(d.choices) > 1]
    kinds = of_decision(effects, rows(MIXED, MIXED.column["kind"]), names.index("kind"))
    gram = kinds @ kinds.T
    apart = gram[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(apart, apart[0], atol=1e-9)
    rates = of_decision(effects, rows(MIXED, MIXED.column["rate"]), names.index("rate"))
    distance = ((rates - rates[:1]) ** 2).sum(axis=1)
    steps = np.linspace(0, len(distance) - 1, 9).round().astype(int)
    assert (np.diff(distance[steps]) > 0).all()


def test_a_decision_without_a_choice_has_no_effect() -> None:
    effects = Effects(SearchSpace.from_distributions({"only": IntDistribution(2, 2)}))
    assert effects(np.zeros((5, 1), np.int32)).shape == (5, 0)
    assert len(effects.groups) == 0


def test_a_category_of_many_kinds_beside_numbers_costs_no_empty_features() -> None:
    wide = SearchSpace.from_distributions(
        {"city": CategoricalDistribution(tuple(range(40)))}
        | {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(10)}
    )
    effects = Effects(wide)
    found = effects(wide.sample(7, np.random.default_rng(0)))
    assert found.shape == (7, 39 + 10 * 4) == (7, len(effects.groups))
    assert (np.diff(effects.groups) >= 0).all()


def test_a_bit_width_out_of_use_is_another_place_than_any_width() -> None:
    space = SearchSpace.preset("digits")
    effects = Effects(space)
    genotypes = space.canonical(space.sample(200, np.random.default_rng(0)))
    active = space.active(genotypes)
    bits = [c for c, d in enumerate(space.decisions) if d.quantization and len(d.choices) > 1]
    varying = [c for c, d in enumerate(space.decisions) if len(d.choices) > 1]
    sometimes = [c for c in bits if 0 < active[:, c].sum() < len(active)]
    assert sometimes
    for column in sometimes:
        found = of_decision(effects, genotypes, varying.index(column))
        off = found[~active[:, column]]
        np.testing.assert_array_equal(off, np.broadcast_to(off[0], off.shape))
        on = found[active[:, column]]
        assert (np.abs(on - off[0]).max(axis=1) > 1e-3).all()
