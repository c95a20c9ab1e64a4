"""Cost tables: what they hold, round trips, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from apq_optuna.errors import (
    CostTableError,
)
from apq_optuna.hardware import CostTable
from apq_optuna.networks import ConvLayer
from apq_optuna.space import SearchSpace


def test_tables_round_trip_as_json(tmp_path: Path, digits_costs: CostTable) -> None:
    again = CostTable.load(digits_costs.save(tmp_path / "table.json"))
    assert again.entries == digits_costs.entries
    assert (again.device, again.metric_names) == (digits_costs.device, digits_costs.metric_names)
    assert again.provenance["model"] == "BitFusion"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["units"].pop("latency"), r"units\.latency=None; expected 'ms'"),
        (lambda d: d["units"].update(energy="J"), r"units\.energy='J'; expected 'mJ'"),
        (lambda d: d["entries"][3].update(latency=-1.0), r"line \d+ \(entry 3\): latency_ms=-1"),
        (lambda d: d["entries"][3].update(energy=math.nan), r"\(entry 3\): energy_mj=nan"),
        (lambda d: d["entries"][3].pop("latency"), r"\(entry 3\): latency is missing"),
        (lambda d: d["entries"].append(d["entries"][0]), "repeats"),
        (lambda d: d["entries"][3].pop("energy"), r"\(entry 3\): has no energy, but"),
        (lambda d: d.update(schema=99), "schema=99; expected 1"),
        (lambda d: d.pop("units"), "'units' .* required"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(
    tmp_path: Path, digits_costs: CostTable, change: object, message: str
) -> None:
    path = digits_costs.save(tmp_path / "table.json")
    document = json.loads(path.read_text())
    change(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    with pytest.raises(CostTableError, match=message):
        CostTable.load(path)


def test_missing_layers_are_named(digits_costs: CostTable) -> None:
    space = SearchSpace.preset("digits")
    entries = dict(digits_costs.entries)
    stem = next(key for key in entries if key[0].in_channels == 1)
    without_stem = {key: cost for key, cost in entries.items() if key != stem}
    with pytest.raises(CostTableError, match="lacks the fixed layer stem of this space: conv"):
        CostTable(without_stem, device="d").compile(space)
    layer = ConvLayer(8, 8, 8, 3, 1, 1, 8)
    without = {key: cost for key, cost in entries.items() if key[0] != layer}
    with pytest.raises(
        CostTableError, match=r"lacks .*depthwise 8->8|lacks the fixed layer first"
    ):
        CostTable(without, device="d").compile(space)
