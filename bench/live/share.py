"""Holds a process and its children to a share of a core, so that what else runs on the machine matters less."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PERIOD: Final = 10_000
"""Microseconds; short, so that a step is not held up for long at once."""
_WEIGHT: Final = 16
"""Other processes that it counts as when cores are short: it is to have its share, and no more."""
_NAME: Final = "llm-headroom-live"
_ROOT: Final = Path("/sys/fs/cgroup")


def family(pid: int) -> list[int]:
    """A process, its children and theirs."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # ended meanwhile
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            parents.setdefault(int(fields["PPid"]), []).append(int(fields["Pid"]))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


@contextmanager
def held(pid: int, cores: float) -> Iterator[None]:
    """Hold them while it lasts. Raises OSError without the right to make control groups."""
    unified = (_ROOT / "cgroup.controllers").exists()
    group = (_ROOT if unified else _ROOT / "cpu") / _NAME
    group.mkdir(exist_ok=True)
    quota = round(cores * _PERIOD)
    if unified:
        (group / "cpu.weight").write_text(str(_WEIGHT * 100))
        (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
    else:
        (group / "cpu.shares").write_text(str(_WEIGHT * 1024))
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    for member in family(pid):
        (group / "cgroup.procs").write_text(str(member))
    try:
        yield
    finally:
        for each in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):  # ended meanwhile
                (group.parent / "cgroup.procs").write_text(each)
        group.rmdir()
