"""Sites, extents and families as values, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import apq_optuna as apq
from apq_optuna.errors import SpaceError
from apq_optuna.networks import (
    ConvLayer,
    Decision,
    Extent,
    MobileFamily,
    Site,
    Subnet,
    Width,
    check_family,
    preset_family,
    read_family,
)
from apq_optuna.space import NetworkSpec, SearchSpace
from tests.families.chain import Chain

EIGHT = Width((8,))


def site(layer: ConvLayer, inputs: Extent, outputs: Extent, **options: object) -> Site:
    return Site("a", "convolution", layer, inputs, outputs, EIGHT, EIGHT, **options)  # type: ignore[arg-type]


def test_what_a_decision_adds_in_two_places_is_added_up() -> None:
    twice = Extent(3, ((0, (8, 16)), (1, (1, 2)), (0, (8, 16))))
    assert twice == Extent(3, ((0, (16, 32)), (1, (1, 2))))
    found = site(ConvLayer(37, 8, 4, 1, 1, 0, 1), twice, Extent(8))
    assert found.distinct()[:, 0].tolist() == [20, 21, 36, 37]
    rows = np.array([[0, 0], [1, 1]], np.int32)
    assert found.sizes(rows).tolist() == [[20, 8], [37, 8]]
    assert found.columns == (0, 1) and found.bit_columns == () and found.searched


WIDTH = Extent(0, ((0, (16, 32)),))


@pytest.mark.parametrize(
    ("layer", "outputs", "expected"),
    [
        (ConvLayer(32, 32, 8, 3, 1, 1, 32), WIDTH, ConvLayer(16, 16, 8, 3, 1, 1, 16)),
        # two outputs an input channel: groups are the inputs, whatever comes out
        (
            ConvLayer(32, 64, 8, 3, 1, 1, 32), Extent(0, ((0, (32, 64)),)),
            ConvLayer(16, 32, 8, 3, 1, 1, 16),
        ),
        (ConvLayer(32, 32, 8, 3, 1, 1, 4), WIDTH, ConvLayer(16, 16, 8, 3, 1, 1, 4)),
        (
            ConvLayer(32, 32, (8, 4), (1, 3), 1, (0, 1), 1), WIDTH,
            ConvLayer(16, 16, (8, 4), (1, 3), 1, (0, 1), 1),
        ),
    ],
    ids=["depthwise", "multiplier", "grouped", "rectangular"],
)  # fmt: skip
def test_a_site_keeps_what_its_extents_do_not_decide(
    layer: ConvLayer, outputs: Extent, expected: ConvLayer
) -> None:
    found = site(layer, WIDTH, outputs)
    assert found.layer_of(found.distinct()[0]) == expected
    assert found.layer_of(found.distinct()[-1]) == layer


@pytest.mark.parametrize("dilation", [1, 2])
def test_an_elastic_kernel_keeps_the_size(dilation: int) -> None:
    layer = ConvLayer(8, 8, 16, 7, 1, 3 * dilation, 1, dilation)
    kernels = Extent(0, ((0, (3, 5, 7)),))
    found = site(layer, Extent(8), Extent(8), kernel=kernels)
    assert [each.kernel_size for each in found.layers()] == [3, 5, 7]
    assert {each.output_size for each in found.layers()} == {(16, 16)}
    assert found.layers()[-1] == layer


def changed(**options: object) -> Chain:
    """A chain whose second layer is another site."""

    class Odd(Chain):
        def sites(self) -> tuple[Site, ...]:
            first, second, *others = super().sites()
            return (first, dataclasses.replace(second, **options), *others)  # type: ignore[arg-type]

    return Odd()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"w_bits": Width((8,), 4)}, r"conv1 has widths \[8\], its decision \[4, 8\]"),
        ({"a_bits": Width((4, 8))}, r"conv1 has widths \[4, 8\] and no decision"),
        (
            {"in_channels": Extent(0, ((0, (8, 16)),))},
            "conv1 has 2 sizes for the 3 choices of conv0.width",
        ),
        ({"layer": ConvLayer(24, 24, 8, 3, 1, 1, 5)}, "conv1: 5 groups do not divide 8 and 8"),
    ],
)
def test_sites_that_do_not_fit_their_decisions_are_refused(
    options: dict[str, object], message: str
) -> None:
    check_family(Chain())
    with pytest.raises(SpaceError, match=message):
        SearchSpace.from_family(changed(**options))


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (("later", 1), "b needs 'later', which is not a decision before it"),
        (("nothing", 1), "b needs 'nothing', which is not a decision before it"),
        (("a", 1), "that is always in use"),
    ],
)
def test_what_governs_comes_first_and_is_always_in_use(
    needs: tuple[str, int], message: str
) -> None:
    decisions = [
        Decision("first", (1, 2), "depth"),
        Decision("a", (1, 2), "depth", needs=("first", 1)),
        Decision("b", (1, 2), "channels", needs=needs),
        Decision("later", (1, 2), "depth"),
    ]
    with pytest.raises(SpaceError, match=message):
        SearchSpace(decisions)


def test_families_come_back_from_what_is_stored() -> None:
    family = preset_family("digits")
    assert read_family(family.to_dict()) == family
    assert read_family({"family": "mobile", **family.to_dict()}) == family
    assert read_family(Chain().to_dict()) == Chain()
    for nonsense in (None, [], {}, {"stages": 3}):
        with pytest.raises(SpaceError, match="not the description of a network family"):
            read_family(nonsense)  # type: ignore[arg-type]
    with pytest.raises(SpaceError, match="not the description of a network"):
        family.subnet({"blocks": [{"name": "x"}]})


def test_lists_do_where_tuples_are_meant() -> None:
    family = preset_family("digits")
    stages = [dataclasses.replace(stage, kernels=list(stage.kernels)) for stage in family.stages]
    same = dataclasses.replace(family, bits=list(family.bits), stages=stages)  # type: ignore[arg-type]
    assert SearchSpace.from_family(same) == SearchSpace.preset("digits")


def test_former_names_still_are() -> None:
    space = SearchSpace.from_network(preset_family("digits"))
    assert NetworkSpec is MobileFamily and space.network is space.family
    assert set(apq.space.__all__) >= {"ConvLayer", "PlacedLayer", "Subnet", "network_spec"}


def test_a_network_is_told_from_others_by_its_layers() -> None:
    space = SearchSpace.from_family(Chain())
    rows = space.sample(50, np.random.default_rng(0))
    identities = {space.decode(row).identity for row in rows}
    assert len(identities) == len(np.unique(rows, axis=0))


def test_a_family_without_a_module_says_so() -> None:
    class Bare(Subnet):
        family = layers = steps = with_bits = to_dict = None  # type: ignore[assignment]

    with pytest.raises(SpaceError, match="Bare: no module is known"):
        apq.supernet.module_of(Bare())


@pytest.mark.parametrize(
    "bits", [[4, 8], np.array([4, 8]), (np.int8(4), np.uint64(8)), (np.array(4), 8)]
)
def test_bits_of_any_kind_of_integer_are_the_same_space(bits: Any) -> None:
    space = apq.SearchSpace.preset("digits", bits=bits)
    assert space.hash == apq.SearchSpace.preset("digits", bits=(4, 8)).hash
    assert {type(width) for width in space.bits} == {int}
    json.dumps(space.to_dict())
    network = space.decode(space.extreme(largest=True)[0]).with_bits(np.int64(4))  # type: ignore[arg-type]
    assert network.identity == space.decode(space.extreme(largest=True, bits=4)[0]).identity


@pytest.mark.parametrize("bits", [(2.5, 8), (4.0, 8), (True, 8), ("4", "8"), (4, None)])
def test_bits_that_are_no_whole_numbers_are_an_error(bits: Any) -> None:
    with pytest.raises(SpaceError, match="not a whole number"):
        apq.SearchSpace.preset("digits", bits=bits)
    with pytest.raises(SpaceError, match="not all are whole numbers"):
        Decision("layer.bits", bits, "bits")
