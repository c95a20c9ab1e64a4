"""The house rules a machine can check: who imports whom, and what is never used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "apq_optuna"

FLOORS = {
    "errors": 0, "_torchvision": 0, "_files": 0, "_text": 0, "_optuna": 0,
    "space": 1, "predictor": 1, "data": 1,
    "search": 2, "pairs": 2, "storage": 2, "hardware": 2, "quantization": 2, "supernet": 2,
    "sampler": 3, "proposals": 3, "surrogate": 3, "known": 3, "filling": 3, "sources": 3,
    "history": 3, "objective": 3,
    "collect": 3, "finishing": 3, "report": 3, "plots": 3, "summary": 3,
    "hardware_plots": 3, "prediction": 3,
    "commands": 4, "cli": 4,
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if room(path) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upward(path: Path) -> None:
    own = FLOORS[room(path)]
    for module in imports(path):
        if module.startswith("apq_optuna."):
            assert FLOORS[module.split(".")[1]] <= own, module


def test_the_rooms_of_one_floor_have_no_circles() -> None:
    edges = {
        name: {
            module.split(".")[1]
            for path in FILES if room(path) == name
            for module in imports(path)
            if module.startswith("apq_optuna.") and module.split(".")[1] != name
        }
        for name in FLOORS
    }  # fmt: skip
    order: list[str] = []
    while len(order) < len(edges):
        free = [n for n, needs in edges.items() if n not in order and needs <= set(order)]
        assert free, {n: needs - set(order) for n, needs in edges.items() if n not in order}
        order += free


_WITHOUT = """
import sys
for name in ("optuna", "sqlalchemy"):
    sys.modules[name] = None
import apq_optuna.data, apq_optuna.hardware, apq_optuna.predictor, apq_optuna.quantization
import apq_optuna.search, apq_optuna.space, apq_optuna.supernet
space = apq_optuna.space.SearchSpace.preset("digits")
apq_optuna.hardware.bitfusion_small().table(space).compile(space)
"""


def test_the_lower_floors_work_without_optuna_and_sqlalchemy() -> None:
    subprocess.run([sys.executable, "-c", _WITHOUT], check=True)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, apq_optuna; print(sorted({'torch', 'optuna', 'plotly'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    import apq_optuna

    for name in apq_optuna.__all__:
        assert getattr(apq_optuna, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = apq_optuna.nothing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_and_private_optuna_stays_in_one_place(path: Path) -> None:
    text = path.read_text()
    assert not imports(path) & {"pickle", "joblib", "dill"}
    assert "torch.load(" not in text and "allow_pickle=True" not in text
    if path.name != "_optuna.py":
        for private in ("._storage", "_trial_id", "_study_id", "optuna._"):
            assert f"study{private}" not in text and f"trial.{private}" not in text, private
