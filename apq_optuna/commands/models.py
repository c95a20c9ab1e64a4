"""A model of one's own: traced, shown, and put where a supernet would be."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna.commands.common import (
    budgets_of,
    cost_table,
    load_supernet,
    program_path,
    run_folder,
    say,
    set_threads,
)
from apq_optuna.commands.images import load_images, supernet_images
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.networks import TracedFamily

if TYPE_CHECKING:
    from torch import nn

    from apq_optuna.data import ImageData
    from apq_optuna.hardware import CostTable
    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import PretrainedNet, Supernet

FILE = "supernet.json"
"""That a run's folder has once there is a network in it."""

RANDOM_NETWORKS = 20_000
"""Of which as many meet a budget."""

JUDGED_ON = 1000
"""Images that say whether a model knows anything."""

SHOWN = 60
"""Decisions and notes that are listed."""


def trace(arguments: Any) -> None:
    """What is searched of a model, what stays whole, and what its networks cost."""
    set_threads(arguments)
    before = arguments.run is not None and (run_folder(arguments, make=False) / FILE).exists()
    if not before and not arguments.model:
        raise InvalidArgumentError(
            "--model is needed: torchvision:NAME, timm:NAME, module:factory"
        )
    if arguments.run is not None and not arguments.data and not before:
        raise InvalidArgumentError("--run needs --data: the images it is for")
    data: ImageData | None = None
    if before:
        net = net_of(arguments)  # or the reason why it is another
        data = supernet_images(arguments, net) if arguments.data else None
    else:
        net, data = traced_net(arguments)
    family = net.space.family
    if not isinstance(family, TracedFamily):
        raise InvalidArgumentError(f"--run {arguments.run} holds a supernet, not a traced model")
    say(_decisions_table(net.space, family))
    for note in list(dict.fromkeys(_gathered(family.notes)))[:SHOWN]:
        say(f"note: {note}")
    with tempfile.TemporaryDirectory(prefix="apq-trace-") as nowhere:
        folder = Path(nowhere) if arguments.run is None else run_folder(arguments)
        costs = cost_table(arguments.hardware, net, folder)
    say(_costs_table(net.space, costs, budgets_of(arguments.budget)))
    if data is not None:
        _say_accuracy(net, data)
    if arguments.run is None:
        say(f"nothing was kept; with --run DIR: {program_path()} collect --run DIR comes next")
        return
    if not before:
        net.save(run_folder(arguments))
        say(f"saved in {arguments.run}")
    say(f"next: {program_path()} train --run {arguments.run}, which deep models need, or "
        f"{program_path()} collect --run {arguments.run}")  # fmt: skip


def _say_accuracy(net: Supernet, data: ImageData) -> None:
    """Of the whole model, so that wrong weights, classes or normalisation are seen."""
    from apq_optuna.supernet import accuracy

    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (data.mean, data.std))
    known = accuracy(net, data, limit=JUDGED_ON)
    images = min(JUDGED_ON, len(data.search_validation))
    say(
        f"as it is: accuracy {known:.4f} on {images} search-validation images, normalised with "
        f"mean {mean} and std {std}"
    )
    if known < 2 * data.chance:
        say("note: it knows little; see --weights, --mean and --std, and the order of its classes")


def net_of(arguments: Any) -> Supernet:
    """What a command works on: the run's supernet, or the model that `--model` names.

    That is traced and put into the run's folder, unless it is there already.
    """
    from apq_optuna.supernet import PretrainedNet

    if not arguments.model:
        found = load_supernet(arguments)
        _as_before(arguments, found)
        return found
    folder = run_folder(arguments)
    if (folder / FILE).exists():
        net = _kept(folder, arguments.model)
        if not isinstance(net, PretrainedNet) or net.source != arguments.model:
            raise InvalidArgumentError(
                f"--model {arguments.model}: {folder} holds another network; choose another --run"
            )
        _as_before(arguments, net)
        if not json.loads((folder / FILE).read_text()).get("model"):
            net.save(folder)  # further commands know where it comes from
        say(f"{arguments.model}: traced before, in {folder}")
        return net
    if not arguments.data:
        raise InvalidArgumentError("--model needs --data: the images it is for")
    net, data = traced_net(arguments)
    net.save(folder)
    if data is not None:
        _say_accuracy(net, data)
    say(f"saved in {folder}")
    return net


def _kept(folder: Path, model: str) -> Supernet:
    """The network of a run; of what a script has put there without a name, the model is given."""
    from apq_optuna._checkpoints import read_checkpoint
    from apq_optuna.supernet import PretrainedNet, load_net
    from apq_optuna.supernet.pretrained.net import KIND

    tensors, about = read_checkpoint((folder / FILE).with_suffix(".safetensors"))
    if about.get("kind") != KIND or about.get("model"):
        return load_net(folder, trusted=True)
    return PretrainedNet.of_checkpoint(
        tensors, about | {"model": model}, str(folder), trusted=True
    )


