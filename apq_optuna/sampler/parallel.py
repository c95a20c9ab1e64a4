"""Models of several objectives at once, a thread each: what takes long in them is NumPy's.

Everything else a sampler does is small, and quicker in one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from apq_optuna._threads import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

ENOUGH = 200
"""Trials from which a model takes longer than to hand it to another thread."""


def each(function: Callable[[Item], Result], items: Sequence[Item], trials: int) -> list[Result]:
    """`function` of every item, in order; at once where models have seen many `trials`."""
    if len(items) < 2 or trials < ENOUGH or cores() < 2:
        return [function(item) for item in items]
    return list(_pool(os.getpid()).map(function, items))


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process; one that was forked has none of its parent's."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="apq-optuna")
