"""Places of sizes that are sums over many decisions, looked up for many layers at once."""

from __future__ import annotations

import numpy as np
import pytest

from apq_optuna.hardware.tables import sums as room
from apq_optuna.hardware.tables.sums import Sums, SumsTogether
from apq_optuna.networks import ConvLayer, Extent, Site, Width

COLUMNS = 9
CHOICES = 4


def random_site(rng: np.random.Generator, number: int) -> Site:
    """Sums over some of nine decisions, evenly stepped or not, some added twice."""

    def extent(most: int) -> Extent:
        columns = rng.choice(COLUMNS, rng.integers(0, most + 1), replace=bool(rng.integers(2)))
        terms = []
        for column in columns.tolist():
            even = column % 2 == 0
            values = (
                np.arange(1, CHOICES + 1) * 8
                if even
                else np.sort(rng.choice(np.arange(1, 9) * 8, CHOICES, replace=False))
            )
            terms.append((column, tuple(values.tolist())))
        return Extent(int(rng.integers(0, 3)) * 8 + 8, tuple(terms))

    kernel = Extent(0, ((8, (3, 5, 7, 9)),)) if number % 3 == 0 else None
    layer = ConvLayer(8, 8, 8, 3, 1, 1, 1)
    return Site(
        f"layer{number}", "conv", layer, extent(7), extent(1), Width((8,)), Width((8,)), kernel
    )


@pytest.mark.parametrize("seed", range(5))
def test_places_are_those_of_each_site_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums = [Sums(random_site(rng, i)) for i in range(12)]
    strides = rng.integers(1, 20, len(sums)).tolist()
    genotypes = rng.integers(0, CHOICES, (500, COLUMNS)).astype(np.int32)
    found = SumsTogether(sums, strides)(genotypes)
    assert found.shape == (500, 12)
    for column, one, stride in zip(found.T, sums, strides, strict=True):
        np.testing.assert_array_equal(column, one(genotypes) * stride)
        rows = one.site.sizes(genotypes)
        np.testing.assert_array_equal(one.sizes[one(genotypes)], rows)


def test_layers_of_very_many_sizes_are_looked_up_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "LARGEST_LOOKUP", 40)
    rng = np.random.default_rng(7)
    sums = [Sums(random_site(rng, i)) for i in range(12)]
    genotypes = rng.integers(0, CHOICES, (200, COLUMNS)).astype(np.int32)
    together = SumsTogether(sums, [1] * 12)
    assert 0 < len(together.together) < 12
    wanted = np.stack([one(genotypes) for one in sums], axis=1)
    np.testing.assert_array_equal(together(genotypes), wanted)


def test_large_codes_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    values = (1, 2, 4, 2048)  # in units of one, so that codes are large
    layer = ConvLayer(8, 8, 8, 3, 1, 1, 1)
    wide = Extent(0, tuple((column, values) for column in range(4)))
    site = Site("wide", "conv", layer, wide, Extent(0, ((4, values),)), Width((8,)), Width((8,)))
    monkeypatch.setattr(room, "LARGEST_LOOKUP", 1 << 26)
    together = SumsTogether([Sums(site)], [1])
    rng = np.random.default_rng(0)
    genotypes = rng.integers(0, 4, (2000, 5)).astype(np.int32)
    np.testing.assert_array_equal(together(genotypes)[:, 0], Sums(site)(genotypes))


def test_no_sums_at_all() -> None:
    assert SumsTogether([], [])(np.zeros((3, 2), np.int32)).shape == (3, 0)
