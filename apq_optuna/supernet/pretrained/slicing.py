"""A model with fewer channels: which of each weight's are kept, and the modules that hold them.

Notation:
    C, c    channels of a group, and how many of them are kept
    keep    along one dimension of a weight, either `(c,) int64`, ascending: the channels that are
            cut out of it; or `(C,) float32`, ones and zeros: what it is multiplied with, whole
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apq_optuna.networks import TracedFamily, TracedSubnet

NORMS_BY_CHANNEL = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm,
)  # fmt: skip

Keep = Tensor | None
"""None keeps all."""

Change = Callable[[nn.Module, Mapping[str, Tensor]], None]


class Slicer:
    """Slices a model for the networks of its family.

    Args:
        model: The model, in its whole size; read, never changed.
        family: What a trace found of it.
        order: By group, `(C,)` channels of its root by importance, the first to be kept first.
    """

    def __init__(
        self, model: nn.Module, family: TracedFamily, order: list[np.ndarray] | None = None
    ) -> None:
        self.model, self.family = model, family
        self._modules = dict(model.named_modules())
        sizes = [group.channels for group in family.groups]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._places = self._places_of(family)
        self.order = importance_order(model, family) if order is None else order
        self._rank = [np.argsort(first) for first in self.order]
        self._tables: dict[tuple[tuple[str, str], tuple[int, ...]], Tensor] = {}
        self._mask_tables: list[Tensor] | None = None  # ranks and groups by place, members' places

    def _places_of(self, family: TracedFamily) -> dict[tuple[str, str], tuple[Any, list[int]]]:
        """By (path, side): each channel's place among all groups' roots, and the groups.

        What belongs to no group has the place behind the last, which is always kept.
        """
        found: dict[tuple[str, str], tuple[np.ndarray, list[int]]] = {}
        for g, group in enumerate(family.groups):
            for member in group.members:
                key = member.path, member.side
                if key not in found:
                    found[key] = np.full(member.size, self._starts[-1]), []
                places, groups = found[key]
                roots = member.roots()
                places[roots >= 0] = self._starts[g] + roots[roots >= 0]
                groups.append(g)
        return found

    def keep(self, channels: tuple[int, ...]) -> dict[tuple[str, str], Tensor]:
        """By (path, side): the channels kept, where some are left out."""
        kept = np.ones(int(self._starts[-1]) + 1, bool)
        for g, count in enumerate(channels):
            kept[self._starts[g] : self._starts[g + 1]] = self._rank[g] < count
        found = {}
        for key, (places, groups) in self._places.items():
            chosen = tuple(channels[g] for g in groups)
            whole = (self.family.groups[g].channels for g in groups)
            if all(c == size for c, size in zip(chosen, whole, strict=True)):
                continue
            table = self._tables.get((key, chosen))
            if table is None:
                table = torch.from_numpy(np.flatnonzero(kept[places]))
                if len(chosen) == 1:  # of several there are too many choices to keep them all
                    self._tables[key, chosen] = table
            found[key] = table
        return found

    def masks(self, counts: Tensor) -> dict[tuple[str, str], Tensor]:
        """As `keep`, but ones for the channels kept and zeros for the others, of all (path, side).

        Args:
            counts: By group, `(G,) int64`: how many channels are kept; on the device of the masks.
        """
        if self._mask_tables is None or self._mask_tables[0].device != counts.device:
            sizes = np.diff(self._starts)
            tables = (
                np.concatenate([*self._rank, [-1]]),  # below every count: the last is kept
                np.concatenate([np.repeat(np.arange(len(sizes)), sizes), [0]]),
                np.concatenate([places for places, _ in self._places.values()]),
            )
            self._mask_tables = [torch.from_numpy(table).to(counts.device) for table in tables]
        ranks, groups, places = self._mask_tables
        kept = (ranks < counts[groups]).float()[places]
        each = kept.split([len(places) for places, _ in self._places.values()])
        return dict(zip(self._places, each, strict=True))

    def tensors(
        self, keep: Mapping[tuple[str, str], Tensor], values: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Parameters and buffers of a network, differentiable in those of the model.

        Args:
            keep: From `keep`; or from `masks`, for tensors of whole size with zeros.
            values: The model's parameters and buffers by name.

        Returns:
            Those that differ from the model's, by name.
        """
        found: dict[str, Tensor] = {}
        for path in dict.fromkeys(path for path, _ in keep):
            module = self._modules.get(path)
            if module is None:
                for (name, side), index in keep.items():
                    if name == path:
                        found[path] = _take(found.get(path, values[path]), int(side[3:]), index)
                continue
            inputs, outputs, both = (keep.get((path, side)) for side in ("in", "out", "both"))
            prefix = f"{path}." if path else ""
            own = {
                name: values[prefix + name]
                for name in (*module._parameters, *module._buffers)
                if prefix + name in values
            }
            for name, value in _sliced(module, own, inputs, outputs, both).items():
                found[prefix + name] = value
        return found

    def shell(self, keep: Mapping[tuple[str, str], Tensor]) -> nn.Module:
        """The model's modules with other counts of channels, sharing the model's tensors."""
        result = modules_of(self.model)
        modules = dict(result.named_modules())
        for path in dict.fromkeys(path for path, _ in keep):
            if path in modules:
                counts = {
                    side: len(keep[path, side])
                    for side in ("in", "out", "both")
                    if (path, side) in keep
                }
                _count(modules[path], counts)
        return result

    def network(self, subnet: TracedSubnet, *, shared: bool = False) -> nn.Module:
        """A network of its own: the model's own classes with the kept channels' weights.

        Args:
            subnet: The network.
            shared: Whether weights that are whole may be the model's: one that is only looked at.
        """
        keep = self.keep(subnet.channels)
        values: dict[str, Tensor] = {
            **dict(self.model.named_parameters(remove_duplicate=False)),
            **dict(self.model.named_buffers(remove_duplicate=False)),
        }
        with torch.no_grad():
            sliced = self.tensors(keep, values)
        result = self.shell(keep)
        done: dict[int, Any] = {}
        for path, module in result.named_modules():
            prefix = f"{path}." if path else ""
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                new = sliced.get(prefix + name)
                if new is None and id(parameter) in done:
                    module._parameters[name] = done[id(parameter)]
                    continue
                if new is None and shared:
                    continue
                value = parameter.detach().clone() if new is None else new.detach()
                made = nn.Parameter(value, requires_grad=parameter.is_floating_point())
                module._parameters[name] = made
                if new is None:
                    done[id(parameter)] = made
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    new = sliced.get(prefix + name)
                    if new is not None or not shared:
                        module._buffers[name] = buffer.clone() if new is None else new
        return result


