"""Devices, cost tables, and the layers they price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apq_optuna.hardware.costs import Measurement
from apq_optuna.hardware.devices.bitfusion import BitFusion, bitfusion, bitfusion_small
from apq_optuna.hardware.devices.bitserial import BitSerial, bitserial
from apq_optuna.hardware.devices.cpu import CPU, cpu
from apq_optuna.hardware.devices.device import Device
from apq_optuna.hardware.devices.find import DEVICES, find_device, known_devices
from apq_optuna.hardware.tables.calibrate import correct, random_networks
from apq_optuna.hardware.tables.check import TableCheck, check_table
from apq_optuna.hardware.tables.compiled import CompiledCosts
from apq_optuna.hardware.tables.correction import Correction, fit_correction
from apq_optuna.hardware.tables.table import CostTable
from apq_optuna.networks import ConvLayer

if TYPE_CHECKING:
    from apq_optuna.hardware.layers import layers_of

__all__ = [
    "CPU",
    "DEVICES",
    "BitFusion",
    "BitSerial",
    "CompiledCosts",
    "ConvLayer",
    "Correction",
    "CostTable",
    "Device",
    "Measurement",
    "TableCheck",
    "bitfusion",
    "bitfusion_small",
    "bitserial",
    "check_table",
    "correct",
    "cpu",
    "find_device",
    "fit_correction",
    "known_devices",
    "layers_of",
    "random_networks",
]


def __getattr__(name: str) -> Any:
    if name == "layers_of":  # the one that needs torch
        from apq_optuna.hardware.layers import layers_of

        return layers_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
