"""Devices, cost tables, and the layers they price."""

from apq_optuna.hardware.bitfusion import BitFusion, bitfusion, bitfusion_small
from apq_optuna.hardware.bitserial import BitSerial, bitserial
from apq_optuna.hardware.check import TableCheck, check_table
from apq_optuna.hardware.compiled import CompiledCosts
from apq_optuna.hardware.correction import Correction, correct, fit_correction, random_networks
from apq_optuna.hardware.cpu import CPU, cpu
from apq_optuna.hardware.device import Device, Measurement
from apq_optuna.hardware.find import DEVICES, find_device, known_devices
from apq_optuna.hardware.layers import layers_of
from apq_optuna.hardware.table import CostTable
from apq_optuna.space import ConvLayer

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
