"""Numbers of every kind: NumPy's are taken wherever Python's are, and what is none is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import apq_optuna as apq
from apq_optuna.errors import InvalidArgumentError
from apq_optuna.hardware import CPU, BitFusion, BitSerial, CostTable, Device, bitfusion, bitserial
from apq_optuna.hardware.costs import Cost, bit_widths, positive, whole_number
from apq_optuna.networks import ConvLayer, PlacedLayer

LAYER = ConvLayer(64, 64, 14, 3, 1, 1, 64)
LAYERS = [LAYER, ConvLayer(64, 32, 14, 1, 1, 0, 1)]

KINDS: list[Callable[[int], Any]] = [int, np.int64, np.uint8, np.int8, np.array]
NO_NUMBERS = [2.5, 8.0, True, np.True_, np.float32(8), "8", None, np.array(8.0), [8, [8]]]


class Board(Device):
    """What its author has."""

    name = "board"
    bits = (4, 8)

    def cost(self, layer: ConvLayer, w_bits: int, a_bits: int) -> Cost:
        w_bits, a_bits = self.check_bits(w_bits, a_bits)
        return layer.macs * w_bits * a_bits * 1e-9, None


DEVICES = [bitfusion(), bitserial(), Board()]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_widths_of_any_integer_kind_price_alike(
    device: Device, kind: Callable[[int], Any]
) -> None:
    assert device.cost(LAYER, kind(8), kind(4)) == device.cost(LAYER, 8, 4)
    assert device.costs(LAYER, [(kind(8), kind(4))]) == device.costs(LAYER, [(8, 4)])
    assert device.network_cost(LAYERS, kind(8), kind(4)) == device.network_cost(LAYERS, 8, 4)
    each = device.network_cost(LAYERS, [8, 4], (4, 8))
    assert device.network_cost(LAYERS, [kind(8), kind(4)], np.array([4, 8], np.uint8)) == each


@pytest.mark.parametrize("bits", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_widths_that_are_no_whole_numbers_are_named(device: Device, bits: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="w_bits="):
        device.cost(LAYER, bits, 8)
    with pytest.raises(InvalidArgumentError, match="a_bits="):
        device.cost(LAYER, 8, bits)
    for widths in (bits, [8, bits]):
        with pytest.raises(InvalidArgumentError, match="w_bits"):
            device.network_cost(LAYERS, widths, 8)


@pytest.mark.parametrize(
    "bits", [[4, 8], range(4, 9), np.array([4, 8]), (np.int8(4), np.uint8(8))]
)
@pytest.mark.parametrize("make", [BitFusion, BitSerial, CPU])
def test_a_devices_widths_are_a_tuple_whatever_they_come_in(make: Any, bits: Any) -> None:
    device = make(bits=bits)
    assert device.bits == tuple(int(width) for width in bits)
    assert {type(width) for width in device.bits} == {int} and isinstance(device.bits, tuple)


@pytest.mark.parametrize(
    "bits", [(2.5, 8), (8.0,), (True, 8), (), "48", 8, None, {8: 4}, (9,), np.array([4.0, 8.0])]
)
@pytest.mark.parametrize("make", [BitFusion, BitSerial, CPU])
def test_a_devices_widths_that_are_none_are_named(make: Any, bits: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"bits=.*: a tuple of some of"):
        make(bits=bits)


def test_parameters_of_numpy_are_kept_as_pythons() -> None:
    device = BitFusion(
        rows=np.int64(8),  # type: ignore[arg-type]
        columns=np.array(16),  # type: ignore[arg-type]
        weight_kib=np.float32(4),  # type: ignore[arg-type]
        dram_nj=np.array(0.5),  # type: ignore[arg-type]
        bits=[4, 8],  # type: ignore[arg-type]
    )
    plain = BitFusion(rows=8, columns=16, weight_kib=4, dram_nj=0.5, bits=(4, 8))
    assert device == plain and device.cost(LAYER, 4, 8) == plain.cost(LAYER, 4, 8)
    assert json.loads(json.dumps(device.provenance())) == json.loads(
        json.dumps(plain.provenance())
    )
    serial = BitSerial(batch=np.int8(100), frequency_hz=np.float64(1e8))  # type: ignore[arg-type]
    assert json.dumps(serial.provenance()) == json.dumps(BitSerial(100, 1e8).provenance())
    assert serial.cycles(LAYER, 8, 8) == 100 * bitserial().cycles(LAYER, 8, 8)
    about = CPU(threads=np.int32(1), rounds=np.int64(2)).provenance()  # type: ignore[arg-type]
    assert json.loads(json.dumps(about))["rounds"] == 2


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, np.array([1, 2]), np.bool_(True)])
def test_what_is_no_whole_number_is_named(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"n=.*: a whole number, at least 1"):
        whole_number("n", value)


@pytest.mark.parametrize("value", [True, 0, -1.0, np.inf, np.float32(np.nan), "1", None, [1.0]])
def test_what_is_not_positive_is_named(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"x=.*: must be positive"):
        positive("x", value)


def test_numbers_come_back_as_pythons() -> None:
    assert type(whole_number("n", np.uint8(200))) is int
    assert type(positive("x", np.float32(0.5))) is float
    assert type(bit_widths([np.int64(8)], (8,))[0]) is int


# ---------------------------------------------------------------------- layers and tables


def test_a_layer_of_numpy_integers_is_the_same_key(tmp_path: Path) -> None:
    fields = {"in_channels": 64, "out_channels": 64, "input_size": 14, "kernel_size": 3,
              "stride": 1, "padding": 1, "groups": 64}  # fmt: skip
    layer = ConvLayer(**{name: np.int64(value) for name, value in fields.items()})  # type: ignore[arg-type]
    assert layer == LAYER and hash(layer) == hash(LAYER) and repr(layer) == repr(LAYER)
    assert bitfusion().cost(layer, 8, 8) == bitfusion().cost(LAYER, 8, 8)
    table = CostTable({(layer, np.int64(8), np.uint8(4)): (1.0, None)}, device="d")  # type: ignore[dict-item]
    plain = CostTable({(LAYER, 8, 4): (1.0, None)}, device="d")
    assert table.digest == plain.digest and table.cost(LAYER, 8, 4) == (1.0, None)
    for name in ("t.json", "t.csv"):
        assert CostTable.load(table.save(tmp_path / name)).entries == plain.entries


@pytest.mark.parametrize(
    ("size", "plain"),
    [([3, 5], (3, 5)), (np.array([3, 5]), (3, 5)), ((np.int8(3), 5), (3, 5)), ((3, 3), 3)],
    ids=["list", "array", "mixed", "square"],
)
def test_a_pair_of_any_kind_is_a_tuple_or_where_square_a_number(size: Any, plain: Any) -> None:
    layer = ConvLayer(8, 8, 14, size, 1, 1, 1)
    assert layer == ConvLayer(8, 8, 14, plain, 1, 1, 1) and layer.kernel_size == plain
    assert hash(layer) == hash(ConvLayer(8, 8, 14, plain, 1, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 8.0}, r"in_channels=8.0: a whole number$"),
        ({"groups": True}, r"groups=True: a whole number$"),
        ({"out_channels": (8, 8)}, r"out_channels=\(8, 8\): a whole number$"),
        ({"kernel_size": "33"}, r"kernel_size='33': a whole number or a pair of them"),
        ({"stride": (1, 2, 3)}, r"stride=\(1, 2, 3\): a whole number or a pair"),
        ({"padding": (1, 0.5)}, r"padding=\(1, 0.5\): a whole number or a pair"),
        ({"input_size": None}, r"input_size=None: a whole number or a pair"),
    ],
)
def test_what_is_no_layer_is_named(change: dict[str, Any], message: str) -> None:
    fields = {"in_channels": 8, "out_channels": 8, "input_size": 14, "kernel_size": 3, "stride": 1,
              "padding": 1, "groups": 1}  # fmt: skip
    with pytest.raises(InvalidArgumentError, match=message):
        ConvLayer(**fields | change)


def test_a_tables_widths_are_whole_numbers_of_any_kind() -> None:
    table = CostTable({(LAYER, 8, 1): (1.0, 2.0)}, device="d")
    placed = PlacedLayer("x", LAYER, np.uint8(8), np.int64(1))  # type: ignore[arg-type]
    assert table.network_cost([placed, placed]) == (2.0, 4.0)
    for w, a in ((8.0, 1), (8, True), ("8", 1), (8, None)):
        with pytest.raises(InvalidArgumentError, match=r"_bits=.*: a whole number"):
            table.cost(LAYER, w, a)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match=r"_bits=.*: a whole number"):
            table.network_cost([PlacedLayer("x", LAYER, w, a)])  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match=r"_bits=.*: a whole number"):
            CostTable({(LAYER, w, a): (1.0, None)}, device="d")  # type: ignore[dict-item]


def test_a_device_of_ones_own_may_have_widths_of_numpy(tmp_path: Path) -> None:
    class Lab(Board):
        bits = np.array([4, 8])  # type: ignore[assignment]

        def __init__(self, slowness: Any) -> None:
            self.slowness = slowness

    space = apq.SearchSpace.preset("digits")
    table = Lab(np.int64(2)).table(space, journal=tmp_path / "t.journal")
    assert table.digest == Board().table(space).digest
    assert table.provenance["bits"] == [4, 8] and table.provenance["slowness"] == 2


@pytest.mark.parametrize("bits", [(2.5, 8), (True, 8), ("8",)], ids=repr)
def test_a_device_of_ones_own_with_widths_that_are_none_is_told(bits: Any) -> None:
    device = Board()
    device.bits = bits
    with pytest.raises(InvalidArgumentError, match=r"bits=.*: a whole number"):
        device.table(apq.SearchSpace.preset("digits"))
