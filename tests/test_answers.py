"""What engines answer in JSON: types, ranges, lengths and counts, and that a bad answer costs itself alone."""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import captures
from captures import Capture, values
from engine_server import EngineServer, Reply, replayed
from llm_headroom import schema
from llm_headroom.config.load import load
from llm_headroom.config.people import Links
from llm_headroom.engines.answers import MOST_BYTES, MOST_VALUES, NotUnderstood, Replicas, Text, Whole, decode
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.engines.rules import Absent, Document
from llm_headroom.model import NOTHING, Cause, Health, Histogram, Point, Series, Snapshot
from llm_headroom.net.http_messages import Request
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.render.prometheus import Format, Renderer, exposition
from llm_headroom.view.board import Board, assembled, cards
from llm_headroom.view.history import History
from llm_headroom.view.values import Missing, View
from llm_headroom.web.app import App
from llm_headroom.web.look import look
from llm_headroom.web.page import Painter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engine_server import Behaviour
    from llm_headroom.view.board import Cards
    from llm_headroom.view.day import Minute
    from llm_headroom.view.values import EngineCard, GpuCard

CAPTURED: Final = {
    "vllm": Capture("vllm", "0.32.0", "after_load"),
    "sglang": Capture("sglang", "0.5.23", "moderate"),
    "llamacpp": Capture("llamacpp", "b10488", "load_5"),
    "ollama": Capture("ollama", "0.33.0-rc2", "ps_loaded"),
}


def answered(body: bytes | str, status: int = 200) -> Reply:
    return Reply(body if isinstance(body, bytes) else body.encode(), status, "application/json")


def polled(engine: str, routes: Mapping[str, Reply | Behaviour], *others: tuple[str, str]) -> dict[str, Snapshot]:
    """One collection of a server that answers as captured but for `routes`, beside others, by engine's name."""

    async def collect() -> dict[str, Snapshot]:
        with EngineServer({**replayed(CAPTURED[engine]), **routes}) as server:
            named = [(engine, server.url), *others]
            config = load(
                None,
                targets=[f"{each}={url}" for each, url in named],
                gpu=False,
                discover=False,
                engine_names=tuple(BUILT_IN),
            )
            poller = Poller(config)
            await poller.once()
            assert exposition([Renderer().lines(slot.points()) for slot in poller.slots.values()], Format.TEXT)
            found = {slot.snapshot.engine: slot.snapshot for slot in poller.slots.values() if slot.snapshot}
            await poller.stop()
            return found

    return asyncio.run(collect())


# A field that is none ------------------------------------------------------------------------------------------------
VLLM: Final = [
    ("/version", '{"version": 1}', "$.version"),
    ("/v1/models", '{"data": [{"id": "m", "max_model_len": "abc"}]}', "$.data[0].max_model_len"),
    ("/v1/models", '{"data": [{"id": "m", "max_model_len": %s}]}' % ("9" * 400), "$.data[0].max_model_len"),
    ("/v1/models", '{"data": [{"id": null}]}', "$.data[0].id"),
    ("/v1/models", '{"data": [{"id": "%s"}]}' % ("m" * 5000), "$.data[0].id"),
    ("/v1/models", '{"data": {}}', "$.data"),
    ("/v1/models", "[" * 100_000, "expected"),
    ("/v1/models", '{"x":' * 100_000, "nested too deeply"),
    ("/v1/models", b'{"data": [{"id": "\xff"}]}', "not UTF-8"),
    ("/v1/models", "", "truncated"),
    ("/v1/models", '{"data": ["%s"]}' % ("m" * MOST_BYTES), f"{MOST_BYTES} are the most"),
    ("/v1/models", '{"data": [%s]}' % ("{}," * (MOST_VALUES + 1)), f"{MOST_VALUES} are the most"),
    ("/v1/models", json.dumps({"data": [{"id": "m"}] * 10_001}), "length <= 10000"),
    (
        "/server_info",
        '{"vllm_config": {"parallel_config": {"data_parallel_size": 20000000}}}',
        "$.vllm_config.parallel_config.data_parallel_size",
    ),
]


@pytest.mark.parametrize(("path", "body", "field"), VLLM, ids=range(len(VLLM)))
def test_a_bad_optional_document_costs_itself_alone_and_names_its_field(
    path: str, body: bytes | str, field: str
) -> None:
    found = polled("vllm", {path: answered(body)})["vllm"]

    assert found.health.up
    (warning,) = found.health.warnings
    assert warning.cause is Cause.FORMAT
    assert path in warning.message
    assert field.lower() in warning.message.lower()
    assert values(found.points, "llm_requests_running", "model")


