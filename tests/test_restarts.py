"""The life of an engine's process: how its end is seen, what ends with it, and what is counted from its beginning."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

import captures
from captures import Capture, value, values
from engine_server import EngineServer, Reply, as_json, hang, replayed
from exporter_process import Exporter
from llm_headroom import schema
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.derive.restart import Reading
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.exposition.text import Parser
from llm_headroom.model import Cause, Histogram
from llm_headroom.net.workers import Heavy
from llm_headroom.scrape.collect import Collector
from llm_headroom.scrape.documents import RETRY_OPTIONAL, Documents
from llm_headroom.scrape.label_cap import AGE
from timelines import BASE, point, steadily, traffic, ttft

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_headroom.model import Point, Snapshot

METRICS: Final = Reading(frozenset({"metrics"}))
IDLE: Final = [point(schema.REQUESTS_RUNNING, 0.0)]


def polls(timeline: Iterable[tuple[float, list[Point] | None, Reading]]) -> list[Point]:
    """What is derived after the last of some polls: points and what could be read; a poll without points has failed."""
    memory = Memory()
    derived: list[Point] = []
    for at, points, reading in timeline:
        if points is None:
            memory = replace(memory, gap=True)
        else:
            memory, derived = advance(memory, points, at, base=BASE, reading=reading)
    return derived


def counted(derived: list[Point]) -> tuple[float | Histogram | None, float | Histogram | None]:
    """Restarts, and requests that an objective has counted."""
    return value(derived, "llm_engine_restarts_total"), values(derived, "llm_slo_requests_total", "slo").get("ttft")


# How a restart is seen -----------------------------------------------------------------------------------------------
def test_counters_that_are_gone_after_a_gap_are_a_restart_even_if_they_come_back_higher() -> None:
    derived = polls(
        [
            (0.0, [*IDLE, ttft(3, 3, 3, 3, 3)], METRICS),
            (1.0, None, METRICS),
            (2.0, IDLE, METRICS),
            (3.0, [*IDLE, ttft(9, 9, 9, 9, 9)], METRICS),
        ]
    )

    assert counted(derived) == (1, 9)


def test_all_counters_that_are_gone_are_a_restart_without_a_gap_too() -> None:
    assert counted(polls([(0.0, [*IDLE, ttft(3, 3, 3, 3, 3)], METRICS), (1.0, IDLE, METRICS)]))[0] == 1


def test_a_counter_that_is_unreadable_for_once_is_neither_a_restart_nor_new() -> None:
    tokens = point(schema.GENERATION_TOKENS, 7.0)
    derived = polls(
        [
            (0.0, [*IDLE, tokens, ttft(3, 3, 3, 3, 3)], METRICS),
            (1.0, [*IDLE, tokens], METRICS),
            (2.0, [*IDLE, tokens, ttft(5, 5, 5, 5, 5)], METRICS),
        ]
    )

    assert counted(derived) == (0, 2)


def test_counters_that_nothing_was_read_of_are_no_restart_and_not_new() -> None:
    nothing = Reading()
    derived = polls(
        [
            (0.0, [*IDLE, ttft(3, 3, 3, 3, 3)], METRICS),
            (1.0, IDLE, nothing),
            (2.0, [*IDLE, ttft(5, 5, 5, 5, 5)], METRICS),
        ]
    )
    late = polls([(0.0, IDLE, nothing), (1.0, [*IDLE, ttft(5, 5, 5, 5, 5)], METRICS)])

    assert counted(derived) == (0, 2)
    assert counted(late) == (0, 0)


def test_a_later_start_is_a_restart_whose_counters_are_all_new() -> None:
    before, after = METRICS._replace(started=100.0), METRICS._replace(started=200.0)
    derived = polls([(0.0, [ttft(3, 3, 3, 3, 3)], before), (1.0, [ttft(9, 9, 9, 9, 9)], after)])

    assert counted(derived) == (1, 9)


def test_another_version_after_a_gap_is_a_restart() -> None:
    old, new = METRICS._replace(version="1"), METRICS._replace(version="2")
    points = [ttft(3, 3, 3, 3, 3)]

    assert counted(polls([(0.0, points, old), (1.0, None, old), (2.0, points, new)])) == (1, 0)
    assert counted(polls([(0.0, points, old), (1.0, points, new)])) == (0, 0)


def test_a_gap_alone_is_no_restart() -> None:
    points = [ttft(3, 3, 3, 3, 3)]

    assert counted(polls([(0.0, points, METRICS), (1.0, None, METRICS), (2.0, points, METRICS)])) == (0, 0)


def test_estimates_end_with_the_life_that_they_are_of() -> None:
    """A restart without metrics: what is left says how many requests run and wait."""
    timeline = [(at, points, METRICS) for at, points in steadily(300)]
    gauges = [each for each in traffic(300, waiting=50) if each.series.metric.name.startswith("llm_requests_")]
    gauges = [each for each in gauges if each.series.metric is not schema.REQUESTS_FINISHED]

    assert value(polls(timeline), "llm_kv_saturation_risk_ratio") is not None
    after = polls([*timeline, (305.0, None, METRICS), (310.0, gauges, METRICS)])
    assert value(after, "llm_kv_saturation_risk_ratio") is None
    assert value(after, "llm_engine_restarts_total") == 1


# What begins before our eyes -----------------------------------------------------------------------------------------
def test_what_a_series_counts_between_its_birth_and_its_second_poll_is_counted() -> None:
    derived = polls([(0.0, IDLE, METRICS), (5.0, [*IDLE, ttft(2, 3, 5, 6, 8)], METRICS)])

    assert counted(derived) == (0, 8)
    assert values(derived, "llm_slo_requests_good_total", "slo") == {"ttft": 5}
    assert values(derived, "llm_ttft_window_requests", "window") == {"60s": 8, "300s": 8}


def test_a_model_that_appears_has_begun_and_one_that_is_named_otherwise_has_not() -> None:
    def of(model: str, count: float) -> Point:
        return point(schema.TIME_TO_FIRST_TOKEN, Histogram((2.5, math.inf), (count, count), count), model=model)

    appears = polls([(0.0, [of("a", 1)], METRICS), (5.0, [of("a", 1), of("b", 4)], METRICS)])
    renamed = polls([(0.0, [of("a", 1)], METRICS), (5.0, [of("b", 4)], METRICS)])

    assert values(appears, "llm_slo_requests_total", "model", "slo") == {("a", "ttft"): 0, ("b", "ttft"): 4}
    assert values(renamed, "llm_slo_requests_total", "model", "slo") == {("b", "ttft"): 0}


# A real server -------------------------------------------------------------------------------------------------------
SGLANG: Final = Capture("sglang", "0.5.23", "moderate")
FIRST_TOKENS: Final = "llm_time_to_first_token_seconds"


def test_an_sglang_that_is_killed_and_started_again_is_seen_and_all_its_requests_are_counted() -> None:
    """Its counters appear with their first events: a fresh one tells its gauges alone."""
    full = SGLANG.exposition.read_bytes()
    gauges = {line.split()[2] for line in full.splitlines() if line.startswith(b"# TYPE") and line.endswith(b" gauge")}
    fresh = b"".join(
        line + b"\n" for line in full.splitlines() if line.partition(b"{")[0] in gauges or line.startswith(b"# ")
    )
    requests = value(captures.mapped("sglang", full), FIRST_TOKENS)
    assert isinstance(requests, Histogram)

    async def polled() -> list[Snapshot]:
        with EngineServer(replayed(SGLANG)) as server:
            target = Target(name="t", endpoint=Endpoint(url=server.url))
            collector = Collector(target, BUILT_IN["sglang"], timeout=30, label_limit=200)
            found = []
            for body in (fresh, full, None, fresh, full):
                server.routes["/metrics"] = Reply(b"", 503) if body is None else Reply(body)
                found.append(await collector.collect())
            await collector.close()
            return found

    first, served, down, again, last = asyncio.run(polled())

    assert value(first.points, FIRST_TOKENS) is None
    assert counted(list(served.points)) == (0, requests.count)
    assert not down.health.up
    assert value(again.points, "llm_engine_restarts_total") == 1
    assert counted(list(last.points)) == (1, 2 * requests.count)


# What is remembered ends ---------------------------------------------------------------------------------------------
def test_a_name_that_is_gone_frees_its_place() -> None:
    def body(*names: str) -> bytes:
        return "".join(f'ollama_prompt_tokens_total{{model="{name}"}} 10\n' for name in names).encode()

    def models(*names: str) -> set[str | tuple[str, ...]]:
        return set(values(mapping.map(Parser().parse(body(*names)))[1].points, "llm_prompt_tokens_total", "model"))

    mapping = captures.mapper("ollama", limit=2)

    def labels(*names: str) -> list[tuple[str, str]]:
        points = mapping.map(Parser().parse(body(*names)))[1].points
        return [pair for each in points for pair in each.series.labels]

    before = labels("a", "b")
    assert models("a", "c") == {"a", "other"}
    assert not mapping.cap.release(before, 0.0)
    still = labels("a", "c")
    assert not mapping.cap.release(still, AGE - 1.0)
    assert models("a", "c") == {"a", "other"}
    assert mapping.cap.release(still, AGE)
    mapping.forget()

    assert models("a", "c") == {"a", "c"}
    assert models("a", "c", "b") == {"a", "c", "other"}


def test_a_slow_optional_document_costs_one_try_and_is_asked_again_after_a_minute() -> None:
    """VLLM takes long for its first `/server_info`, and no longer afterwards."""
    now = 0.0

    async def fetched() -> tuple[list[int], list[set[str]]]:
        nonlocal now
        asked, failed = [], []
        with EngineServer(replayed(Capture("vllm", "0.32.0", "after_load"))) as server:
            told, server.routes["/server_info"] = server.routes["/server_info"], hang
            target = Target(name="t", endpoint=Endpoint(url=server.url))
            documents = Documents(target, BUILT_IN["vllm"], timeout=1.0, heavy=Heavy(), clock=lambda: now)
            for now in (0.0, 5.0, 59.0, 61.0, 66.0):
                if now > RETRY_OPTIONAL:
                    server.routes["/server_info"] = told
                await documents.fetch(time.monotonic() + (1.0 if now <= RETRY_OPTIONAL else 30.0))
                asked.append(sum(path.startswith("/server_info") for _, path in server.requests))
                failed.append(set(documents.warnings))
            await documents.close()
        return asked, failed

    asked, failed = asyncio.run(fetched())

    assert asked == [1, 1, 1, 2, 2]
    assert failed == [{"server_info"}] * 3 + [set()] * 2


def test_a_failure_that_is_remembered_counts_once() -> None:
    """The version is asked for again after a minute, and the metrics' problem is that of the poll before."""
    routes = {**replayed(Capture("vllm", "0.32.0", "after_load")), "/version": as_json({"version": 1})}
    routes["/metrics"] = Reply(Capture("vllm", "0.32.0", "after_load").exposition.read_bytes() + b"no sample\n")
    with (
        EngineServer(routes) as server,
        Exporter(f"--target=vllm={server.url}", "--no-gpu", "--interval", "0.2s") as exporter,
    ):
        exporter.until(lambda: sum(path == "/metrics" for _, path in server.requests) > 4)
        exporter.until(lambda: exporter.value("llm_up") == 1)

        assert exporter.value("llm_source_errors_total", cause="format") == 2


