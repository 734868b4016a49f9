"""Clients that hang, do not read, guess, or are simply too many; and what an honest one sees meanwhile."""

from __future__ import annotations

import base64
import signal
import socket
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import bcrypt

from captures import Capture
from engine_server import EngineServer, Reply, hang, replayed
from exporter_process import Exporter
from torture.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VLLM = Capture("vllm", "0.32.0", "saturated")
_SECONDS = 2.0
"""In which an honest client must be answered."""


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def _waits(ask: Callable[[], object], times: int = 5) -> Iterator[float]:
    """How long an honest client waits; infinity where it gets no answer."""
    for _ in range(times):
        begun = time.monotonic()
        try:
            ask()
        except OSError:
            yield float("inf")
        else:
            yield time.monotonic() - begun


def _judged(what: str, amount: str, waits: list[float], more: str = "") -> Figure:
    seen = f"honest client: slowest of {len(waits)} answers {max(waits) * 1e3:.0f} ms{more}"
    return Figure(what, amount, seen, sum(wait > _SECONDS for wait in waits))


def _connected(stack: ExitStack, address: str, many: int, data: bytes = b"", *, buffer: int = 0) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(many):
        client = stack.enter_context(socket.socket())
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(5)
        client.connect((host, int(port)))
        client.sendall(data)


def idle_proxied(descriptors: int, clients: int) -> Figure:
    """Clients that connect to the proxy and say nothing."""
    with ExitStack() as stack:
        engine = stack.enter_context(EngineServer(replayed(_VLLM)))
        command = ("--listen", "127.0.0.1:0", "--upstream", f"vllm={engine.url}", "--metrics-listen", "127.0.0.1:0")
        exporter = Exporter(*command, command="proxy", descriptors=descriptors)
        stack.enter_context(exporter)
        _connected(stack, exporter.logged("proxying")["address"], clients)
        return _judged(
            "idle clients of the proxy", f"{clients} at {descriptors} descriptors", list(_waits(exporter.metrics))
        )


def hanging_probes(many: int) -> Figure:
    """Probes of targets that do not answer."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(EngineServer({"/metrics": hang}))
        (folder / "headroom.yml").write_text("gpu: false\nhost: false\ndiscover: false\nprobe: {allow: [127.0.0.1]}\n")
        exporter = stack.enter_context(Exporter("--config", str(folder / "headroom.yml"), strict=False))
        address = exporter.url.removeprefix("http://")
        for number in range(many):
            target = f"/probe?target=vllm={engine.url}/{number}"
            _connected(stack, address, 1, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        pages = ("/metrics", "/-/healthy", "/-/ready", "/")
        waits = [wait for page in pages for wait in _waits(lambda page=page: exporter.get(page), 3)]  # type: ignore[misc]
        return _judged("hanging probes", f"{many}", waits)


def guesses(clients: int) -> Figure:
    """Wrong passwords, all at once, and then somebody new with the right one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hashed = bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()
        (folder / "web.yml").write_text(f"basic_auth_users:\n  alice: {hashed}\n")
        exporter = stack.enter_context(
            Exporter("--no-gpu", "--no-discover", "--web-config", str(folder / "web.yml"), strict=False)
        )
        address = exporter.url.removeprefix("http://")
        for number in range(clients):
            guess = base64.b64encode(b"alice:wrong-%d" % number).decode()
            _connected(stack, address, 1, f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {guess}\r\n\r\n".encode())
        right = base64.b64encode(b"alice:right").decode()
        waits = list(_waits(lambda: exporter.get("/-/healthy", Authorization=f"Basic {right}"), 3))
        return _judged("passwords guessed at once", f"{clients}", waits)


def non_readers(many: int) -> Figure:
    """Clients that ask for a large body and do not read it."""
    text = _VLLM.exposition.read_text().splitlines()
    models = [line.replace("tiny-llama", f"model-{number}") for number in range(60) for line in text if "{" in line]
    with ExitStack() as stack:
        routes = {**replayed(_VLLM), "/metrics": Reply(("\n".join(models) + "\n").encode())}
        engine = stack.enter_context(EngineServer(routes))
        exporter = stack.enter_context(
            Exporter("--no-gpu", "--no-discover", "--target", f"vllm={engine.url}", strict=False)
        )
        exporter.until(lambda: exporter.value("llm_up") == 1)
        before = _resident(exporter.process.pid)
        data = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        _connected(stack, exporter.url.removeprefix("http://"), many, data, buffer=2048)
        time.sleep(10)
        size = len(exporter.get("/metrics")[2])
        waits = list(_waits(lambda: exporter.get("/metrics"), 3))
        more = f"; body of {size / 1e6:.1f} MB; {before} → {_resident(exporter.process.pid)} MiB resident"
        return _judged("clients that do not read", f"{many}", waits, more)


def ends(seconds: float = 5.5) -> Figure:
    """SIGTERM while an engine hangs and a client waits."""
    with ExitStack() as stack:
        engine = stack.enter_context(EngineServer({"/metrics": hang}))
        exporter = stack.enter_context(
            Exporter("--no-gpu", "--no-discover", "--target", f"vllm={engine.url}", strict=False)
        )
        urllib.request.urlopen(f"{exporter.url}/-/healthy", timeout=5).close()  # noqa: S310 - our own server
        begun = time.monotonic()
        exporter.process.send_signal(signal.SIGTERM)
        exporter.process.wait(60)
        took = time.monotonic() - begun
        return Figure("SIGTERM while an engine hangs", "1", f"ended in {took:.1f} s", int(took > seconds))
