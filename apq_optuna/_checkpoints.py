"""Checkpoints: safetensors for numbers, JSON beside them.

Nothing is unpickled. A sidecar says which schema and which file (by sha256) it belongs to, so
that a wrong or damaged checkpoint is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from apq_optuna._files import replace_file
from apq_optuna.errors import CheckpointError

SCHEMA = 1


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes `path` (safetensors) and its sidecar `path.json`, so that a stop at any moment is
    safe.

    The sidecar goes first and describes both the new tensors and the ones they replace, each by
    its
    sha256: whichever file is there when it is read, its own description is found.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = save(_apart(tensors))
    sidecar = {"schema": SCHEMA, "sha256": hashlib.sha256(packed).hexdigest(), **about}
    if path.is_file() and path.with_suffix(".json").is_file():
        try:
            replaced = read_checkpoint(path)[1]
        except CheckpointError:
            replaced = None  # damaged already: nothing to go back to
        if replaced is not None and replaced["sha256"] != sidecar["sha256"]:
            sidecar["previous"] = replaced  # of other tensors: the same ones are described anew
    replace_file(path.with_suffix(".json"), json.dumps(sidecar, indent=1).encode())
    replace_file(path, packed)


def is_pickle(packed: bytes) -> bool:
    """Whether bytes begin as what `torch.save` and pickles write."""
    return packed[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file of somebody's, which has no sidecar.

    Raises:
        CheckpointError: Not such a file.
    """
    try:
        return load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not safetensors: {error}") from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: no two in the same memory."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.data_ptr() in seen:  # a module that a model has under two names
            value = value.clone()
        seen.add(value.data_ptr())
        found[name] = value
    return found


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_checkpoint` wrote.

    Raises:
        CheckpointError: Missing, truncated, a pickle, or a sidecar of another file or schema.
    """
    sidecar = path.with_suffix(".json")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    packed = path.read_bytes()
    if is_pickle(packed):
        raise CheckpointError(
            f"{path} is a pickle (torch.save); only safetensors are read, nothing is unpickled"
        )
    if not sidecar.is_file():
        raise CheckpointError(f"{path} has no sidecar {sidecar.name}")
    try:
        about = json.loads(sidecar.read_text())
        tensors = load(packed)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{sidecar} is not JSON: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not safetensors: {error}") from error
    digest = hashlib.sha256(packed).hexdigest()
    previous = about.pop("previous", None) if isinstance(about, dict) else None
    if isinstance(previous, dict) and previous.get("sha256") == digest:
        about = previous  # the write that wanted to replace these tensors was stopped
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise CheckpointError(f"{sidecar} is not of schema {SCHEMA}")
    if about.get("sha256") != digest:
        raise CheckpointError(f"{path} is damaged: its sha256 differs from the one in {sidecar}")
    return tensors, about
