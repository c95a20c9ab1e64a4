"""Which channels of a model have to stay together: what `torch-pruning` finds, read out.

Its dependency graph (Fang et al., CVPR 2023) follows the gradients of one pass. What it says is
believed by nobody here: see `checking`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from apq_optuna._torchvision import make_importable
from apq_optuna.networks import Member
from apq_optuna.networks.traced import Run


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


def coupled_channels(
    model: nn.Module, input_shape: Sequence[int], roots: Sequence[str]
) -> tuple[list[Coupled], str]:
    """The groups of channels of a model that is one's own, its gradients switched on.

    Args:
        model: The model, evaluating.
        input_shape: (channels, height, width) of an image.
        roots: Layers whose outputs are looked at, in this order; a group is found once.

    Returns:
        The groups, and why there are none, if so.
    """
    make_importable()
    import torch_pruning

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    image = torch.randn(1, *input_shape)
    found: list[Coupled] = []
    made: set[str] = set()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = _graph(torch_pruning)
            graph.build_dependency(model, example_inputs=image, verbose=False)
            for name in roots:
                module = model.get_submodule(name)
                if name in made or module not in graph.module2node:
                    continue
                found.append(_apart(_coupled(graph, name, module, torch_pruning), found))
                if not found[-1].wrong:
                    made |= {m.path for m in found[-1].members if m.side in ("out", "both")}
    except Exception as error:  # whatever it raises about somebody's model
        kind = type(error).__name__
        return [], f"torch-pruning does not follow this model ({kind}: {error})"
    return found, ""


def _graph(library: Any) -> Any:
    """A dependency graph that follows the channels of every concatenation.

    The library's own does not where a parameter of three dimensions is upstream, which it takes
    for a token of a transformer.
    """

    class Graph(library.DependencyGraph):  # type: ignore[misc]
        def _trace(self, *args: Any, **kwargs: Any) -> Any:
            nodes = super()._trace(*args, **kwargs)
            for node in nodes.values():
                node.enable_index_mapping = True
            return nodes

    return Graph()


def _apart(one: Coupled, others: Sequence[Coupled]) -> Coupled:
    """A group, wrong where it lies along channels that another one has."""
    for other in others:
        if one.wrong or other.wrong:
            continue
        theirs = {(m.path, m.side): m for m in other.members}
        for member in one.members:
            same = theirs.get((member.path, member.side))
            if same is not None and ((member.roots() >= 0) & (same.roots() >= 0)).any():
                reason = f"{member.path} has them in common with {other.root}"
                return replace(one, wrong=reason)
    return one


def _coupled(graph: Any, root: str, module: nn.Module, library: Any) -> Coupled:
    reached, channels, wrong = _reached(graph, module, library)
    members: dict[tuple[str, str], Member] = {}
    for target, outwards, indices in reached:
        if isinstance(target.module, library.ops._OutputOp):
            wrong = wrong or "they are the model's outputs"
            continue
        if type(target.module).__module__.startswith("torch_pruning"):
            continue  # adding, concatenating, reshaping: no weights
        place = _place(graph, target, outwards)
        if place is None:
            name = graph._module2name.get(target.module, "")
            wrong = wrong or f"{name or 'something'} is a {type(target.module).__name__}"
            continue
        path, side, size = place
        if size == 1 and len(indices) > 1:
            continue  # one channel that all others are multiplied with
        if any(there is None for there in indices.values()):
            wrong = wrong or f"which of them reach {path} is not known"
            continue
        targets = np.array(list(indices), np.int64)
        roots = np.array(list(indices.values()), np.int64)
        order = np.argsort(targets, kind="stable")
        runs = _runs(targets[order], roots[order])
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


Indices = dict[int, int | None]
"""The root's channel of each channel."""


def _reached(
    graph: Any, module: nn.Module, library: Any
) -> tuple[list[tuple[Any, bool, Indices]], int, str]:
    """What the output channels of a layer hang together with, by the graph's own edges.

    The library walks them itself, but without end where slices and sums make rings.

    Returns:
        (node, whether its outputs, their channels) of each; how many channels there are; and what
        is wrong.
    """
    pruner = graph.get_pruner_of_module(module)
    start = pruner.prune_out_channels
    count = int(pruner.get_out_channels(module))
    index = library._helpers._HybridIndex
    known: dict[tuple[Any, Any], Indices] = {}
    stack = [(graph.module2node[module], start, [index(k, k) for k in range(count)])]
    known[stack[0][:2]] = {k: k for k in range(count)}
    while stack:
        node, pruned, channels = stack.pop()
        for edge in node.dependencies:
            if not edge.is_triggered_by(pruned):
                continue
            reached = channels
            for mapping in edge.index_mapping:
                if mapping is not None:
                    reached = mapping(reached)
            there = known.setdefault((edge.target, edge.handler), {})
            fresh = []
            for one in reached:
                if one.idx not in there:
                    there[one.idx] = one.root_idx
                    fresh.append(one)
                elif there[one.idx] != one.root_idx:
                    where = graph._module2name.get(edge.target.module) or "a concatenation"
                    return [], count, f"they hang together with one another at {where}"
            if fresh:
                stack.append((edge.target, edge.handler, fresh))
    found = [
        (node, bool(graph.is_out_channel_pruning_fn(pruned)), indices)
        for (node, pruned), indices in known.items()
        if indices
    ]
    return found, count, ""


def _place(graph: Any, node: Any, outwards: bool) -> tuple[str, str, int] | None:
    """(path, side, size) of what is pruned together; None where it cannot be sliced here."""
    module = node.module
    if isinstance(module, nn.Parameter):
        dim = int(node.pruning_dim)
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
