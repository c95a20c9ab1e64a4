"""Devices and tables: list, build, check, show, compare, price."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna._files import replace_file
from apq_optuna.commands.common import (
    CORRECTING_NETWORKS,
    is_table_file,
    ledger_of,
    measured_table,
    program_path,
    run_folder,
    runs_whole,
    say,
)  # fmt: skip
from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from apq_optuna.hardware import CostTable, Device
    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import Supernet


def hardware(arguments: Any) -> int:
    actions = {"list": _list, "build": _build, "check": _check, "show": _show,
               "compare": _compare, "price": _price, "measure": _measure}  # fmt: skip
    return actions[arguments.action](arguments) or 0


def _list(arguments: Any) -> None:
    from apq_optuna.hardware import known_devices

    names = known_devices()
    width = max(map(len, names))
    for name, about in names.items():
        say(f"{name:{width}}  {about}")
    say(
        "your own: --device module:name, a class derived from apq_optuna.hardware.Device in a "
        "file of this folder;\nor an entry point in the group apq_optuna.hardware of an "
        "installed package"
    )


def _build(arguments: Any) -> None:
    space, supernet = _space_and_net(arguments)
    out: Path = arguments.out
    if out.suffix.lower() not in (".json", ".csv"):
        raise InvalidArgumentError(f"--out {out}: name it .json or .csv")
    started = time.perf_counter()
    ledger = ledger_of(arguments) if arguments.run or arguments.storage else None
    if ledger is None and arguments.watts is not None:
        raise InvalidArgumentError("--watts goes with --run or --storage: where it is recorded")
    if arguments.template:
        _template(space, arguments.widths, out)
        return
    if arguments.widths:
        raise InvalidArgumentError("--widths goes with --template")
    device = _device(arguments)
    networks = arguments.networks
    if out.exists() and not arguments.overwrite:
        raise InvalidArgumentError(f"--out {out} exists; give --overwrite, or another name")
    if networks is not None and networks < 0:
        raise InvalidArgumentError(f"--networks {networks}: cannot be negative")
    if networks is None:
        networks = CORRECTING_NETWORKS if runs_whole(device, space, supernet) else 0
    if networks and not device.runs_networks:
        raise InvalidArgumentError(
            f"--networks {networks}: {device.name!r} runs no whole networks"
        )
    if arguments.run:
        run_folder(arguments)  # the ledger is there
    if device.rounds > 1:
        say(_expected(device, space))
    table = measured_table(device, space, out, networks=networks, ledger=ledger, supernet=supernet)
    say(f"{len(table.entries)} entries in {time.perf_counter() - started:.2f} s: {out}")
    source = f"--run {arguments.run}" if arguments.run else f"--preset {arguments.preset}"
    say(f"next: {program_path()} hardware check {out} {source}")
    run = arguments.run or "RUN"
    say(f"      {program_path()} search --hardware {out} --run {run}")


def _template(space: SearchSpace, widths: Sequence[int] | None, out: Path) -> None:
    from apq_optuna.hardware.entries import needed_entries
    from apq_optuna.hardware.files.csv_file import write_template

    known = space.bits
    if out.suffix.lower() != ".csv":
        raise InvalidArgumentError(f"--out {out}: a template is a .csv")
    if widths and not set(widths) <= set(known):
        raise InvalidArgumentError(f"--widths {list(widths)}: the space has {list(known)}")
    rows = write_template(out, needed_entries(space, widths or known))
    say(
        f"{rows} rows without costs: {out}\nfill in latency_ms and energy_mj (or delete that "
        "column), and delete rows of what the device cannot run; the layers every network has "
        "are at 8 bits"
    )


def _check(arguments: Any) -> int:
    from apq_optuna.hardware import CostTable, check_table

    table = CostTable.load(arguments.table)
    say(f"{arguments.table}: {len(table.entries)} entries of {table.device!r}, "
        f"{', '.join(table.metric_names)}")  # fmt: skip
    space = _space(arguments)
    found = check_table(table, space)
    say(str(found))
    if arguments.measure:
        _measure_between(arguments, table, space)
    return 0 if found.usable else 1


def _measure_between(arguments: Any, table: CostTable, space: SearchSpace) -> None:
    """Says how far interpolated latencies are off, by measuring some of them."""
    import numpy as np

    from apq_optuna.hardware import find_device
    from apq_optuna.hardware.tables.between import measured_errors

    device = find_device(table.device)
    errors = measured_errors(table, device, space, arguments.measure)
    if not errors:
        say("nothing of this table is interpolated")
        return
    shares = np.abs([error for _, error in errors])
    for name, error in errors:
        say(f"  {name}: interpolated {error:+.1%}")
    say(
        f"{len(errors)} of the interpolated layers measured on {table.device}: off by "
        f"{np.median(shares):.1%} (median), {shares.max():.1%} (most)"
    )


def _expected(device: Device, space: SearchSpace) -> str:
    """How many costs a measured table takes, and about how long, from a few of them."""
    from apq_optuna.hardware.entries import needed_entries
    from apq_optuna.hardware.tables.between import executed, interpolated_sizes

    needed = needed_entries(space, device.bits)
    between = interpolated_sizes(space)
    layers = sorted((layer for layer in needed if layer not in between), key=lambda k: k.macs)
    started = time.perf_counter()
    tried = [layers[0], layers[len(layers) // 2], layers[-1]]
    for layer in tried:
        device.costs(layer, [executed(device, *needed[layer][-1])])
    seconds = (time.perf_counter() - started) / len(tried) * len(layers) * device.rounds
    entries = sum(map(len, needed.values()))
    more = f", {len(between)} layers between measured ones are interpolated" * bool(between)
    return (
        f"{entries} entries: {len(layers)} layers are measured {device.rounds} times each, about "
        f"{max(seconds / 60, 0.1):.1f} minutes{more}"
    )


def _show(arguments: Any) -> None:
    from apq_optuna.hardware import CostTable
    from apq_optuna.hardware.tables.compare import layer_costs, telling_layer
    from apq_optuna.report.hardware_plots import layer_figure, write_figure

    space = _space(arguments)
    if is_table_file(arguments.table) and arguments.parameters:
        raise InvalidArgumentError("--set: the parameters of a table's file are what they are")
    source: CostTable | Device = (
        CostTable.load(arguments.table) if is_table_file(arguments.table)
        else _device(arguments, arguments.table)
    )  # fmt: skip
    layer = arguments.layer or telling_layer(space)
    found = layer_costs(source, space, layer, arguments.kernel)
    out = arguments.out or Path(f"{found.device}-{layer}.html")
    say(f"{layer} on {found.device}: {write_figure(layer_figure(found), out)}")


def _compare(arguments: Any) -> None:
    from apq_optuna.hardware.tables.compare import compare_tables
    from apq_optuna.report.hardware_plots import comparison_figure, write_figure

    space = _space(arguments)
    first, second = (_table(name, space) for name in (arguments.first, arguments.second))
    found = compare_tables((first, second), space, arguments.networks)
    say(str(found))
    out = arguments.out or Path(f"{first.device}-{second.device}.html")
    say(f"picture: {write_figure(comparison_figure(found), out)}")


def _price(arguments: Any) -> None:
    from apq_optuna._torchvision import models
    from apq_optuna.hardware import layers_of

    device = _device(arguments)
    try:
        builder = models.get_model_builder(arguments.model)
        backbone = "weights_backbone" in inspect.signature(builder).parameters
        model = builder(weights=None, **({"weights_backbone": None} if backbone else {}))
    except ValueError as error:
        raise InvalidArgumentError(f"--model {arguments.model!r}: {error}") from error
    layers = layers_of(model, (3, arguments.image_size, arguments.image_size))
    ms, mj = device.network_cost(layers, arguments.bits, arguments.bits)
    energy = "" if mj is None else f", {mj:.4f} mJ"
    say(f"{arguments.model}, {len(layers)} layers, W{arguments.bits}A{arguments.bits} on "
        f"{device.name}: {ms:.4f} ms{energy}")  # fmt: skip


def _measure(arguments: Any) -> None:
    """Times ONNX files here, or takes in what was timed elsewhere."""
    import json

    from apq_optuna.commands.common import stored_study
    from apq_optuna.export.measure import measure_file
    from apq_optuna.export.running import PRECISE
    from apq_optuna.export.writing import check_writable
    from apq_optuna.report import keep_measurement

    if arguments.trial is not None and (arguments.run is None or len(arguments.files) != 1):
        raise InvalidArgumentError("--trial goes with --run, and with one file")
    if arguments.out:
        if len(arguments.files) > 1:
            raise InvalidArgumentError("--out takes the result of one file")
        check_writable(arguments.out)
    for path in arguments.files:
        try:
            if path.suffix == ".json":
                found = json.loads(path.read_text())
                told = f"{found['latency_ms']:.4f} ms on {found['processor']}"
            else:
                found = measure_file(
                    path, threads=arguments.threads, rounds=arguments.rounds,
                    repeats=arguments.repeats, settings=PRECISE if arguments.precise else None,
                )  # fmt: skip
                told = (
                    f"{found['latency_ms']:.4f} ms (spread {found['spread_ms']:.4f}; reference "
                    f"{found['reference_ms']:.4f} ms) on {found['processor']}, "
                    f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
                )
        except Exception as error:  # no file, no model, or one that the runtime cannot run
            raise InvalidArgumentError(f"{path}: {type(error).__name__}: {error}") from error
        say(f"{path}: {told}")
        if arguments.out:
            try:
                replace_file(arguments.out, (json.dumps(found, indent=1) + "\n").encode())
            except OSError as error:
                raise InvalidArgumentError(
                    f"--out {arguments.out} cannot be written: {error}"
                ) from error
    if arguments.trial is not None:
        study = stored_study(arguments)
        keep_measurement(study, arguments.trial, found)
        say(f"kept with trial {arguments.trial} of {arguments.study!r}: `report` shows it")


# ---------------------------------------------------------------------- arguments


def _space(arguments: Any) -> SearchSpace:
    return _space_and_net(arguments)[0]


def _space_and_net(arguments: Any) -> tuple[SearchSpace, Supernet | None]:
    from apq_optuna.space import SearchSpace

    if (arguments.preset is None) == (arguments.run is None):
        raise InvalidArgumentError("give either --preset or --run")
    if arguments.preset:
        return SearchSpace.preset(arguments.preset), None
    from apq_optuna.supernet import load_net

    net = load_net(str(arguments.run), trusted=True)
    return net.space, net


def _device(arguments: Any, name: str | None = None) -> Device:
    from apq_optuna.hardware import find_device

    parameters = {}
    for text in getattr(arguments, "parameters", []):
        key, equals, value = text.partition("=")
        if not equals:
            raise InvalidArgumentError(f"--set {text!r}: write NAME=VALUE, e.g. batch=16")
        parameters[key.strip()] = _number(value.strip())
    return find_device(name or arguments.device, parameters)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _table(name: str, space: SearchSpace) -> CostTable:
    from apq_optuna.hardware import CostTable, find_device

    if is_table_file(name):
        return CostTable.load(name)
    return measured_table(find_device(name), space)
