"""What is done to an engine, step by step, and the rows that come of each step."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final

import httpx

from live.client import Books, Client, Request
from live.exporter import ENGINE, INTERVAL, Reading
from live.subject import CONTEXT
from live.verdict import Expected, Row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from live.exporter import Exporter
    from live.server import Server
    from live.subject import Subject

CLOCKS: Final = 0.2
SHARE: Final = 0.1
"""Seconds, and the share, by which means may differ: client, proxy and engine share cores and read three clocks."""
_MORE: Final = 4
"""Requests of a crowd that find no place."""
_APART: Final = 0.02
"""Seconds between requests of a crowd, so that none is late for the others' sake."""
PATIENCE: Final = 20.0
"""Seconds until what was done must be seen, besides the time between two polls."""
STALLED: Final = 90.0
"""Seconds until a stall must be seen: it is one after 60 s."""
_ENGINE_ALONE: Final = Expected(None, "only the engine knows", asked=False)
_GONE: Final = Expected(None, "an engine that does not answer has no series", asked=False)


@dataclass(frozen=True)
class Growth:
    """What counters grew by between two readings; a series that was absent began at 0."""

    before: Reading
    after: Reading

    def of(self, name: str, target: str = ENGINE, **labels: str) -> float | None:
        """None where the metric is absent."""
        now = self.after.of(name, target, **labels)
        return None if now is None else now - (self.before.of(name, target, **labels) or 0.0)

    def mean(self, name: str, target: str = ENGINE) -> float | None:
        """The mean of a histogram's new observations."""
        total, count = self.of(f"{name}_sum", target), self.of(f"{name}_count", target)
        return total / count if total is not None and count else None


@dataclass(frozen=True)
class Stage:
    """An engine, and the exporter over it."""

    subject: Subject
    server: Server
    exporter: Exporter

    @property
    def patience(self) -> float:
        """Seconds until what was done must be seen."""
        return PATIENCE + self.subject.interval

    async def during(self, act: Callable[[Client], Awaitable[None]]) -> tuple[Books, Growth]:
        """Let a client do something through the proxy; its books, and what grew."""
        before = self.exporter.read()
        client = Client(self.exporter.proxied)
        try:
            await act(client)
        finally:
            await client.close()
        return client.books, Growth(before, await self.exporter.settled())

    def row(
        self,
        signal: str,
        truth: float,
        found: Growth,
        name: str,
        topic: str,
        **labels: str,
    ) -> Row:
        """A row of one counter that both sides have under one name."""
        expected = self.subject.expected(topic)
        return Row(
            signal,
            truth,
            found.of(name, **labels),
            found.of(name, self.subject.proxy, **labels),
            expected_exporter=expected,
            expected_proxy=expected if self.subject.proxy == ENGINE else None,
        )


def _served(stage: Stage, books: Books, found: Growth) -> list[Row]:
    rows = [
        stage.row(f"finished, {reason}", count, found, "llm_requests_finished_total", "finished", reason=reason)
        for reason, count in sorted(books.finished.items())
    ]
    rows.append(stage.row("prompt tokens", books.prompt_tokens, found, "llm_prompt_tokens_total", "tokens"))
    rows.append(stage.row("of these cached", books.cached_tokens, found, "llm_prompt_tokens_cached_total", "cached"))
    rows.append(stage.row("generated tokens", books.generation_tokens, found, "llm_generation_tokens_total", "tokens"))
    rows.append(
        stage.row("HTTP responses, 2xx", books.statuses[200], found, "llm_http_responses_total", "http", code="2xx")
    )
    name = "llm_request_duration_seconds"
    rows.append(stage.row("durations, count", len(books.durations), found, f"{name}_count", "duration"))
    rows.append(_mean(stage, "durations, mean in s", books.durations, found, name, "duration"))
    return rows


def _mean(  # noqa: PLR0913, PLR0917 - the parts of a row
    stage: Stage, signal: str, truth: Sequence[float], found: Growth, name: str, topic: str
) -> Row:
    return Row(
        signal,
        fmean(truth),
        found.mean(name),
        found.mean(name, stage.subject.proxy),
        within=CLOCKS + SHARE * fmean(truth),
        expected_exporter=stage.subject.expected(topic),
        note="the client's clock runs from connecting, the proxy's from sending, the engine's from its queue",
    )


