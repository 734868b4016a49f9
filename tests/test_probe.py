"""`/probe`: what it reaches, what it may not reach, and what others notice of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import bounded
import scripted_server
from captures import Capture
from engine_server import EngineServer, hang, replayed
from exporter_process import Exporter
from free_port import free_port, has_ipv6
from llm_headroom.config.endpoint import Bearer, Secret, Tls
from llm_headroom.config.reach import literal, reach
from llm_headroom.config.settings import Config, Module, ProbeSettings
from llm_headroom.net.http_messages import Request, Response
from llm_headroom.net.workers import Workers
from llm_headroom.poll.poller import Poller
from llm_headroom.web.probe import Probes
from scripted_server import reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_headroom.model import Histogram

VLLM = Capture("vllm", "0.32.0", "saturated")


@pytest.fixture
def vllm() -> Iterator[EngineServer]:
    """A saturated vLLM server."""
    with EngineServer(replayed(VLLM)) as server:
        yield server


def configured(path: Path, probe: str) -> Path:
    path.write_text(f"interval: 100ms\ngpu: false\nhost: false\ndiscover: false\nprobe: {probe}\n")
    return path


def test_probe_reaches_what_it_is_allowed_to(tmp_path: Path, vllm: EngineServer) -> None:
    probe = f"{{allow: ['127.0.0.1:{vllm.port}'], modules: {{vllm: {{engine: vllm, timeout: 3s}}}}}}"
    path = configured(tmp_path / "headroom.yml", probe)
    with Exporter("--config", str(path)) as exporter:
        status, _, body = exporter.get(f"/probe?target={vllm.name}&module=vllm")
        named = exporter.get(f"/probe?target=vllm={vllm.url}")[2]
        again = exporter.get(f"/probe?target={vllm.name}&module=vllm")[0]
        packed = exporter.get(
            f"/probe?target={vllm.name}&module=vllm", Accept_Encoding="gzip", Accept="application/openmetrics-text"
        )
        denied = exporter.get("/probe?target=127.0.0.1:1&module=vllm")
        unknown = exporter.get(f"/probe?target={vllm.name}&module=nothing")
        missing = exporter.get("/probe")
        own = exporter.get("/metrics")[2]

    assert (status, again) == (200, 200)
    assert b'llm_requests_running{engine="vllm",model="tiny-llama",replica="0"' in body
    assert b"llm_up{" in named
    assert packed[1]["content-encoding"] == "gzip"
    assert gzip.decompress(packed[2]).endswith(b"# EOF\n")
    assert b"llm_build_info" not in body
    assert (denied[0], unknown[0], missing[0]) == (403, 400, 400)
    assert b"known: vllm" in unknown[2]
    assert b"llm_requests_running" not in own


def test_probe_of_a_dead_target_says_so_and_keeps_to_the_scrape_timeout(tmp_path: Path) -> None:
    with EngineServer({"/metrics": hang}) as server:
        path = configured(tmp_path / "headroom.yml", "{allow: ['127.0.0.1:*']}")
        with Exporter("--config", str(path)) as exporter:
            dead = exporter.get("/probe?target=vllm=http://127.0.0.1:1")
            announced = {
                seconds: exporter.get(f"/probe?target=vllm={server.url}", X_Prometheus_Scrape_Timeout_Seconds=seconds)
                for seconds in ("0.2", "0.8", "1.2")
            }

    assert dead[0] == 200
    assert b'llm_up{engine="vllm",target="127.0.0.1:1"} 0.0' in dead[2]
    for seconds, kept in (("0.2", "0.1"), ("0.8", "0.4"), ("1.2", "0.7")):  # half a second, or a half, is left to it
        assert announced[seconds][0] == 504
        assert f"within {kept} s".encode() in announced[seconds][2]


def test_probe_is_off_unless_allowed(vllm: EngineServer) -> None:
    with Exporter("--no-gpu", "--no-discover") as exporter:
        assert exporter.get(f"/probe?target={vllm.name}")[0] == 403
    assert vllm.requests == []


# Who is allowed -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rule", "host", "admitted"),
    [
        ("10.0.0.0/16", "10.0.255.1", True),
        ("10.0.0.0/16", "10.1.0.1", False),
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.0/16", "::ffff:10.0.0.1", True),
        ("[fd00::/8]", "fd12::1", True),
        ("[::1]:8000", "::1", True),
        ("[fd00::/8]", "10.0.0.1", False),
        ("llm-a:8000", "LLM-A.", True),
        ("llm-a", "llm-a.attacker.example", False),
        ("*.svc.cluster.local", "a.ns.svc.cluster.local", True),
        ("*.svc.cluster.local", "svc.cluster.local.attacker.example", False),
        ("*.svc.cluster.local", "asvc.cluster.local", False),
        ("*.example", "10.0.0.1", False),
    ],
)
def test_a_rule_admits_addresses_in_its_network_or_names_of_its_own(rule: str, host: str, *, admitted: bool) -> None:
    address = literal(host)
    found = reach(rule)
    assert (found.names(host) if address is None else found.holds(address)) is admitted


def test_a_name_that_only_a_network_admits_must_lie_in_it(tmp_path: Path, vllm: EngineServer) -> None:
    path = configured(tmp_path / "headroom.yml", f"{{allow: ['127.0.0.0/8:{vllm.port}', 'only.example']}}")
    with Exporter("--config", str(path)) as exporter:
        inside = exporter.get(f"/probe?target=vllm=http://localhost:{vllm.port}")
        other_port = exporter.get("/probe?target=vllm=http://localhost:1")
    assert inside[0] == 200
    assert b"llm_up{" in inside[2]
    assert other_port[0] == 403


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_ipv6_in_brackets_is_probed(tmp_path: Path) -> None:
    with free_port("::1") as port:
        path = configured(tmp_path / "headroom.yml", f"{{allow: ['[::1]:{port}']}}")
        with Exporter("--config", str(path)) as exporter:
            status, _, body = exporter.get(f"/probe?target=vllm=http://[::1]:{port}")
    assert status == 200
    assert f'llm_up{{engine="vllm",target="[::1]:{port}"}} 0.0'.encode() in body


class TurningNames(Workers):
    """A name server whose second answer is another one (DNS rebinding)."""

    def __init__(self, *answers: str) -> None:
        super().__init__("names", 1)
        self.answers = list(answers)

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN201
        """Gives the next answer for the one name."""
        if fn is not socket.getaddrinfo or args[0] != "turning.example":
            return super().submit(fn, *args, **kwargs)
        future: Future[object] = Future()
        address = self.answers.pop(0)
        future.set_result([(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, args[1]))])
        return future


def test_credentials_go_to_the_address_that_was_judged_whatever_the_name_turns_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROBE_TOKEN", "cluster-token")

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(TurningNames("127.0.0.1", "127.0.0.2"))
        module = Module(name="vllm", engine="vllm", credentials=Bearer(Secret(env="PROBE_TOKEN")))
        probe = ProbeSettings(allow=("127.0.0.1",), modules={"vllm": module})
        probes = Probes(Poller(Config(probe=probe, discover=False)))
        async with scripted_server.EngineServer({"/metrics": reply(b"vllm:num_requests_running 1\n")}) as engine:
            with socket.create_server(("127.0.0.2", engine.port)) as thief:
                thief.setblocking(False)  # noqa: FBT003 - the method takes it by position alone
                query = {"target": f"turning.example:{engine.port}", "module": "vllm"}
                found = await probes.points(Request("GET", "/probe", query, {}))
                refused = await probes.points(Request("GET", "/probe", query, {}))
                await probes.close()
                with pytest.raises(BlockingIOError):
                    thief.accept()
            assert not isinstance(found, Response)
            assert isinstance(refused, Response)
            assert refused.status == 403
            assert {each.headers["host"] for each in engine.requests} == {f"turning.example:{engine.port}"}
            assert {each.headers["authorization"] for each in engine.requests} == {"Bearer cluster-token"}

    bounded.run(test())


@pytest.mark.parametrize(
    ("written", "expected"), [("", "sglang"), ("vllm=", "vllm"), ("sglang=", "sglang"), ("nosuch=", "Unknown engine")]
)
def test_an_engine_that_is_asked_for_goes_before_the_module_s(vllm: EngineServer, written: str, expected: str) -> None:
    async def test() -> None:
        module = Module(name="any", engine="sglang")
        probe = ProbeSettings(allow=("127.0.0.1",), modules={"any": module})
        probes = Probes(Poller(Config(probe=probe, discover=False)))
        query = {"target": f"{written}127.0.0.1:{vllm.port}", "module": "any"}
        found = await probes.points(Request("GET", "/probe", query, {}))
        await probes.close()
        if isinstance(found, Response):
            assert (found.status, found.body[: len(expected)]) == (400, expected.encode())
        else:
            assert {series.label("engine") for series, _, _ in found} - {""} == {expected}

    bounded.run(test())


class KnownNames(Workers):
    """A name server that knows some names, and notes what it is asked. It never answers for a name that has None."""

    def __init__(self, **names: tuple[str, ...] | None) -> None:
        super().__init__("names", 1)
        self.names = names
        self.asked: list[str] = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003, ANN201
        """The addresses of a name."""
        if fn is not socket.getaddrinfo or not args[0].endswith(".example"):
            return super().submit(fn, *args, **kwargs)
        self.asked.append(args[0])
        future: Future[object] = Future()
        name = args[0].partition(".")[0]
        found = self.names.get(name)
        if name not in self.names:
            future.set_exception(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        elif found is not None:
            family = {True: socket.AF_INET6, False: socket.AF_INET}
            future.set_result([(family[":" in each], socket.SOCK_STREAM, 6, "", (each, args[1])) for each in found])
        return future


@pytest.mark.parametrize(
    ("allow", "query", "status", "said", "asked"),
    [
        ((), {"target": "127.0.0.1:1"}, 403, "/probe is off", []),
        (("127.0.0.1",), {}, 400, "Parameter target is missing", []),
        (("127.0.0.1",), {"target": ""}, 400, "Parameter target is missing", []),
        (("127.0.0.1",), {"target": "h:1", "module": "x"}, 400, "Unknown module 'x'; known: m.", []),
        (("127.0.0.1",), {"target": "vllm=ftp://h"}, 400, "", []),
        (("127.0.0.1",), {"target": "nosuch=h:1"}, 400, "Unknown engine 'nosuch'.", []),
        (("127.0.0.1:2",), {"target": "vllm=127.0.0.1:1"}, 403, "127.0.0.1:1 is not among probe.allow.", []),
        (("127.0.0.2",), {"target": "vllm=127.0.0.1:1"}, 403, "127.0.0.1:1 is not among probe.allow.", []),
        (("b.example",), {"target": "vllm=127.0.0.1:1"}, 403, "is not among probe.allow.", []),
        (("b.example",), {"target": "vllm=a.example:1"}, 403, "a.example:1 is not among probe.allow.", []),
        (("127.0.0.0/8:2",), {"target": "vllm=a.example:1"}, 403, "is not among probe.allow.", []),
        (("127.0.0.0/8",), {"target": "vllm=none.example:1"}, 502, "none.example cannot be resolved", ["none.example"]),
        (("none.example",), {"target": "vllm=none.example:1"}, 502, "cannot be resolved", ["none.example"]),
        (("10.0.0.0/8",), {"target": "vllm=a.example:1"}, 403, "a.example:1 is not among", ["a.example"]),
        (("a.example", "10.0.0.0/8"), {"target": "vllm=empty.example:1"}, 403, "is not among", ["empty.example"]),
        (("127.0.0.1",), {"target": "vllm=127.0.0.1:1"}, 200, "", []),
        (("127.0.0.1:1",), {"target": "127.0.0.1:1", "module": "m"}, 200, "", []),
        (("a.example",), {"target": "vllm=a.example:1"}, 200, "", ["a.example"]),
        (("127.0.0.0/8",), {"target": "vllm=a.example:1"}, 200, "", ["a.example"]),
        (("127.0.0.0/8",), {"target": "vllm=two.example:1"}, 200, "", ["two.example"]),
    ],
)
def test_what_may_not_be_probed_is_refused_with_its_reason(
    allow: tuple[str, ...], query: dict[str, str], status: int, said: str, asked: list[str]
) -> None:
    async def test() -> None:
        names = KnownNames(a=("127.0.0.1",), two=("10.0.0.1", "127.0.0.1"), empty=())
        asyncio.get_running_loop().set_default_executor(names)
        settings = ProbeSettings(allow=allow, modules={"m": Module(name="m", engine="vllm")})
        probes = Probes(Poller(Config(probe=settings, discover=False)))
        found = await probes.points(Request("GET", "/probe", query, {}))
        await probes.close()
        assert names.asked == asked
        if status == 200:
            assert not isinstance(found, Response)
            (up,) = [value for series, value, _ in found if series.metric.name == "llm_up"]
            assert up == 0.0
        else:
            assert isinstance(found, Response)
            assert (found.status, said in found.body.decode()) == (status, True)

    bounded.run(test())


@pytest.mark.parametrize("addresses", [("::1", "127.0.0.1"), ("127.0.0.1", "::1")])
def test_of_a_name_with_both_kinds_of_addresses_the_older_one_is_probed(
    vllm: EngineServer, addresses: tuple[str, ...]
) -> None:
    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(KnownNames(a=addresses))
        probes = Probes(Poller(Config(probe=ProbeSettings(allow=("a.example",)), discover=False)))
        query = {"target": f"vllm=a.example:{vllm.port}"}
        found = [await probes.points(Request("GET", "/probe", query, {})) for _ in range(2)]
        await probes.close()
        for points in found:
            assert not isinstance(points, Response)
            values = {series.metric.name: value for series, value, _ in points}
            assert values["llm_up"] == 1.0
            assert "llm_requests_running" in values

    bounded.run(test())


def test_a_probe_has_as_much_detail_as_the_exporter(vllm: EngineServer) -> None:
    async def test() -> None:
        config = Config(probe=ProbeSettings(allow=("127.0.0.1",)), discover=False)
        names = []
        for each in (config, replace(config, detail="essential")):
            probes = Probes(Poller(each))
            found = await probes.points(Request("GET", "/probe", {"target": f"vllm={vllm.url}"}, {}))
            await probes.close()
            assert not isinstance(found, Response)
            names.append({series.metric.name for series, _, _ in found})
        full, essential = names
        assert "llm_up" in essential < full

    bounded.run(test())


@pytest.mark.parametrize(
    ("order", "connections", "closed"),
    [("ab", 1, False), ("aba", 1, False), ("abc", 1, True), ("abaca", 1, False), ("abca", 2, True)],
)
def test_connections_of_the_targets_that_were_probed_last_are_retained(
    monkeypatch: pytest.MonkeyPatch, order: str, connections: int, *, closed: bool
) -> None:
    monkeypatch.setattr("llm_headroom.web.probe.MOST_PROBED", 2)

    async def test() -> None:
        opened, ended = 0, asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal opened
            opened += 1
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    body = b"vllm:num_requests_running 1\n"
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                    )
            ended.set()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        targets = {"a": f"http://127.0.0.1:{port}", "b": "http://127.0.0.1:1", "c": "http://127.0.0.1:2"}
        probes = Probes(Poller(Config(probe=ProbeSettings(allow=("127.0.0.1",)), discover=False)))
        for name in order:
            found = await probes.points(Request("GET", "/probe", {"target": f"vllm={targets[name]}"}, {}))
            assert not isinstance(found, Response)
        if closed:
            await ended.wait()
        assert (opened, ended.is_set()) == (connections, closed)
        await probes.close()
        await ended.wait()
        server.close()

    bounded.run(test())


def test_a_target_that_is_being_collected_is_not_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_headroom.web.probe.MOST_PROBED", 1)

    async def test() -> None:
        asked, go = asyncio.Event(), asyncio.Event()
        answer = reply(b"vllm:num_requests_running 1\n")

        async def slow(request: scripted_server.Request, reader: Any, writer: Any) -> None:  # noqa: ANN401 - streams
            asked.set()
            await go.wait()
            await answer(request, reader, writer)

        probes = Probes(Poller(Config(probe=ProbeSettings(allow=("127.0.0.1",)), discover=False)))

        async def up(engine: scripted_server.EngineServer) -> list[float | Histogram]:
            found = await probes.points(Request("GET", "/probe", {"target": f"vllm={engine.url}"}, {}))
            assert not isinstance(found, Response)
            return [value for series, value, _ in found if series.metric.name == "llm_up"]

        async with (
            scripted_server.EngineServer({"/metrics": slow}) as one,
            scripted_server.EngineServer({"/metrics": answer}) as other,
        ):
            first = asyncio.create_task(up(one))
            await asked.wait()
            assert await up(other) == [1.0]
            go.set()
            assert await first == [1.0]
            await probes.close()

    bounded.run(test())


def test_a_probe_that_takes_too_long_says_so_and_ends_with_the_exporter() -> None:
    async def test() -> None:
        left = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            left.set()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        probes = Probes(Poller(Config(probe=ProbeSettings(allow=("127.0.0.1",)), discover=False, timeout=50.0)))
        headers = {"x-prometheus-scrape-timeout-seconds": "0.1"}
        for _ in range(2):
            found = await probes.points(Request("GET", "/probe", {"target": f"vllm={url}"}, headers))
            assert isinstance(found, Response)
            assert (found.status, found.body.endswith(b" has not answered within 0.05 s.\n")) == (504, True)
        assert not left.is_set(), "the collection goes on"
        await probes.close()
        await left.wait()
        server.close()

    bounded.run(test())


@pytest.mark.parametrize(
    ("timeout", "announced", "kept"),
    [(None, {}, "0.3"), (0.1, {}, "0.2"), (None, {"x-prometheus-scrape-timeout-seconds": "1e9"}, "0.25")],
)
def test_a_probe_waits_for_the_target_s_own_time_and_a_little_more_or_as_announced(
    monkeypatch: pytest.MonkeyPatch, timeout: float | None, announced: dict[str, str], kept: str
) -> None:
    monkeypatch.setattr("llm_headroom.web.probe.SLACK", 0.1)
    monkeypatch.setattr("llm_headroom.web.probe.LONGEST", 0.25)

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(KnownNames(slow=None))
        settings = ProbeSettings(allow=("slow.example",), modules={"m": Module(name="m", timeout=timeout)})
        probes = Probes(Poller(Config(probe=settings, discover=False, timeout=0.2)))
        query = {"target": "slow.example:1", "module": "m"}
        found = await probes.points(Request("GET", "/probe", query, announced))
        assert isinstance(found, Response)
        assert (found.status, found.body) == (504, f"slow.example:1 has not answered within {kept} s.\n".encode())

    bounded.run(test())


@pytest.mark.parametrize(
    ("module", "url", "encodings", "causes"),
    [
        (Module(name="m"), "", {"identity"}, set()),
        (Module(name="m", gzip=True), "", {"gzip"}, set()),
        (Module(name="m", max_bytes=9), "", {"identity"}, {"too_large"}),
        (Module(name="m"), "https://127.0.0.1:1", set(), {"refused"}),
        (Module(name="m", tls=Tls(ca_file=Path("/dev/null/ca"))), "https://127.0.0.1:1", set(), {"tls"}),
    ],
)
def test_a_target_is_read_as_its_module_says(module: Module, url: str, encodings: set[str], causes: set[str]) -> None:
    async def test() -> None:
        probe = ProbeSettings(allow=("127.0.0.1",), modules={"m": module})
        probes = Probes(Poller(Config(probe=probe, discover=False)))
        async with scripted_server.EngineServer({"/metrics": reply(b"vllm:num_requests_running 1\n")}) as engine:
            query = {"target": f"vllm={url or engine.url}", "module": "m"}
            found = await probes.points(Request("GET", "/probe", query, {}))
            await probes.close()
        assert not isinstance(found, Response)
        errors = {series.label("cause"): n for series, n, _ in found if series.metric.name == "llm_source_errors_total"}
        assert {cause for cause, count in errors.items() if count} == causes
        assert {each.headers["accept-encoding"] for each in engine.requests} == encodings

    bounded.run(test())


# What others notice ---------------------------------------------------------------------------------------------------
def test_a_timeout_that_makes_no_sense_is_none(vllm: EngineServer) -> None:
    async def test() -> None:
        probes = Probes(Poller(Config(probe=ProbeSettings(allow=("127.0.0.1",)), discover=False)))
        for announced in ("nan", "inf", "-inf", "-1", "1e9", "0", "soon"):
            headers = {"x-prometheus-scrape-timeout-seconds": announced}
            found = await probes.points(Request("GET", "/probe", {"target": f"vllm={vllm.url}"}, headers))
            assert not isinstance(found, Response)
            assert "llm_requests_running" in {series.metric.name for series, _, _ in found}
        await probes.close()

    bounded.run(test())


def test_hanging_probes_touch_neither_metrics_nor_health_nor_the_page(tmp_path: Path) -> None:
    with EngineServer({"/metrics": hang}) as server:
        path = configured(tmp_path / "headroom.yml", "{allow: ['127.0.0.1']}")
        with Exporter("--config", str(path)) as exporter:
            host, _, port = exporter.url.removeprefix("http://").rpartition(":")
            probes = [socket.create_connection((host, int(port))) for _ in range(60)]
            for number, each in enumerate(probes):
                target = f"/probe?target=vllm={server.url}/{number}"
                each.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            for page in ("/metrics", "/-/healthy", "/-/ready", "/"):
                assert exporter.get(page)[0] == 200
            for each in probes:
                each.close()


def test_two_probes_of_one_target_share_a_collection(tmp_path: Path) -> None:
    with EngineServer({"/metrics": hang}) as server:
        path = configured(tmp_path / "headroom.yml", "{allow: ['127.0.0.1']}\ntimeout: 60s")
        with Exporter("--config", str(path)) as exporter:
            for _ in range(
                3
            ):  # the first one's collection goes on, and nobody waits behind it for longer than announced
                status = exporter.get(f"/probe?target=vllm={server.url}", X_Prometheus_Scrape_Timeout_Seconds="0.2")[0]
                assert status == 504