@pytest.mark.parametrize(
    ("engine", "path", "body", "field"),
    [
        ("ollama", "/api/ps", '{"models": [{"name": "m", "size": %s}]}' % ("9" * 400), "$.models[0].size"),
        ("ollama", "/api/ps", '{"models": [{"name": {"a": 1}}]}', "$.models[0].name"),
        ("ollama", "/api/ps", json.dumps({"models": [{"name": "m"}] * 1001}), "$.models"),
        ("llamacpp", "/slots", '[{"n_ctx": 1e999, "is_processing": false}]', "$[0].n_ctx"),
    ],
)
def test_a_bad_document_that_is_needed_costs_its_target_and_names_its_field(
    engine: str, path: str, body: str, field: str
) -> None:
    with EngineServer(replayed(CAPTURED["vllm"])) as beside:
        found = polled(engine, {path: answered(body)}, ("vllm", beside.url))

    error = found[engine].health.error
    assert error is not None
    assert error.cause is Cause.FORMAT
    assert path in error.message
    assert field in error.message
    assert found["vllm"].health.up


def test_how_much_json_is_read_at_most() -> None:
    assert (MOST_BYTES, MOST_VALUES) == (4 * 1024 * 1024, 100_000)


@pytest.mark.parametrize(
    ("form", "fine", "beyond"),
    [
        (Text, ["", "x" * 4096], ["x" * 4097]),
        (Whole, [2**53, -(2**53)], [2**53 + 1, -(2**53) - 1]),
        (Replicas, [0, 1024], [-1, 1025]),
    ],
)
def test_a_value_is_within_its_bounds(form: object, fine: list[object], beyond: list[object]) -> None:
    document = Document(key="k", path="/", form=form)
    assert [decode(document, json.dumps(value).encode()) for value in fine] == fine
    for value in beyond:
        with pytest.raises(NotUnderstood):
            decode(document, json.dumps(value).encode())


@pytest.mark.parametrize(
    ("engine", "key", "body", "item", "most"),
    [
        ("vllm", "models", '{"data": [%s]}', '{"id": "m"}', 10_000),
        ("llamacpp", "models", '{"data": [%s]}', '{"id": "m"}', 10_000),
        ("ollama", "ps", '{"models": [%s]}', '{"name": "m"}', 1000),
        ("ollama", "tags", '{"models": [%s]}', '{"name": "m"}', 10_000),
        ("llamacpp", "slots", "[%s]", '{"n_ctx": 1, "is_processing": false}', 1024),
        ("sglang", "server_info", '{"internal_states": [%s]}', "{}", 1024),
        ("sglang", "loads", '{"loads": [%s]}', "{}", 1024),
    ],
)
def test_a_list_is_of_bounded_length(engine: str, key: str, body: str, item: str, most: int) -> None:
    known = {"properties": Absent(404), "metrics": Absent(404)}
    (document,) = (each for each in BUILT_IN[engine].documents(known) if each.key == key)
    decode(document, (body % ",".join([item] * most)).encode())
    with pytest.raises(NotUnderstood):
        decode(document, (body % ",".join([item] * (most + 1))).encode())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (r"bad\ud800name", "bad?name"),
        (r"bad\uDFFF", "bad?"),
        (r"\ud83d\ude00", "😀"),
        (r"\ud83d\ud83d\ude00", "?😀"),
        (r"\\ud800", r"\ud800"),
        (r"\\\ud800", "\\?"),
    ],
)
def test_lone_surrogates_in_a_name_cost_one_letter(written: str, name: str) -> None:
    with EngineServer(replayed(CAPTURED["llamacpp"])) as beside:
        models = answered(f'{{"data": [{{"id": "{written}", "max_model_len": 5}}]}}')
        found = polled("vllm", {"/v1/models": models}, ("llamacpp", beside.url))

    assert values(found["vllm"].points, "llm_model_context_tokens", "model") == {name: 5}
    assert found["llamacpp"].health.up


def test_what_a_form_does_not_name_is_not_kept() -> None:
    body = '{"data": [{"id": "m", "prompt": "a secret", "api_key": "a secret"}], "secret": "a secret"}'

    assert "a secret" not in repr(polled("vllm", {"/v1/models": answered(body)}))


