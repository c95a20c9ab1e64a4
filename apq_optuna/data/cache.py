"""Decoded folders of images, kept between commands and shared by processes that run at once.

An entry is `KEY.npy`, all images of a folder as `(n, C, H, W) uint8`, which is mapped into memory
rather than read, and `KEY.json`, written last: an entry is whole or not there. KEY is of the
files' names, sizes and times and of how they are decoded, so a folder that changes has another.
What was used longest ago is removed when all together would take more than the limit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apq_optuna.data.images import Images
from apq_optuna.errors import InvalidArgumentError

FORMAT = 1
"""Raised when decoding changes, so that what was decoded before is not used."""

CHUNK_BYTES = 64 * 2**20
"""Images that are decoded at once."""

LEFT_FREE = 2**30
"""Bytes that a disk keeps free."""

STALE_SECONDS = 24 * 3600.0
"""A part-written entry older than this is a stopped process's."""

Decode = Callable[[Sequence[Path]], tuple[Tensor, dict[Path, str]]]


def cache_folder() -> Path:
    """`$APQ_CACHE`, else a folder of this package in the user's cache directory."""
    if given := os.environ.get("APQ_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "apq-optuna"


def cache_limit() -> int:
    """Bytes that all entries may take: `$APQ_CACHE_GIB`, by default 4 GiB; 0 keeps nothing.

    Raises:
        InvalidArgumentError: The variable is no such number.
    """
    given = os.environ.get("APQ_CACHE_GIB", "4")
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 2**20:
        raise InvalidArgumentError(f"APQ_CACHE_GIB={given!r}: must be a number of GiB, 0 for none")
    return int(limit * 2**30)


class MappedImages(Images):
    """Some rows of an entry; a process that it is sent to maps the same file."""

    def __init__(self, file: Path, rows: NDArray[np.int64], pixels: Tensor | None = None) -> None:
        if pixels is None:  # copy on write: torch wants an array it could write to
            pixels = torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
        super().__init__(pixels)
        self.file, self.rows = file, torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> Tensor:
        return self.pixels[self.rows[indices]]

    def take(self, rows: NDArray[np.int64]) -> MappedImages:
        """Other rows of the same map."""
        return MappedImages(self.file, rows, self.pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file.exists():
            return MappedImages, (self.file, self.rows.numpy())
        return Images, (self.pixels[self.rows],)  # removed since: it lives as long as its maps


@dataclass(frozen=True)
class Entry:
    """A decoded folder.

    Attributes:
        file: Its array.
        folder: What was decoded, for people.
        broken: What is wrong with files that could not be read, by their place; their rows are
            empty.
        bytes: Its size.
        used: When it was last used, in seconds since 1970.
    """

    file: Path
    folder: str
    broken: Mapping[int, str] = field(default_factory=dict)
    bytes: int = 0
    used: float = 0.0


class Cache:
    """The entries in a folder.

    Args:
        folder: By default `cache_folder()`.
        limit: By default `cache_limit()`.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_folder() if folder is None else folder
        self.limit = cache_limit() if limit is None else limit

    def entries(self) -> list[Entry]:
        """All of them, what was used last first."""
        found = (self._read(about) for about in self.folder.glob("*.json"))
        return sorted((e for e in found if e), key=lambda e: -e.used)

    def find(self, key: str) -> Entry | None:
        """An entry by its key, which is thereby used; None where there is none, or damaged."""
        entry = self._read(self.folder / f"{key}.json")
        if entry is not None:
            with suppress(OSError):  # somebody else's: it is read all the same
                os.utime(entry.file.with_suffix(".json"))
        return entry

    def _read(self, about: Path) -> Entry | None:
        file = about.with_suffix(".npy")
        try:
            told = json.loads(about.read_text())
            size = file.stat().st_size
            if size != told["bytes"]:
                return None
            broken = {int(place): str(why) for place, why in told["broken"].items()}
            return Entry(file, str(told["folder"]), broken, size, about.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def add(
        self, key: str, folder: str, paths: Sequence[Path], shape: tuple[int, int, int],
        decode: Decode,
    ) -> Entry | None:  # fmt: skip
        """Decodes files `paths` of `shape` `(C, H, W)` into an entry.

        None where it is too large for the limit or the disk, or cannot be written.
        """
        each = int(np.prod(shape))
        needed = each * len(paths) + 4096
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_parts()
            if needed > self.limit or needed + LEFT_FREE > shutil.disk_usage(self.folder).free:
                return None
            self._make_room(needed)
            part = self.folder / f"{key}.{os.getpid()}.part"
            broken: dict[Path, str] = {}
            try:
                with part.open("wb") as file:
                    header = {
                        "descr": "|u1",
                        "fortran_order": False,
                        "shape": (len(paths), *shape),
                    }
                    np.lib.format.write_array_header_1_0(file, header)
                    step = max(1, CHUNK_BYTES // each)
                    for start in range(0, len(paths), step):
                        pixels, unread = decode(paths[start : start + step])
                        file.write(pixels.numpy().data)
                        broken |= unread
                whole = self.folder / f"{key}.npy"
                size = part.stat().st_size
                part.replace(whole)
                places = {i: broken[path] for i, path in enumerate(paths) if path in broken}
                told = {"folder": folder, "bytes": size, "broken": places, "made": time.time()}
                part.write_text(json.dumps(told))
                part.replace(whole.with_suffix(".json"))
                return Entry(whole, folder, places, size, time.time())
            finally:
                part.unlink(missing_ok=True)
        except OSError:  # no place to write in, or no room: it is decoded as if there was no cache
            return None

    def remove(self, entry: Entry) -> None:
        """Removes an entry."""
        _remove(entry.file.with_suffix(".json"))
        _remove(entry.file)

    def clear(self) -> int:
        """Removes all entries; how many bytes they took."""
        taken = 0
        for file in (*self.folder.glob("*.json"), *self.folder.glob("*.npy")):
            taken += _remove(file)
        self._clear_parts(0.0)
        return taken

    def _make_room(self, needed: int) -> None:
        entries = self.entries()
        while entries and sum(e.bytes for e in entries) + needed > self.limit:
            self.remove(entries.pop())

    def _clear_parts(self, older: float = STALE_SECONDS) -> None:
        """Removes what a stopped process left, arrays without a description too."""
        for file in self._unfinished():
            try:
                if time.time() - file.stat().st_mtime > older:
                    _remove(file)
            except OSError:
                continue

    def _unfinished(self) -> Iterator[Path]:
        yield from self.folder.glob("*.part")
        for file in self.folder.glob("*.npy"):
            if not file.with_suffix(".json").exists():
                yield file


def _remove(file: Path) -> int:
    """Removes a file that may be gone, or in use where that forbids it; its bytes."""
    try:
        size = file.stat().st_size
        file.unlink()
        return size
    except OSError:
        return 0


def key_of(root: Path, names: Sequence[str], how: Sequence[object]) -> str | None:
    """Identity of files `names` below `root` as they are now, decoded in a certain way.

    The place and the time of the last change are part of it: archives may unpack other images
    with the same names, sizes and dates. None where one cannot be looked at.
    """
    from PIL import __version__

    digest = hashlib.sha256(json.dumps([FORMAT, __version__, len(names), *how]).encode())
    digest.update(os.fsencode(root.absolute()))
    start = len(os.fspath(root))
    try:
        for name in names:
            status = os.stat(name)
            times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"
            line = f"{name[start:]}\0{status.st_size}\0{times}\n"
            digest.update(line.encode(errors="surrogateescape"))
    except OSError:
        return None
    return digest.hexdigest()[:32]
