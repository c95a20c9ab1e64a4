"""Devices by name, by object, by `module:name`, or from other packages' entry points."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from apq_optuna._torchvision import import_named, load_entry_point
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware.devices.bitfusion import bitfusion, bitfusion_small
from apq_optuna.hardware.devices.bitserial import bitserial
from apq_optuna.hardware.devices.cpu import cpu
from apq_optuna.hardware.devices.device import Device

ENTRY_POINTS = "apq_optuna.hardware"
"""Group in which an installed package names its devices."""

DEVICES: dict[str, Callable[..., Device]] = {
    "bitfusion": bitfusion,
    "bitfusion-small": bitfusion_small,
    "bitserial": bitserial,
    "cpu": cpu,
}
"""The devices that come with the package."""


def find_device(
    device: str | Device | Callable[..., Device], parameters: Mapping[str, Any] | None = None
) -> Device:
    """A device from whatever names it.

    Args:
        device: A device; its class or another function that makes one; a name of `DEVICES` or of
            an entry point in the group `apq_optuna.hardware`; or `module:name`, where the module
            may lie in the current folder.
        parameters: Given to the function that makes it, by name.

    Raises:
        InvalidArgumentError: There is none of that name, it is not a device, or it has no such
            parameter.

    Returns:
        The device.
    """
    parameters = dict(parameters or {})
    found: Any = _named(device) if isinstance(device, str) else device
    if isinstance(found, Device):
        if parameters:
            raise InvalidArgumentError(
                f"device {found.name!r} is made already: {sorted(parameters)} cannot be set"
            )
        return found
    if not callable(found):
        raise InvalidArgumentError(f"device={device!r} is a {type(found).__name__}, not a device")
    signature = inspect.signature(found)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [name for name in parameters if name not in signature.parameters]
    if unknown and not takes_any:
        raise InvalidArgumentError(
            f"device {device!r} has no parameter {unknown[0]!r}; it has "
            f"{sorted(signature.parameters)}"
        )
    try:
        signature.bind(**parameters)
    except TypeError as error:
        raise InvalidArgumentError(f"device {device!r}: {error}") from error
    made = found(**parameters)
    if not isinstance(made, Device):
        raise InvalidArgumentError(
            f"device={device!r} makes a {type(made).__name__}; derive it from "
            "apq_optuna.hardware.Device"
        )
    return made


def known_devices() -> dict[str, str]:
    """Every name `find_device` takes, with one line about it."""
    about = {name: (make.__doc__ or "").splitlines()[0] for name, make in DEVICES.items()}
    for point in entry_points(group=ENTRY_POINTS):
        origin = point.dist.name if point.dist is not None else "an installed package"
        about.setdefault(point.name, f"From {origin}: {point.value}.")
    return about


def _named(name: str) -> Any:
    if name in DEVICES:
        return DEVICES[name]
    points: list[EntryPoint] = list(entry_points(group=ENTRY_POINTS, name=name))
    if points:
        try:
            return load_entry_point(points[0])
        except Exception as error:  # whatever somebody's module raises
            raise InvalidArgumentError(
                f"device={name!r}: its entry point {points[0].value} fails: "
                f"{type(error).__name__}: {error}"
            ) from error
    module, _, attribute = name.partition(":")
    if not attribute or not module.replace(".", "").isidentifier() or module.startswith("."):
        raise InvalidArgumentError(
            f"device={name!r} is unknown; choose from {sorted(known_devices())}, or give "
            "module:name of your own"
        )
    try:
        return import_named(name)
    except Exception as error:  # whatever somebody's module raises
        raise InvalidArgumentError(f"device={name!r}: {type(error).__name__}: {error}") from error
