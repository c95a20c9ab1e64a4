"""`trace`: a model of one's own as a search space over its channels and bit-widths."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call

from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware.layers import image_shape
from apq_optuna.networks import FLOAT_BITS, ChannelGroup, TracedFamily, TracedLayer
from apq_optuna.space import SearchSpace
from apq_optuna.supernet.pretrained.copies import lay_out, own_copy
from apq_optuna.tracing.checking import checked
from apq_optuna.tracing.dependencies import Coupled, coupled_channels
from apq_optuna.tracing.watching import Call, Watched, logits_of, same_result, watch

KEEP = (0.25, 0.5, 0.75, 1.0)
"""Shares of a layer's channels that may be kept."""

END_BITS = 8
"""Width of the first and the last layer, and of those that are left as they are."""


def trace(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    bits: Sequence[int] = (4, 6, 8),
    keep: Sequence[float] = KEEP,
    step: int = 8,
    ignore: Sequence[str] = (),
    ends: bool = False,
    name: str = "",
) -> SearchSpace:
    """The joint space over the channels and bit-widths of a model's layers.

    Channels that have to stay together (those that are added, concatenated, convolved depthwise)
    are one decision, called after the first layer that makes them (`layer1.0.conv1.channels`).
    Every convolution and linear layer has a width of its weights and one of its input (`.w_bits`,
    `.a_bits`). Groups of channels come from torch-pruning, and each is tried before it is
    believed. What stays whole, and why, is in `space.family.notes`.

    Args:
        model: Any module from images to logits; not changed. Its weights may be anything.
        input_shape: (channels, height, width) of an image.
        bits: Widths to choose from: 2 to 8, and 32 for float.
        keep: Shares of a layer's channels that may be kept; all of them always may.
        step: Counts of channels are multiples of it where that leaves a choice.
        ignore: Dotted names of modules, or patterns such as `features.0.*`, that stay as they are:
            whole, and at 8 bits.
        ends: Whether the widths of the first and of the last layer are searched, too; else they
            stay at 8 bits.
        name: What the family is called in messages; by default the model's class.

    Returns:
        A space, which needs the model no more.

    Raises:
        InvalidArgumentError: A model or image that cannot be run, something else than logits as
            its result, or arguments that make no sense.
    """
    shape = image_shape(input_shape)
    widths = _widths(bits)
    shares = _shares(keep)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise InvalidArgumentError(f"step={step!r}: a whole number of channels, at least 1")
    with torch.random.fork_rng(devices=[]):  # the same each time, and nothing of the caller's
        torch.manual_seed(0)
        return _traced(model, shape, widths, shares, step, ignore, ends, name)


def _traced(
    model: nn.Module, shape: tuple[int, int, int], widths: tuple[int, ...],
    shares: tuple[float, ...], step: int, ignore: Sequence[str], ends: bool, name: str,
) -> SearchSpace:  # fmt: skip
    """`trace`, its arguments checked."""
    own, notes = own_copy(model)
    seen = _seen(own, shape, notes)
    logits = logits_of(seen.result, "the model")
    if not any(call.module for call in seen.calls):
        raise InvalidArgumentError("the model calls no convolution and no linear layer")
    held = _held(own, ignore)
    tied = _tied(own)
    for group in tied:
        notes.append(f"{' and '.join(group)} share one weight: whole, each with codes of its own")
    odd = {c.module for c in seen.calls if c.module and not _quantizable(own, c.module)}
    for path in sorted(odd):
        notes.append(f"{path} computes with its weights in a way of its own: whole and float")
    traced = _layers(seen, held, odd, ends)
    family = TracedFamily(
        name or type(model).__name__,
        shape,
        logits.shape[1],
        widths,
        (),
        tuple(traced),
        seen.changed,
        _takes_channels_last(own, shape),
    )
    modules = list(dict.fromkeys(call.module for call in seen.calls if call.module))
    whole = held | odd | {path for group in tied for path in group}
    groups, reasons = _groups(own, shape, modules, whole, shares, step, traced[-1].module, notes)
    family, wrong = checked(own, replace(family, groups=tuple(groups)))
    makers = {group.name: _makers(group, modules) for group in groups}
    reasons |= {", ".join(makers[name]): reason for name, reason in wrong.items()}
    notes += [f"{names} stays whole: {reason}" for names, reason in reasons.items()]
    return SearchSpace.from_family(replace(family, notes=tuple(notes)))


