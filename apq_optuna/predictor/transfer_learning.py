"""Transfer of the fp32 predictor to quantized networks (Wang et al., CVPR 2020, section 3.3)."""

from __future__ import annotations

import torch

from apq_optuna.predictor.mlp import AccuracyPredictor, Floats

UNKNOWN_LOSS = 0.05
"""Standard deviation of accuracy lost to quantization, before the first quantized pair."""


@torch.no_grad()
def transferred(fp32: AccuracyPredictor) -> AccuracyPredictor:
    """A quantization-aware predictor that starts as a copy of the fp32 one.

    The columns of the quantization features start at zero, so before the first quantized pair it
    predicts for every policy exactly what the fp32 predictor says of the architecture. Its spread
    is wider: what quantization costs is not known yet.
    """
    predictor = fp32.copy()
    predictor.weights[0][:, predictor.architecture_features :] = 0.0
    predictor.spread_floor += (UNKNOWN_LOSS / predictor.unit) ** 2
    return predictor


def transfer(
    fp32: AccuracyPredictor,
    features: Floats,
    targets: Floats,
    *,
    replay: tuple[Floats, Floats] | None = None,
    steps: int = 200,
    seed: int = 0,
) -> AccuracyPredictor:
    """The fp32 predictor, finetuned on quantized pairs.

    Args:
        fp32: Trained on fp32 pairs, whose quantization columns are all zero.
        features, targets: Quantized pairs, `(n, F)` and `(n,)`; n may be 0.
        replay: fp32 pairs, so that what they taught is kept.
        steps: Optimiser steps.
        seed: Of bags and batches.
    """
    predictor = transferred(fp32)
    predictor.generator.manual_seed(seed)
    if len(targets):
        predictor.update(features, targets, replay=replay, steps=steps)
    return predictor