_PLAIN = (int, float, str, bool, bytes, type(None), torch.dtype, torch.device, type)


def modules_of(model: nn.Module) -> nn.Module:
    """A copy of a model's modules that shares its tensors.

    As `copy.deepcopy` with all tensors kept, in a fifth of the time: of a module's many
    attributes most are numbers and empty dictionaries of hooks.
    """
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    later: list[tuple[dict[str, Any], str, Any]] = []

    def copied(module: nn.Module) -> nn.Module:
        if id(module) in memo:
            return memo[id(module)]  # type: ignore[no-any-return]
        if hasattr(module, "__deepcopy__"):  # somebody's own way
            return copy.deepcopy(module, memo)
        result: nn.Module = module.__new__(type(module))
        memo[id(module)] = result
        there: dict[str, Any] = {}
        object.__setattr__(result, "__dict__", there)
        for name, value in module.__dict__.items():
            if isinstance(value, _PLAIN):
                there[name] = value
            elif name == "_modules":
                there[name] = {n: None if m is None else copied(m) for n, m in value.items()}
            elif name in ("_parameters", "_buffers"):
                there[name] = dict(value)
            elif isinstance(value, dict) and not value:
                there[name] = type(value)()
            else:  # it may refer to modules that are still to come
                later.append((there, name, value))
                there[name] = None  # keeps its place
        return result

    found = copied(model)
    for there, name, value in later:
        there[name] = copy.deepcopy(value, memo)
    return found


