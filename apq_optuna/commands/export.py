"""From a trial or a finished network to a file for runtimes: written, proven, timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq_optuna.commands.common import (
    cost_table,
    load_supernet,
    program_path,
    run_folder,
    say,
    set_threads,
    stored_study,
)
from apq_optuna.commands.images import load_images, supernet_images
from apq_optuna.errors import CheckpointError, DataError, InvalidArgumentError, SpaceError

if TYPE_CHECKING:
    from optuna.study import Study

    from apq_optuna.data import ImageData
    from apq_optuna.hardware import CostTable
    from apq_optuna.supernet import SubnetModule, Supernet

NETWORK = "network.safetensors"
"""The file that makes a folder a finished network."""

SHOWN = 8
"""Layers without integer kernels that are listed."""


def export(arguments: Any) -> None:
    from apq_optuna.export.writing import check_writable, export_onnx, write_both

    if (arguments.folder is None) == (arguments.run is None):
        raise InvalidArgumentError(
            "give either the folder of a finished network, or --run with the --trial of a study"
        )
    if arguments.images is not None and arguments.images < 1:
        raise InvalidArgumentError(f"--images {arguments.images}: at least 1")
    if arguments.folder is not None and not (arguments.folder / NETWORK).exists():
        raise InvalidArgumentError(
            f"{arguments.folder} is no finished network: it has no {NETWORK}, which `finetune` "
            "writes"
        )
    named = _named_table(arguments)
    set_threads(arguments)
    study: Study | None = None
    supernet: Supernet | None = None
    number: int | None = None
    if arguments.run is not None:
        supernet = load_supernet(arguments)
        study = stored_study(arguments)
        number = _trial(study, supernet, arguments)
        out = arguments.out or run_folder(arguments) / f"trial-{number}.onnx"
    else:
        out = arguments.out or arguments.folder / "network.onnx"
    if out.exists() and not arguments.overwrite:
        raise InvalidArgumentError(f"--out {out} exists; give --overwrite, or another name")
    check_writable(out)
    if supernet is not None and study is not None and number is not None:
        data: ImageData | None = supernet_images(arguments, supernet)
        assert data is not None
        network, about = _of_trial(arguments, study, supernet, data, number)
    else:
        network = _finished(arguments.folder, arguments.model)
        about = network.about
        data = _images(arguments, about)
    if data is not None:
        _check_normalised(data, about)
        about = {
            "class_names": list(data.class_names), "image_size": data.image_size,
            "fit": data.fit, "mean": list(data.mean), "std": list(data.std), **about,
        }  # fmt: skip
    else:
        say("note: no images (--data): the file is only tried on noise")
    report = export_onnx(
        network, out, data=data, opset=arguments.opset, int4=arguments.int4,
        reduce_range=arguments.reduce_range, round_outputs=arguments.round_outputs,
        float_sums=arguments.float_sums,
        with_preprocessing=arguments.with_preprocessing, limit=arguments.images,
        equal_top1=arguments.equal, threads=arguments.threads or 0, about=about,
    )  # fmt: skip
    _tell(report, out)
    if not arguments.no_measure:
        found = _timed(arguments, out, network, supernet, study, named, report)
        report["latency"] = found
        write_both(out, out.read_bytes(), report)
        if study is not None and number is not None:
            from apq_optuna.report import keep_measurement

            keep_measurement(study, number, found["file"])
    say(f"report: {out}.json")
    say(f"on another machine: copy {_measure_path()} beside it, then python measure.py {out.name}")


def _measure_path() -> Path:
    from apq_optuna.export import measure

    return Path(measure.__file__)


def _trial(study: Study, supernet: Supernet, arguments: Any) -> int:
    """Number of the trial that is meant."""
    from apq_optuna.report import summarise
    from apq_optuna.report.report import chosen_subnet

    if arguments.trial is not None:
        states = {t.number: t.state.name.lower() for t in study.get_trials(deepcopy=False)}
        state = states.get(arguments.trial)
        if state != "complete":
            raise InvalidArgumentError(
                f"--trial {arguments.trial}: "
                + (f"it did not complete ({state})" if state else "the study has no such trial")
            )
    chosen = chosen_subnet(summarise(study, supernet.space), arguments.trial)
    if chosen is None:
        raise InvalidArgumentError(f"--study {arguments.study!r} has no completed trial yet")
    return chosen[0]


def _finished(folder: Path, model_name: str | None, trusted: str = "") -> SubnetModule:
    """The network of a finished folder.

    Args:
        folder: The folder.
        model_name: What its model is, as the command line names it.
        trusted: The name of a run's own model; no other name that only the folder knows is called.
    """
    from apq_optuna._checkpoints import read_checkpoint
    from apq_optuna.networks import read_family
    from apq_optuna.quantization import load_network
    from apq_optuna.supernet.pretrained.sources import LIBRARIES, build_model

    _, about = read_checkpoint(folder / NETWORK)
    own = str(about.get("model") or "")
    source = model_name or (own if own.startswith(LIBRARIES) or own == trusted else "")
    if own and not source:
        raise InvalidArgumentError(
            f"{folder} is of a model of one's own, and a file runs no code: say --model {own} if "
            "you trust it"
        )
    model = None
    if source:
        try:
            model = build_model(source, read_family(about["space"]).num_classes)
        except (KeyError, TypeError, SpaceError) as error:
            raise CheckpointError(f"{folder}: its description is damaged: {error}") from error
    return load_network(folder, model=model)


def _of_trial(
    arguments: Any, study: Study, supernet: Supernet, data: ImageData, number: int
) -> tuple[SubnetModule, Mapping[str, Any]]:
    """A trial's finished network where there is one, else the network it was measured as."""
    from apq_optuna._optuna import study_attribute
    from apq_optuna.objective import Objective
    from apq_optuna.quantization import FinetuneOptions
    from apq_optuna.report import summarise
    from apq_optuna.report.report import chosen_subnet
    from apq_optuna.supernet import accuracy

    finished = run_folder(arguments) / f"finished-{number}"
    if (finished / NETWORK).exists():
        network = _finished(finished, None, str(getattr(supernet, "source", "")))
        if network.about.get("study") == arguments.study:
            say(f"trial {number}: its finished network, in {finished}")
            return network, network.about
    conditions = study_attribute(study, "objective")
    if conditions is None:
        raise InvalidArgumentError(
            f"--study {arguments.study!r} does not say how its trials were measured; finish the "
            f"trial: {program_path()} finetune --run {arguments.run} --trial {number}"
        )
    if conditions.get("supernet") not in (None, supernet.weights_hash):
        raise InvalidArgumentError(
            "the supernet is not the one that the trial was measured with; finish the trial "
            "(`finetune`), or export from the run it belongs to"
        )
    known = {field.name for field in fields(FinetuneOptions)}
    prefix = "finetune "
    how = {k.removeprefix(prefix): v for k, v in conditions.items() if k.startswith(prefix)}
    before = {"averaging": 0.0, "rates": "alike"}  # there was nothing else
    options = FinetuneOptions(**before | {k: v for k, v in how.items() if k in known})
    say(
        f"trial {number}: finetuning it as it was measured ({options.steps} steps); `finetune` "
        "trains it fully"
    )
    objective = Objective(
        supernet, data, finetune=options, device=arguments.device,
        images=conditions.get("images"), progress=True,
    )  # fmt: skip
    summary = summarise(study, supernet.space)
    chosen = chosen_subnet(summary, number)
    assert chosen is not None
    network, _ = objective.network(chosen[1])
    supernet.to("cpu")
    value = float(summary.values[int((summary.numbers == number).nonzero()[0][0])][0])
    again = accuracy(network.to("cpu"), data, limit=objective.images)
    more = "" if again == value else (
        ": another number of threads, or another processor, rounds in another order"
    )  # fmt: skip
    say(f"accuracy {again:.4f}, the trial measured {value:.4f}{more}")
    return network, {"accuracy": {"trial": value}}


