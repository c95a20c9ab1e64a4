"""What comes after a search: the report and the finished network."""

from __future__ import annotations

from typing import Any

from apq_optuna.commands.common import (
    computing,
    cost_table,
    ledger_of,
    load_supernet,
    program_path,
    run_folder,
    say,
    set_threads,
    storage_url,
    stored_study,
)
from apq_optuna.commands.images import supernet_images
from apq_optuna.errors import InvalidArgumentError


def report(arguments: Any) -> None:
    from apq_optuna.report import save_to_dashboard, study_figures, summarise, write_html

    study = stored_study(arguments)
    summary = summarise(study)
    figures = study_figures(study, trial=arguments.trial, summary=summary)
    path = arguments.out or run_folder(arguments) / f"{arguments.study}.html"
    write_html(study, figures, path, summary=summary)
    save_to_dashboard(study, figures)
    say(f"report: {path}")
    say(f"dashboard: {program_path().with_name('optuna-dashboard')} {storage_url(arguments)}")


def finetune(arguments: Any) -> None:
    from apq_optuna._optuna import study_attribute
    from apq_optuna.finishing import finish
    from apq_optuna.quantization import load_network
    from apq_optuna.report import summarise
    from apq_optuna.report.report import chosen_subnet
    from apq_optuna.supernet import accuracy
    from apq_optuna.supernet.pretrained.sources import LIBRARIES, build_model

    set_threads(arguments)
    ledger = ledger_of(arguments)
    supernet = load_supernet(arguments)
    study = stored_study(arguments)
    chosen = chosen_subnet(summarise(study, supernet.space), arguments.trial)
    if chosen is None:
        raise InvalidArgumentError(f"--study {arguments.study!r} has no completed trial yet")
    number, subnet = chosen
    named = arguments.hardware or study_attribute(study, "hardware") or ""
    costs = cost_table(named, supernet, run_folder(arguments), ledger)
    data = supernet_images(arguments, supernet)
    path = arguments.out or run_folder(arguments) / f"finished-{number}"
    if (path / "network.safetensors").exists():
        raise InvalidArgumentError(
            f"--out {path} holds a finished network, tested once; choose another folder"
        )
    about: dict[str, Any] = {"study": arguments.study, "trial": number}
    source = getattr(supernet, "source", "")
    if source:
        about["model"] = source
    measured_on = (study_attribute(study, "objective") or {}).get("supernet")
    if measured_on not in (None, supernet.weights_hash):
        say("note: the supernet is not the one that the trial was measured with")
    say(f"finetuning trial {number}")
    with ledger.task(
        "finetune", subject=arguments.study, target=costs.device, scope="device", units="epochs",
        device=computing(arguments),
    ) as entry:  # fmt: skip
        entry.units_done, entry.units_total, entry.share = 0.0, arguments.epochs, 0.0
        before: int | None = None

        def told(step: int, steps: int, loss: float) -> None:
            nonlocal before
            before = step - 1 if before is None else before  # those of a stopped one
            entry.share = (step - before) / steps
            entry.units_done = arguments.epochs * entry.share

        _, stored = finish(
            supernet, data, subnet, path, epochs=arguments.epochs, costs=costs,
            device=arguments.device, about=about,
            report=told, progress=True,
        )  # fmt: skip
    measured = stored["accuracy"]
    model = build_model(source, data.num_classes) if source else None
    again = accuracy(load_network(path, model=model), data)
    say(
        f"trial {number}: search-validation {measured['search_validation']:.4f} (fp32 before "
        f"quantization {measured['search_validation_fp32']:.4f}), test {measured['test']:.4f}"
    )
    if "model_test" in measured:
        say(
            f"the whole model in float32: search-validation "
            f"{measured['model_search_validation']:.4f}, test {measured['model_test']:.4f}"
        )
    priced = ", ".join(f"{name} {value:.4f}" for name, value in stored["costs"].items())
    say(f"costs on {stored['device']}: {priced}")
    say(f"saved in {path}; loaded again: search-validation {again:.4f}")
    given = ", model=MODEL" if source and not source.startswith(LIBRARIES) else ""
    say(f'use it: apq_optuna.load_network("{path}"{given})')
