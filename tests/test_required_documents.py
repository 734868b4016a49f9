"""In which order an engine's documents are asked for, and what each one's failure costs."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from captures import value, values
from engine_server import EngineServer, Reply, as_json, garbage, hang
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Target
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Document, always
from llm_headroom.model import Cause, Snapshot
from llm_headroom.scrape.collect import MOST_WARNINGS, Collector
from llm_headroom.scrape.credentials import HINT
from llm_headroom.scrape.documents import MOST_LINES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine_server import Behaviour
    from llm_headroom.engines.rules import Engine

ENGINE = replace(
    BUILT_IN["vllm"],
    documents=always(
        Document(key="extra", path="/extra", optional=True, form=dict),
        Document(key="metrics", path="/metrics", text=True),
        Document(key="first", path="/first", leads=True, form=dict),
    ),
)
METRICS = Reply(b'vllm:num_requests_running{model_name="m"} 4\n')
SOUND: dict[str, Reply | Behaviour] = {"/extra": as_json({}), "/metrics": METRICS, "/first": as_json({})}


def polled(
    server: EngineServer, engine: Engine = ENGINE, limit: int | None = None, /, **routes: Reply | Behaviour
) -> Iterator[Snapshot]:
    """One collection after the other, of which `routes` are answered otherwise from the start, by key."""
    server.routes |= {f"/{key}": reply for key, reply in routes.items()}
    target = Target(name="t", endpoint=Endpoint(url=server.url), requests_running_limit=limit)
    timeout = 1.0 if hang in server.routes.values() else 30.0
    collector = Collector(target, engine, timeout=timeout, label_limit=10)
    with asyncio.Runner() as runner:
        try:
            while True:
                yield runner.run(collector.collect())
        finally:
            runner.run(collector.close())


def asked(server: EngineServer) -> list[str]:
    """The paths that were asked for since the last look."""
    found = [path for _, path in server.requests]
    server.requests.clear()
    return found


def collected(engine: Engine = ENGINE, /, **broken: Reply | Behaviour) -> tuple[Snapshot, list[str]]:
    """One collection where some documents, by key, are answered otherwise; and the paths that were asked for."""
    with EngineServer(SOUND) as server, closing(polled(server, engine, **broken)) as polls:  # type: ignore[type-var]
        return next(polls), asked(server)


def test_what_others_depend_on_comes_first_and_what_is_optional_last() -> None:
    assert collected()[1] == ["/first", "/metrics", "/extra"]


def test_an_optional_document_that_hangs_costs_only_itself() -> None:
    snapshot, _ = collected(extra=hang)

    assert snapshot.health.up
    assert value(snapshot.points, "llm_requests_running") == 4.0
    assert [warning.cause for warning in snapshot.health.warnings] == [Cause.TIMEOUT]


@pytest.mark.parametrize(
    ("slotted", "models", "cause"),
    [
        (False, Reply(b"{}"), Cause.SLOW),
        (False, Reply(b"", 401), Cause.SLOW),
        (False, Reply(b"", 403), Cause.SLOW),
        (False, Reply(b"", 404), Cause.TIMEOUT),  # something answers, but is it the engine?
        (False, Reply(b"", 500), Cause.TIMEOUT),
        (False, garbage, Cause.TIMEOUT),
        (False, hang, Cause.TIMEOUT),
        (True, Reply(b"{}"), Cause.TIMEOUT),  # its metrics wait for its work: their silence says that it hangs
    ],
)
def test_metrics_that_take_too_long_are_no_outage_where_the_api_answers(
    models: Reply | Behaviour, cause: Cause, *, slotted: bool
) -> None:
    engine = replace(ENGINE, slotted=slotted)
    routes = {**SOUND, "/v1/models": models}
    with EngineServer(routes) as server, closing(polled(server, engine, metrics=hang)) as polls:  # type: ignore[type-var]
        snapshot = next(polls)

    assert snapshot.health.error is not None
    assert snapshot.health.error.cause is cause
    assert "/metrics: no answer within " in snapshot.health.error.message
    assert ("its API answers" in snapshot.health.error.message) is (cause is Cause.SLOW)


@pytest.mark.parametrize(
    ("key", "status", "cause"),
    [
        ("metrics", 401, Cause.AUTH),
        ("metrics", 403, Cause.AUTH),
        ("metrics", 500, Cause.STATUS),
        ("first", 401, Cause.AUTH),
        ("first", 403, Cause.AUTH),
    ],
)
def test_a_required_document_that_is_refused_takes_the_source_down(key: str, status: int, cause: Cause) -> None:
    snapshot, asked = collected(ENGINE, **{key: Reply(b"no", status)})

    assert not snapshot.health.up
    assert snapshot.points == ()
    assert snapshot.health.error is not None
    assert snapshot.health.error.cause is cause
    assert f"/{key} answered {status}" in snapshot.health.error.message
    assert "/extra" not in asked


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, HINT),
        (403, HINT),
        (404, "is this the right engine and port?"),
        (500, ""),
        (503, "the engine is loading or overloaded"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, hint: str) -> None:
    error = collected(metrics=Reply(b"no", status))[0].health.error

    assert error is not None
    assert error.message.partition(f"/metrics answered {status}")[2] == (f": {hint}" if hint else "")


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_an_optional_document_that_is_refused_is_a_warning(status: int) -> None:
    snapshot, _ = collected(extra=Reply(b"no", status))

    assert snapshot.health.up
    (warning,) = snapshot.health.warnings
    assert f"/extra answered {status}" in warning.message


def documents(*more: Document, **parts: Any) -> Engine:  # noqa: ANN401 - of an Engine
    """The engine with other documents beside its metrics."""
    return replace(ENGINE, documents=always(Document(key="metrics", path="/metrics", text=True), *more), **parts)


def test_what_is_off_is_not_asked_for_again_until_the_engine_was_away() -> None:
    engine = documents(
        Document(key="off", path="/off", optional=True, tolerated=(404,), form=dict),
        Document(key="seldom", path="/seldom", every=3600.0, form=dict),
        Document(key="locked", path="/locked", tolerated=(401, 403), form=dict),
    )
    answers = {"off": Reply(b"", 404), "seldom": as_json({}), "locked": Reply(b"", 403)}
    with EngineServer(SOUND) as server, closing(polled(server, engine, **answers)) as polls:  # type: ignore[type-var]
        first = next(polls)
        assert (first.health.up, first.health.warnings) == (True, ())
        assert first.health.withheld == (f"{server.url}/locked",)
        assert asked(server) == ["/metrics", "/seldom", "/locked", "/off"]
        second = next(polls)
        assert asked(server) == ["/metrics", "/locked"]
        server.routes |= {"/metrics": Reply(b"", 500), "/locked": Reply(b"", 404)}
        down = next(polls)
        assert (down.health.up, down.points, down.health.withheld) == (False, (), ())
        assert down.health.last_success == second.taken
        server.routes |= {"/metrics": METRICS, "/locked": Reply(b"", 401)}
        asked(server)
        assert next(polls).health.withheld == (f"{server.url}/locked",)
        assert asked(server) == ["/metrics", "/seldom", "/locked", "/off"]


def test_what_answers_in_an_engine_s_place_is_looked_at_once_in_a_while() -> None:
    with EngineServer({"*": Reply(b"<html><title>Grafana</title>", 404)}) as server:
        with closing(polled(server)) as polls:  # type: ignore[type-var]
            found = [next(polls).health.error for _ in range(2)]
        assert asked(server) == ["/first", "/metrics", "/v1/models", "/", "/first"]
    assert [each.message.partition("; ")[2] for each in found if each] == ["this looks like a web page (Grafana)"] * 2
    with EngineServer({"/first": Reply(b"", 404), "/v1/models": garbage}) as server, closing(polled(server)) as polls:  # type: ignore[type-var]
        error = next(polls).health.error
    assert error is not None
    assert error.message.endswith("/first answered 404: is this the right engine and port?")


def test_a_label_value_that_is_gone_makes_room_for_one_that_was_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_headroom.scrape.label_cap.AGE", 0.0)
    names = [f"m{number}" for number in range(11)]
    lines = [f'vllm:num_requests_running{{model_name="{name}"}} 1\n'.encode() for name in names]
    found = []
    with EngineServer(SOUND) as server, closing(polled(server, metrics=Reply(b"".join(lines)))) as polls:  # type: ignore[type-var]
        found.append(set(values(next(polls).points, "llm_requests_running", "model")))
        server.routes |= {"/metrics": Reply(lines[-1])}
        found += [set(values(next(polls).points, "llm_requests_running", "model")) for _ in range(2)]
    assert found == [{*names[:-1], "other"}, {"other"}, {"m10"}]


def test_an_exposition_has_so_many_lines_and_no_more() -> None:
    most = METRICS.body + b"\n" * (MOST_LINES - 1)
    assert collected(metrics=Reply(most))[0].health.up
    error = collected(metrics=Reply(most + b"\n"))[0].health.error
    assert error is not None
    assert (error.cause, error.message.partition("/metrics ")[2]) == (
        Cause.TOO_LARGE, f"has {MOST_LINES + 1} lines; {MOST_LINES} are the most that are read",
    )  # fmt: skip


@pytest.mark.parametrize(("limit", "own", "found"), [(7, False, {"m": 7.0}), (None, False, {}), (7, True, {})])
def test_a_limit_that_is_configured_is_that_of_the_engine_s_model(
    limit: int | None, found: dict[str, float], *, own: bool
) -> None:
    engine = documents(model=lambda _: "m", limit_per_model=own)
    with EngineServer(SOUND) as server, closing(polled(server, engine, limit)) as polls:  # type: ignore[type-var]
        assert values(next(polls).points, "llm_requests_running_limit", "model") == found


def test_of_many_warnings_the_first_are_said() -> None:
    many = [Document(key=f"k{number}", path=f"/k{number}", optional=True) for number in range(MOST_WARNINGS + 2)]
    found = collected(documents(*many))[0].health.warnings
    assert [each.message.rpartition("/")[2].split()[0] for each in found] == [f"k{n}" for n in range(MOST_WARNINGS)]


@pytest.mark.parametrize(("version", "said"), [("1.2", "1.2"), ("v" * 65, "v" * 64), ("", None)])
def test_a_version_is_of_bounded_length(version: str, said: str | None) -> None:
    snapshot, _ = collected(documents(version=lambda _: version))
    assert snapshot.health.version == (said or "")
    assert values(snapshot.points, "llm_engine_info", "version") == ({} if said is None else {said: 1.0})


def test_of_an_engine_that_is_down_no_version_is_exposed() -> None:
    engine = documents(version=lambda _: "1.2")
    snapshot, _ = collected(engine, metrics=Reply(b"", 500))
    assert (snapshot.health.up, snapshot.health.version, snapshot.points) == (False, "1.2", ())


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "an empty body"),
        (b"# HELP a b\n", None),
        (b"no sample at all\n", "line 1"),
    ],
)
def test_what_is_no_exposition(body: bytes, problem: str | None) -> None:
    error = collected(documents(silent="", owned_by=""), metrics=Reply(body))[0].health.error
    assert (error.cause if error else None) == (Cause.FORMAT if problem else None)
    assert (problem or "") in (error.message if error else "")


@pytest.mark.parametrize(("status", "up"), [(404, True), (500, False)])
def test_a_release_of_sglang_without_loads_needs_none(status: int, *, up: bool) -> None:
    routes = {"/metrics": Reply(b"", 404), "/v1/loads": Reply(b"", status), "/server_info": as_json({})}
    with EngineServer(routes | {"/v1/models": as_json({"data": []})}) as server:
        assert next(polled(server, BUILT_IN["sglang"])).health.up is up
        assert "/v1/loads?include=core" in asked(server)
