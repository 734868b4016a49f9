"""Processes and host memory of the engines on this host, as points."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.host import cgroup
from llm_headroom.host.engines import LOOK_AGAIN
from llm_headroom.host.kills import Kills, followed
from llm_headroom.model import Cause, Failure, point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from llm_headroom.host.engines import EngineProcess, Finder, Watched
    from llm_headroom.model import Point

_SYS: Final = Path("/sys")


class Reading(NamedTuple):
    """What was found of one engine; `hidden`: why its process or its memory was not, and what would help."""

    points: tuple[Point, ...]
    hidden: Failure | None


class _Group(NamedTuple):
    """Where an engine's memory control group is, and how that is known."""

    directory: Path
    method: str


class _Tree(NamedTuple):
    """The PIDs of an engine's processes, the first one's start as unix time, and when both were looked up."""

    process: EngineProcess
    looked: float
    started: float | None
    pids: Sequence[int]


class HostMemory:
    """Reads engines' processes and memory from /proc and /sys. Blocks; to be used from one thread.

    A control group is remembered after its engine's death, for as long as it exists: who was killed for lack of memory
    is recognised by its counters.
    """

    def __init__(self, finder: Finder, sys: Path = _SYS) -> None:
        self._finder = finder
        self._proc = finder.proc
        self._sys = sys
        self._groups: dict[str, _Group] = {}
        self._kills: dict[str, Kills] = {}
        self._trees: dict[str, _Tree] = {}

    def read(self, watched: Sequence[Watched], now: float) -> dict[str, Reading]:
        """What is found of each target; `now` is monotonic, in seconds."""
        processes = self._finder.find(watched)
        # Several engines may share a control group, and a host's processes: each is read once.
        memory_of, children = cache(cgroup.memory), cache(self._proc.children)
        groups = {each.target.name: self._group(each, processes, memory_of) for each in watched}
        self._groups = {name: group for name, group in groups.items() if group is not None}
        own = {directory for directory in cgroup.directories(self._proc, self._sys, "self") if directory.is_dir()}
        host_kills = self._proc.oom_kills()
        readings = {}
        for each in watched:
            name = each.target.name
            labels = each.labels
            process, group = processes.get(name), groups[name]
            points = [] if process is None else [*self._of_process(process, labels, name, now, children)]
            memory = None if group is None else memory_of(group.directory)
            if group is not None and memory is not None:
                others = own.union(other.directory for key, other in self._groups.items() if key != name)
                points += _of_group(group, memory, labels, shared=group.directory in others)
            state = Kills(process and process.stat, group and group.directory, memory and memory.oom_kills, {})
            if (kills := self._killed(name, state, host_kills)) is not None:
                points.append(point(schema.HOST_OOM_KILLS, kills, "cgroup oom_kill, /proc/vmstat oom_kill", labels))
            hidden = _hidden(each, process) if group is None and each.up else None
            readings[name] = Reading(tuple(points), hidden)
        self._kills = {each.target.name: self._kills[each.target.name] for each in watched}
        self._trees = {name: tree for name, tree in self._trees.items() if name in processes}
        return readings

    def _group(
        self,
        each: Watched,
        processes: Mapping[str, EngineProcess],
        memory_of: Callable[[Path], cgroup.Memory | None],
    ) -> _Group | None:
        name = each.target.name
        if each.target.cgroup is not None:
            return _Group(each.target.cgroup, "configured") if memory_of(each.target.cgroup) else None
        process = processes.get(name)
        if process is not None:
            for directory in cgroup.directories(self._proc, self._sys, process.stat.pid):
                if memory_of(directory):
                    return _Group(directory, process.how)
        known = self._groups.get(name)
        return known if known and known.directory.is_dir() else None

    def _killed(self, name: str, now: Kills, host: float | None) -> float | None:
        """Kills of an engine so far, `now` without what is above; `host` are those of the whole host."""
        before = self._kills.get(name)
        directory = now.group or (before and before.group)
        above = {} if directory is None else {str(directory.parent): cgroup.kills_above(directory)}
        counts = {where: count for where, count in (*above.items(), ("host", host)) if count is not None}
        self._kills[name] = followed(before, now._replace(above=counts))
        return self._kills[name].total

    def _of_process(
        self,
        process: EngineProcess,
        labels: Mapping[str, str],
        name: str,
        now: float,
        children: Callable[[], Mapping[int, Sequence[int]]],
    ) -> Iterator[Point]:
        tree = self._trees.get(name)
        if tree is None or tree.process != process or now - tree.looked >= LOOK_AGAIN:
            pid = process.stat.pid
            tree = _Tree(process, now, self._proc.started(process.stat), self._proc.tree(pid, children()))
        resident: dict[str, float] = {}
        alive = []
        for pid in tree.pids:
            if said := self._proc.resident(pid):
                alive.append(pid)
                for kind, size in said.items():
                    resident[kind] = resident.get(kind, 0.0) + size
        self._trees[name] = tree._replace(pids=alive)
        for kind, size in resident.items():
            yield point(schema.HOST_PROCESS_MEMORY, size, "/proc/<pid>/status Rss", labels, kind=kind)
        if alive:
            yield point(schema.HOST_PROCESSES, float(len(alive)), "/proc/<pid>/stat", labels)
        if tree.started is not None:
            yield point(schema.HOST_PROCESS_START, tree.started, "/proc/<pid>/stat starttime", labels)


def _of_group(group: _Group, memory: cgroup.Memory, labels: Mapping[str, str], *, shared: bool) -> Iterable[Point]:
    info = {"cgroup": f"v{memory.version}", "method": group.method, "scope": "shared" if shared else "engine"}
    yield point(schema.HOST_MEMORY_INFO, 1.0, "cgroup", labels, **info)
    yield point(schema.HOST_MEMORY_USED, memory.used, "cgroup memory - inactive_file", labels)
    if memory.limit is not None:
        yield point(schema.HOST_MEMORY_LIMIT, memory.limit, "cgroup memory limit", labels)
    for severity, seconds in memory.pressure.items():
        yield point(schema.HOST_MEMORY_PRESSURE, seconds, "cgroup memory.pressure", labels, severity=severity)


def _hidden(each: Watched, process: EngineProcess | None) -> Failure:
    name, configured = each.target.name, each.target.cgroup
    if configured is not None:
        why = f"{configured} is not a memory control group, or is hidden from this process"
    elif process is None:
        why = (
            "its process is not visible: let this exporter share the engine's PID namespace and run as its user, or "
            "give the target a pid or cgroup"
        )
    else:
        why = (
            f"no memory control group of its process {process.stat.pid} is visible: it has none, or the host's "
            "/sys/fs/cgroup is hidden; the target's cgroup names one"
        )
    return Failure(Cause.UNREACHABLE, f"host memory of {name}: {why}")