def _sliced(
    module: nn.Module, own: Mapping[str, Tensor], inputs: Keep, outputs: Keep, both: Keep
) -> dict[str, Tensor]:
    """The tensors of one module with the kept channels."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        if both is not None:
            return {name: _take(value, 0, both) for name, value in own.items()}
        weight = own["weight"]
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            weight = _of_groups(weight, module.groups, inputs, outputs)
        else:
            weight = _take(_take(weight, 0, outputs), 1, inputs)
        found = {"weight": weight}
        if own.get("bias") is not None:
            found["bias"] = _take(own["bias"], 0, outputs)
        return found
    assert both is not None
    return {name: _take(value, 0, both) for name, value in own.items() if value.ndim}


def _take(value: Tensor, dim: int, keep: Keep) -> Tensor:
    if keep is None:
        return value
    if keep.is_floating_point():
        sizes = [1] * value.ndim
        sizes[dim] = len(keep)
        return value * keep.view(sizes).to(value.dtype)
    return value.index_select(dim, keep.to(value.device))


def _of_groups(weight: Tensor, groups: int, inputs: Keep, outputs: Keep) -> Tensor:
    """`(out, in / groups, kh, kw)` of a grouped convolution: each group keeps its own."""
    out, per = weight.shape[0], weight.shape[1]
    if any(keep is not None and keep.is_floating_point() for keep in (inputs, outputs)):
        weight = _take(weight, 0, outputs)
        if inputs is None:
            return weight
        mask = inputs.view(groups, 1, per).expand(groups, out // groups, per).reshape(out, per)
        return weight * mask[(...,) + (None,) * (weight.ndim - 2)].to(weight.dtype)
    rows = torch.arange(out) if outputs is None else outputs
    cols = torch.arange(per * groups) if inputs is None else inputs
    if len(rows) % groups or len(cols) % groups:
        raise ValueError(f"{groups} groups do not divide {len(cols)} and {len(rows)} channels")
    home = torch.arange(groups)[:, None]
    if (rows.view(groups, -1) // (out // groups) != home).any():
        raise ValueError(f"{groups} groups do not keep as many channels each")
    mine = (cols.view(groups, -1) - home * per).to(weight.device)
    if int(mine.min()) < 0 or int(mine.max()) >= per:
        raise ValueError(f"{groups} groups do not keep as many channels each")
    pieces = weight.index_select(0, rows.to(weight.device)).chunk(groups)
    return torch.cat([p.index_select(1, m) for p, m in zip(pieces, mine, strict=True)])


def _count(module: nn.Module, counts: Mapping[str, int]) -> None:
    """Tells a module how many channels it has."""
    both = counts.get("both")
    if isinstance(module, nn.Conv2d):
        module.in_channels = both or counts.get("in", module.in_channels)
        module.out_channels = both or counts.get("out", module.out_channels)
        module.groups = both or module.groups
    elif isinstance(module, nn.Linear):
        module.in_features = counts.get("in", module.in_features)
        module.out_features = counts.get("out", module.out_features)
    elif both is None:
        return
    elif isinstance(module, NORMS_BY_CHANNEL):
        module.num_features = both
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (both,)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = both
    elif isinstance(module, nn.PReLU):
        module.num_parameters = both


@torch.no_grad()
def importance_order(model: nn.Module, family: TracedFamily) -> list[np.ndarray]:
    """By group: `(C,)` channels by importance, within every part alike.

    Importance is the L1 norm of a channel's weights (Li et al., ICLR 2017), summed over all that
    is pruned with it, each weight's norms by their mean so that large ones do not decide alone.
    What BatchNorm multiplies a channel with counts as part of its weights.
    """
    modules = dict(model.named_modules())
    norms = {t.module: t.norm for t in family.traced if t.norm}
    found = []
    for group in family.groups:
        total = np.zeros(group.channels)
        for member in group.members:
            module = modules.get(member.path)
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            each = _norms_of(module, member.side, modules.get(norms.get(member.path, "")))
            roots = member.roots()
            mine = np.bincount(
                roots[roots >= 0], weights=each[roots >= 0], minlength=group.channels
            )
            total += mine / max(float(mine.mean()), 1e-12)
        each_part = total.reshape(group.parts, -1)
        ranks = np.argsort(np.argsort(-each_part, axis=1, kind="stable"), axis=1)
        found.append(np.lexsort((-total, ranks.reshape(-1))))
    return found


def _norms_of(module: nn.Conv2d | nn.Linear, side: str, norm: nn.Module | None) -> np.ndarray:
    """`(size,)`: the L1 norm of what belongs to each channel at one side of a layer."""
    weight = module.weight.detach().abs().flatten(2) if module.weight.ndim > 2 else (
        module.weight.detach().abs()[..., None]
    )  # fmt: skip
    if side in ("out", "both"):
        each = weight.sum((1, 2))
        gain = getattr(norm, "weight", None)
        variance = getattr(norm, "running_var", None)
        if gain is not None and variance is not None:
            each = each * gain.abs() / (variance + 1e-5).sqrt()
    elif isinstance(module, nn.Conv2d) and module.groups > 1:
        each = weight.sum(2).view(module.groups, -1, weight.shape[1]).sum(1).flatten()
    else:
        each = weight.sum((0, 2))
    return each.double().cpu().numpy()
