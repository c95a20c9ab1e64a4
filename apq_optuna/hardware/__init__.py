"""Devices, cost tables, and the layers they price."""

from apq_optuna.hardware.bitfusion import BitFusion, bitfusion, bitfusion_small
from apq_optuna.hardware.device import Device
from apq_optuna.hardware.layers import layers_of
from apq_optuna.hardware.table import CompiledCosts, CostTable

DEVICES = {"bitfusion": bitfusion, "bitfusion-small": bitfusion_small}
"""Devices by name, for the command line."""

__all__ = [
    "DEVICES",
    "BitFusion",
    "CompiledCosts",
    "CostTable",
    "Device",
    "bitfusion",
    "bitfusion_small",
    "layers_of",
]