# Whatever the bodies -------------------------------------------------------------------------------------------------
LEAVES: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -1, 2**63, 2**53 + 1, 0]),
    st.floats(),
    st.text(max_size=10),
    st.sampled_from(["\ud800", "a\x00\n\x1b", "x" * 5000, "9999-99-99", "0001-01-01T00:00:00Z", "router"]),
)
ANYTHING: Final = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def documents(engine: str) -> dict[str, Any]:
    """The JSON documents of an engine as they were captured, by path."""
    found = {
        path: json.loads(reply.body)
        for path, reply in replayed(CAPTURED[engine]).items()
        if isinstance(reply, Reply) and reply.content_type == "application/json"
    }
    if engine == "sglang":
        found["/v1/loads"] = captures.document("sglang/0.5.23/loads")
    return found


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:  # noqa: ANN401 - JSON
    """The way to each part of a document, not too far in and not too many of the same."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in list(parts)[:40]:
        if len(path) < 5:
            yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple[str | int, ...], part: Any) -> Any:  # noqa: ANN401 - JSON
    """A document with another part in one place."""
    if not path:
        return part
    key, *rest = path
    copied: Any = value.copy()
    copied[key] = replaced(value[key], tuple(rest), part)
    return copied


@st.composite
def changed(draw: st.DrawFn, engine: str) -> dict[str, Reply]:
    """Some of the documents with a part that nobody expects, or with bytes that are no JSON."""
    known = documents(engine)
    routes = {}
    for path in draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True)):
        if draw(st.integers(0, 9)) == 0:
            routes[path] = answered(draw(st.binary(max_size=50)), draw(st.sampled_from([200, 404, 500])))
        else:
            place = draw(st.sampled_from(sorted(places(known[path]), key=repr)))
            routes[path] = answered(json.dumps(replaced(known[path], place, draw(ANYTHING))))
    if engine == "sglang" and draw(st.booleans()):
        routes["/metrics"] = answered("{}", 404)
    return routes


@pytest.mark.works(3)
@pytest.mark.parametrize("engine", CAPTURED)
def test_whatever_the_bodies_there_is_a_cause_and_others_are_untouched(engine: str) -> None:
    other = next(name for name in ("llamacpp", "vllm") if name != engine)  # the one with less to say, if it can be

    with EngineServer(replayed(CAPTURED[other])) as beside:

        @settings(max_examples=25, deadline=None)
        @given(changed(engine))
        def holds(routes: Mapping[str, Reply]) -> None:
            found = polled(engine, routes, (other, beside.url))
            health = found[engine].health
            causes = {health.error.cause} if health.error else {warning.cause for warning in health.warnings}
            assert health.up is (health.error is None)
            assert Cause.INTERNAL not in causes
            assert found[other].health.up
            assert found[other].health.warnings == ()

        holds()


# Rendering -----------------------------------------------------------------------------------------------------------
class Unrenderable:
    """A source with a histogram that has a count too few, and a warning that is none, which no engine can give us."""

    name, labels, interval = "broken", NOTHING, 60.0
    capped: Mapping[str, int] = MappingProxyType({})
    retained = ()

    async def collect(self) -> Snapshot:
        """Both, which cannot be published either."""
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """Both."""
        series = Series(schema.TIME_TO_FIRST_TOKEN, {"target": self.name})
        broken = Point(series, Histogram((1.0, math.inf), (1.0,), math.nan), "")
        health = Health(up=True, warnings=(None,))  # type: ignore[arg-type]  # broken on purpose
        return Snapshot(target=self.name, engine="broken", taken=0.0, points=(broken,), health=health)

    async def estimate(self) -> None:
        """There is nothing to estimate."""

    async def close(self) -> None:
        """Nothing is open."""


def test_a_source_that_cannot_be_rendered_costs_nobody_else_the_scrape(caplog: pytest.LogCaptureFixture) -> None:
    async def scraped() -> tuple[bytes, bytes, bytes, View]:
        with EngineServer(replayed(CAPTURED["vllm"])) as server:
            config = load(None, targets=[f"vllm={server.url}"], gpu=False, discover=False, engine_names=("vllm",))
            broken = Unrenderable()
            poller = Poller(config, beside=[broken])
            app = App(Published(poller))
            published = asyncio.Event()
            poller.on_change(published.set)
            poller.start()
            await poller.first_round()
            while poller.slots["broken"].snapshot is None:
                published.clear()
                await published.wait()
            slot = poller.slots["broken"]
            published_as = slot.snapshot
            assert published_as is not None
            assert published_as.health.error is not None
            assert published_as.health.error.cause is Cause.INTERNAL
            slot.snapshot = broken.snapshot()
            app.changed()
            paths = ("/metrics", "/api/v1/snapshot", "/")
            answers = [await app.handle(Request("GET", path, {}, {})) for path in paths]
            view = Board(poller).view()
            slot.snapshot = replace(slot.snapshot, points=(None,))  # type: ignore[arg-type]  # broken still more
            app.changed()
            assert b"llm_requests_running{" in (await app.handle(Request("GET", "/metrics", {}, {}))).body
            await app.close()
            await poller.stop()
            metrics, snapshot, page = answers
            return metrics.body, snapshot.body, page.body, view

    metrics, snapshot, page, view = asyncio.run(scraped())

    assert b"llm_requests_running{" in metrics
    assert b"llm_build_info{" in metrics
    assert [source["engine"] for source in json.loads(snapshot)["sources"]] == ["vllm"]
    assert b"not shown: internal error (bug)" in page
    assert b"tiny-llama" in page
    (card,) = (each for each in view.engines if each.source.target == "broken")
    assert (card.source.up, card.source.cause, card.state.name) == (False, "internal", "down")
    assert (view.sources, view.up) == (2, 1), "what is not shown is not well"
    logged = {(each.funcName, vars(each)["target"]) for each in caplog.records if "(bug)" in each.getMessage()}
    assert logged == {(name, "broken") for name in ("_collect", "texts", "_as_json", "_made", "_rendered")}


@pytest.mark.parametrize(("reused", "expected"), [(3600.0, [1.0, 1.0, 3.0]), (0.0, [1.0, 2.0, 3.0])])
def test_a_rendering_is_used_again_for_a_moment_and_not_after_a_change(
    reused: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_headroom.web.app.REUSED", reused)
    count = [0.0]
    series = Series(schema.NOTIFICATIONS, {"receiver": "r", "result": "sent"})

    async def scraped() -> list[float]:
        poller = Poller(load(None, gpu=False, discover=False, engine_names=()))
        published = Published(poller, lambda: [Point(series, count[0], "")])
        app, found = App(published), []
        for number in (1.0, 2.0, 3.0):
            count[0] = number
            if number == 3.0:
                app.changed()
            await asyncio.sleep(0.001)
            body = (await app.handle(Request("GET", "/metrics", {}, {}))).body.decode()
            found += [
                float(value) for value in re.findall(r"^llm_notifications_total\{.*\} (\S+)$", body, re.MULTILINE)
            ]
        await app.close()
        return found

    assert asyncio.run(scraped()) == expected


def test_a_card_that_cannot_be_drawn_costs_no_other_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def minutes(card: EngineCard | GpuCard, _now: float, _count: int) -> Iterator[Minute]:
        if card.source.target == "a":
            raise ValueError("broken on purpose")
        yield from ()

    found = [Snapshot(target=name, engine="vllm", taken=0.0, points=(), health=Health(up=True)) for name in "ab"]
    view = assembled([(each, cards(each, History(), {}, lambda _: ())) for each in found], {}, now=0.0)
    html = [part for part in Painter(minutes, Links).parts(view, look({})).html.values() if "<article" in part]

    assert ["not shown: internal error (bug)" in part for part in html] == [True, False]
    assert [vars(each)["target"] for each in caplog.records] == ["a"]


def painted(names: str, missing: tuple[Missing, ...] = ()) -> list[tuple[Snapshot, Cards]]:
    """Sources of these names, and their cards."""
    found = [Snapshot(target=name, engine="vllm", taken=0.0, points=(), health=Health(up=True)) for name in names]
    return [(each, cards(each, History(), {}, lambda _: missing)) for each in found]


def test_a_card_is_drawn_once_for_each_look_while_it_is_there() -> None:
    drawn = []

    def minutes(card: EngineCard | GpuCard, _now: float, count: int) -> Iterator[Minute]:
        drawn.append((card.source.target, count > 60))
        yield from ()

    both = painted("ab")
    painter, looks = Painter(minutes, Links), (look({}), look({"range": "24h"}))

    def seen(sources: list[tuple[Snapshot, Cards]]) -> list[tuple[str, bool]]:
        drawn.clear()
        for chosen in looks * 2:
            painter.parts(assembled(sources, {}, now=0.0), chosen)
        return sorted(drawn)

    assert seen(both) == [("a", False), ("a", True), ("b", False), ("b", True)]
    assert seen(both[:1]) == []
    assert seen(both) == [("b", False), ("b", True)], "it was gone, and is not remembered"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ((), []),
        ((Missing("does not expose it", ("llm_x",)),), ["1 metric that is not there"]),
        ((Missing("does not expose it", ("llm_x", "llm_y")),), ["2 metrics that are not there"]),
    ],
)
def test_a_card_tells_of_metrics_that_are_not_there_where_some_are(
    missing: tuple[Missing, ...], said: list[str]
) -> None:
    view = assembled(painted("a", missing), {}, now=0.0)
    html = "".join(Painter(lambda *_: (), Links).parts(view, look({})).html.values())

    assert re.findall(r"\d+ metrics? that (?:is|are) not there", html) == said