def test_a_histogram_of_too_many_bounds_is_dropped_and_said() -> None:
    name = "vllm:time_to_first_token_seconds"
    bounds = [*map(str, range(300)), "+Inf"]
    lines = [f"# TYPE {name} histogram", *(f'{name}_bucket{{le="{bound}"}} 1' for bound in bounds)]
    body = "\n".join([*lines, f"{name}_sum 1", f"{name}_count 1", "vllm:num_requests_running 1", ""])
    exposition = Parser().parse(body.encode())
    mapping = captures.mapper("vllm")
    plan, found = mapping.map(exposition)

    assert [each.series.metric.name for each in found.points] == ["llm_requests_running"]
    assert any("301 bounds" in problem for problem in plan.problems)


@pytest.mark.parametrize(("series", "error"), [(3, None), (4, Cause.TOO_LARGE)])
def test_more_series_than_anybody_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, series: int, error: Cause | None
) -> None:
    monkeypatch.setattr("llm_headroom.scrape.mapping.MOST_SERIES", 3)
    lines = [f'vllm:num_requests_running{{engine="{number}",model_name="m"}} 1\n' for number in range(series)]

    async def collected() -> Snapshot:
        with EngineServer({"/metrics": Reply("".join(lines).encode())}) as server:
            collector = Collector(
                Target(name="t", endpoint=Endpoint(url=server.url)), BUILT_IN["vllm"], timeout=60, label_limit=10
            )
            snapshot = await collector.collect()
            await collector.close()
            return snapshot

    found = asyncio.run(collected()).health.error
    assert (found.cause if found else None) is error
    assert found is None or "more than 20000 series" in found.message
