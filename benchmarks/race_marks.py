"""Medians at 10, 20, 50 and 100 trials: of one race, or of two as before and after.

Whether two samplers differ is said beside the noise of their seeds. A median's standard error is
taken as 1.2533 s / sqrt(n), with the standard deviation s of n seeds: that of a median of normal
values. Both sides' are added as squares; a side of a single seed is given the other's s. Medians
that differ by less than this are level. About one true tie in three is so called a difference, and
the best of several peers is the luckiest one, too: a single mark says little, a column does.
"""

from __future__ import annotations

import numpy as np
from race_runs import MARKS, OURS, Runs


def error_of_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of the difference of two medians, of `(n,)` and `(m,)` seeds.

    0 where both have a single seed: nothing is known then.
    """
    spreads = [float(np.std(side, ddof=1)) if len(side) > 1 else None for side in (a, b)]
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return 0.0
    filled = [known[0] if spread is None else spread for spread in spreads]
    variances = [s**2 / len(side) for s, side in zip(filled, (a, b), strict=True)]
    return 1.2533 * float(np.sqrt(sum(variances)))


def verdict(a: np.ndarray, b: np.ndarray) -> str:
    """`ahead`, `level` or `behind`: seeds `a` beside seeds `b`."""
    difference = float(np.median(a) - np.median(b))
    if abs(difference) <= error_of_difference(a, b):
        return "level"
    return "ahead" if difference > 0 else "behind"


def _cells(before: Runs | None, after: Runs | None) -> list[str]:
    cells = []
    for mark in MARKS:
        shares = [runs.at(mark) for runs in (before, after) if runs is not None]
        text = ["" if s is None else f"{np.median(s):.3f}" for s in shares]
        cells.append(" to ".join(text) if any(text) else "")
    return cells


def _beside_peers(ours: Runs, peers: dict[str, Runs]) -> list[str]:
    """Ours beside the best peer, mark by mark."""
    cells = []
    for mark in MARKS:
        mine = ours.at(mark)
        others = {name: s for name, runs in peers.items() if (s := runs.at(mark)) is not None}
        if mine is None or not others:
            cells.append("")
            continue
        best = max(others, key=lambda name: float(np.median(others[name])))
        gap = float(np.median(mine) - np.median(others[best]))
        cells.append(f"{verdict(mine, others[best])} ({best}, {gap:+.3f})")
    return cells


def _beside_before(before: Runs, after: Runs) -> list[str]:
    words = {"ahead": "better", "behind": "worse", "level": "level"}
    pairs = [(before.at(mark), after.at(mark)) for mark in MARKS]
    return ["" if old is None or new is None else words[verdict(new, old)] for old, new in pairs]


def compare(
    before: dict[str, dict[str, Runs]], after: dict[str, dict[str, Runs]] | None = None
) -> str:
    """A table of medians at the marks, in Markdown.

    Args:
        before: The runs of a race by problem and sampler.
        after: Those of another; every cell then reads `before to after`, ours is set beside the
            peers of `after`, and of `before` where `after` lacks them.
    """
    lines = [
        f"| problem | sampler | seeds | {' | '.join(map(str, MARKS))} |",
        "|" + "---|" * (len(MARKS) + 3),
    ]

    def add(*cells: object) -> None:
        lines.append(f"| {' | '.join(map(str, cells))} |")

    tally: dict[str, list[int]] = {word: [0] * len(MARKS) for word in ("ahead", "level", "behind")}
    for problem in [*before, *(p for p in after or {} if p not in before)]:
        old, new = before.get(problem, {}), (after or {}).get(problem, {})
        for name in [*old, *(n for n in new if n not in old)]:
            sides = [runs for runs in (old.get(name), new.get(name)) if runs is not None]
            seeds = " to ".join(dict.fromkeys(str(len(runs.curves)) for runs in sides))
            add(problem, name, seeds, *_cells(old.get(name), new.get(name)))
            if name in old and name in new and name in OURS:
                add(
                    problem,
                    f"{name}, after beside before",
                    "",
                    *_beside_before(old[name], new[name]),
                )
        now = {**old, **new}
        peers = {name: runs for name, runs in now.items() if name not in OURS}
        for name in (n for n in OURS if n in now):
            cells = _beside_peers(now[name], peers)
            add(problem, f"{name}, beside the best peer", "", *cells)
            for i, cell in enumerate(cells):
                if cell and name == OURS[0]:
                    tally[cell.split()[0]][i] += 1
    for word, counts in tally.items():
        add("all", f"problems on which ours is {word}", "", *counts)
    return "\n".join(lines)
