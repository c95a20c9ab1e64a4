"""What every step of a run took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apq_optuna.commands.common import has_database, ledger_of, say
from apq_optuna.errors import InvalidArgumentError

if TYPE_CHECKING:
    from apq_optuna.ledger import Costs, LedgerRow


def ledger(arguments: Any) -> None:
    from apq_optuna._files import replace_file
    from apq_optuna.ledger import as_csv, as_json, costs_of

    if not has_database(arguments):
        raise InvalidArgumentError(
            f"--run {arguments.run} has no ledger yet: there is no apq.db; run `train` first"
        )
    rows = ledger_of(arguments).rows()
    if rows:
        say(_table(rows))
        say("")
        say(_summary(costs_of(rows)))
    else:
        say("no step has been recorded yet")
    for path, text in ((arguments.json, as_json(rows)), (arguments.csv, as_csv(rows))):
        if path is not None:
            replace_file(path, text.encode())
            say(f"written to {path}")


def _table(rows: Sequence[LedgerRow]) -> str:
    from apq_optuna._text import aligned

    head = (
        "task", "scope", "subject", "for", "started (UTC)", "computed by", "machine", "energy",
        "threads", "share", "done", "units", "seconds", "processor s", "kWh", "g CO2",
    )  # fmt: skip
    lines = [
        (
            row.task, row.scope, row.subject, row.target or "-",
            row.started.removesuffix("+00:00").replace("T", " "), row.device, row.host,
            row.energy_from, _number(row.threads), _number(row.share, "{:.0%}"),
            _number(row.units_done, "{:,.4g}" if row.units == "epochs" else "{:,.0f}"),
            row.units or "-", f"{row.wall_s:,.1f}", f"{row.processor_s:,.1f}", f"{row.kwh:.3g}",
            f"{row.grams_co2:.3g}",
        )
        for row in rows
    ]  # fmt: skip
    return aligned([head, *lines], left=8)


def _number(value: float | None, form: str = "{}") -> str:
    return "-" if value is None else form.format(value)


def _summary(costs: Costs) -> str:
    from apq_optuna._text import aligned

    lines = [("shared by all devices", costs.shared)]
    if costs.first is not None and costs.further is not None:
        lines += [
            ("first deployment", costs.first),
            (f"each further device or budget, median of {costs.deployments}", costs.further),
        ]
    head = ("", "seconds", "processor s", "kWh", "g CO2")
    table = [
        (name, f"{cost.wall_s:,.1f}", f"{cost.processor_s:,.1f}", f"{cost.kwh:.3g}",
         f"{cost.grams_co2:.3g}")
        for name, cost in lines
    ]  # fmt: skip
    return aligned([head, *table], left=1)