def _images(arguments: Any, about: Mapping[str, Any]) -> ImageData | None:
    """The images of a finished network, where any are named."""
    name = arguments.data or about.get("data")
    if not name:
        return None
    info = {"name": name, "image_size": about.get("image_size"), "fit": about.get("fit", "crop")}
    if about.get("mean") is not None:
        info |= {"grayscale": len(about["mean"]) == 1}
        info |= {"model_mean": about["mean"], "model_std": about["std"]}
    try:
        return load_images(arguments, info)
    except DataError as error:
        if arguments.data:
            raise
        say(f"note: {error}")  # the folder came from another machine, say
        return None


def _check_normalised(data: ImageData, about: Mapping[str, Any]) -> None:
    """Refuses images that a network is not used to."""
    import numpy as np

    for name, now in (("mean", data.mean), ("std", data.std)):
        before = about.get(name)
        if before is not None and (
            len(before) != len(now) or not np.allclose(before, now, atol=1e-5)
        ):
            raise InvalidArgumentError(
                f"--data {data.name}: its images have {name} {list(now)}, the network was trained "
                f"on images with {before}"
            )
    names = about.get("class_names")
    if names is not None and list(names) != list(data.class_names):
        raise InvalidArgumentError(
            f"--data {data.name} has the classes {list(data.class_names)[:5]}, the network "
            f"{list(names)[:5]}"
        )