async def streams(stage: Stage) -> list[Row]:
    """24 streams of different lengths, four at a time, some with a stop word, some with a prompt that was there."""
    requests = [
        Request(
            prompt="once more " * (1 + number % 6) + "?" * (number % 3),
            tokens=8 + 3 * number,
            stop="e" * (number % 4 == 3),
        )
        for number in range(24)
    ]
    books, found = await stage.during(lambda client: client.crowd(requests, at_once=min(4, stage.subject.places)))
    name = "llm_time_to_first_token_seconds"
    seen = len(books.first_token)
    silent = Expected(seen + books.without_text, "an answer without text has a first token for the engine alone")
    return [
        *_served(stage, books, found),
        Row(
            "first tokens, count",
            seen,
            found.of(f"{name}_count"),
            found.of(f"{name}_count", stage.subject.proxy),
            expected_exporter=stage.subject.expected("first token") or (silent if books.without_text else None),
        ),
        _mean(stage, "first tokens, mean in s", books.first_token, found, name, "first token"),
    ]


async def whole(stage: Stage) -> list[Row]:
    """12 requests that are not streamed."""
    requests = [Request(prompt=f"number {number}", tokens=5 + number, stream=False) for number in range(12)]
    books, found = await stage.during(lambda client: client.crowd(requests, at_once=min(4, stage.subject.places)))
    return _served(stage, books, found)


async def crowd(stage: Stage) -> list[Row]:
    """Four more requests than there are places, all long."""
    subject, exporter = stage.subject, stage.exporter
    client = Client(exporter.proxied)
    prompt = "the same to all of you"
    asked = subject.places + _MORE
    work = asyncio.create_task(client.crowd([Request(prompt=prompt, tokens=560)] * asked, at_once=asked, apart=_APART))

    def full(reading: Reading) -> bool:
        return reading.of("llm_requests_running") == subject.places and reading.of("llm_requests_waiting") == _MORE

    await exporter.until(full, stage.patience)
    await asyncio.sleep(INTERVAL)
    earlier = client.books.events
    await asyncio.sleep(1.25 * INTERVAL)
    reading = await asyncio.to_thread(exporter.read)  # the client goes on reading its streams meanwhile
    now = client.books.events
    rows = [
        Row(
            "running",
            subject.places,
            reading.of("llm_requests_running"),
            reading.of("llm_requests_running", subject.proxy),
        ),
        Row(
            "waiting",
            asked - subject.places,
            reading.of("llm_requests_waiting"),
            reading.of("llm_requests_waiting", subject.proxy),
        ),
        Row(
            "limit of running requests",
            subject.places,
            reading.of("llm_requests_running_limit"),
            None,
            expected_proxy=_ENGINE_ALONE,
        ),
    ]
    if subject.capacity is not None:
        held = subject.places * len(prompt) + (earlier + now) / 2
        rows += [
            Row(
                "KV cache, capacity in tokens",
                subject.capacity,
                reading.of("llm_kv_cache_capacity_tokens"),
                None,
                expected_proxy=_ENGINE_ALONE,
            ),
            Row(
                "KV cache, tokens in use",
                held,
                reading.of("llm_kv_cache_used_tokens"),
                None,
                within=now - earlier + subject.places * subject.block,
                expected_proxy=_ENGINE_ALONE,
                note="blocks are rounded up, a reading is up to one poll old, and the client reads late",
            ),
        ]
    await work
    await client.close()
    after = await exporter.settled()
    rows += [
        Row(
            "running, at the end", 0, after.of("llm_requests_running"), after.of("llm_requests_running", subject.proxy)
        ),
        Row(
            "waiting, at the end", 0, after.of("llm_requests_waiting"), after.of("llm_requests_waiting", subject.proxy)
        ),
    ]
    return rows


async def aborts(stage: Stage) -> list[Row]:
    """Five clients leave after three pieces of their answers."""
    books, found = await stage.during(
        lambda client: client.crowd([Request(tokens=400, leave=3)] * 5, at_once=stage.subject.places)
    )
    failed = "llm_requests_failed_total"
    return [
        Row(
            "aborted",
            books.aborted,
            found.of(failed, reason="aborted" if stage.subject.proxy == ENGINE else "abort"),
            found.of(failed, stage.subject.proxy, reason="aborted"),
            expected_exporter=stage.subject.expected("aborted"),
        ),
        Row(
            "running, afterwards",
            0,
            found.after.of("llm_requests_running"),
            found.after.of("llm_requests_running", stage.subject.proxy),
        ),
    ]


