"""Table, JSON and pictures of the runs of a sampler race; or its medians beside another's.

    python benchmarks/race_summary.py [DIR]              # race.md, race.json, race.png, below DIR
    python benchmarks/race_summary.py --marks DIR        # medians at 10, 20, 50 and 100 trials
    python benchmarks/race_summary.py --marks DIR DIR2   # before and after

DIR is what `sampler_race.py --out` wrote. With `--marks` the sampler of this project is called
ahead of or behind the best peer where their medians differ by more than the standard error of that
difference, else level with it; see `race_marks`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from race_figures import write
from race_runs import MARKS, OURS, Runs, read


def _row(problem: str, sampler: str, runs: Runs, best: str, target: float) -> dict[str, Any]:
    """What race.json says of one sampler on one problem; marks are median and quartiles."""
    reached = [
        float(np.argmax(c >= target) + 1) if (c >= target).any() else np.inf for c in runs.curves
    ]
    low, high = np.quantile(runs.curves[:, -1], [0.25, 0.75])
    needed = float(np.median(reached))
    return {
        "problem": problem, "sampler": sampler, "seeds": len(runs.curves),
        "trials": runs.trials, "median": float(np.median(runs.curves[:, -1])),
        "quartiles": [float(low), float(high)], "best peer": best,
        "trials to the best peer's final": needed if np.isfinite(needed) else None,
        "seconds of a run": float(np.median(runs.seconds)),
        "seconds of asking per trial": round(runs.per_ask, 5),
        "marks": {
            str(mark): np.quantile(shares, [0.5, 0.25, 0.75]).round(5).tolist()
            for mark in MARKS
            if (shares := runs.at(mark)) is not None
        },
        "curve": np.median(runs.curves, axis=0).round(5).tolist(),
        "asking": np.median(runs.asking, axis=0).round(4).tolist(),
    }  # fmt: skip


def _line(row: dict[str, Any], top: dict[str, float]) -> str:
    """A line of the table; the highest median at a mark, and at the end, is bold."""

    def bold(key: str, value: float, digits: int) -> str:
        star = "**" if value == top[key] > 0 else ""
        return f"{star}{value:.{digits}f}{star}"

    marks = row["marks"]
    cells = [bold(m, marks[m][0], 3) if m in marks else "" for m in map(str, MARKS)]
    low, high = row["quartiles"]
    final = f"{bold('end', row['median'], 4)} ({low:.4f} to {high:.4f})"
    needed = row["trials to the best peer's final"]
    return (
        f"| {row['problem']} | {row['sampler']} | {' | '.join(cells)} | {final} "
        f"| {row['trials']} | {row['seconds of asking per trial']:.3g} "
        f"| {'-' if needed is None else f'{needed:.0f}'} |"
    )


def summarise(out: Path) -> None:
    """Reads every run below `out`; writes race.json, race.md and the pictures.

    A peer with fewer trials than others (BoTorch) is the best one only where all are as short.
    """
    race = read(out)
    found: list[dict[str, Any]] = []
    lines = [
        f"| problem | sampler | {' | '.join(map(str, MARKS))} "
        "| final hypervolume, median (quartiles) | trials | s per ask | trials to best peer's |",
        "|" + "---|" * (len(MARKS) + 6),
    ]
    for problem, samplers in race.items():
        peers = {name: runs for name, runs in samplers.items() if name not in OURS} or samplers
        longest = max(runs.trials for runs in peers.values())
        final = {
            name: float(np.median(runs.curves[:, -1]))
            for name, runs in peers.items()
            if runs.trials == longest
        }
        best = max(final, key=lambda name: final[name])
        rows = [_row(problem, name, runs, best, final[best]) for name, runs in samplers.items()]
        top = {"end": max(row["median"] for row in rows)}
        for mark in map(str, MARKS):
            top[mark] = max((r["marks"][mark][0] for r in rows if mark in r["marks"]), default=0.0)
        found += rows
        lines += [_line(row, top) for row in rows]
    table = "\n".join(lines)
    print(table)
    (out / "race.md").write_text(table + "\n")
    (out / "race.json").write_text(json.dumps(found, indent=1))
    write(race, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/race"), metavar="DIR")
    parser.add_argument("--marks", nargs="+", type=Path, metavar="DIR", help="one, or two")
    arguments = parser.parse_args()
    if not arguments.marks:
        summarise(arguments.out)
        return
    if len(arguments.marks) > 2:
        parser.error("--marks takes one folder, or two: before and after")
    from race_marks import compare

    print(compare(*map(read, arguments.marks)))


if __name__ == "__main__":
    main()