def _seen(model: nn.Module, shape: tuple[int, int, int], notes: list[str]) -> Watched:
    """What a black image passes, if another one passes the same."""
    image = torch.randn(1, *shape)
    seen, again = watch(model, shape), watch(model, shape, image.clone())
    if [(c.module, c.layer) for c in seen.calls] != [(c.module, c.layer) for c in again.calls]:
        raise InvalidArgumentError(
            "which layers the model calls depends on the image: give a model that does the same "
            "with every image"
        )
    logits_of(seen.result, "the model")
    with torch.no_grad():
        repeated = model(image.clone())
    if not same_result(again.result, repeated, 1e-4):
        notes.append("the same image gives different logits each time: accuracies vary")
    if seen.changed:
        notes.append("the model writes to the image it is given: it is given a copy")
    notes += [f"not priced: {text}" for text in dict.fromkeys(seen.unpriced)]
    functions = sum(not call.module for call in seen.calls)
    if functions:
        notes.append(
            f"{functions} layers are no modules but functions of parameters: whole and in "
            "floating point, priced at the widest bits that the device has"
        )
    return seen


def _quantizable(model: nn.Module, path: str) -> bool:
    """Whether a layer is a convolution or product by its weight, and nothing more.

    One with a forward of its own may pad in its own way, but what it gives has to grow as its
    weight does; what standardises weights, or adds to them, is another function of them.
    """
    layer = model.get_submodule(path)
    if layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "parametrizations"):
        return False
    if type(layer).forward in (nn.Conv2d.forward, nn.Linear.forward):
        return True
    if {name for name, _ in layer.named_parameters()} - {"weight", "bias"} or any(layer.buffers()):
        return False
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        x = torch.randn(2, layer.in_channels, 16, 16)
    else:
        x = torch.randn(2, layer.in_features)
    zero = {} if layer.bias is None else {"bias": torch.zeros_like(layer.bias)}
    try:
        with torch.no_grad():
            once, thrice = (
                functional_call(layer, {"weight": weight * k, **zero}, (x,)) for k in (1.0, 3.0)
            )
    except Exception:  # whatever somebody's layer says of it
        return False
    return same_result(thrice, once * 3, 1e-5)


