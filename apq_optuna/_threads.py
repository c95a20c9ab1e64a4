"""Threads of this machine, shared among the commands that run on it.

Two processes that both use every core are not half as quick as one but far slower: threads that
spin while they wait for one another keep from running what they wait for. So each command that
computes is a file in a folder, locked as long as it lives, and takes its share of the cores.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SharedCores:
    """This process among all that share the cores.

    Args:
        folder: Where they meet; by default one of the user's in the folder for temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        self.folder = folder or Path(tempfile.gettempdir()) / f"apq-optuna-{user}"
        self._held: Any = None
        self._lock: Any = None
        try:
            import fcntl
        except ImportError:  # not on Windows: there each takes all
            return
        self._lock = fcntl
        self._join()

    def _join(self) -> None:
        """Writes and locks this process's file; none where that cannot be."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = self.folder / f"{os.getpid()}"
            held = name.with_suffix(".new").open("w")  # it gets its name when it is locked
            self._lock.flock(held, self._lock.LOCK_EX | self._lock.LOCK_NB)
            name.with_suffix(".new").replace(name)
            self._held = held

    def alive(self) -> int:
        """How many processes share the cores, this one included."""
        if self._held is None:
            return 1
        if not (self.folder / f"{os.getpid()}").exists():  # somebody cleared temporary files
            self._join()
        try:
            there = list(self.folder.iterdir())
        except OSError:
            return 1
        others = 0
        for path in there:
            if not path.name.isdecimal() or path.name == str(os.getpid()):
                continue
            with contextlib.suppress(OSError), path.open("r") as file:
                try:
                    self._lock.flock(file, self._lock.LOCK_EX | self._lock.LOCK_NB)
                except BlockingIOError:
                    others += 1
                else:  # nobody holds it: that process has ended
                    path.unlink(missing_ok=True)
        return 1 + others

    def share(self, threads: int) -> int:
        """How many of `threads`, which it would have alone, this process has now; at least one."""
        return max(1, threads // self.alive())

    def close(self) -> None:
        """Leaves the cores to the others."""
        if self._held is not None:
            (self.folder / f"{os.getpid()}").unlink(missing_ok=True)
            self._held.close()
            self._held = None
