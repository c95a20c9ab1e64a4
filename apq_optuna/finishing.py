"""The last step: a chosen trial finetuned fully, tested once, and saved."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from apq_optuna._checkpoints import read_checkpoint
from apq_optuna._memory import keep_buffers
from apq_optuna._progress import progress_bar
from apq_optuna.data import ImageData
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware import CostTable
from apq_optuna.networks import Subnet
from apq_optuna.objective import genotype_seed
from apq_optuna.quantization import (
    FinetuneOptions,
    finetune_quantized,
    fold_network,
    fp32_network,
    load_network,
    quantized_network,
    round_biases,
    save_network,
)
from apq_optuna.quantization.finetune import ALIKE, PRETRAINED_RATE, DivergedError
from apq_optuna.quantization.resuming import FinetuneCheckpoint
from apq_optuna.supernet import PretrainedNet, SubnetModule, Supernet, accuracy
from apq_optuna.supernet.devices import resolve_device
from apq_optuna.supernet.modules import check_data

FULL_FINETUNE = FinetuneOptions(
    batch_size=128, learning_rate=1.5e-3, distillation=0.5, averaging=0.0, rates=ALIKE
)

FINISHED = "network.safetensors"

_OF_THE_FILE = {"schema", "sha256", "kind", "space", "layers", "bits", "channels", "blocks"}
"""What describes the stored tensors and no measurement."""


def finish(
    supernet: Supernet,
    data: ImageData,
    subnet: Subnet,
    path: str | Path,
    *,
    epochs: float = 10.0,
    options: FinetuneOptions | None = None,
    costs: CostTable | None = None,
    device: str = "auto",
    about: dict[str, Any] | None = None,
    report: Callable[[int, int, float], None] | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> tuple[SubnetModule, dict[str, Any]]:
    """Finetunes a subnet fully, measures it once on the test split, and saves it.

    The state is kept in `path` meanwhile, once a minute and at Ctrl-C: after a stop, the same call
    goes on from there. Of another network or other options it begins anew. The same one that was
    finished there before is returned as it is, so that a script can run again; another is kept.

    Args:
        supernet: Where its weights start from.
        data: The images the supernet was trained on.
        subnet: Architecture and bit-widths, from a trial of the front.
        path: Folder for `network.safetensors` and `network.json`; `load_network` reads it.
        epochs: Passes over the training images.
        options: Everything but the number of steps; its `rates` are alike unless it says so.
        costs: Table whose costs travel with the network.
        device: `auto`, `cpu` or `cuda`.
        about: More to store beside it, in JSON types.
        report: Called after each step with its number, the number of steps and the loss.
        progress: Shows a bar with the loss and the time left.
        overwrite: Whether a network that was finished there before is replaced.

    Returns:
        The network, on the CPU and in evaluation mode, and what was stored beside it.

    Raises:
        DivergedError: The finetuning diverged; nothing is saved.
        DataError: The images do not fit the supernet.
        InvalidArgumentError: The folder holds another finished network.
        MissingCostError: The table has no cost for the subnet.
    """
    check_data(supernet, data)
    keep_buffers()
    if options is None:
        options = FULL_FINETUNE
        if isinstance(supernet, PretrainedNet):
            options = replace(options, learning_rate=options.learning_rate * PRETRAINED_RATE)
    priced = costs.network_cost(subnet.layers()) if costs is not None else ()
    started = time.perf_counter()
    batch = min(options.batch_size, len(data.train))
    steps = max(1, round(epochs * (len(data.train) // batch)))
    options = replace(options, steps=steps, rates=options.rates or ALIKE)
    asked = asdict(options)
    if options.rates == ALIKE:  # what was stopped before there was another goes on
        del asked["rates"]
    images = [data.split_hash, data.augment, data.mean, data.std]
    identity = json.dumps([supernet.weights_hash, subnet.identity, images, asked])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    if not overwrite and (Path(path) / FINISHED).exists():
        network = _finished_before(supernet, path, digest)
        stored = {k: v for k, v in network.about.items() if k not in _OF_THE_FILE}
        return network, stored | _costs(costs, priced)
    supernet.to(resolve_device(device))
    seed = genotype_seed(subnet)
    module = fp32_network(supernet, subnet, data, max(2048, options.calibration_images), seed)
    teacher = fold_network(module)
    fp32 = accuracy(teacher, data)
    whole = {}
    if isinstance(supernet, PretrainedNet):  # what pruning and quantization cost is seen beside it
        whole = {
            "model_search_validation": accuracy(supernet, data),
            "model_test": accuracy(supernet, data, split="test"),
        }
    network = quantized_network(module, subnet, data, options.calibration_images, seed)
    kept = FinetuneCheckpoint(Path(path) / "finetuning.safetensors", identity)
    with progress_bar(steps, "finetune", show=progress, unit="step") as bar:

        def told(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(step - bar.n)
            if report is not None:
                report(step, steps, loss)

        try:
            finetune_quantized(
                network, data, options, seed=seed, teacher=teacher, report=told, checkpoint=kept
            )
        except DivergedError:
            kept.remove()
            raise
    round_biases(network)  # what is tested is what an integer runtime computes
    stored = {
        "accuracy": {
            "search_validation_fp32": fp32,
            "search_validation": accuracy(network, data),
            "test": accuracy(network, data, split="test"),
            **whole,
        },
        "epochs": epochs,
        "finished": digest,
        "data": data.name,
        "class_names": list(data.class_names),
        "image_size": data.image_size,
        "fit": data.fit,
        "mean": list(data.mean),
        "std": list(data.std),
        "macs": subnet.macs,
        "bitops": subnet.bitops,
        "weight_bytes": subnet.weight_bytes,
        "seconds": round(kept.seconds_before + time.perf_counter() - started, 1),
    }
    stored |= _costs(costs, priced) | (about or {})
    supernet.to("cpu")
    network.to("cpu")
    save_network(network, path, stored)
    kept.remove()
    return network, stored


def _costs(costs: CostTable | None, priced: Sequence[float]) -> dict[str, Any]:
    """What is stored of a network's costs."""
    if costs is None:
        return {}
    return {
        "costs": dict(zip(costs.metric_names, priced, strict=True)), "device": costs.device,
    }  # fmt: skip


def _finished_before(supernet: Supernet, path: str | Path, digest: str) -> SubnetModule:
    """The network that the folder holds, if it is the one that is asked for."""
    _, stored = read_checkpoint(Path(path) / FINISHED)
    if stored.get("finished") != digest:
        which = "another" if "finished" in stored else "an earlier version's"
        raise InvalidArgumentError(
            f"path={path} holds {which} finished network, tested once; choose another folder, or "
            "overwrite=True"
        )
    model = supernet.model if isinstance(supernet, PretrainedNet) else None
    return load_network(path, model=model)
