"""Requests that end without a first token: those that have waited beyond the objective by then have missed it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

import bounded
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.objectives import Objectives
from llm_headroom.config.settings import Config, ProxySettings, Target
from llm_headroom.derive import slo, state
from llm_headroom.model import Point, Series, State
from llm_headroom.proxy import framing
from llm_headroom.proxy.exchange import Exchange
from llm_headroom.proxy.measures import Measures
from llm_headroom.proxy.service import Proxies
from measured_values import Clock, told
from proxied import head, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

MISSED: Final = "llm_proxy_requests_missed_total"
SLO: Final = ("llm_slo_requests_totalttft", "llm_slo_requests_good_totalttft")
CLIENTS: Final = 4


# A storm of clients that give up -------------------------------------------------------------------------------------
class Storm:
    """Clients of an engine that answers none of them, the proxy between, and what the exporter says of it."""

    def __init__(self, proxies: Proxies) -> None:
        self._port = int(proxies.addresses[0].rpartition(":")[2])
        (self._source,) = proxies.sources
        self.refused = asyncio.Event()
        self._judged: state.Memory | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The engine: it answers nobody, until it refuses all of them."""
        await head(reader)
        left = asyncio.ensure_future(reader.read())
        refused = asyncio.ensure_future(self.refused.wait())
        await asyncio.wait((left, refused), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        refused.cancel()
        writer.close()

    async def poll(self) -> dict[str, float]:
        """One poll: names with their labels `slo` and `window`."""
        found = {}
        for series, value, _ in (await self._source.collect()).points:
            if isinstance(value, float):
                found[series.metric.name + series.label("slo") + series.label("window")] = value
        return found

    async def until(self, name: str, value: float) -> dict[str, float]:
        """The first poll that shows this value."""
        while (found := await self.poll()).get(name) != value:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
        return found

    async def wave(self, *, overdue: int, refused: bool = False) -> dict[str, float]:
        """As many clients ask, wait until so many are overdue, and leave or are refused; the poll after that."""
        clients = []
        for _ in range(CLIENTS):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(post("/v1/chat/completions", b'{"model":"m","stream":true}'))
            clients.append(writer)
        await self.until("llm_requests_running", CLIENTS)
        await self.until("llm_proxy_requests_overduettft", overdue)
        if refused:
            self.refused.set()
        else:
            for writer in clients:
                writer.close()
        found = await self.until("llm_requests_running", 0)
        for writer in clients:
            writer.close()
        return found

    async def judge(self, at: float) -> State:
        """The state after a poll."""
        self._judged, (found,) = state.judge(self._judged, await self._source.collect(), at)
        return found.state


@asynccontextmanager
async def storm(ttft: float) -> AsyncIterator[Storm]:
    """A storm whose clients wait for first tokens with an objective of so many seconds."""
    there: list[Storm] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await there[0].serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    target = Target(name="a", endpoint=Endpoint(url=url), engine="vllm")
    door = ProxySettings(listen="127.0.0.1:0", target="a")
    proxies = Proxies(Config(targets=(target,), proxies=(door,), objectives=Objectives(ttft=ttft)))
    await proxies.start()
    there.append(Storm(proxies))
    try:
        yield there[0]
    finally:
        await proxies.close()
        server.close()
        await server.wait_closed()


def test_clients_that_leave_after_the_objective_have_missed_it_and_the_engine_is_slow() -> None:
    async def test() -> None:
        async with storm(ttft=0.001) as here:
            assert f"{MISSED}ttft" not in await here.poll()
            states = []
            for number in (1, 2):
                found = await here.wave(overdue=CLIENTS)
                states.append(await here.judge(30.0 * number))
                assert found["llm_proxy_requests_overduettft"] == 0
                assert found[f"{MISSED}ttft"] == number * CLIENTS
                assert [found[name] for name in SLO] == [number * CLIENTS, 0]
                assert found["llm_ttft_slow_ratio60s"] == 1
                assert found["llm_ttft_window_requests60s"] == number * CLIENTS
                assert found["llm_saturation_high_water_ratio"] == 0.95
            assert states == [State.IDLE, State.SLOW]

    bounded.run(test())


def test_clients_that_leave_before_the_objective_say_nothing() -> None:
    async def test() -> None:
        async with storm(ttft=640.0) as here:
            for number in (1, 2):
                found = await here.wave(overdue=0)
                assert await here.judge(30.0 * number) is State.IDLE
                assert not found.keys() & {f"{MISSED}ttft", *SLO, "llm_ttft_slow_ratio60s"}

    bounded.run(test())


def test_an_engine_that_closes_what_it_let_wait_has_missed_the_objective() -> None:
    async def test() -> None:
        async with storm(ttft=0.001) as here:
            assert (await here.wave(overdue=CLIENTS, refused=True))[f"{MISSED}ttft"] == CLIENTS

    bounded.run(test())


def test_nobody_waits_for_batches() -> None:
    proxies = Proxies(
        Config(
            targets=(Target(name="t", endpoint=Endpoint(url="http://127.0.0.1:1"), engine="vllm", purpose="batch"),),
            proxies=(ProxySettings(listen="127.0.0.1:0", target="t"),),
        )
    )
    (source,) = proxies.sources
    asked = Asked(source.measures)
    asked.leaves(100.0)
    assert not [key for key in told(source.measures) if "ttft" in key or "missed" in key]


# One request ---------------------------------------------------------------------------------------------------------
class Asked:
    """A stream that was asked for at 1 s, of a vLLM or whatever `measures` are of."""

    def __init__(self, measures: Measures, path: str = "/v1/chat/completions", *, stream: bool = True) -> None:
        self._measures = measures
        raw = f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        self.exchange = Exchange(measures, framing.request_head(raw))
        self.exchange.asks(json.dumps({"model": "m", "stream": stream}).encode())
        self.exchange.sent(1.0)

    def answered(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        """The head of an answer comes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.exchange.answers(framing.ResponseHead(status, {"content-type": kind, **named}), 1.5)

    def says(self, delta: dict[str, str], at: float) -> None:
        """An event of the answer comes."""
        event = {"model": "m", "choices": [{"index": 0, "delta": delta}]}
        self.exchange.received(f"data: {json.dumps(event)}\n\n".encode(), at)

    def leaves(self, at: float) -> None:
        """Its client leaves."""
        self.exchange.broken("aborted", at)


def missed(measures: Measures, slo: str = "ttft") -> float:
    told_of = told(measures).items()
    return sum(value for key, value in told_of if key.startswith("proxy_requests_missed_total") and f"{slo}}}" in key)


def measuring(clock: float = 100.0, *, loads: bool = False) -> Measures:
    every = slo.objectives(Objectives(request_duration=30.0))
    return Measures(limit=4, loads=loads, silent_loads=loads, objectives=every, clock=Clock(clock))


@pytest.mark.parametrize(("at", "number"), [(3.5, 0), (3.6, 1)])
@pytest.mark.parametrize("reason", ["aborted", "upstream_closed", "upstream_unreachable"])
def test_a_request_that_ends_beyond_the_objective_has_missed_it(reason: str, at: float, number: int) -> None:
    measures = measuring()
    Asked(measures).exchange.broken(reason, at)
    assert missed(measures) == number


@pytest.mark.parametrize(("status", "number"), [(503, 1), (500, 1), (400, 0), (429, 0)])
@pytest.mark.parametrize(("at", "late"), [(2.0, 0), (9.0, 1)])
def test_failures_count_once_they_come_too_late_but_for_the_client_s_own(
    status: int, number: int, at: float, late: int
) -> None:
    measures = measuring()
    asked = Asked(measures)
    asked.answered(status, "text/plain")
    asked.exchange.ended(at)
    assert missed(measures) == number * late


def test_who_is_told_that_the_model_is_loading_has_missed_nothing() -> None:
    measures = measuring()
    asked = Asked(measures)
    asked.answered(503, "application/json")
    error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
    asked.exchange.received(json.dumps({"error": error}).encode(), 9.0)
    asked.exchange.ended(9.0)
    assert told(measures)["requests_failed_total{loading}"] == 1
    assert missed(measures) == 0


def test_a_role_alone_is_no_first_token() -> None:
    measures = measuring()
    counts = []
    for delta in ({"role": "assistant"}, {"content": "a"}):
        asked = Asked(measures)
        asked.answered()
        asked.says(delta, 2.0)
        asked.leaves(20.0)
        counts.append(missed(measures))
    assert counts == [1, 1]


@pytest.mark.parametrize(
    "headers", [{"content_encoding": "gzip"}, {"kind": "application/json"}, {"kind": "application/octet-stream"}]
)
def test_of_an_answer_whose_first_token_nobody_can_see_nothing_is_said(headers: dict[str, str]) -> None:
    measures = measuring()
    asked = Asked(measures)
    asked.answered(**headers)  # type: ignore[arg-type]
    assert not [key for key in told(measures) if "overdue{ttft" in key or "first_token_wait" in key]
    asked.leaves(20.0)
    assert missed(measures) == 0


def test_a_request_that_is_answered_in_one_go_has_no_first_token_to_miss() -> None:
    measures = measuring()
    Asked(measures, stream=False).leaves(20.0)
    assert missed(measures) == 0


@pytest.mark.parametrize(("at", "number"), [(30.9, 0), (31.1, 1)])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/plain"])
def test_a_request_that_ends_unanswered_beyond_the_objective_of_its_duration_has_missed_it(
    kind: str, path: str, at: float, number: int
) -> None:
    measures = measuring()
    asked = Asked(measures, path)
    asked.answered(kind=kind)
    if path == "/v1/chat/completions":
        asked.says({"content": "a"}, 2.0)
    asked.leaves(at)
    assert missed(measures, "request_duration") == number
    assert "request_duration_seconds{m}" not in told(measures)


def test_one_that_is_answered_late_is_in_the_histogram_alone() -> None:
    measures = measuring()
    asked = Asked(measures)
    asked.answered()
    asked.says({"content": "a"}, 2.0)
    asked.exchange.received(b"data: [DONE]\n\n", 40.0)
    asked.exchange.ended(40.0)
    assert told(measures)["request_duration_seconds{m}"] == 1
    assert missed(measures, "request_duration") == 0


def shown(loaded: float) -> Sequence[Point]:
    return [Point(Series(schema.MODEL_LOADED, {"model": "m"}), loaded, "")]


@pytest.mark.parametrize(
    ("before", "after", "number"), [(1.0, 1.0, 1), (0.0, 0.0, 0), (0.0, 1.0, 0), (1.0, 0.0, 0), (None, None, 0)]
)
def test_who_may_have_waited_for_a_load_has_missed_nothing(
    before: float | None, after: float | None, number: int
) -> None:
    """Also where it is the poll after its end that shows that the model is no longer in memory."""
    measures = measuring(loads=True)
    measures.points({}, [] if before is None else shown(before))
    Asked(measures, "/api/chat").leaves(20.0)
    measures.points({}, [] if after is None else shown(after))
    assert missed(measures) == number


def test_the_counter_is_there_before_the_first_one_is_missed() -> None:
    measures = measuring()
    assert measures.label("m") == "m"
    asked = Asked(measures)

    def shows() -> list[object]:
        found = [each for each in measures.points({}) if each.series.metric is schema.PROXY_MISSED]
        return [(each.series.label("model"), each.series.label("slo"), each.value) for each in found]

    assert shows() == [("m", "ttft", 0.0), ("m", "request_duration", 0.0)]
    asked.leaves(20.0)
    assert shows() == [("m", "ttft", 1.0), ("m", "request_duration", 0.0)]
