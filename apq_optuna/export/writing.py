"""`export_onnx`: a quantized network as an ONNX file, and what is known of it beside it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from apq_optuna._files import replace_file
from apq_optuna.data import ImageData
from apq_optuna.errors import ExportError, InvalidArgumentError
from apq_optuna.export.building import OnnxNetwork, build_onnx
from apq_optuna.export.running import (
    APART,
    EQUAL_TOP1,
    Kernels,
    Parity,
    check_on_noise,
    kernels_of,
    parity,
)
from apq_optuna.supernet import SubnetModule

RANGE_IMAGES = 512
"""Training images over which ranges of outputs are looked for."""


def export_onnx(
    network: SubnetModule,
    path: str | Path,
    *,
    data: ImageData | None = None,
    opset: int | None = None,
    int4: bool = False,
    reduce_range: bool = False,
    round_outputs: bool = False,
    float_sums: bool = False,
    with_preprocessing: bool = False,
    limit: int | None = None,
    equal_top1: float = EQUAL_TOP1,
    threads: int = 0,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a quantized network as an ONNX file that runtimes execute with integers.

    Weights are int8 per output channel, activations uint8 per tensor with the trained step sizes,
    biases int32, BatchNorm folded; bit-widths below 8 bound the codes. With images the file is
    proven: search-validation goes through ONNX Runtime and through torch.

    Args:
        network: From `load_network` or `finish`. Not changed.
        path: The file; a report in JSON is written beside it, as FILE.json.
        data: Images the network is used to; without them the file is only tried on noise.
        opset: Of the operators; by default 18, and 21 with `int4`.
        int4: Stores weights of 4 bits and fewer in half bytes.
        reduce_range: Weights of 7 bits in place of 8 where the input's bytes can be above 127: for
            processors on which products of bytes saturate. It is another network, whose accuracy
            the report has.
        round_outputs: Rounds outputs that are taken as float to bytes, over the range seen on
            training images. Faster where such kernels are larger than 1x1; not exact.
        float_sums: Computes such layers with kernels larger than 1x1 in floating point instead:
            exact, and faster where the runtime's ConvInteger is slow, as for ResNets.
        with_preprocessing: The file takes `(B, H, W, C)` uint8 pixels.
        limit: Most search-validation images; by default all.
        equal_top1: Share of these images that the file has to put into the same class; less than
            0.995 is a choice of yours, as with `round_outputs`.
        threads: Of the runtime that proves it; 0 is as many as there are cores.
        about: What of a description goes into its metadata; by default the network's own.

    Returns:
        The report: sizes, what each layer became, integer kernels, parity.

    Raises:
        ExportError: The file does not compute what the network computes (fewer than 99.5 % of
            images in the same class, or more than 0.3 points apart): it is kept aside as
            FILE.rejected. Or the runtime or ONNX refuse it, or it cannot be written: nothing of it
            is left then.
        InvalidArgumentError: The network is not quantized, or an option has no such value.
        SpaceError: The network's code cannot be written as a graph.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise InvalidArgumentError(f"limit={limit}: at least one image")
    if not 0 <= equal_top1 <= 1:
        raise InvalidArgumentError(f"equal_top1={equal_top1}: a share, from 0 to 1")
    check_writable(path)
    if round_outputs and data is None:
        raise ExportError("round_outputs needs data: ranges are those seen on training images")
    made = build_onnx(
        network, opset=opset, int4=int4, reduce_range=reduce_range,
        round_outputs=_some(data) if round_outputs and data is not None else None,
        float_sums=float_sums, with_preprocessing=with_preprocessing, about=about,
    )  # fmt: skip
    kernels = kernels_of(made.content, made.layers, network.description)
    proof = None
    if data is None and not with_preprocessing:
        check_on_noise(made)
    if data is not None:
        proof = parity(
            made, network, data, pixels=with_preprocessing, limit=limit, threads=threads,
            equal_top1=equal_top1,
        )  # fmt: skip
    report = described(made, kernels, proof, network) | {"file": path.name}
    rejected = proof is not None and not proof.passed
    where = path.with_name(path.name + ".rejected") if rejected else path
    write_both(where, made.content, report)
    if rejected:
        for old in (path, report_path(path)):  # of another network
            old.unlink(missing_ok=True)
        assert proof is not None
        raise ExportError(
            f"{path} does not compute what the network does: {proof.text()}; at least "
            f"{equal_top1:.1%} and at most {APART * 100:.1f} points apart are asked. It is kept "
            f"as {where}"
        )
    return report


def report_path(path: Path) -> Path:
    """Where the report of a file is."""
    return path.with_name(path.name + ".json")


def write_both(path: Path, content: bytes, report: Mapping[str, Any]) -> None:
    """Writes a file and its report, both or none of them.

    Raises:
        ExportError: They cannot be written; nothing is left.
    """
    try:
        replace_file(path, content)
        replace_file(report_path(path), (json.dumps(report, indent=1) + "\n").encode())
    except OSError as error:
        for each in (path, report_path(path)):
            with contextlib.suppress(OSError):
                each.unlink(missing_ok=True)
        raise ExportError(f"{path} cannot be written: {error}") from error


def described(
    made: OnnxNetwork, kernels: Kernels, proof: Parity | None, network: SubnetModule
) -> dict[str, Any]:
    """What is known of a file, in JSON types."""
    return {
        "sha256": hashlib.sha256(made.content).hexdigest(),
        "bytes": len(made.content),
        "tensor_bytes": dict(made.tensor_bytes),
        "expected_bytes": made.expected_bytes,
        "weight_bytes": network.description.weight_bytes,
        "opset": made.opset,
        "layers": {
            layer.name: layer.why or ("rounded" if layer.rounded else "integer")
            for layer in made.layers
        },
        "bits": {p.name: [p.w_bits, p.a_bits] for p in network.description.layers()},
        "rounded_biases": made.rounded_biases,
        "reduced_to_7_bits": list(made.reduced),
        "kernels": {
            "integer_share_of_macs": kernels.share,
            "integer_layers": len(kernels.integer),
            "other": dict(kernels.other),
            "operators": kernels.operators,
        },
        "parity": None if proof is None else proof.to_dict(),
    }


def _some(data: ImageData) -> Sequence[Tensor]:
    """Training images, never augmented, spread over the split."""
    batches = data.evaluation_batches(data.train, 256, limit=RANGE_IMAGES)
    return [images for images, _ in batches]


def check_writable(path: Path) -> None:
    """Whether a file can be written, before work is done for it.

    Raises:
        ExportError: Not there.
    """
    if path.is_dir():
        raise ExportError(
            f"{path} is a folder: give the name of a file, as in {path}/network.onnx"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ExportError(f"{path} cannot be written: no permission")