async def errors(stage: Stage) -> list[Row]:
    """Prompts that are too long, a model that is not there, a body that is no JSON."""
    requests = [Request(prompt="x" * (CONTEXT + 100), stream=number % 2 == 0) for number in range(4)]
    if stage.subject.refuses_models:
        requests += [Request(model="nobody")] * 3

    async def act(client: Client) -> None:
        await client.crowd(requests, at_once=2)
        await client.garbage()

    books, found = await stage.during(act)
    rows = []
    for family, reason in ((4, "client_error"), (5, "server_error")):
        truth = sum(count for status, count in books.statuses.items() if status // 100 == family)
        if not truth:
            continue
        rows.append(
            stage.row(
                f"HTTP responses, {family}xx", truth, found, "llm_http_responses_total", "http", code=f"{family}xx"
            )
        )
        failed = "llm_requests_failed_total"
        rows.append(
            Row(
                f"failed, {family}xx",
                truth,
                found.of(failed),
                found.of(failed, stage.subject.proxy, reason=reason),
                expected_exporter=stage.subject.expected("client errors"),
            )
        )
    return rows


async def overload(stage: Stage) -> list[Row]:
    """40 requests at once, where 14 may run and wait."""
    requests = [Request(prompt=f"me first, I am {number}", tokens=60) for number in range(40)]
    books, found = await stage.during(lambda client: client.crowd(requests, at_once=len(requests)))
    failed, proxy = "llm_requests_failed_total", stage.subject.proxy
    turned_away = books.statuses[503] + books.errors_in_streams
    of_proxy = [found.of(failed, proxy, reason=reason) for reason in ("overloaded", "engine_error")]
    told = [each for each in of_proxy if each is not None]
    return [
        Row("turned away", turned_away, found.of(failed, reason="max_num_queued_reqs"), sum(told) if told else None),
        stage.row("finished", books.ended(), found, "llm_requests_finished_total", "finished"),
        stage.row("generated tokens", books.generation_tokens, found, "llm_generation_tokens_total", "tokens"),
    ]


async def pressure(stage: Stage) -> list[Row]:
    """As many requests as there are places, whose tokens do not fit into the KV cache together."""

    def own() -> float:
        text = httpx.get(f"{stage.server.url}/metrics", timeout=10, trust_env=False).text
        return sum(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_preemptions_total{")
        )

    before = own()
    books, found = await stage.during(
        lambda client: client.crowd(
            [Request(tokens=1000)] * stage.subject.places, at_once=stage.subject.places, apart=_APART
        )
    )
    return [
        Row(
            "preemptions",
            own() - before,
            found.of("llm_preemptions_total"),
            None,
            expected_proxy=_ENGINE_ALONE,
            note="truth is the engine's own counter",
        ),
        stage.row("finished", books.ended(), found, "llm_requests_finished_total", "finished"),
        stage.row("generated tokens", books.generation_tokens, found, "llm_generation_tokens_total", "tokens"),
    ]


async def frozen_core(stage: Stage) -> list[Row]:
    """The process that does the work hangs under three streams, while the API goes on answering."""
    core = stage.server.child(stage.subject.core)
    rows: list[Row] = []

    async def act(client: Client) -> None:
        work = asyncio.create_task(client.crowd([Request(tokens=900)] * 3, at_once=3))
        await stage.exporter.until(lambda reading: reading.of("llm_requests_running") == 3, stage.patience)
        stage.server.freeze(core)
        try:
            reading = await stage.exporter.until(lambda reading: reading.of("llm_engine_stalled") == 1, STALLED)
        finally:
            stage.server.thaw(core)
        rows.extend(
            (
                Row("up", 1, reading.of("llm_up"), None, expected_proxy=_ENGINE_ALONE, note="its API answers"),
                Row("stalled", 1, reading.of("llm_engine_stalled"), None, expected_proxy=_ENGINE_ALONE),
                Row(
                    "running",
                    3,
                    reading.of("llm_requests_running"),
                    reading.of("llm_requests_running", stage.subject.proxy),
                ),
            )
        )
        await work

    books, found = await stage.during(act)
    rows.append(Row("stalled, afterwards", 0, found.after.of("llm_engine_stalled"), None, expected_proxy=_ENGINE_ALONE))
    rows.append(stage.row("finished", books.ended(), found, "llm_requests_finished_total", "finished"))
    return rows


async def frozen(stage: Stage) -> list[Row]:
    """All of it hangs under two streams."""
    rows: list[Row] = []

    async def act(client: Client) -> None:
        work = asyncio.create_task(client.crowd([Request(tokens=700)] * 2, at_once=2))
        await stage.exporter.until(lambda reading: reading.of("llm_requests_running") == 2, stage.patience)
        stage.server.freeze()
        try:
            reading = await stage.exporter.until(lambda reading: reading.of("llm_up") == 0, stage.patience)
        finally:
            stage.server.thaw()
        rows.append(Row("up", 0, reading.of("llm_up"), None, expected_proxy=_ENGINE_ALONE))
        rows.append(
            Row(
                "running",
                2,
                reading.of("llm_requests_running"),
                reading.of("llm_requests_running", stage.subject.proxy),
                expected_exporter=_GONE,
            )
        )
        await work

    books, found = await stage.during(act)
    rows.append(Row("up, afterwards", 1, found.after.of("llm_up"), None, expected_proxy=_ENGINE_ALONE))
    rows.append(stage.row("finished", books.ended(), found, "llm_requests_finished_total", "finished"))
    rows.append(stage.row("generated tokens", books.generation_tokens, found, "llm_generation_tokens_total", "tokens"))
    return rows


async def killed(stage: Stage) -> list[Row]:
    """It is killed under two streams, is asked once more, and starts again."""
    rows: list[Row] = []

    async def die(client: Client) -> None:
        work = asyncio.create_task(client.crowd([Request(tokens=900)] * 2, at_once=2))
        await stage.exporter.until(lambda reading: reading.of("llm_requests_running") == 2, stage.patience)
        stage.server.kill()
        await work
        await client.ask(Request())

    books, found = await stage.during(die)
    failed, proxy, after = "llm_requests_failed_total", stage.subject.proxy, found.after
    unreachable = books.unreachable + books.statuses[502] + books.statuses[503]
    rows += [
        Row("up", 0, after.of("llm_up"), None, expected_proxy=_ENGINE_ALONE),
        Row(
            "streams cut off",
            books.broken + books.errors_in_streams,
            None,
            found.of(failed, proxy, reason="upstream_closed"),
            expected_exporter=_GONE,
        ),
        Row(
            "nobody there",
            unreachable,
            None,
            found.of(failed, proxy, reason="upstream_unreachable"),
            expected_exporter=_GONE,
        ),
        Row(
            "running",
            0,
            after.of("llm_requests_running"),
            after.of("llm_requests_running", proxy),
            expected_exporter=_GONE,
        ),
    ]
    stage.server.start()
    await stage.exporter.until(lambda reading: reading.of("llm_up") == 1, stage.patience)
    books, found = await stage.during(lambda client: client.crowd([Request(tokens=20)] * 3, at_once=1))
    new = found.after  # an engine that counts begins again
    rows += [
        Row("up, started again", 1, found.after.of("llm_up"), None, expected_proxy=_ENGINE_ALONE),
        Row(
            "restarts",
            1,
            found.after.of("llm_engine_restarts_total"),
            None,
            expected_exporter=stage.subject.expected("restarts"),
            expected_proxy=_ENGINE_ALONE,
        ),
        Row(
            "generated tokens of the new life",
            books.generation_tokens,
            (found if proxy == ENGINE else new).of("llm_generation_tokens_total"),
            found.of("llm_generation_tokens_total", proxy),
        ),
    ]
    return rows


def steps(subject: Subject) -> list[Callable[[Stage], Awaitable[list[Row]]]]:
    """What is done to an engine, in order."""
    found: list[Callable[[Stage], Awaitable[list[Row]]]] = [streams, whole, crowd, aborts, errors]
    if subject.at_once is not None:
        found += [overload, pressure]
    if subject.core:
        found.append(frozen_core)
    return [*found, frozen, killed]
