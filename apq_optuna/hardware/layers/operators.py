"""Which operators compute, and which are free.

Free is what is known to be: views and pointwise operators, which torch marks as such, and the
whole names below. Everything else that takes the image in has a price or is an error: what torch's
own registry of FLOPs counts, what is in neither list, and whatever is not torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

_OWN = ("aten", "prims", "prim")
"""Namespaces of torch itself."""

_RUNTIMES = ("quantized", "onednn", "mkldnn", "mkldnn_prepacked", "prepacked")

_FREE_NAMES = """
adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices
fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d

native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
_native_batch_norm_legit_functional _batch_norm_no_update _batch_norm_with_update
_batch_norm_with_update_functional cudnn_batch_norm miopen_batch_norm native_group_norm
native_layer_norm _fused_rms_norm linalg_vector_norm renorm

all any amax amin aminmax argmax argmin count_nonzero logsumexp mean nansum norm prod std
std_mean sum var var_mean median nanmedian mode kthvalue cumsum cumprod cummax cummin
_cummax_helper _cummin_helper logcumsumexp _logcumsumexp

softmax _softmax log_softmax _log_softmax _safe_softmax glu log_sigmoid_forward hardswish
_prelu_kernel rrelu_with_noise native_dropout floor_divide

cat stack _stack constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
replication_pad1d replication_pad2d replication_pad3d flip roll rot90 repeat
repeat_interleave unsafe_split unsafe_split_with_sizes _unsafe_view _reshape_copy
pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa

index _unsafe_index index_put _unsafe_index_put _index_put_impl index_select index_add
index_copy index_fill index_reduce gather scatter scatter_add scatter_reduce select_scatter
diagonal_scatter as_strided_scatter masked_select masked_scatter nonzero nonzero_static
sort argsort topk unique_dim unique_consecutive unique_dim_consecutive _unique _unique2
searchsorted bucketize tril triu diag_embed

_to_copy fill zero set lift _lazy_clone resize

bernoulli normal uniform random exponential randint_like

_fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
_fake_quantize_per_tensor_affine_cachemask_tensor_qparams
fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
quantize_per_tensor quantize_per_channel dequantize
"""
"""Of aten's other operators, in no other form than their functional one: pooling, norms,
reductions, activations, rearrangements, choices, copies, noise, and rounding to a grid."""

_SHAPE_NAMES = """
empty_like zeros_like ones_like full_like rand_like randn_like randint_like
new_empty new_empty_strided new_zeros new_ones new_full
"""
"""What takes a tensor's shape and none of its values."""

_FREE, _SHAPES_ONLY = frozenset(_FREE_NAMES.split()), frozenset(_SHAPE_NAMES.split())

_UNDECLARED = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
"""What writes to its running statistics in training, though its schema does not say so."""


def full_name(func: Any) -> str:
    """What messages call an operator: `namespace::name`."""
    return f"{func.namespace}::{base_name(func)}"


def base_name(func: Any) -> str:
    """An operator's name without namespace and overload."""
    return str(getattr(func, "overloadpacket", func).__name__)


def is_torchs(func: Any) -> bool:
    """Whether an operator is torch's own."""
    return func.namespace in _OWN


def converted(func: Any) -> str:
    """What a message adds about an operator that converting a model for a runtime brings in."""
    if func.namespace in _RUNTIMES or "mkldnn" in base_name(func):
        return "; give the model as it was before it was converted"
    return ""


def takes_shapes_only(func: Any) -> bool:
    """Whether a result has nothing of the arguments' values."""
    return is_torchs(func) and base_name(func) in _SHAPES_ONLY


def is_free(func: Any) -> bool:
    """Whether an operator costs nothing beside convolutions and products."""
    if not is_torchs(func) or func.overloadpacket in flop_registry:
        return False
    name = base_name(func)
    # an operator in place is what its functional form is
    functional = name if name.endswith("__") else name.removesuffix("_")
    forms = getattr(torch.ops.aten, functional, None)
    kinds = [func] if forms is None else [func, *(getattr(forms, o) for o in forms.overloads())]
    if any(kind.is_view or torch.Tag.pointwise in kind.tags for kind in kinds):
        return True
    return functional in _FREE or functional in _SHAPES_ONLY


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operator writes to."""
    declared = func._schema.arguments
    by_name = {a.name: value for a, value in zip(declared, args, strict=False)} | kwargs
    names = [a.name for a in declared if a.alias_info is not None and a.alias_info.is_write]
    if base_name(func) in _UNDECLARED:
        names += ["running_mean", "running_var"]
    return [by_name[name] for name in names if name in by_name]
