"""Memory of a control group, version 1 or 2.

Files and their meaning: torvalds/linux, Documentation/admin-guide/cgroup-v2.rst (Memory) and cgroup-v1/memory.rst;
pressure in Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.host.proc import text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.host.proc import Proc

_NO_LIMIT: Final = 2**62
"""Version 1 writes a number near 2**63, rounded to pages, for no limit."""


class Memory(NamedTuple):
    """Memory of one control group and those below it; bytes, seconds and counts, None for what it does not expose.

    `limit` is the lowest of its own and of those above that can be seen, `used` the working set: what is charged less
    what the kernel drops at no cost (inactive file cache). `pressure` holds seconds in which some or all (full) tasks
    waited for memory, `oom_kills` the processes that the kernel has killed for lack of memory, both since the group
    was made.
    """

    version: int
    limit: float | None
    used: float
    pressure: Mapping[str, float]
    oom_kills: float | None


def directories(proc: Proc, sys: Path, pid: int | str) -> Iterator[Path]:
    """Where the memory control group of a process may be visible, the likeliest place first.

    A container sees only its own group at the root of its cgroup file system, and other containers' paths as
    `/../<name>`; the engine's own view of it, through /proc/<pid>/root, then is the way, if this user may use it.
    The root group of version 2 has no such files, that of version 1 has those of the whole machine.
    """
    groups = proc.cgroups(pid)
    own_view = proc.root / str(pid) / "root/sys/fs/cgroup"
    mount = "memory" if "memory" in groups else ""
    if mount not in groups:
        return
    path = groups[mount]
    if ".." not in PurePosixPath(path).parts:
        yield sys / "fs/cgroup" / mount / path.lstrip("/")
        yield own_view / mount / path.lstrip("/")
    if not mount or proc.mounted_group(pid, "memory") == path:
        yield own_view / mount


def memory(directory: Path) -> Memory | None:
    """None if the directory is no control group with memory: the root group of version 2 has none of these files."""
    used = _number(directory / "memory.current")
    if used is not None:
        return Memory(
            version=2,
            limit=min((limit for limit in map(_limit, _upwards(directory)) if limit is not None), default=None),
            used=max(0.0, used - _keyed(directory / "memory.stat").get("inactive_file", 0.0)),
            pressure=_pressure(directory / "memory.pressure"),
            oom_kills=_keyed(directory / "memory.events").get("oom_kill"),
        )
    used = _number(directory / "memory.usage_in_bytes")
    if used is None:
        return None
    stat = _keyed(directory / "memory.stat")
    limits = [_number(directory / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
    return Memory(
        version=1,
        limit=min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None),
        used=max(0.0, used - stat.get("total_inactive_file", 0.0)),
        pressure={},
        oom_kills=_keyed(directory / "memory.oom_control").get("oom_kill"),
    )


def kills_above(directory: Path) -> float | None:
    """Processes killed in all that is below the group above; None in version 1, whose groups count their own alone."""
    return _keyed(directory.parent / "memory.events").get("oom_kill")


def _upwards(directory: Path) -> Iterator[Path]:
    while (directory / "memory.max").exists():
        yield directory
        directory = directory.parent


def _limit(directory: Path) -> float | None:
    return _number(directory / "memory.max")


def _number(path: Path) -> float | None:
    """None if the file does not exist or has `max`."""
    text = text_of(path).strip()
    return float(text) if text.isdigit() else None


def _keyed(path: Path) -> dict[str, float]:
    """A file with a name and a number on each line."""
    lines = (line.split() for line in text_of(path).splitlines())
    return {words[0]: float(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}  # noqa: PLR2004


def _pressure(path: Path) -> dict[str, float]:
    """Seconds by severity (some, full); the file has microseconds."""
    found = re.findall(r"^(some|full) .*\btotal=(\d+)$", text_of(path), re.MULTILINE)
    return {severity: int(total) / 1e6 for severity, total in found}
