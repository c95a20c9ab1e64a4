"""The search space: the paper's numbers, and laws that hold for every genotype."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from apq_optuna.errors import InvalidArgumentError, SpaceError
from apq_optuna.space import SearchSpace

SPACES = {name: SearchSpace.preset(name) for name in ("digits", "cifar10", "imagenet")}
PLAIN = SearchSpace.from_distributions(
    {
        "x": FloatDistribution(-2.0, 3.0),
        "rate": FloatDistribution(1e-6, 1.0, log=True),
        "step": FloatDistribution(0.0, 1.0, step=0.1),
        "fine": FloatDistribution(0.0, 10.0, step=0.001),
        "n": IntDistribution(1, 5000),
        "power": IntDistribution(1, 100000, log=True),
        "few": IntDistribution(2, 10, step=4),
        "kind": CategoricalDistribution(["a", None, 3]),
    }
)
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(sorted(SPACES))


def test_the_papers_space_has_the_papers_size() -> None:
    space = SPACES["imagenet"]
    assert len(space.decisions) == 131
    assert space.architecture_features == 520
    assert space.num_features - space.architecture_features == 252


def test_cifar10_is_as_large_as_stated() -> None:
    space = SPACES["cifar10"]
    largest = space.decode(space.extreme(largest=True)[0])
    assert len(largest.blocks) >= 12
    assert 14e6 < largest.macs < 18e6


def test_uniform_steps_are_integers_and_others_categorical() -> None:
    distributions = SPACES["imagenet"].distributions()
    assert distributions["stage2.block1.kernel"] == IntDistribution(3, 7, step=2)
    assert distributions["stage2.block1.pw_w_bits"] == IntDistribution(4, 8, step=2)
    assert distributions["stage2.block1.channels"] == IntDistribution(96, 144, step=8)
    uneven = SearchSpace.preset("digits", bits=(2, 4, 8)).distributions()
    assert uneven["stage1.block1.dw_a_bits"] == CategoricalDistribution((2, 4, 8))


@given(names, seeds)
def test_parameters_and_genotypes_round_trip(name: str, seed: int) -> None:
    space = SPACES[name]
    (row,) = space.sample(1, np.random.default_rng(seed))
    params = space.to_params(row)
    distributions = space.distributions()
    assert all(distributions[key]._contains(distributions[key].to_internal_repr(value))
               for key, value in params.items())  # fmt: skip
    assert (space.from_params(params) == row).all()


@given(seeds)
def test_plain_parameters_round_trip_through_their_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (row,) = PLAIN.sample(1, rng)
    distributions = PLAIN.distributions()
    params = PLAIN.to_params(row, rng)
    for name, value in params.items():
        assert distributions[name]._contains(distributions[name].to_internal_repr(value)), name
    exact = [c for c, d in enumerate(PLAIN.decisions) if d.role == "float" or not d.grid]
    again = PLAIN.from_params(params)
    assert (np.abs(again - row)[exact] <= 1).all()
    wide = PLAIN.column["n"]
    assert abs(int(again[wide]) - int(row[wide])) <= 1
    assert len(PLAIN.decisions[wide].choices) <= 1024


def test_no_two_levels_of_an_integer_are_one_value() -> None:
    space = SearchSpace.from_distributions({"n": IntDistribution(1, 100, log=True)})
    choices = space.decisions[0].choices
    assert len(set(choices)) == len(choices)
    assert choices[:5] == (1, 2, 3, 4, 5) and choices[-1] <= 100
    assert [space.from_params({"n": n})[0] for n in (1, 2, 3)] == [0, 1, 2]


@given(names, seeds)
def test_canonical_is_idempotent_and_keeps_the_network(name: str, seed: int) -> None:
    space = SPACES[name]
    rng = np.random.default_rng(seed)
    raw = (rng.random((5, len(space.decisions))) * space.sizes).astype(np.int32)
    canonical = space.canonical(raw)
    assert (space.canonical(canonical) == canonical).all()
    assert all(space.decode(a) == space.decode(b) for a, b in zip(raw, canonical, strict=True))


@given(names, seeds)
def test_only_active_bit_widths_change_the_features(name: str, seed: int) -> None:
    space = SPACES[name]
    rng = np.random.default_rng(seed)
    row = space.sample(1, rng)
    active = space.active(row)[0]
    bits = [c for c, d in enumerate(space.decisions) if d.quantization]
    column = int(rng.choice(bits))
    changed = row.copy()
    changed[0, column] = (changed[0, column] + 1) % space.sizes[column]
    differs = (space.features(row) != space.features(changed)).any()
    assert differs == active[column]


@given(names, seeds)
def test_features_are_one_hot_and_zero_in_missing_blocks(name: str, seed: int) -> None:
    space = SPACES[name]
    rows = space.sample(4, np.random.default_rng(seed))
    features = space.features(rows)
    assert features.shape == (4, space.num_features)
    assert features.dtype == np.float32
    counted = [c for c, d in enumerate(space.decisions) if d.role != "depth"]
    assert (features.sum(axis=1) == space.active(rows)[:, counted].sum(axis=1)).all()


def test_32_bits_set_no_column() -> None:
    space = SearchSpace.preset("digits", bits=(4, 8, 32))
    wide = space.extreme(largest=True, bits=32)
    assert not space.features(wide)[:, space.architecture_features :].any()


def test_equal_networks_are_equal_rows_and_unequal_ones_are_not() -> None:
    space = SPACES["digits"]
    rows = np.unique(space.sample(300, np.random.default_rng(0)), axis=0)
    assert len({space.decode(row) for row in rows}) == len(rows)


def test_suggest_leaves_inactive_blocks_out() -> None:
    space = SPACES["digits"]
    trial = optuna.trial.FixedTrial(space.to_params(space.extreme(largest=False)[0]))
    subnet = space.suggest(trial)
    assert subnet.depths == (1, 1, 1)
    assert not any(".block2." in name for name in trial.params)


def test_every_optuna_sampler_can_use_the_space() -> None:
    space = SPACES["digits"]
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=3))
    study.optimize(lambda trial: space.suggest(trial).bitops, n_trials=6)
    assert len(study.trials) == 6


def test_hashes_separate_bits_from_architecture() -> None:
    two, three = (SearchSpace.preset("digits", bits=bits) for bits in ((4, 8), (4, 6, 8)))
    assert two.hash != three.hash
    assert two.architecture_hash == three.architecture_hash
    assert two.architecture_hash != SearchSpace.preset("digits", num_classes=3).architecture_hash


def test_spaces_of_other_images_differ() -> None:
    other = SearchSpace.preset("cifar10", image_size=64, num_classes=100)
    assert other != SPACES["cifar10"]
    assert SearchSpace.preset("cifar10") == SPACES["cifar10"]


def test_description_round_trips() -> None:
    for space in SPACES.values():
        assert SearchSpace.from_dict(space.to_dict()) == space


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="preset='cifar' is unknown; choose from"):
        SearchSpace.preset("cifar")
    with pytest.raises(SpaceError, match=r"bits=\(1, 8\): allowed are 2 to 8, and 32"):
        SearchSpace.preset("digits", bits=(1, 8))
    space = SPACES["digits"]
    params = space.to_params(space.extreme(largest=True)[0])
    with pytest.raises(SpaceError, match=r"stage1\.depth=9 is not one of \[1, 2\]"):
        space.from_params(params | {"stage1.depth": 9})
    del params["stage2.block1.kernel"]
    with pytest.raises(SpaceError, match=r"missing: stage2\.block1\.kernel"):
        space.from_params(params)
    with pytest.raises(SpaceError, match="plain search space"):
        PLAIN.decode(PLAIN.sample(1, np.random.default_rng(0))[0])