def teacher_of(arguments: Any, space: SearchSpace, data: ImageData) -> nn.Module | None:
    """The network that `--teacher` names with its weights, once its accuracy has been told."""
    import numpy as np

    from apq_optuna.supernet import accuracy
    from apq_optuna.supernet.devices import resolve_device
    from apq_optuna.supernet.pretrained.sources import (
        LIBRARIES,
        build_model,
        fit_state,
        preprocessing_of,
        read_weights,
    )
    from apq_optuna.supernet.teaching import Renormalised, check_teacher

    name, file = getattr(arguments, "teacher", None), getattr(arguments, "teacher_weights", None)
    if not name:
        if file is not None:
            raise InvalidArgumentError("--teacher-weights needs --teacher: what they are of")
        return None
    if file is None and name.startswith(LIBRARIES):
        raise InvalidArgumentError(
            f"--teacher {name} needs --teacher-weights: those it is made with know nothing"
        )
    model = build_model(name, data.num_classes)
    if file is not None:
        fit_state(model, read_weights(file), file)
    check_teacher(model, space)
    told = preprocessing_of(name)
    given, wanted = (data.mean, data.std), (told.mean, told.std) if told is not None else None
    if wanted is not None and not np.allclose(given, wanted, atol=0.02):
        say(f"{name}: its images are normalised as its library has them")
        model = Renormalised(model, given, wanted)
    known = accuracy(model.to(resolve_device(arguments.device)), data)
    model.to("cpu")
    say(f"teacher {name}: search-validation accuracy {known:.4f}")
    if known < 2 * data.chance:
        say("note: a teacher that knows so little teaches little; see --teacher-weights")
    return model


def _as_before(arguments: Any, net: Supernet) -> None:
    """Refuses what is said of tracing where a run's network is another."""
    how = getattr(net, "how", {})
    for name, value in _how(arguments).items():
        if value is not None and value != how.get(name):
            raise InvalidArgumentError(
                f"--{name}: {arguments.run} has its network as it is; choose another --run"
            )
    info = getattr(net, "data_info", {}) if hasattr(net, "how") else {}
    for name in ("mean", "std"):
        value, own = getattr(arguments, name, None), info.get(name)
        if value is not None and own and not _alike(value, own):
            raise InvalidArgumentError(
                f"--{name}: the images of {arguments.run} are normalised with "
                f"{' '.join(f'{v:.4f}' for v in own)}; choose another --run"
            )


def _alike(said: Sequence[float], own: Sequence[float]) -> bool:
    """Whether two normalisations are one, up to how they are rounded."""
    return len(said) == len(own) and all(
        math.isclose(a, b, abs_tol=1e-4) for a, b in zip(said, own, strict=True)
    )


def _how(arguments: Any) -> dict[str, Any]:
    """What the command line says of tracing, weights by what is in them; None where nothing."""
    names = ("bits", "keep", "step", "ignore", "ends")
    found = {name: getattr(arguments, name) for name in names}
    if arguments.weights is not None and Path(arguments.weights).is_file():
        digest = hashlib.sha256(Path(arguments.weights).read_bytes()).hexdigest()
        found["weights"] = digest[:16]
    return found


def traced_net(arguments: Any) -> tuple[PretrainedNet, ImageData | None]:
    """The model that the command line names, traced."""
    from apq_optuna.supernet import PretrainedNet
    from apq_optuna.supernet.pretrained.sources import (
        LIBRARIES,
        build_model,
        fit_state,
        input_side_of,
        preprocessing_of,
        read_weights,
    )
    from apq_optuna.tracing import trace as traced

    weights = None if arguments.weights is None else read_weights(arguments.weights)
    how = preprocessing_of(arguments.model)
    data = None
    if arguments.data:
        info = {} if how is None else {"model_mean": how.mean, "model_std": how.std}
        data = load_images(arguments, info)
        shape, classes = (data.channels, data.image_size, data.image_size), data.num_classes
        if arguments.classes not in (None, classes):
            raise InvalidArgumentError(
                f"--classes {arguments.classes}: the images have {classes} classes"
            )
    else:
        side = arguments.image_size or input_side_of(arguments.model)
        shape, classes = (1 if arguments.grayscale else 3, side, side), arguments.classes
    model = build_model(arguments.model, classes)
    if weights is not None:
        fit_state(model, weights, arguments.weights)
    elif arguments.model.startswith(LIBRARIES):
        say("note: no --weights: those the model is made with are searched, random ones as a rule")
    started = time.perf_counter()
    said = {name: value for name, value in _how(arguments).items() if value is not None}
    told = {name: value for name, value in said.items() if name != "weights"}
    space = traced(model, shape, name=arguments.model, **told)
    family: Any = space.family
    if data is not None and family.num_classes != data.num_classes:
        raise InvalidArgumentError(
            f"--model {arguments.model} has {family.num_classes} outputs, the images of "
            f"{arguments.data} have {data.num_classes} classes"
        )
    took = time.perf_counter() - started
    layers = len(dict.fromkeys(t.module for t in family.traced))
    say(
        f"{arguments.model}: {layers} layers, {len(family.groups)} groups of channels and "
        f"{len(space.decisions)} decisions at {'x'.join(map(str, shape))}, traced in {took:.1f} s"
    )
    return PretrainedNet(model, space, data=data, source=arguments.model, how=said), data


