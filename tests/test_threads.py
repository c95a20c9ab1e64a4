"""Cores shared among processes: each has its part, and gets it back when others end."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apq_optuna._threads import SharedCores

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there each takes all")

HOLD = (
    "import sys; from pathlib import Path; from apq_optuna._threads import SharedCores; "
    "held = SharedCores(Path(sys.argv[1])); print(held.alive(), flush=True); input()"
)


def other(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_each_process_has_its_share(tmp_path: Path) -> None:
    mine = SharedCores(tmp_path)
    assert (mine.alive(), mine.share(5)) == (1, 5)
    one, two = other(tmp_path), other(tmp_path)
    assert (mine.alive(), mine.share(5)) == (3, 1)
    one.kill()  # without a word
    one.wait()
    assert (mine.alive(), mine.share(5)) == (2, 2)
    two.communicate("\n")
    assert mine.share(5) == 5
    mine.close()
    assert not list(tmp_path.iterdir())


def test_there_is_always_one(tmp_path: Path) -> None:
    mine, process = SharedCores(tmp_path), other(tmp_path)
    assert mine.share(1) == 1
    process.communicate("\n")
    mine.close()


def test_a_folder_that_cannot_be_made_leaves_all_cores(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mine = SharedCores(tmp_path / "file" / "folder")
    assert mine.share(5) == 5


def test_a_folder_that_is_cleared_is_made_again(tmp_path: Path) -> None:
    mine = SharedCores(tmp_path / "shared")
    shutil.rmtree(tmp_path / "shared")
    assert mine.alive() == 1
    process = other(tmp_path / "shared")
    assert mine.alive() == 2
    process.communicate("\n")
    mine.close()
