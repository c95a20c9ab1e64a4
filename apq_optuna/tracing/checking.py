"""Whether groups of channels are what they are said to be: networks built from them, and run.

A group is believed where networks with it at its smallest have layers of the shapes that the
sites say, and compute what the whole model computes with the same channels cut off from what they
feed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from apq_optuna.networks import TracedFamily, TracedSubnet
from apq_optuna.supernet.pretrained.slicing import Slicer
from apq_optuna.tracing.watching import same_result, watch

TOLERANCE = 1e-3
"""Share of the difference between two images' logits by which those of one image may differ."""

ROUNDING = 2e-5
"""Share of the largest logit by which two sums in other orders may differ."""


def checked(
    model: nn.Module, family: TracedFamily, seed: int = 0
) -> tuple[TracedFamily, dict[str, str]]:
    """The family without the groups that are not what they are said to be.

    All pairs of groups are tried with each of them whole and the other at its smallest: in
    patterns of all groups at once, of which there are few. Only where a pattern fails are groups
    tried one by one.

    Args:
        model: One's own copy of the model, evaluating.
        family: With the groups to check.
        seed: Of the image and of random networks.

    Returns:
        The family, and why each group that it lacks stays whole.
    """
    image = torch.randn(1, *family.input_shape, generator=torch.Generator().manual_seed(seed))
    wrong: dict[str, str] = {}
    while family.groups:
        slicer = Slicer(model, family)
        found = _failures(slicer, image, seed)
        if not found:
            break
        wrong |= found
        groups = tuple(group for group in family.groups if group.name not in found)
        family = replace(family, groups=groups)
    return family, wrong


def _failures(slicer: Slicer, image: Tensor, seed: int) -> dict[str, str]:
    """Groups to leave whole; those of the first pattern that fails."""
    groups = slicer.family.groups
    for smallest in _patterns(_without_norms(slicer), seed):
        reason = _fault(slicer, smallest, image)
        if not reason:
            continue
        alone = {}
        for g in np.flatnonzero(smallest).tolist():
            only = np.zeros(len(groups), bool)
            only[g] = True
            if fault := _fault(slicer, only, image):
                alone[groups[g].name] = fault
        return alone or {groups[_culprit(slicer, smallest, image)].name: reason}
    return {}


def _culprit(slicer: Slicer, smallest: np.ndarray, image: Tensor) -> int:
    """Of groups that fail together and not alone: the last of the first few that do."""
    members = np.flatnonzero(smallest)
    low, high = 0, len(members)  # the least prefix that fails ends at `high`
    while high - low > 1:
        middle = (low + high) // 2
        some = np.zeros(len(smallest), bool)
        some[members[:middle]] = True
        if _fault(slicer, some, image):
            high = middle
        else:
            low = middle
    return int(members[high - 1])


def _without_norms(slicer: Slicer) -> np.ndarray:
    """`(n,) bool`: groups along which no norm takes a mean over channels."""
    modules = dict(slicer.model.named_modules())
    return np.array(
        [
            not any(
                isinstance(modules.get(m.path), nn.LayerNorm | nn.GroupNorm) for m in group.members
            )
            for group in slicer.family.groups
        ],
        bool,
    )


def _patterns(plain: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """`(n,) bool`, which groups are at their smallest: all, then such that any two differ.

    Those without norms over channels also by themselves: only what they compute can be compared.
    """
    n = len(plain)
    yield np.ones(n, bool)
    if plain.any() and not plain.all():
        yield plain
    numbers = np.arange(n)
    for bit in range(max(1, math.ceil(math.log2(max(n, 2))))):
        pattern = (numbers >> bit) % 2 == 1
        for chosen in (pattern, ~pattern):
            if chosen.any() and not chosen.all():
                yield chosen
    rng = np.random.default_rng(seed)
    for _ in range(2):
        yield rng.random(n) < 0.5


def _fault(slicer: Slicer, smallest: np.ndarray, image: Tensor) -> str:
    """What is wrong with the network of which some groups are at their smallest; or empty."""
    family = slicer.family
    channels = tuple(
        group.choices[0] if small else group.channels
        for group, small in zip(family.groups, smallest.tolist(), strict=True)
    )
    subnet = family_subnet(family, channels)
    try:
        network = slicer.network(subnet, shared=True).eval()
        seen = watch(network, family.input_shape, image.clone())
    except Exception as error:  # whatever somebody's code says of fewer channels
        return _short(error)
    said = [placed.layer for placed in subnet.layers()]
    if [call.layer for call in seen.calls] != said:
        for call, layer in zip(seen.calls, said, strict=False):
            if call.layer != layer:
                return f"{call.module or 'a function'} then has other channels than expected"
        return "then there are other layers"
    with torch.no_grad():
        whole = _cut_off(slicer, smallest, image)
    if whole is not None and not _same(slicer, seen.result, whole, image):
        return "the rest of the network does not do without them as it should"
    return ""


def _same(slicer: Slicer, first: Tensor, second: Tensor, image: Tensor) -> bool:
    """Whether two results are one, by what tells this image from its negative."""
    with torch.no_grad():
        other, this = slicer.model(-image), slicer.model(image.clone())
    told_apart = float((this - other).abs().max())
    allowed = max(TOLERANCE * told_apart, ROUNDING * float(second.abs().max()))
    return same_result(first, second, allowed / max(float(second.abs().max()), 1e-6))


def _cut_off(slicer: Slicer, smallest: np.ndarray, image: Tensor) -> Any:
    """What the whole model computes where nothing takes in what the network leaves out.

    None where norms take the mean over channels: then there is no such model.
    """
    family = slicer.family
    chosen = [g for g, small in zip(family.groups, smallest.tolist(), strict=True) if small]
    modules = dict(slicer.model.named_modules())
    for member in (m for group in chosen for m in group.members):
        module = modules.get(member.path)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            return None
    channels = tuple(
        group.choices[0] if small else group.channels
        for group, small in zip(family.groups, smallest.tolist(), strict=True)
    )
    changed: dict[str, Tensor] = {}
    for (path, side), index in slicer.keep(channels).items():
        module = modules.get(path)
        if side == "in" and isinstance(module, nn.Conv2d | nn.Linear):
            name = f"{path}.weight" if path else "weight"
            weight = module.weight.detach()
            groups = getattr(module, "groups", 1)
            mask = torch.zeros(weight.shape[1] * groups)
            mask[index] = 1
            rows = mask.view(groups, -1)
            if groups > 1:
                rows = rows.repeat_interleave(weight.shape[0] // groups, 0)
            changed[name] = weight * rows.view(*rows.shape, *[1] * (weight.ndim - 2))
    return functional_call(slicer.model, changed, (image.clone(),))


def family_subnet(family: TracedFamily, channels: tuple[int, ...]) -> TracedSubnet:
    """A network of so many channels, at the widest bits."""
    return TracedSubnet(family, channels, ((family.bits[-1],) * 2,) * len(family.searched))


def _short(error: Exception) -> str:
    cause = error.__cause__ or error
    text = str(cause).strip().splitlines()[-1:] or [type(cause).__name__]
    return text[0] if len(text[0]) < 160 else f"{text[0][:156]} ..."
