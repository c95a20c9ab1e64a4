"""Which channels of a model have to stay together: what `torch-pruning` finds, read out.

Its dependency graph (Fang et al., CVPR 2023) follows the gradients of one pass. What it says is
believed by nobody here: see `checking`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from apq_optuna._torchvision import make_importable
from apq_optuna.networks import Member
from apq_optuna.networks.traced import Run
from apq_optuna.tracing.watching import LAYERS


@dataclass(frozen=True)
class Coupled:
    """Channels that are kept or left out together.

    Attributes:
        root: Dotted name of the layer whose outputs number them.
        channels: How many there are.
        members: Where they are.
        parts: Equal parts of which as many have to be kept each.
        wrong: Why they stay whole, or empty.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    parts: int = 1
    wrong: str = ""


def coupled_channels(model: nn.Module, input_shape: Sequence[int]) -> tuple[list[Coupled], str]:
    """The groups of channels of a model that is one's own, its gradients switched on.

    Returns:
        The groups, and why there are none, if so.
    """
    make_importable()
    import torch_pruning

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    image = torch.randn(1, *input_shape)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(model, example_inputs=image, verbose=False)
            found = [
                _coupled(graph, group, torch_pruning)
                for group in graph.get_all_groups(
                    ignored_layers=[], root_module_types=list(LAYERS)
                )
            ]
    except Exception as error:  # whatever it raises about somebody's model
        kind = type(error).__name__
        return [], f"torch-pruning does not follow this model ({kind}: {error})"
    return found, ""


def _coupled(graph: Any, group: Any, library: Any) -> Coupled:
    root = graph._module2name[group[0].dep.target.module]
    channels = len(group[0].idxs)
    members: dict[tuple[str, str], Member] = {}
    wrong = ""
    for item in group.items:
        module = item.dep.target.module
        if isinstance(module, library.ops._OutputOp):
            wrong = wrong or "they are the model's outputs"
            continue
        if type(module).__module__.startswith("torch_pruning"):
            continue  # adding, concatenating, reshaping: no weights
        place = _place(graph, item, module)
        if place is None:
            name = graph._module2name.get(module, "")
            wrong = wrong or f"{name or 'something'} is a {type(module).__name__}"
            continue
        path, side, size = place
        targets, roots = np.array(item.idxs, np.int64), item.root_idxs
        if roots is None or any(r is None for r in roots):
            wrong = wrong or f"which of them reach {path} is not known"
            continue
        order = np.argsort(targets, kind="stable")
        runs = _runs(targets[order], np.array(roots, np.int64)[order])
        if runs[-1][0] + runs[-1][2] * runs[-1][3] > size:
            wrong = wrong or f"{path} has fewer channels"
            continue
        member = Member(path, side, size, runs)
        both = members.get((path, side))
        if both is not None and both != member:
            wrong = wrong or f"they reach {path} in two ways"
        members[path, side] = member
    members = _joined(members)
    parts, reason = _alike(graph, channels, members)
    return Coupled(root, channels, tuple(members.values()), parts, wrong or reason)


def _place(graph: Any, item: Any, module: Any) -> tuple[str, str, int] | None:
    """(path, side, size) of what is pruned together; None where it cannot be sliced here."""
    outwards = graph.is_out_channel_pruning_fn(item.dep.handler)
    if isinstance(module, nn.Parameter):
        dim = int(item.dep.target.pruning_dim)
        return graph._param_to_name[module], f"dim{dim}", module.shape[dim]
    path = graph._module2name.get(module)
    if path is None:
        return None
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
            return path, "both", module.out_channels
        return (path, "out", module.out_channels) if outwards else (path, "in", module.in_channels)
    if isinstance(module, nn.Linear):
        return (path, "out", module.out_features) if outwards else (path, "in", module.in_features)
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm):
        return path, "both", module.num_features
    if isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) != 1:
            return None
        return path, "both", module.normalized_shape[0]
    if isinstance(module, nn.GroupNorm):
        return path, "both", module.num_channels
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return path, "both", module.num_parameters
    return None


def _joined(members: dict[tuple[str, str], Member]) -> dict[tuple[str, str], Member]:
    """Members without those that another one of the same module says too."""
    return {
        key: member
        for key, member in members.items()
        if not (key[1] in ("in", "out") and (key[0], "both") in members)
    }


def _runs(targets: NDArray[np.int64], roots: NDArray[np.int64]) -> tuple[Run, ...]:
    """Ascending targets and the root of each as runs."""
    found: list[Run] = []
    start, n = 0, len(targets)
    while start < n:
        repeat = 1
        while start + repeat < n and (
            roots[start + repeat] == roots[start]
            and targets[start + repeat] == targets[start] + repeat
        ):
            repeat += 1
        count = 1
        while True:
            a = start + count * repeat
            piece = slice(a, a + repeat)
            if a + repeat > n or (roots[piece] != roots[start] + count).any():
                break
            if (targets[piece] != targets[start] + count * repeat + np.arange(repeat)).any():
                break
            count += 1
        found.append((int(targets[start]), int(roots[start]), count, repeat))
        start += count * repeat
    return tuple(found)


def _alike(graph: Any, channels: int, members: dict[tuple[str, str], Member]) -> tuple[int, str]:
    """Equal parts of the root's channels that are to be kept alike, and what is wrong."""
    names = {name: module for module, name in graph._module2name.items()}
    parts = 1
    for (path, side), member in members.items():
        module = names.get(path)
        groups = 1
        if isinstance(module, nn.Conv2d) and side != "both":
            groups = module.groups
        elif isinstance(module, nn.GroupNorm):
            groups = module.num_groups
        roots = member.roots()
        if groups > 1:
            if member.size % channels or (roots < 0).any() or len(member.runs) > 1:
                return 1, f"{path} divides what it gets of several sources into {groups} groups"
            parts = int(np.lcm(parts, groups))
        share = _least_parts(np.bincount(roots[roots >= 0], minlength=channels))
        if share is None:
            return 1, f"{path} takes an uneven part of them"
        parts = int(np.lcm(parts, share))
    if channels % parts:
        return 1, f"{parts} groups do not divide {channels} channels"
    return parts, ""


def _least_parts(times: NDArray[np.int64]) -> int | None:
    """The least number of equal parts within which every channel is used as often; up to 16."""
    for parts in range(1, 17):
        if len(times) % parts == 0:
            rows = times.reshape(parts, -1)
            if (rows == rows[:, :1]).all():
                return parts
    return None