def _takes_channels_last(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether a model works with weights and images laid out channels last."""
    images = torch.randn(2, *shape)
    lay_out(model, last=True)
    try:
        with torch.no_grad():
            model(images.contiguous(memory_format=torch.channels_last))
            model(images)
    except Exception:  # `view` on what is laid out otherwise
        return False
    finally:
        lay_out(model, last=False)
    return True


def _layers(seen: Watched, held: set[str], odd: set[str], ends: bool) -> list[TracedLayer]:
    """The calls as layers with names of their own."""
    modules = [call.module for call in seen.calls if call.module]
    fixed = set(held) if ends else {*held, modules[0], modules[-1]}
    fixed -= odd
    signed = {m: any(c.signed for c in seen.calls if c.module == m) for m in set(modules)}
    times: dict[str, int] = {}
    found = []
    for call in seen.calls:
        base = call.module or "function"
        times[base] = times.get(base, 0) + 1
        name = base if times[base] == 1 and call.module else f"{base}#{times[base]}"
        found.append(
            TracedLayer(
                name, call.module, call.layer, signed.get(call.module, True),
                _fixed_width(call, fixed, odd),
                "" if call.module in odd else seen.norms.get(call.module, ""),
            )
        )  # fmt: skip
    return found


def _fixed_width(call: Call, fixed: set[str], odd: set[str]) -> int:
    if not call.module or call.module in odd:
        return FLOAT_BITS
    return END_BITS if call.module in fixed else 0


def _held(model: nn.Module, ignore: Sequence[str]) -> set[str]:
    """The modules that `ignore` names, and those in them."""
    if isinstance(ignore, str):
        ignore = (ignore,)
    names = [name for name, _ in model.named_modules() if name]
    held: set[str] = set()
    for pattern in ignore:
        found = {n for n in names if fnmatch.fnmatchcase(n, pattern)}
        found |= {n for n in names for f in found if n.startswith(f + ".")}
        if not found:
            close = ", ".join(names[:5])
            raise InvalidArgumentError(
                f"ignore={pattern!r}: the model has no such module; it has {close}, ..."
            )
        held |= found
    return held


def _tied(model: nn.Module) -> list[tuple[str, ...]]:
    """Modules that hold one and the same weight."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():  # a module that is called twice is here once
        for parameter in module._parameters.values():
            if parameter is not None and path not in owners.setdefault(id(parameter), []):
                owners[id(parameter)].append(path)
    return list(dict.fromkeys(tuple(paths) for paths in owners.values() if len(paths) > 1))


def _groups(
    model: nn.Module, shape: tuple[int, int, int], modules: Sequence[str], whole: set[str],
    shares: tuple[float, ...], step: int, last: str, notes: list[str],
) -> tuple[list[ChannelGroup], dict[str, str]]:  # fmt: skip
    """Groups of channels that are choices, and why others are none."""
    reasons: dict[str, str] = {}
    if all(share == 1.0 for share in shares):
        return [], reasons
    coupled, failed = coupled_channels(model, shape, modules)
    if failed:
        notes.append(f"every layer stays whole: {failed}")
        return [], reasons
    groups: list[ChannelGroup] = []
    divided: dict[int, list[str]] = {}
    for found in coupled:
        if found.root == last or found.channels == 1:
            continue  # its outputs are the classes, or there is nothing to leave out
        reason = found.wrong or _held_by(found, whole)
        choices = counts(found, shares, step)
        if not reason and len(choices) < 2:
            reason = f"{found.channels} channels leave no choice"
        if reason:
            reasons[", ".join(_makers(found, modules))] = reason
            continue
        groups.append(
            ChannelGroup(found.root, found.channels, choices, found.parts, found.members)
        )
        if math.lcm(found.parts, step) != step:
            divided.setdefault(found.parts, []).append(found.root)
    for parts, names in divided.items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        notes.append(
            f"{', '.join(names[:5])}{more}: counts of channels that {parts} groups divide"
        )
    order = {name: place for place, name in enumerate(modules)}
    return sorted(groups, key=lambda group: order[group.name]), reasons


def _makers(group: Coupled | ChannelGroup, modules: Sequence[str]) -> list[str]:
    """The layers whose outputs a group is, the root first."""
    makers = {m.path for m in group.members if m.side == "out"} & set(modules)
    root = group.root if isinstance(group, Coupled) else group.name
    return [root, *(name for name in modules if name in makers - {root})]


def _held_by(found: Coupled, whole: set[str]) -> str:
    for member in found.members:
        if member.path in whole and member.side != "in":
            return f"{member.path} is to stay as it is"
        if member.path in whole:
            return f"{member.path}, which they feed, is to stay as it is"
    return ""


def counts(found: Coupled, shares: tuple[float, ...], step: int) -> tuple[int, ...]:
    """How many channels may be kept, ascending: multiples of `step` that the groups divide."""
    total = found.channels
    for unit in (math.lcm(step, found.parts), found.parts):
        some = {
            min(max(round(total * share / unit), 1) * unit, total) for share in shares
        } | {total}  # fmt: skip
        if len(some) > 1:
            break
    return tuple(sorted(some))


def _widths(bits: Sequence[int]) -> tuple[int, ...]:
    if isinstance(bits, int | str) or not isinstance(bits, Sequence):
        raise InvalidArgumentError(f"bits={bits!r}: give widths, such as (4, 6, 8)")
    widths = tuple(bits)
    if not widths or any(isinstance(b, bool) or not isinstance(b, int) for b in widths):
        raise InvalidArgumentError(f"bits={widths}: give whole numbers, such as (4, 6, 8)")
    return tuple(sorted(set(widths)))


def _shares(keep: Sequence[float]) -> tuple[float, ...]:
    if isinstance(keep, int | float):
        keep = (keep,)
    try:
        shares = tuple(float(share) for share in keep)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"keep={keep!r}: give shares, such as (0.5, 1.0)") from None
    if not shares or any(not 0 < share <= 1 for share in shares):
        raise InvalidArgumentError(f"keep={shares}: shares above 0 and at most 1")
    return tuple(sorted({*shares, 1.0}))
