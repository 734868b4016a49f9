"""`llm-headroom top` in a pipe and in a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Self

import pytest
import trustme
from rich.console import Console

from captures import Capture
from engine_server import EngineServer, Reply, at_work, replayed
from exporter_process import COMMAND, DEADLINE, Exporter, environment, ran
from llm_headroom.commands.top_screen import Chosen, screen
from llm_headroom.model import Level
from llm_headroom.view.values import Condition, EngineCard, GpuCard, Source, View, from_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SATURATED = Capture("vllm", "0.32.0", "saturated")
NOWHERE = "http://127.0.0.1:9"
CURSOR_ON, CURSOR_OFF = "\x1b[?25h", "\x1b[?25l"
FAST = ("--interval", "200ms", "--no-discover", "--no-gpu")


@pytest.fixture
def vllm() -> Iterator[EngineServer]:
    with EngineServer(at_work(SATURATED)) as server:
        yield server


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`llm-headroom top` in a pipe."""
    return ran("top", *arguments)


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
    assert (printed.returncode, printed.stderr) == (1, ""), "not everything is fine"
    assert "1 of 2 sources up" in lines[0]
    assert "1 with a warning" in lines[0]
    down, up = (next(index for index, line in enumerate(lines) if name in line) for name in ("SGLang", "vLLM 0.32.0"))
    assert down < up, "what is in trouble comes first"
    assert "the connection was refused" in printed.stdout
    assert vllm.name in lines[up]
    assert "39" in lines[up].split()
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


def test_without_an_exporter_and_without_a_choice_it_says_that_it_looks_by_itself() -> None:
    """An exporter that has died watched more: what is left must not look as if all of it were fine."""
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 9836))  # and does not listen
        except OSError:
            pytest.skip("an exporter runs at the usual address of this host")
        printed = top("--once", "--no-gpu", "--no-discover")
        with Terminal("--no-gpu", "--no-discover", columns=180) as terminal:
            terminal.until("No exporter answers at http://localhost:9836")
            terminal.press("q")
            assert terminal.ended() == 0

    assert "No exporter answers at http://localhost:9836" in printed.stderr
    assert "--url" in printed.stderr


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


@pytest.mark.parametrize(
    ("arguments", "extra", "said"),
    [
        (("--url", "http://a", "--url", "http://b"), {}, "--url names one exporter, not 2"),
        ((), {"LLM_HEADROOM_URL": "http://a http://b http://c"}, "--url names one exporter, not 3"),
        (("--url", "http://a", "--target", "vllm=http://b"), {}, "--target and --config have no part in it"),
        (("--url", "http://a", "--config", "c.yaml"), {}, "--target and --config have no part in it"),
    ],
)
def test_what_would_not_be_shown_is_refused(arguments: tuple[str, ...], extra: dict[str, str], said: str) -> None:
    printed = ran("top", "--once", *arguments, extra=extra)

    assert (printed.returncode, printed.stdout) == (2, "")
    assert said in printed.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("--url", NOWHERE), {"LLM_HEADROOM_TARGETS": "vllm=http://127.0.0.1:9", "LLM_HEADROOM_CONFIG": "c.yaml"}),
        (("--target", "vllm=http://127.0.0.1:9"), {"LLM_HEADROOM_URL": NOWHERE}),
    ],
)
def test_an_exporter_is_followed_beside_variables_that_are_for_other_commands(
    arguments: tuple[str, ...], extra: dict[str, str]
) -> None:
    printed = ran("top", "--once", *arguments, extra=extra)

    assert (printed.returncode, printed.stderr) == (
        1,
        f"llm-headroom: {NOWHERE} cannot be reached: Connection refused\n",
    )


def test_an_address_must_be_one_of_http() -> None:
    printed = top("--once", "--url", "file:///etc/passwd")

    assert printed.returncode == 1
    assert "http://HOST:PORT" in printed.stderr


# In a terminal -------------------------------------------------------------------------------------------------------
@pytest.mark.waits(12)
def test_a_terminal_follows_the_exporter_until_q(vllm: EngineServer) -> None:
    with (
        Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter,
        Terminal("--url", exporter.url) as terminal,
    ):
        terminal.until("tiny-llama")
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


