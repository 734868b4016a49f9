"""`llm-headroom top` in a pipe and in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

import pytest

from captures import Capture
from engine_server import EngineServer, Reply, replayed
from exporter_process import COMMAND, DEADLINE, Exporter, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

SATURATED = Capture("vllm", "0.32.0", "saturated")
NOWHERE = "http://127.0.0.1:9"
CURSOR_ON, CURSOR_OFF = "\x1b[?25h", "\x1b[?25l"
FAST = ("--interval", "200ms", "--no-discover", "--no-gpu")


@pytest.fixture
def vllm() -> Iterator[EngineServer]:
    with EngineServer(replayed(SATURATED)) as server:
        yield server


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`llm-headroom top` in a pipe."""
    return subprocess.run(
        [*COMMAND, "top", *arguments], env=environment(), capture_output=True, text=True, check=False, timeout=DEADLINE
    )


class Terminal:
    """`llm-headroom top` in a terminal of its own; `shown` is everything that it has written."""

    def __init__(self, *arguments: str, columns: int = 150) -> None:
        self._arguments = arguments
        self._columns = columns
        self.shown = ""

    def __enter__(self) -> Self:
        self._master, slave = pty.openpty()
        self.resize(self._columns)
        self.modes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [*COMMAND, "top", *self._arguments],
            env=environment({"TERM": "xterm-256color"}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        self._slave = slave
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        os.close(self._slave)
        os.close(self._master)

    def resize(self, columns: int) -> None:
        """The terminal's width from now on."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def until(self, text: str) -> None:
        """Wait until a text is written that was not there before."""
        seen, end = len(self.shown), time.monotonic() + DEADLINE
        while text not in self.shown[seen:]:
            assert time.monotonic() < end, self.shown[-4000:]
            self._read(0.5)

    def ended(self) -> int:
        """The exit status, as soon as it is there."""
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < end, self.shown[-4000:]
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.returncode

    def restored(self) -> bool:
        """Whether the terminal is as it was."""
        return termios.tcgetattr(self._slave) == self.modes

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            self.shown += os.read(self._master, 1 << 16).decode(errors="replace")
        return bool(ready)


# Once ----------------------------------------------------------------------------------------------------------------
def test_a_pipe_gets_the_view_of_a_running_exporter_once(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", f"--target=sglang={NOWHERE}", *FAST) as exporter:
        exporter.until(lambda: b"no traffic" in exporter.get("/")[2])
        asked = len(vllm.requests)
        printed = top("--url", exporter.url)
        metrics = [path for _, path in vllm.requests[asked:] if path != "/metrics"]

    lines = printed.stdout.splitlines()
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "1 of 2 sources up" in lines[0]
    down, up = (next(index for index, line in enumerate(lines) if name in line) for name in ("SGLang", "vLLM 0.32.0"))
    assert down < up, "what is in trouble comes first"
    assert "the connection was refused" in printed.stdout
    assert "saturated: KV cache full" in lines[up]
    assert "98%" in lines[up]
    assert "no traffic" in lines[up]
    assert "\x1b" not in printed.stdout
    assert metrics == []


def test_without_an_exporter_it_polls_by_itself(vllm: EngineServer) -> None:
    printed = top("--once", f"--target=vllm={vllm.url}", "--no-gpu", "--no-discover")

    assert (printed.returncode, printed.stderr) == (0, "")
    assert "1 of 1 sources up" in printed.stdout
    assert "tiny-llama" in printed.stdout
    assert "no traffic" in printed.stdout, "two polls were made"


def test_an_exporter_that_is_not_there_is_an_error_that_names_it_without_its_password() -> None:
    printed = top("--once", "--url", "http://somebody:secret@127.0.0.1:9")

    assert (printed.returncode, printed.stdout) == (1, "")
    assert printed.stderr == "llm-headroom: http://127.0.0.1:9 cannot be reached: Connection refused\n"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(b"no", 401), "answered 401"),
        (Reply(b"data: {}\n\n"), "not a view of llm-headroom"),
        (Reply(b"data: {\n\n"), "Expecting property name"),
    ],
)
def test_what_is_no_exporter_is_told(reply: Reply, said: str) -> None:
    with EngineServer({"/api/v1/stream": reply}) as other:
        printed = top("--once", "--url", other.url)

    assert printed.returncode == 1
    assert said in printed.stderr
    assert "Traceback" not in printed.stderr


def test_an_address_must_be_one_of_http() -> None:
    printed = top("--once", "--url", "file:///etc/passwd")

    assert printed.returncode == 1
    assert "http://HOST:PORT" in printed.stderr


# In a terminal -------------------------------------------------------------------------------------------------------
def test_a_terminal_follows_the_exporter_until_q(vllm: EngineServer) -> None:
    with (
        Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter,
        Terminal("--url", exporter.url) as terminal,
    ):
        terminal.until("saturated: KV cache full")
        vllm.routes = {}
        terminal.until("down")
        terminal.resize(60)
        terminal.until("down")
        terminal.press("q")
        status = terminal.ended()
        restored = terminal.restored()

    assert status == 0
    assert restored
    assert terminal.shown.rindex(CURSOR_ON) > terminal.shown.rindex(CURSOR_OFF)


def test_a_terminal_says_when_the_exporter_is_gone(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter, Terminal("--url", exporter.url) as terminal:
        terminal.until("tiny-llama")
        exporter.process.terminate()
        terminal.until("cannot be reached")
        terminal.press("q")
        assert terminal.ended() == 0


def test_ctrl_c_ends_its_own_polls(vllm: EngineServer) -> None:
    with Terminal(f"--target=vllm={vllm.url}", "--no-gpu", "--no-discover") as terminal:
        terminal.until("tiny-llama")
        terminal.process.send_signal(2)
        assert terminal.ended() == 0
        assert terminal.restored()
