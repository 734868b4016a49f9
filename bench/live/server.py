"""A program under test: started, awaited, frozen, killed and started again. What is started here is ended here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

_OK: Final = 200


def free_port() -> int:
    """A port that nobody listens on, of those that the system gives to nobody by itself.

    Raises:
        RuntimeError: there is none.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in SystemRandom().sample(range(1024, lowest), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")


class Server:
    """A command in a process group of its own; `ready` is the path that answers 200 once it serves."""

    def __init__(  # noqa: PLR0913 - each is a choice of its own
        self,
        command: Sequence[str | Path],
        *,
        port: int,
        ready: str,
        patience: float,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._command = command
        self._ready = ready
        self._patience = patience
        self._log = log
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process that was started. Raises RuntimeError if there is none."""
        if self._process is None:
            raise RuntimeError(f"{self._command[0]} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it serves. Raises RuntimeError if it does not in time."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        end = time.monotonic() + self._patience
        while time.monotonic() < end and self._process.poll() is None:
            with suppress(httpx.HTTPError):
                if httpx.get(self.url + self._ready, timeout=2, trust_env=False).status_code == _OK:
                    return
            time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"{self._command[0]} does not serve; its log is {self._log}")

    def freeze(self, pid: int | None = None) -> None:
        """Stop all of it, or one of its processes, as a hang would."""
        self._signal(signal.SIGSTOP, pid)

    def thaw(self, pid: int | None = None) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT, pid)

    def kill(self) -> None:
        """End it and all that it started, at once."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def child(self, name: str) -> int:
        """The child process whose name begins so. Raises LookupError without one."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
                if fields["PPid"] == str(self.pid) and fields["Name"].startswith(name):
                    return int(fields["Pid"])
        raise LookupError(name)

    def _signal(self, number: signal.Signals, pid: int | None) -> None:
        if pid is None:
            os.killpg(self.pid, number)
        else:
            os.kill(pid, number)
