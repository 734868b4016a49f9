"""Where `top` has its view from, and what it makes of it once, without a terminal."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine_server import EngineServer, Reply, garbage
from llm_headroom.commands.top import MOST_LINE, Exporter, Latest, Unusable, command, follow, running, show_once
from llm_headroom.config.endpoint import Tls
from llm_headroom.model import Level
from llm_headroom.view.values import Condition, EngineCard, GpuCard, Source, View, as_json, from_json

if TYPE_CHECKING:
    import socket

    from engine_server import Behaviour

SOURCE = Source(target="a", engine="vllm", title="vLLM", version="1", up=True, taken=0.0, duration=0.0)
ENGINE = EngineCard(id="a", source=SOURCE, state=Condition("serving", Level.GOOD))
GPU = GpuCard(id="0", source=SOURCE, state=Condition("ok", Level.GOOD), gpu="0")
VIEW = View(version="1", time=0.0, sources=1, up=1, engines=(ENGINE,), gpus=(), absent=())


def unauthorized(realm: str) -> Behaviour:
    """A server that wants a password."""

    def answer(_server: EngineServer, connection: socket.socket) -> None:
        head = f'HTTP/1.1 401 X\r\nWWW-Authenticate: Basic realm="{realm}"\r\nContent-Length: 0\r\n\r\n'
        connection.sendall(head.encode())

    return answer


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (Reply(b"llm-headroom is healthy\n"), True),
        (Reply(b"something else is healthy\n"), False),
        (Reply(b""), False),
        (Reply(b"llm-headroom", 404), False),
        (unauthorized("llm-headroom"), True),
        (unauthorized("router"), False),
        (garbage, False),
    ],
)
def test_an_exporter_is_known_by_its_answer(reply: Reply | Behaviour, *, found: bool) -> None:
    with EngineServer({"/-/healthy": reply, "/under/-/healthy": reply}) as server:
        assert running(Exporter(server.url, Tls())) is found
        assert running(Exporter(f"{server.url}/under/", Tls())) is found


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "ftp://127.0.0.1:9", "http://", "http://a:b"])
def test_where_nothing_listens_there_is_no_exporter(url: str) -> None:
    assert running(Exporter(url, Tls())) is False
    assert running(Exporter("https://127.0.0.1:9", Tls(ca_file=Path("/none.crt")))) is False


def heard(exporter: Exporter) -> Latest:
    """What is known after the first word of an exporter, or after the first failure."""
    latest = Latest()
    thread = threading.Thread(target=follow, args=(exporter, latest))
    thread.start()
    latest.settled.wait(60.0)
    latest.ended.set()
    thread.join(60.0)
    assert not thread.is_alive()
    return latest


def test_the_first_view_of_a_stream_is_shown_and_what_is_no_data_is_passed_over() -> None:
    stream = f"retry: 2000\n\n: a heartbeat\n\ndata: {json.dumps(as_json(VIEW))}\n\n".encode()
    with EngineServer({"/api/v1/stream": Reply(stream, content_type="text/event-stream")}) as server:
        latest = heard(Exporter(server.url, Tls()))
    assert latest.view == VIEW


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(b"busy", 503), "URL answered 503 X"),
        (Reply(b"data: {}\n\n"), "URL: not a view of llm-headroom"),
        (Reply(b"data: " + b"[" * 200_000 + b"\n\n"), "URL: maximum recursion depth exceeded"),
        (garbage, "URL: illegal"),
    ],
)
def test_what_cannot_be_heard_is_said(reply: Reply | Behaviour, problem: str) -> None:
    with EngineServer({"*": reply}) as server:
        latest = heard(Exporter(server.url.replace("//", "//me:secret@"), Tls()))
        assert latest.problem.replace(server.url, "URL").startswith(problem)
    assert latest.view is None
    latest.show(VIEW)
    assert latest.problem == ""


def endless(_server: EngineServer, connection: socket.socket) -> None:
    """A stream whose line does not end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ")
    with contextlib.suppress(OSError):  # the other side has had enough
        while True:
            connection.sendall(bytes(1024 * 1024))


def test_a_line_without_an_end_is_not_read_on() -> None:
    with EngineServer({"*": endless}) as server:
        latest = heard(Exporter(server.url, Tls()))
    assert (
        latest.problem == f"{server.url}: a line of more than {MOST_LINE} bytes; an exporter of llm-headroom sends none"
    )
    assert latest.view is None


def test_a_view_in_pieces_is_one() -> None:
    stream = f"retry: 2000\r\ndata: {json.dumps(as_json(VIEW))}\r\n\r\n".encode()

    def serve(_server: EngineServer, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for start in range(0, len(stream), 100):
            connection.sendall(stream[start : start + 100])

    with EngineServer({"*": serve}) as server:
        assert heard(Exporter(server.url, Tls())).view == VIEW


BAD = replace(ENGINE, state=Condition("down", Level.BAD, "gone"))
AWAY = replace(ENGINE, source=replace(SOURCE, up=False))
UNKNOWN = replace(ENGINE, state=Condition("unknown", Level.UNKNOWN))


@pytest.mark.parametrize(
    ("engines", "gpus", "fine"),
    [
        ((ENGINE,), (GPU,), True),
        ((UNKNOWN,), (), True),
        ((), (GPU,), True),
        ((), (), False),
        ((ENGINE, BAD), (GPU,), False),
        ((ENGINE, AWAY), (), False),
        ((ENGINE,), (replace(GPU, state=Condition("hot", Level.WARN)),), False),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_once_everything_is_fine_or_not(
    engines: tuple[EngineCard, ...],
    gpus: tuple[GpuCard, ...],
    form: str,
    capsys: pytest.CaptureFixture[str],
    *,
    fine: bool,
) -> None:
    view = replace(VIEW, engines=engines, gpus=gpus)

    def listen(latest: Latest) -> None:
        latest.show(view)
        latest.settled.set()

    assert show_once(listen, form) is fine
    printed = capsys.readouterr().out
    if form == "json":
        assert from_json(json.loads(printed)) == view
    else:
        assert printed.startswith("llm-headroom")
        assert printed.count("STATE") == bool(engines) + bool(gpus)


def test_once_there_is_nothing_to_show() -> None:
    with pytest.raises(Unusable, match="it went away"):
        show_once(lambda latest: latest.lost("it went away"), "text")


def test_a_pipe_gets_every_column_and_the_whole_reason(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "it is far too slow " * 12
    bad = replace(BAD, state=Condition("slow", Level.BAD, reason))

    def listen(latest: Latest) -> None:
        latest.show(replace(VIEW, engines=(bad,), gpus=()))
        latest.settled.set()

    show_once(listen, "text")
    _, head, row = capsys.readouterr().out.splitlines()
    assert all(column in head for column in ("ENGINE", "TAKES", "SAT", "WHY"))
    assert reason.strip() in row


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--key-file", "key.pem"], "--key-file needs --cert-file"),
        (["--config", "/none.yml"], "/none.yml"),
    ],
)
def test_a_wrong_use_is_an_error(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(arguments, "llm-headroom top")
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
