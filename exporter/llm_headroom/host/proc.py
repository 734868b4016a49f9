"""Reads /proc to find engines (proc_pid_stat(5), proc_net(5) and so on of the Linux man-pages).

Processes end at any moment and other users' are partly hidden, so what cannot be read is None or left out, never an
error. Command lines can hold keys: those of Docker's port proxy and of Ollama's runners alone are read, by callers that
retain only the few words that they know.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import clock

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from llm_headroom.net.addresses import Address

_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO (linux/proc_ns.h)
_LISTEN: Final = "0A"  # TCP_LISTEN (linux/tcp_states.h)
_ESTABLISHED: Final = "01"  # TCP_ESTABLISHED
_ENDED: Final = ("Z", "X")
"""States of a process without memory, and whose control group is no longer its own."""
_MEMORY: Final = re.compile(r"^(MemTotal|MemAvailable): +(\d+) kB$", re.MULTILINE)
_OOM_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)  # since Linux 4.13 (include/linux/vm_event_item.h)
_DEEPEST: Final = 64
_STATUS: Final = {"RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared"}
_IPV4_DIGITS: Final = 8
_READ_BYTES: Final = 1 << 16


class Stat(NamedTuple):
    """A process: `start` is in clock ticks since boot, and distinguishes it from a later one with the same PID."""

    pid: int
    parent: int
    group: int
    start: int


class Listener(NamedTuple):
    """A TCP socket that takes connections in; `inode` names it among a process' descriptors."""

    address: Address
    port: int
    inode: int


