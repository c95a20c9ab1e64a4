"""What is printed: rows of cells as aligned text, and messages as the command line says things."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: int = 0) -> str:
    """One line a row, columns two spaces apart; the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def as_option(message: str, given: Mapping[str, object]) -> str:
    """A message that begins with an argument as Python has it, with the option of that name.

    `batch_size=1: at least 2` becomes `--batch-size 1: at least 2`, where that option was 1.

    Args:
        message: Of an error.
        given: Options, by their names in Python.
    """
    found = re.match(r"([a-z_]+)=('[^']*'|[^\s,:']+)(?=[\s:])", message)
    if found is None or found[1] not in given:
        return message
    value = found[2].strip("'")
    if str(given[found[1]]) != value:  # of another thing that is called so
        return message
    return f"--{found[1].replace('_', '-')} {value}{message[found.end() :]}"
