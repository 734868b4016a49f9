"""Files: whether one is still the one that was read, and what messages call it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

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