@dataclass(frozen=True, slots=True)
class Proc:
    """A proc file system; `root` is another one than /proc in tests, or where the host's is mounted."""

    root: Path = Path("/proc")

    def pids(self) -> list[int]:
        """Every process that is visible."""
        try:
            return [int(name) for name in os.listdir(self.root) if name.isdigit()]  # noqa: PTH208 - much faster
        except OSError:
            return []

    def stat(self, pid: int | str) -> Stat | None:
        """None if there is no such process, or if it has ended and only waits for its parent to look at it."""
        try:
            # The name, in parentheses, may hold anything, parentheses included.
            text = self._text(f"{pid}/stat")
            fields = text.rpartition(")")[2].split(None, 20)
            if fields[0] in _ENDED:
                return None
            return Stat(int(text.partition(" ")[0]), int(fields[1]), int(fields[2]), int(fields[19]))
        except (ValueError, IndexError):
            return None

    def lineage(self, pid: int) -> list[Stat]:
        """The process, its parent, and so on to the first process of the namespace; empty if there is none."""
        found: list[Stat] = []
        while len(found) < _DEEPEST and (stat := self.stat(pid)) is not None:
            found.append(stat)
            pid = stat.parent
        return found

    def children(self) -> dict[int, list[int]]:
        """The children of each process, by one look at every process."""
        found: dict[int, list[int]] = {}
        for each in self.pids():
            if (stat := self.stat(each)) is not None:
                found.setdefault(stat.parent, []).append(each)
        return found

    def tree(self, pid: int, children: Mapping[int, Sequence[int]]) -> list[int]:
        """The process and its descendants, by what `children` has found."""
        found = [pid]
        for each in found:
            found += children.get(each, ())
        return found

    def name(self, pid: int) -> str:
        """The process' name as the kernel records it; empty if unknown."""
        return self._text(f"{pid}/comm").strip()

    def resident(self, pid: int) -> dict[str, float]:
        """Resident bytes by kind: anonymous, file, shared; empty if unknown."""
        found: dict[str, float] = {}
        try:
            for line in self._text(f"{pid}/status").splitlines():
                key, _, rest = line.partition(":")
                if key in _STATUS:
                    found[_STATUS[key]] = float(rest.split()[0]) * 1024
        except (ValueError, IndexError):
            return {}
        return found

    def started(self, stat: Stat) -> float | None:
        """When the process started, by `clock`; None if the time of the boot is unknown."""
        boot = re.search(r"^btime (\d+)$", self._text("stat"), re.MULTILINE)  # moves with the host's clock
        return int(boot[1]) + stat.start / os.sysconf("SC_CLK_TCK") - clock.set_by() if boot else None

    def cgroups(self, pid: int | str) -> dict[str, str]:
        """The process' control groups: path by controller, that of version 2 under the empty name."""
        parts = [line.split(":", 2) for line in self._text(f"{pid}/cgroup").splitlines() if line.count(":") > 1]
        return {controller: path for _, controllers, path in parts for controller in controllers.split(",")}

    def mounted_group(self, pid: int | str, controller: str) -> str:
        """Which control group of version 1 a process sees at the root of a controller's files; empty if unknown."""
        for line in self._text(f"{pid}/mountinfo").splitlines():
            fields = line.split()
            if "cgroup" in fields and controller in fields[-1].split(","):
                return fields[3]
        return ""

    def oom_kills(self) -> float | None:
        """Processes of the whole host that were killed for lack of memory, since boot; None if unknown."""
        found = _OOM_KILLS.search(self._text("vmstat"))
        return None if found is None else float(found[1])

    def memory(self) -> tuple[float, float] | None:
        """Bytes of memory of this host, and those that can still be had; None if unknown (proc_meminfo(5))."""
        found = dict(_MEMORY.findall(self._text("meminfo")))
        if len(found) < 2:  # noqa: PLR2004 - both
            return None
        return float(found["MemTotal"]) * 1024, float(found["MemAvailable"]) * 1024

    @property
    def is_wsl(self) -> bool:
        """Whether this is Linux on Windows (WSL 2), whose driver reports no memory by process."""
        return "microsoft" in self._text("sys/kernel/osrelease").lower()

    @property
    def initial_namespace(self) -> bool:
        """Whether this process sees the PIDs of the whole machine."""
        try:
            return os.readlink(self.root / "self/ns/pid") == _INITIAL_PID_NAMESPACE  # noqa: PTH115 - a text, no path
        except OSError:
            return False

    def listeners(self, ports: Collection[int], pid: int | str = "self") -> list[Listener]:
        """The sockets of a process' network namespace that listen on one of these ports."""
        return [
            Listener(_address(digits), int(port, 16), int(inode))
            for digits, port, _, state, inode in self._sockets(pid)
            if state == _LISTEN and int(port, 16) in ports
        ]

    def clients(self, port: int) -> int:
        """How many connections to a port of this network are open, this process' own ones left out."""
        rows = list(self._sockets("self"))
        own = set(self.sockets(os.getpid()))
        ours = {near for _, near, far, _, inode in rows if int(far, 16) == port and int(inode) in own}
        return sum(
            state == _ESTABLISHED and int(near, 16) == port and far not in ours for _, near, far, state, _ in rows
        )

    def _sockets(self, pid: int | str) -> Iterator[tuple[str, str, str, str, str]]:
        """Local address, local port, remote port, state and inode of each TCP socket, as the kernel writes them."""
        for table in ("tcp", "tcp6"):
            for line in self._text(f"{pid}/net/{table}").splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9:  # noqa: PLR2004 - up to the inode
                    address, _, port = fields[1].partition(":")
                    yield address, port, fields[2].rpartition(":")[2], fields[3], fields[9]

    def addresses(self, pid: int | str = "self") -> set[Address]:
        """The addresses of a process' network namespace."""
        found: set[Address] = set()
        with suppress(ValueError):
            for before, line in pairwise(("", *self._text(f"{pid}/net/fib_trie").splitlines())):
                if line.endswith("/32 host LOCAL"):
                    found.add(IPv4Address(before.rpartition(" ")[2]))
        with suppress(ValueError, IndexError):
            for line in self._text(f"{pid}/net/if_inet6").splitlines():
                found.add(IPv6Address(bytes.fromhex(line.split()[0])))
        return found

    def sockets(self, pid: int) -> Iterator[int]:
        """Inodes of a process' sockets; none if this user has no right to look."""
        try:
            names = os.listdir(self.root / f"{pid}/fd")  # noqa: PTH208 - much faster
        except OSError:
            return
        for name in names:
            try:
                link = os.readlink(f"{self.root}/{pid}/fd/{name}")  # noqa: PTH115 - a text, no path
            except OSError:
                continue
            if link.startswith("socket:["):
                yield int(link[8:-1])

    def command(self, pid: int) -> list[str]:
        """The words of a process' command line; none if it is not shown."""
        return self._text(f"{pid}/cmdline").rstrip("\0").split("\0")

    def environment(self, pid: int, names: Collection[str]) -> dict[str, str] | None:
        """Those variables among `names` that a process was started with; None if this user has no right to look."""
        text = self._text(f"{pid}/environ")
        variables = (each.partition("=") for each in text.split("\0"))
        return {name: value for name, _, value in variables if name in names} if text else None

    def behind_docker_proxy(self, pid: int) -> tuple[Address, int] | None:
        """Where Docker's port proxy forwards to (moby, cmd/docker-proxy); None if the process is none."""
        if self.name(pid) != "docker-proxy":
            return None
        try:
            given = dict(pairwise(self.command(pid)))
            return ip_address(given["-container-ip"]), int(given["-container-port"])
        except (ValueError, KeyError):
            return None

    def _text(self, name: str) -> str:
        return text_of(f"{self.root}/{name}")


def text_of(path: Path | str) -> str:
    """The content of a kernel file; empty if it cannot be read.

    Without Python's file objects, which take twice the CPU for a file as small as these.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(file, _READ_BYTES):
                parts.append(part)
        finally:
            os.close(file)
    except OSError:
        return ""
    return b"".join(parts).decode(errors="replace")


def reaches(address: Address, listener: Listener) -> bool:
    """Whether a connection to the address, on the listener's port, ends at the listener."""
    there = listener.address
    if isinstance(there, IPv6Address) and there.ipv4_mapped is not None:
        there = there.ipv4_mapped
    return there.is_unspecified or there == address or (there.is_loopback and address.is_loopback)


def _address(digits: str) -> Address:
    """An address as proc_net writes it: 32-bit words in the machine's byte order."""
    words = [bytes.fromhex(digits[at : at + _IPV4_DIGITS])[::-1] for at in range(0, len(digits), _IPV4_DIGITS)]
    return IPv4Address(words[0]) if len(words) == 1 else IPv6Address(b"".join(words))
