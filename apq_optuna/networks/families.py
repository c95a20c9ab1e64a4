"""Families by name: how one that was stored as JSON comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from apq_optuna.errors import SpaceError
from apq_optuna.networks.family import Family
from apq_optuna.networks.mobile import MobileFamily
from apq_optuna.networks.traced import TracedFamily

FAMILIES: dict[str, Callable[[Mapping[str, Any]], Family]] = {
    "mobile": MobileFamily.from_dict,
    "traced": TracedFamily.from_dict,
}
"""Reader of each family's `to_dict`, by its `"family"`; the mobile family's names none."""


def read_family(description: Mapping[str, Any]) -> Family:
    """The family that a study or a checkpoint keeps.

    Raises:
        SpaceError: Of no family that is known here, or not a description of it.
    """
    if not isinstance(description, Mapping):
        raise SpaceError(f"not the description of a network family: {description!r}")
    name = description.get("family", "mobile")
    if name not in FAMILIES:
        raise SpaceError(f"family={name!r} is unknown; known are {sorted(FAMILIES)}")
    return FAMILIES[name](description)
