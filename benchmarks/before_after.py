"""Two versions of the package beside each other: the same benchmark, by turns, in fresh processes.

`--against DIR` of a benchmark is a checkout of another commit (`git worktree add DIR COMMIT`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apq_optuna

HERE = Path(__file__).resolve().parent.parent


def keep_buffers() -> None:
    """What the commands do at their start; an earlier version does not."""
    # by its file: an editable installation would lend an earlier version what it lacks
    if (Path(apq_optuna.__file__).parent / "_memory.py").exists():
        from apq_optuna._memory import keep_buffers as keep

        keep()


def by_turns(
    script: str, arguments: Sequence[str], against: Path, rounds: int
) -> tuple[list[Any], list[Any]]:
    """What `script --json` prints with the other version and with this one, `rounds` times."""
    found: dict[Path, list[Any]] = {against.resolve(): [], HERE: []}
    for _ in range(rounds):
        for root, results in found.items():
            done = subprocess.run(
                [sys.executable, script, *arguments, "--json"],
                env=os.environ | {"PYTHONPATH": str(root)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
    before, after = found.values()
    return before, after


def quickest(results: Sequence[dict[str, float]], name: str) -> float:
    """The least of a figure over the rounds: what the machine does undisturbed."""
    return min(result[name] for result in results)


def table(before: Sequence[dict[str, float]], after: Sequence[dict[str, float]]) -> str:
    """A line for each figure: before, after, ratio."""
    lines = ["| what | before | after | ratio |", "|---|---|---|---|"]
    for name in after[0]:
        old, new = quickest(before, name), quickest(after, name)
        lines.append(f"| {name} | {old:.3f} | {new:.3f} | {new / old if old else 1:.2f} |")
    return "\n".join(lines)
