"""Somebody's own modules that import torchvision."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import apq_optuna as apq
from tests.hardware.test_devices import BOARD

TORCHVISION_BOARD = """
import torchvision
from torchvision.models import resnet18

from apq_optuna.hardware import Device, layers_of


class Board(Device):
    name = "board"
    bits = (8,)
    layers = layers_of(resnet18(), (3, 64, 64))

    def cost(self, layer, w_bits, a_bits):
        from torchvision.transforms import functional  # late: when the package is long loaded

        return layer.macs * 1e-6, None
"""

_SAY = """
from apq_optuna.hardware import find_device
board = find_device({device!r})
print(board.name, len(board.layers), board.cost(board.layers[0], 8, 8)[0] > 0)
"""


@pytest.mark.parametrize("how", ["module:name", "entry point"])
def test_a_module_that_imports_torchvision_loads(tmp_path: Path, how: str) -> None:
    """In a process of its own: beside a CPU-only torch the import fails by itself."""
    (tmp_path / "vision_board.py").write_text(TORCHVISION_BOARD)
    info = tmp_path / "vision_board-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vision-board\nVersion: 1.0\n")
    points = "[apq_optuna.hardware]\nvision = vision_board:Board\n"
    (info / "entry_points.txt").write_text(points)
    device = "vision_board:Board" if how == "module:name" else "vision"
    done = subprocess.run(
        [sys.executable, "-c", _SAY.format(device=device)], cwd=tmp_path, capture_output=True,
        text=True, env={"PYTHONPATH": f"{tmp_path}:{Path(apq.__file__).parents[1]}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "board 21 True"


def test_models_of_torchvision_load_once_the_layers_can_be_listed() -> None:
    code = "from apq_optuna.hardware import layers_of\nimport torchvision.models\nprint('loaded')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "loaded", done.stderr


def test_a_module_without_torchvision_loads_neither_it_nor_torch(tmp_path: Path) -> None:
    (tmp_path / "light_board.py").write_text(textwrap.dedent(BOARD))
    code = (
        "import sys\nfrom apq_optuna.hardware import find_device\n"
        "find_device('light_board:Board')\nprint({'torch', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(apq.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.strip() == "set()", done.stderr