def test_a_terminal_sorts_filters_pages_and_helps(vllm: EngineServer) -> None:
    vllm.routes = {f"/p{number}{path}": reply for number in range(60) for path, reply in replayed(SATURATED).items()}
    targets = [f"--target=vllm={vllm.url}/p{number}" for number in range(60)]
    with (
        Exporter(*targets, "--interval", "1s", "--no-discover", "--no-gpu") as exporter,
        Terminal("--url", exporter.url) as terminal,
    ):
        terminal.until("on other pages  page 1 of 2")
        terminal.press("nn")
        terminal.until("page 2 of 2")
        terminal.press("sss")
        terminal.until("by model")
        terminal.press("/")
        terminal.until("Enter keeps it")
        terminal.press("/p7\r")
        terminal.until("engines hidden: 59 filtered out  filter: /p7")
        terminal.press("?")
        terminal.until("previous page")
        terminal.press("?\x1b")
        terminal.until("page 1 of 2")
        terminal.press("q")
        assert terminal.ended() == 0


@pytest.mark.parametrize(("rows", "columns"), [(40, 150), (12, 60), (8, 40), (3, 20)])
def test_engines_and_gpus_are_seen_at_any_size(rows: int, columns: int) -> None:
    source = Source(target="a", engine="vllm", title="vLLM", version="1", up=True, taken=0.0, duration=0.0)
    state = Condition("slow", Level.BAD, "late " * 50)
    view = View(
        version="1",
        time=0.0,
        sources=50,
        up=50,
        engines=tuple(EngineCard(id=str(n), source=source, state=state, model="m" * 50) for n in range(40)),
        gpus=tuple(GpuCard(id=str(n), source=source, state=state, gpu=str(n)) for n in range(8)),
        absent=(),
    )
    console = Console(width=columns, height=rows)
    with console.capture() as captured:
        console.print(screen(view, "", 0.0, Chosen(), width=columns, height=rows))
    lines = captured.get().splitlines()

    assert len(lines) <= max(rows, 6)
    assert sum("slow" in line for line in lines[1:]) >= 2
    assert any(line.split()[:2] == ["STATE", "GPU"] for line in lines)


def test_what_engines_make_up_cannot_colour_or_move_the_terminal() -> None:
    name = "\\x1b[31mred\\u202e\\x07"
    metric = f'vllm:num_requests_running{{model_name="{name}"}} 1.0\n'.encode().decode("unicode_escape")
    with EngineServer({"/metrics": Reply(metric.encode())}) as hostile:
        for command in ("check", "top"):
            once = ["--once"] if command == "top" else []
            printed = ran(command, *once, f"--target=vllm={hostile.url}", "--no-gpu", "--no-discover")
            assert "red" in printed.stdout
            assert not set("\x1b\x07\u202e") & set(printed.stdout + printed.stderr), command


def test_once_as_json_is_what_the_stream_gives(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", *FAST) as exporter:
        exporter.until(lambda: exporter.value("llm_engine_state", state="ok") == 1)  # two polls show that it works
        printed = top("--once", "--format", "json", "--url", exporter.url)
    view = from_json(json.loads(printed.stdout))

    assert (printed.returncode, view.engines[0].model, view.engines[0].state.name) == (0, "tiny-llama", "ok")


def test_an_exporter_with_a_certificate_of_its_own(vllm: EngineServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    authority.issue_cert("me@example.com").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "me.pem"))
    (tmp_path / "web.yml").write_text(
        "tls_server_config:\n  cert_file: server.pem\n  key_file: server.pem\n"
        "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n"
    )
    with Exporter(f"--target=vllm={vllm.url}", *FAST, "--web-config", str(tmp_path / "web.yml")) as exporter:
        url = exporter.url.replace("http://", "https://")
        me = ("--once", "--url", url, "--cert-file", str(tmp_path / "me.pem"))
        unknown, trusted = top(*me), top(*me, "--ca-file", str(tmp_path / "ca.pem"))
        insecure = top(*me, "--insecure")
        stranger = top("--once", "--url", url, "--insecure")

    assert (trusted.returncode, insecure.returncode) == (0, 0), (trusted.stderr, insecure.stderr)
    assert (unknown.returncode, stranger.returncode) == (1, 1)
    assert "certificate verify failed" in unknown.stderr


def test_a_terminal_says_first_that_the_exporter_is_gone(vllm: EngineServer) -> None:
    exporting = Exporter(f"--target=vllm={vllm.url}", *FAST)
    with exporting as exporter, Terminal("--url", exporter.url, columns=80) as terminal:
        terminal.until("1 fine")
        exporter.process.send_signal(signal.SIGTERM)
        terminal.until("cannot be reached: Connection refused")
        terminal.press("q")
        assert terminal.ended() == 0


def test_ctrl_c_ends_its_own_polls(vllm: EngineServer) -> None:
    with Terminal(f"--target=vllm={vllm.url}", "--no-gpu", "--no-discover") as terminal:
        terminal.until("tiny-llama")
        terminal.process.send_signal(2)
        assert terminal.ended() == 0
        assert terminal.restored()