def _tell(report: Mapping[str, Any], out: Path) -> None:
    """What the report says, in lines."""
    size = report["bytes"]
    say(
        f"{out}: {size / 1000:.1f} kB (opset {report['opset']}), of weights, biases and scales "
        f"{report['expected_bytes'] / 1000:.1f} kB; weights at their bits are "
        f"{report['weight_bytes'] / 1000:.1f} kB"
    )
    proof = report["parity"]
    if proof is not None:
        agreed = proof["agreement"]
        say(
            f"beside torch, {proof['images']} search-validation images: "
            f"{agreed['equal_top1']:.2%} in the same class, accuracy {agreed['accuracy']:.4f} "
            f"(torch {proof['accuracy']:.4f}), logits apart by at most "
            f"{agreed['largest_difference']:.2g}"
        )
        if proof["given_accuracy"] is not None:
            what = "7-bit weights" if report["reduced_to_7_bits"] else "biases as int32"
            say(
                f"{what} make another network of it, which is the one above: as it was, accuracy "
                f"{proof['given_accuracy']:.4f}, {proof['given_equal_top1']:.2%} in the same class"
            )
        if proof["saturates"]:
            default = proof["default"]
            say(
                f"warning: on {proof['processor']} products of bytes saturate in the runtime's "
                f"default kernels: {default['equal_top1']:.2%} in the same class, accuracy "
                f"{default['accuracy']:.4f}. The figures above are with the session option "
                "session.x64quantprecision=1; --reduce-range makes a file that needs none"
            )
    kernels = report["kernels"]
    say(
        f"integer kernels: {kernels['integer_layers']} layers, "
        f"{kernels['integer_share_of_macs']:.1%} of multiply-accumulates"
    )
    others = list(kernels["other"].items())
    for name, why in others[:SHOWN]:
        say(f"  {name}: float ({why})")
    if len(others) > SHOWN:
        say(f"  and {len(others) - SHOWN} more, in the report")


def _timed(
    arguments: Any, out: Path, network: SubnetModule, supernet: Supernet | None,
    study: Study | None, named: CostTable | None, report: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Latency of the file beside others, every round over all of them."""
    import numpy as np

    from apq_optuna._progress import follow, progress_bar
    from apq_optuna.export.building import build_float_onnx, build_onnx
    from apq_optuna.export.measure import ROUNDS, Run, describe, rounds_over
    from apq_optuna.export.running import PRECISE
    from apq_optuna.export.wiring import is_wired
    from apq_optuna.quantization import quantize_network
    from apq_optuna.space import SearchSpace
    from apq_optuna.supernet import module_of

    content = out.read_bytes()
    models = {"this file": content, "the same in float": build_float_onnx(network)}
    space = SearchSpace.from_family(network.description.family)
    largest = space.decode(space.extreme(largest=True)[0]).with_bits(8)
    if supernet is not None or is_wired(largest):  # weights do not matter to how long it takes
        raw = module_of(largest).eval() if supernet is None else supernet.subnet(largest)
        module = quantize_network(raw, largest)
        models["largest network, W8A8"] = build_onnx(module).content
        models["largest network, float"] = build_float_onnx(module)
    proof = report["parity"] or {}
    settings = PRECISE if proof.get("runtime") == "precise" else None  # what was proven
    with progress_bar(1, "measuring") as bar:
        runs = [Run(model, settings=settings) for model in models.values()]
        latencies = rounds_over(runs, report=follow(bar))
    medians = np.median(latencies, axis=0)
    width = max(map(len, models))
    for name, column in zip(models, latencies.T, strict=True):
        ratio = np.median(column) / medians[1]
        say(f"  {name:{width}}  {np.median(column):.4f} ms  ({ratio:.2f} of the time in float)")
    found = describe(content, out.name, latencies[:, 0], runs[0].shapes, rounds=ROUNDS,
                     settings=settings)  # fmt: skip
    beside = dict(zip(models, map(float, medians), strict=True))
    estimate = None
    if (table := named or _kept_table(arguments, supernet, study)) is not None:
        estimate = float(table.network_cost(network.description.layers())[0])
        say(f"  {'the table says':{width}}  {estimate:.4f} ms  ({estimate / medians[0] - 1:+.1%})")
        if about := table.provenance.get("correction"):
            raw = (estimate - about["overhead_ms"]) / about["scale"]
            say(f"  {'uncorrected':{width}}  {raw:.4f} ms  ({raw / medians[0] - 1:+.1%})")
    return {"file": found, "beside_ms": beside, "table_ms": estimate}


def _named_table(arguments: Any) -> CostTable | None:
    """The table that --hardware names, read before any work is done."""
    from apq_optuna.commands.common import is_table_file
    from apq_optuna.hardware import CostTable

    name = arguments.hardware
    if not name or (name.partition(":")[0] == "cpu" and arguments.run is not None):
        return None
    if not is_table_file(name):
        raise InvalidArgumentError(
            f"--hardware {name}: the latency of this machine is told, so give a table of it "
            "(.json, .csv), or cpu with --run"
        )
    return CostTable.load(name)


def _kept_table(
    arguments: Any, supernet: Supernet | None, study: Study | None
) -> CostTable | None:
    """The table of this machine that the study used, or that is asked for; None where there is
    none."""
    from apq_optuna._optuna import study_attribute
    from apq_optuna.commands.common import is_table_file
    from apq_optuna.hardware import CostTable

    name = arguments.hardware or (study and study_attribute(study, "hardware")) or ""
    if is_table_file(name) and Path(name).exists():
        table = CostTable.load(name)
        return table if table.device == "cpu" else None
    if name == "cpu" and supernet is not None:
        return cost_table(name, supernet, run_folder(arguments))
    return None