def _decisions_table(space: SearchSpace, family: TracedFamily) -> str:
    """Groups of channels a line each, widths together."""
    rows = [("channels", "choices", "lie along")]
    for group in family.groups:
        paths = list(dict.fromkeys(member.path for member in group.members))
        more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
        rows.append(
            (group.name, " ".join(map(str, group.choices)), ", ".join(paths[:4]) + more)
        )  # fmt: skip
    left = len(rows) - 1 - SHOWN
    rows = rows[: SHOWN + 1]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = [f"  {a:{first}}  {b:{second}}  {c}" for a, b, c in rows]
    if left > 0:
        lines.append(f"  and {left} groups more")
    fixed = list(dict.fromkeys(f"{t.module} ({t.fixed})" for t in family.traced if t.fixed))
    size = sum(math.log10(len(decision.choices)) for decision in space.decisions)
    lines.append(
        f"  {len(family.searched)} layers with a width of weights and one of their input: "
        f"{', '.join(map(str, family.bits))}; always so: {', '.join(fixed[:6])}"
        f"{' ...' if len(fixed) > 6 else ''}"
    )
    lines.append(f"  10^{size:.0f} networks")
    return "\n".join(lines)


def _gathered(notes: tuple[str, ...]) -> list[str]:
    """Notes that say one thing of many layers as one."""
    found: dict[str, list[str]] = {}
    for note in notes:
        name, stays, reason = note.partition(" stays whole: ")
        found.setdefault(reason if stays else note, []).append(name if stays else "")
    lines = []
    for text, names in found.items():
        if names == [""]:
            lines.append(text)
            continue
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        stay = "stay" if len(names) > 1 else "stays"
        lines.append(f"{', '.join(names[:5])}{more} {stay} whole: {text}")
    return lines


def _costs_table(space: SearchSpace, costs: CostTable, budgets: dict[str, float]) -> str:
    import numpy as np

    compiled = costs.compile(space)
    names = list(compiled.metric_names)
    for metric in budgets:
        if metric not in names:
            raise InvalidArgumentError(
                f"--budget {metric}: no cost of {costs.device}, which has {', '.join(names)}"
            )
    middle = (space.sizes // 2)[None].astype(np.int32)
    rows = {
        f"smallest, {space.bits[0]} bits": space.extreme(largest=False, bits=space.bits[0]),
        "middle": space.canonical(middle),
        f"largest, {space.bits[-1]} bits": space.extreme(largest=True, bits=space.bits[-1]),
    }
    width = max(map(len, rows))
    lines = [f"costs on {costs.device}:", f"  {'':{width}}  {'MMACs':>9}  {'kB':>7}  "
             + "  ".join(f"{name:>12}" for name in names)]  # fmt: skip
    for name, row in rows.items():
        subnet = space.decode(row[0])
        values = [f"{subnet.macs / 1e6:9.2f}", f"{subnet.weight_bytes / 1e3:7.1f}"]
        values += [f"{value:12.4f}" for value in compiled(row)[0]]
        lines.append("  ".join([f"  {name:{width}}", *values]))
    if compiled.has_gaps:
        lines.append(
            f"note: {costs.device} does not run all of these widths: they are not proposed"
        )
    if budgets:
        drawn = compiled(space.sample(RANDOM_NETWORKS, np.random.default_rng(0)))
        fits = np.ones(len(drawn), bool)
        for metric, limit in budgets.items():
            fits &= drawn[:, names.index(metric)] <= limit
        limits = ", ".join(f"{metric} <= {limit:g}" for metric, limit in budgets.items())
        lines.append(f"{fits.mean():.1%} of {len(drawn):,} random networks meet {limits}")
    return "\n".join(lines)
