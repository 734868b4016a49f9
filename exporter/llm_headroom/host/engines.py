"""Which process each target is: the one that was configured, or that listens where the target's URL points to."""

from __future__ import annotations

import threading
import time
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from llm_headroom.host.proc import Proc, reaches
from llm_headroom.net.addresses import addresses_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llm_headroom.config.settings import Target
    from llm_headroom.host.proc import Stat
    from llm_headroom.model import Snapshot
    from llm_headroom.net.addresses import Address

LOOK_AGAIN: Final = 30.0
"""Seconds between looks for the process of an engine that answers but was not found."""
_INIT: Final = 1


class Watched(NamedTuple):
    """A target with its latest collection, None before the first one."""

    target: Target
    snapshot: Snapshot | None

    @property
    def engine(self) -> str:
        """The kind of engine, empty if nobody knows it."""
        return (self.snapshot.engine if self.snapshot else "") or self.target.engine or ""

    @property
    def labels(self) -> dict[str, str]:
        """The labels of every series about it."""
        return {**self.target.labels, "engine": self.engine, "target": self.target.name}

    @property
    def up(self) -> bool:
        """Whether the latest collection succeeded."""
        return self.snapshot is not None and self.snapshot.health.up


def addresses(target: Target) -> tuple[Address, ...]:
    """The addresses of a target's URL, as far as known without asking a name server."""
    return addresses_of(urlsplit(target.endpoint.url).hostname or "")


def runs_here(target: Target) -> bool:
    """Whether the target may be a process of this host, as far as known without asking a name server."""
    if target.pid is not None or target.cgroup is not None or target.gpus:
        return True
    found = addresses(target)
    return any(address.is_loopback for address in found) or not Proc().addresses().isdisjoint(found)


class How(StrEnum):
    """How an engine's process was found."""

    LISTENER = "listener"
    """It listens where the target's URL points to."""
    CONFIGURED = "configured"
    """The target's `pid`."""
    CONTAINER = "container"
    """It is the first process of a container with a network namespace of its own, in which the target listens."""


class EngineProcess(NamedTuple):
    """The process of a target."""

    stat: Stat
    how: How


class Finder:
    """Finds the processes of targets and remembers them for as long as they live. May be used by several threads.

    A search opens the descriptors of every process that this user may look into, so it is made only for engines that
    answer, and again after `LOOK_AGAIN` if it found nothing.
    """

    def __init__(self, proc: Proc | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.proc = proc or Proc()
        self._clock = clock
        self._known: dict[str, EngineProcess] = {}
        self._next_look: dict[str, float] = {}
        self._lock = threading.Lock()

    def find(self, watched: Iterable[Watched], likely: Iterable[int] = ()) -> dict[str, EngineProcess]:
        """Processes by target; `likely` are PIDs that are looked at first, such as those that hold GPU memory."""
        with self._lock:
            return self._find(tuple(watched), tuple(likely))

    def _find(self, watched: tuple[Watched, ...], likely: tuple[int, ...]) -> dict[str, EngineProcess]:
        now = self._clock()
        found: dict[str, EngineProcess] = {}
        missing: dict[str, tuple[tuple[Address, ...], int]] = {}
        for target, up in ((each.target, each.up) for each in watched):
            process = self._configured(target.pid) if target.pid is not None else self._alive(target.name)
            if process is not None:
                found[target.name] = process
            elif target.pid is None and up and now >= self._next_look.get(target.name, now):
                missing[target.name] = (addresses(target), target.endpoint.port)
            if not up:
                self._next_look.pop(target.name, None)
        if missing:
            found |= self._search(missing, likely)
            self._next_look |= dict.fromkeys(missing.keys() - found.keys(), now + LOOK_AGAIN)
        self._known = found
        return dict(found)

    def _configured(self, pid: int) -> EngineProcess | None:
        stat = self.proc.stat(pid)
        return stat and EngineProcess(stat, How.CONFIGURED)

    def _alive(self, name: str) -> EngineProcess | None:
        known = self._known.get(name)
        if known is None or known.how is How.CONFIGURED:
            return None
        stat = self.proc.stat(known.stat.pid)
        return EngineProcess(stat, known.how) if stat and stat.start == known.stat.start else None

    def _search(
        self, missing: Mapping[str, tuple[tuple[Address, ...], int]], likely: tuple[int, ...]
    ) -> dict[str, EngineProcess]:
        own = self.proc.addresses()
        listeners = self.proc.listeners({port for _, port in missing.values()})
        wanted: dict[int, str] = {}
        elsewhere: dict[str, tuple[Address, int]] = {}
        for name, (addresses, port) in missing.items():
            here = [each for each in addresses if each.is_loopback or each in own]
            for listener in listeners:
                if listener.port == port and any(reaches(address, listener) for address in here):
                    wanted[listener.inode] = name
            if addresses and not here:
                elsewhere[name] = (addresses[0], port)
        found: dict[str, EngineProcess] = {}
        for name, holder in self._holders(wanted, likely).items():
            if behind := self.proc.behind_docker_proxy(holder.pid):
                elsewhere[name] = behind
            else:
                found[name] = EngineProcess(holder, How.LISTENER)
        for name, (address, port) in elsewhere.items():
            if (first := self._in_container(address, port, likely)) is not None:
                found[name] = EngineProcess(first, How.CONTAINER)
        return found

    def _holders(self, wanted: Mapping[int, str], likely: tuple[int, ...]) -> dict[str, Stat]:
        """The owner of the sockets: among processes that inherited one, their common ancestor."""
        found: dict[str, Stat] = {}
        names = set(wanted.values())
        near = [stat.pid for pid in likely for stat in self.proc.lineage(pid)]
        for pid in dict.fromkeys((*near, *self.proc.pids())):
            if names <= found.keys():
                break
            for inode in self.proc.sockets(pid):
                name = wanted.get(inode)
                if name is not None and name not in found and (holder := self._topmost(pid, inode)):
                    found[name] = holder
        return found

    def _topmost(self, pid: int, inode: int) -> Stat | None:
        top: Stat | None = None
        for stat in self.proc.lineage(pid):
            # A process supervisor (systemd's socket activation) may hold the socket, too.
            if top is not None and (stat.pid == _INIT or inode not in set(self.proc.sockets(stat.pid))):
                break
            top = stat
        return top

    def _in_container(self, address: Address, port: int, likely: tuple[int, ...]) -> Stat | None:
        """The first process of the container that has this address, and of which one process is in `likely`."""
        for pid in likely:
            if address not in self.proc.addresses(pid):
                continue
            if not any(reaches(address, each) for each in self.proc.listeners({port}, pid)):
                continue
            group = self.proc.cgroups(pid)
            lineage = self.proc.lineage(pid)
            inside = [stat for stat in lineage if self.proc.cgroups(stat.pid) == group]
            return inside[-1] if inside else None
        return None
