"""What pruning has been reported to break: found out, and searched where it can be."""

from __future__ import annotations

import pytest
from torch import nn

from .helpers import (
    Chunked,
    Doubled,
    Excited,
    Flat,
    Grouped,
    Mixed,
    Odd,
    OneChannel,
    Residual,
    Scaled,
    ScaledBranches,
    Shuffled,
    Softened,
    Twice,
    channels,
    check,
    family_of,
)

FOUR = (8, 16, 24, 32)


@pytest.mark.parametrize(
    ("model", "searched"),
    [
        (Residual, {"stem.0": (8, 16), "a.0": FOUR, "a.3": FOUR, "pw": (16, 32, 48, 64)}),
        (Doubled, {"a": (8, 16), "b": (8, 16, 24)}),
        (ScaledBranches, {"a": (8, 16), "left": (8, 16), "right": (8, 16, 24), "mix": (8, 16)}),
        (Flat, {"a": (8, 16), "b": FOUR}),
        (OneChannel, {"a": (8, 16)}),
        (Excited, {"a": FOUR, "squeeze": (8, 16), "b": (8, 16)}),
        (Grouped, {"a": (10, 20, 30, 40), "b": (20, 40), "c": (8, 16)}),
        (Odd, {"a": (8, 16), "b": (8, 16, 24), "c": (8, 16), "d": (8, 16, 24)}),
    ],
)
def test_what_is_searched(model: type[nn.Module], searched: dict[str, tuple[int, ...]]) -> None:
    found = channels(check(model()))
    assert found == searched


@pytest.mark.parametrize(
    ("model", "whole"),
    [(Shuffled, "a"), (Chunked, "a"), (Softened, "a"), (Scaled, "b"), (Mixed, "b")],
)
def test_what_cannot_be_left_out_stays_whole_and_says_why(
    model: type[nn.Module], whole: str
) -> None:
    space = check(model())
    assert whole not in channels(space)
    said = [n.partition(" stays whole: ")[0].split(", ") for n in family_of(space).notes]
    assert any(whole in names for names in said)


def test_a_function_of_a_parameter_stays_whole_and_float() -> None:
    family = family_of(check(Scaled()))
    function = next(layer for layer in family.traced if not layer.module)
    assert function.name == "function#1" and function.fixed == 32
    assert any("function" in note for note in family.notes)


def test_a_module_that_is_called_twice_is_two_layers_with_one_decision() -> None:
    space = check(Twice())
    layers = [layer for layer in family_of(space).traced if layer.module == "b"]
    assert [layer.name for layer in layers] == ["b", "b#2"]
    assert all(layer.signed for layer in layers)  # one of its inputs can be negative
    assert [d.name for d in space.decisions if d.name.startswith("b.")].count("b.w_bits") == 1


def test_no_group_is_left_without_channels() -> None:
    space = check(Residual(), keep=(0.01, 1.0), step=1)
    assert min(min(choices) for choices in channels(space).values()) == 1
