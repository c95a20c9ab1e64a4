"""Checkpoints: safetensors for the numbers, a JSON sidecar for everything else.

Nothing is unpickled. The sidecar says which format, which space and which file (by sha256) it
belongs to, so that a wrong or damaged checkpoint is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from apq_optuna.errors import CheckpointError, SpaceError
from apq_optuna.space import SearchSpace

if TYPE_CHECKING:
    from apq_optuna.supernet.network import OnceForAllNet

SCHEMA = 1
PRETRAINED = Path(__file__).parent.parent / "pretrained"


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes `path` (safetensors) and `path.json`, each whole or not at all.

    The tensors go first: a stop in between leaves a sidecar whose sha256 does not match, which
    is refused, never a silent mixture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    sidecar = {"schema": SCHEMA, "sha256": hashlib.sha256(packed).hexdigest(), **about}
    replace_file(path, packed)
    replace_file(path.with_suffix(".json"), json.dumps(sidecar, indent=1).encode())


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_checkpoint` wrote.

    Raises:
        CheckpointError: Missing, truncated, a pickle, or a sidecar of another file or schema.
    """
    sidecar = path.with_suffix(".json")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    packed = path.read_bytes()
    if packed[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
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
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise CheckpointError(f"{sidecar} is not of schema {SCHEMA}")
    if about.get("sha256") != hashlib.sha256(packed).hexdigest():
        raise CheckpointError(f"{path} is damaged: its sha256 differs from the one in {sidecar}")
    return tensors, about


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def save_supernet(net: OnceForAllNet, path: str | Path, *, half: bool = False) -> Path:
    """Writes a supernet as `supernet.safetensors` and `supernet.json` in a folder.

    Args:
        net: The supernet.
        path: The folder; made if missing.
        half: Weights as float16, for sharing; they are float32 again when loaded.
    """
    target = Path(path) / "supernet.safetensors"
    tensors = {
        name: value.half() if half and value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    about = {
        "kind": "supernet",
        "space": net.space.to_dict(),
        "architecture_hash": net.space.architecture_hash,
        "data": net.data_info,
    }
    write_checkpoint(target, tensors, about)
    return target


def load_supernet(path: str | Path, *, space: SearchSpace | None = None) -> OnceForAllNet:
    """Reads a supernet from its folder, or by the name of one that comes with the package.

    Raises:
        CheckpointError: Damaged, unsafe, of another kind, or of another space than `space`.
    """
    from apq_optuna.supernet.network import OnceForAllNet

    folder = Path(path)
    if not folder.exists() and (PRETRAINED / str(path)).is_dir():
        folder = PRETRAINED / str(path)
    tensors, about = read_checkpoint(folder / "supernet.safetensors")
    if about.get("kind") != "supernet":
        raise CheckpointError(f"{folder} holds a {about.get('kind')!r}, not a supernet")
    try:
        own = SearchSpace.from_dict(about["space"])
    except (KeyError, SpaceError) as error:
        raise CheckpointError(f"{folder / 'supernet.json'}: {error}") from error
    if space is not None and space.architecture_hash != own.architecture_hash:
        raise CheckpointError(
            f"{folder} is of another search space ({own.architecture_hash}) than the one asked for "
            f"({space.architecture_hash}); train a supernet for this space, or use its own"
        )
    net = OnceForAllNet(space or own)
    expected = net.state_dict()
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in expected.items()}:
        raise CheckpointError(f"{folder}: the tensors do not fit the space in its sidecar")
    net.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()})
    net.to(memory_format=torch.channels_last)
    net.data_info = dict(about.get("data") or {})
    return net.eval()
