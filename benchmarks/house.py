"""The house in figures: rooms, arrows between files, circles, the largest files, import times.

    python benchmarks/house.py [PATH_OF_A_CHECKOUT]

Files are in a circle when they import each other, late imports counted, those for type checkers
and two conveniences (`device.table`, `net.save`/`load`) not.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
PACKAGE = ROOT / "apq_optuna"
FILES = {p.relative_to(PACKAGE).with_suffix("").as_posix(): p for p in PACKAGE.rglob("*.py")}


def needs(name: str) -> set[str]:
    """Files of the package that a file imports, those for type checkers apart."""
    tree = ast.parse(FILES[name].read_text())
    typing = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]  # fmt: skip
    skipped = {id(inner) for node in typing for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            if not node.module.startswith("apq_optuna."):
                continue
            path = "/".join(node.module.split(".")[1:])
            for alias in node.names:
                places = (f"{path}/{alias.name}", path, f"{path}/__init__")
                found |= {next(place for place in places if place in FILES)}
    return found - {name}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Files that reach themselves, together with those that they reach and that reach them."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for target in edges[todo.pop()] - seen:
                seen.add(target)
                todo.append(target)
        return seen

    reach = {name: reached(name) for name in edges}
    tied = {n: frozenset(t for t in reach[n] if n in reach[t]) for n in edges if n in reach[n]}
    return [sorted(circle) for circle in set(tied.values())]


edges = {name: needs(name) for name in FILES if name != "__init__"}
conveniences = [
    (a, b) for a, b in (("hardware/devices/device", "hardware/tables/build"),
                        ("supernet/network", "supernet/checkpoint"))
    if b in edges.get(a, ())
]  # fmt: skip
for source, target in conveniences:
    edges[source].discard(target)
top = sorted(path.name for path in PACKAGE.iterdir() if path.suffix == ".py")
rooms = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists())
lines = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
print(
    f"{len(FILES)} files, {sum(lines.values())} lines; {len(top)} at the top, {len(rooms)} rooms:"
)
print("  " + ", ".join(rooms))
found = circles(edges)
print(f"{len(found)} circles, {len(conveniences)} conveniences left out")
for circle in found:
    print(f"  {len(circle)} files: {', '.join(circle)}")
print("largest files:")
for name in sorted(lines, key=lambda name: -lines[name])[:10]:
    print(f"  {lines[name]:4}  {name}.py")

code = "import time; t = time.perf_counter(); {}; print(f'{{time.perf_counter() - t:.2f}}')"
environment = os.environ | {"PYTHONPATH": str(ROOT)}
environment.pop("PYTHONDONTWRITEBYTECODE", None)
for statement in ("import apq_optuna", "import optuna", "from apq_optuna import APQSampler"):
    seconds = [
        subprocess.run([sys.executable, "-c", code.format(statement)], capture_output=True,
                       text=True, check=True, env=environment, cwd="/").stdout.strip()
        for _ in range(6)
    ]  # fmt: skip
    print(f"{statement}: {', '.join(seconds[1:])} s, the first {seconds[0]}")
