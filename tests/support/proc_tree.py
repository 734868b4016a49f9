"""A /proc and a /sys/fs/cgroup as files, for tests of what is looked up in them.

The forms of the files are those of the Linux man-pages (proc_pid_stat(5), proc_net(5), cgroups(7)); sockets are the
dangling links that /proc/<pid>/fd holds.
"""

from __future__ import annotations

import os
import shutil
from ipaddress import ip_address
from pathlib import Path

from llm_headroom.host.proc import Proc

HOST_NAMESPACE = 4026531836
BOOT = 1_700_000_000
FIXTURES = Path(__file__).parents[1] / "fixtures"
LOOPBACK = "127.0.0.1"


class ProcTree:
    """`proc` and `sys` under a folder. The exporter itself is process 50 of it, in control group /exporter."""

    def __init__(self, folder: Path, *, namespace: int = HOST_NAMESPACE) -> None:
        self.folder = folder
        self.root = folder / "proc"
        self.sys = folder / "sys"
        (self.root / "self/ns").mkdir(parents=True)
        (self.root / "stat").write_text(f"cpu 1 2 3\nbtime {BOOT}\nprocesses 7\n")
        (self.root / "self/ns/pid").symlink_to(f"pid:[{namespace}]")
        self._write("self", 50, 1, 50, 10, "0::/exporter")
        self.network("self", [LOOPBACK, "192.0.2.2"])

    @property
    def proc(self) -> Proc:
        """What the exporter reads it with."""
        return Proc(self.root)

    def process(  # noqa: PLR0913 - a process has many sides
        self,
        pid: int,
        parent: int = 1,
        *,
        group: int | None = None,
        start: int = 1000,
        cgroup: str = "0::/",
        sockets: tuple[int, ...] = (),
        name: str = "python (3)",
        command: tuple[str, ...] = (),
        environment: tuple[str, ...] = ("HOME=/",),
        resident: tuple[int, int, int] = (1024, 512, 256),
    ) -> int:
        """Adds a process; `resident` are KiB of anonymous, file and shared memory. No environment: it is hidden."""
        self._write(str(pid), pid, parent, pid if group is None else group, start, cgroup, name)
        folder = self.root / str(pid)
        for number, inode in enumerate(sockets, start=3):
            (folder / f"fd/{number}").symlink_to(f"socket:[{inode}]")
        (folder / "cmdline").write_text("".join(f"{word}\0" for word in command))
        (folder / "environ").write_text("".join(f"{variable}\0" for variable in environment))
        anonymous, file, shared = resident
        (folder / "status").write_text(
            f"Name:\tpython\nVmRSS:\t{sum(resident)} kB\nRssAnon:\t{anonymous} kB\nRssFile:\t{file} kB\n"
            f"RssShmem:\t{shared} kB\n"
        )
        return pid

    def end(self, pid: int) -> None:
        """The process ends."""
        shutil.rmtree(self.root / str(pid))

    def hide_descriptors(self, pid: int) -> None:
        """Its descriptors belong to another user."""
        shutil.rmtree(self.root / str(pid) / "fd")

    def listen(
        self, port: int, inode: int, address: str = LOOPBACK, whose: int | str = "self", *, state: str = "0A"
    ) -> None:
        """A socket that listens (or is in another state) in the network of a process."""
        parsed = ip_address(address)
        table = "tcp" if parsed.version == 4 else "tcp6"
        words = parsed.packed
        digits = "".join(words[at : at + 4][::-1].hex().upper() for at in range(0, len(words), 4))
        path = self.root / str(whose) / "net" / table
        with path.open("a", encoding="ascii") as file:
            file.write(
                f"   0: {digits}:{port:04X} {'0' * len(digits)}:0000 {state} 00000000:00000000 00:00000000 00000000  "
                f"1000        0 {inode} 1 0000000000000000 100 0 0 10 0\n"
            )

    def network(self, whose: int | str, addresses: list[str]) -> None:
        """Gives a process' network its addresses; nothing listens there."""
        folder = self.root / str(whose) / "net"
        folder.mkdir(exist_ok=True)
        for table in ("tcp", "tcp6"):
            (folder / table).write_text("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n")
        (folder / "fib_trie").write_text(
            "Main:\n  +-- 0.0.0.0/0 3 0 5\n"
            + "".join(f"           |-- {each}\n              /32 host LOCAL\n" for each in addresses)
        )

    def memory_group(self, path: str, **files: str) -> Path:
        """A control group under sys; `memory_max="max"` writes memory.max."""
        folder = self.sys / "fs/cgroup" / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(text)
        return folder

    def _write(  # noqa: PLR0913, PLR0917 - the fields of one file
        self, folder: str, pid: int, parent: int, group: int, start: int, cgroup: str, name: str = "llm-headroom"
    ) -> None:
        path = self.root / folder
        (path / "fd").mkdir(parents=True)
        rest = "0 -1 4194304 101 0 0 0 0 0 0 0 20 0 1 0"
        (path / "stat").write_text(f"{pid} ({name}) S {parent} {group} 1 {rest} {start} 3133440 382\n")
        (path / "comm").write_text(f"{name}\n")
        (path / "cgroup").write_text(f"{cgroup}\n")


def ticks(seconds: float) -> int:
    """Clock ticks, in which /proc counts the time since the boot."""
    return int(seconds * os.sysconf("SC_CLK_TCK"))
