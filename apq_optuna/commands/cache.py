"""Decoded folders of images: what is kept, and an end to it."""

from __future__ import annotations

import time
from typing import Any

from apq_optuna.commands.common import say


def cache(arguments: Any) -> None:
    from apq_optuna.data.cache import Cache

    kept = Cache()
    if arguments.clear:
        say(f"{kept.clear() / 2**20:.0f} MiB removed from {kept.folder}")
        return
    entries = kept.entries()
    for entry in entries:
        days = (time.time() - entry.used) / 86400
        ago = f"{days:.0f} days ago" if days >= 1 else f"{24 * days:.0f} hours ago"
        say(f"{entry.bytes / 2**20:8.0f} MiB  used {ago:>13}  {entry.folder}")
    whole = sum(entry.bytes for entry in entries) / 2**20
    say(
        f"{len(entries)} decoded folders, {whole:.0f} of at most {kept.limit / 2**20:.0f} MiB, in "
        f"{kept.folder}"
    )
