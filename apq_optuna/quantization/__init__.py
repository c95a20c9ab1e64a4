"""Mixed-precision quantization of extracted subnets, and their finetuning."""

from apq_optuna.quantization.finetune import (
    ALIKE,
    AVERAGING,
    RATES,
    DivergedError,
    FinetuneOptions,
    finetune_quantized,
    fp32_network,
    quantized_network,
)
from apq_optuna.quantization.network import (
    calibrate,
    fold_network,
    load_network,
    quantize_network,
    round_biases,
    save_network,
)
from apq_optuna.quantization.quantizers import (
    calibrated_scale,
    code_range,
    fake_quantize,
    quantize,
)

__all__ = [
    "ALIKE",
    "AVERAGING",
    "RATES",
    "DivergedError",
    "FinetuneOptions",
    "calibrate",
    "calibrated_scale",
    "code_range",
    "fake_quantize",
    "finetune_quantized",
    "fold_network",
    "fp32_network",
    "load_network",
    "quantize",
    "quantize_network",
    "quantized_network",
    "round_biases",
    "save_network",
]
