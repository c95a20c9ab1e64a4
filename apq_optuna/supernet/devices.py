"""Where a supernet is trained, and how precisely."""

from __future__ import annotations

import torch

from apq_optuna.errors import InvalidArgumentError


def resolve_device(device: str) -> str:
    """`auto` as `cuda` where there is one, else `cpu`; anything else as it is."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(f"device={device!r} cannot be used: {reason}") from error
    return device


def resolve_precision(precision: str, device: str) -> str:
    """`auto` as `bfloat16` on a GPU that computes in it, else `float32`."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise InvalidArgumentError(f"precision={precision!r}: choose auto, float32 or bfloat16")
    if precision != "auto":
        return precision
    able = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if able else "float32"
