"""Supernet checkpoints: a folder with `supernet.safetensors` and its JSON sidecar."""

from __future__ import annotations

from pathlib import Path

from apq_optuna._checkpoints import read_checkpoint, write_checkpoint
from apq_optuna.errors import CheckpointError, SpaceError
from apq_optuna.space import SearchSpace
from apq_optuna.supernet.elastic import channels_last
from apq_optuna.supernet.network import OnceForAllNet
from apq_optuna.supernet.pretrained.net import KIND, PretrainedNet

PRETRAINED = Path(__file__).parent.parent / "pretrained"


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


def load_net(path: str | Path, *, trusted: bool = False) -> OnceForAllNet | PretrainedNet:
    """Reads whatever a run's folder has: a once-for-all network, or a model of one's own.

    Args:
        path: The folder, or the name of a supernet that comes with the package.
        trusted: Whether the factory `module:name` that it may name is imported and called.

    Raises:
        CheckpointError: Damaged, unsafe, or of another kind.
    """
    folder = _folder(path)
    tensors, about = read_checkpoint(folder / "supernet.safetensors")
    if about.get("kind") == KIND:
        return PretrainedNet.of_checkpoint(tensors, about, str(folder), trusted=trusted)
    return load_supernet(path)


def _folder(path: str | Path) -> Path:
    kind, _, name = str(path).rpartition(":")
    if kind == "pretrained":  # whatever else is called so here
        return PRETRAINED / name
    folder = Path(path)
    if not folder.exists() and (PRETRAINED / str(path)).is_dir():
        return PRETRAINED / str(path)
    return folder


def load_supernet(path: str | Path, *, space: SearchSpace | None = None) -> OnceForAllNet:
    """Reads a supernet from its folder, or by the name of one that comes with the package.

    Raises:
        CheckpointError: Damaged, unsafe, of another kind, or of another space than `space`.
    """
    folder = _folder(path)
    tensors, about = read_checkpoint(folder / "supernet.safetensors")
    if about.get("kind") == KIND:
        raise CheckpointError(f"{folder} holds a model of one's own: PretrainedNet.load reads it")
    if about.get("kind") != "supernet":
        raise CheckpointError(f"{folder} holds a {about.get('kind')!r}, not a supernet")
    try:
        own = SearchSpace.from_dict(about["space"])
    except (KeyError, SpaceError) as error:
        raise CheckpointError(f"{folder / 'supernet.json'}: {error}") from error
    if space is not None and space.architecture_hash != own.architecture_hash:
        raise CheckpointError(
            f"{folder} is of another search space ({own.architecture_hash}) than the one asked "
            f"for ({space.architecture_hash}); train a supernet for this space, or use its own"
        )
    net = OnceForAllNet(space or own)
    expected = net.state_dict()
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in expected.items()}:
        raise CheckpointError(f"{folder}: the tensors do not fit the space in its sidecar")
    net.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()})
    channels_last(net)
    net.data_info = dict(about.get("data") or {})
    return net.eval()
