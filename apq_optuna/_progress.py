"""Progress bars of whatever takes long, in the manner of Optuna's `show_progress_bar`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def progress_bar(total: float, text: str, *, show: bool = True, **options: Any) -> Any:
    """A bar of `tqdm`, to be closed or used in a `with` statement.

    Args:
        total: What it goes to.
        text: What is going on, in a word or two.
        show: False draws nothing.
        options: For `tqdm`.
    """
    from tqdm import tqdm

    return tqdm(
        total=total, desc=text, mininterval=0.5, dynamic_ncols=True, disable=not show, **options
    )


def follow(bar: Any, report: Callable[[int, int], None] | None = None) -> Callable[..., None]:
    """A function that is told how much is done, and of how much; the bar shows it."""

    def show(done: int, total: int) -> None:
        if bar.total != total:
            bar.total = total
        bar.update(done - bar.n)
        if report is not None:
            report(done, total)

    return show
