"""Files that may be replaced at any time: what they hold, whether they have changed, and what messages call them."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES: Final = 1024 * 1024
"""Of a file, unless its reader says otherwise: more than any secret, certificate or configuration takes."""

Stamp: TypeAlias = tuple[int, int, int, int]
"""Times of modification and change in nanoseconds, size, inode."""


def named(path: Path, instead: str = "this file") -> str:
    """A path for a message, unless it is rather a file's content, put in the place of its name."""
    text = str(path)
    return text if text.isprintable() and "-----BEGIN" not in text else instead


def stamp(path: Path) -> Stamp | None:
    """What differs once a file is rewritten or, as by Kubernetes, replaced; None where it cannot be looked at.

    Symbolic links on the way are followed: a mounted ConfigMap or Secret changes by turning one.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - at every poll and request: half the cost of Path.stat
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def content(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a file holds.

    Where an event loop runs, or in a thread beside it, a FIFO is refused: all else, or what the thread is for, would
    wait for whoever writes into it, perhaps for ever. Before that it is as good as any other, as of a shell's `<(…)`.

    Raises:
        OSError: it cannot be read, or is larger than `most` bytes.
    """
    first = threading.current_thread() is threading.main_thread()
    waits = first and asyncio._get_running_loop() is None  # noqa: SLF001 - documented, and raises nothing

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags if waits else flags | os.O_NONBLOCK)

    with open(path, "rb", opener=opened) as file:
        if not waits and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is a FIFO, and everything would wait for whoever writes into it")
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"is larger than {most} bytes")
    return data
