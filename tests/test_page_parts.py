"""The parts of the page, their frames, and what the exporter answers at each of its paths, without a socket."""

from __future__ import annotations

import itertools
import json
import math
import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

import bounded
from bounded import run
from llm_headroom import schema
from llm_headroom.config.people import Links
from llm_headroom.config.settings import Config
from llm_headroom.model import Health, Level, Point, Series, Snapshot
from llm_headroom.net.http_messages import Request, Response
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published, Reload
from llm_headroom.poll.slot import Slot
from llm_headroom.view.day import MINUTES, Minute
from llm_headroom.view.values import Absent, Condition, EngineCard, GpuCard, Source, View
from llm_headroom.web import page
from llm_headroom.web.app import App
from llm_headroom.web.look import Look, key
from llm_headroom.web.packing import WORTH_PACKING
from llm_headroom.web.page import Painter, Parts
from llm_headroom.web.stream import Feed, Pace
from silent_source import Silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SOURCE: Final = Source(target="t", engine="vllm", title="vLLM", version="", up=True, taken=0.0, duration=0.1)


def engine(name: str, level: Level = Level.GOOD) -> EngineCard:
    return EngineCard(id=f"e{name}", source=replace(SOURCE, target=name), state=Condition("x", level))


def gpu(name: str) -> GpuCard:
    return GpuCard(id=f"g{name}", source=replace(SOURCE, target=name), state=Condition("ok", Level.GOOD), gpu=name)


def view(engines: Sequence[EngineCard] = (), gpus: Sequence[GpuCard] = (), absent: Sequence[Absent] = ()) -> View:
    return View("1", 100.0, 0, 0, tuple(engines), tuple(gpus), tuple(absent))


class Drawn:
    """Which cards a painter has drawn, and of how many minutes."""

    def __init__(self) -> None:
        self.cards: list[tuple[str, int]] = []
        self.painter = Painter(self._minutes, Links)

    def _minutes(self, card: EngineCard | GpuCard, _now: float, count: int) -> Iterator[Minute]:
        self.cards.append((card.id, count))
        yield from ()

    def parts(self, shown: View, look: Look = Look()) -> Mapping[str, str]:  # noqa: B008 - a look is a value
        """The parts of a view."""
        return self.painter.parts(shown, look).html

    def since(self) -> list[tuple[str, int]]:
        """What was drawn since this was last asked."""
        found, self.cards = self.cards, []
        return found


# Parts ---------------------------------------------------------------------------------------------------------------
def test_a_card_is_drawn_again_when_it_has_changed_and_for_another_look() -> None:
    drawn, one = Drawn(), engine("a")
    for _ in range(2):
        drawn.parts(view([one]))
        drawn.parts(view([one]), Look(day=True))
    assert drawn.since() == [("ea", 7), ("ea", MINUTES)]
    drawn.parts(view([replace(one, model="m")]))
    assert drawn.since() == [("ea", 7)]


def test_what_was_drawn_of_a_card_that_is_gone_is_forgotten_and_no_other() -> None:
    drawn, one, two = Drawn(), engine("a"), engine("b")
    drawn.parts(view([one, two], [gpu("0")]))
    assert [name for name, _ in drawn.since()] == ["ea", "eb", "g0"]
    kept = gpu("0")
    drawn.parts(view([two], [kept]))
    drawn.since()
    drawn.parts(view([two], [kept]))
    assert drawn.since() == []
    drawn.parts(view([one, two], [kept]))
    assert drawn.since() == [("ea", 7)]


@pytest.mark.parametrize(("looks", "again"), [(2000, 0), (2001, 1)])
def test_of_so_many_looks_what_was_drawn_is_remembered(looks: int, again: int) -> None:
    drawn, one = Drawn(), engine("a")
    for number in range(looks):
        drawn.parts(view([one]), Look(frozenset({str(number)})))
    drawn.since()
    drawn.parts(view([one]), Look(frozenset({"0"})))
    assert len(drawn.since()) == again


@pytest.mark.parametrize(("count", "many"), [(1, False), (8, False), (9, True)])
def test_more_than_eight_are_a_table_whose_cards_are_opened(count: int, *, many: bool) -> None:
    cards = [engine(str(number)) for number in range(count)]
    drawn = Drawn()
    html = drawn.parts(view(cards))
    assert ('class="grid"' in html["engines"]) != many
    assert ("<table" in html["engines"]) == many
    assert sum("<article" in each for each in html.values()) == (0 if many else count)
    assert sum("<tbody" in each for each in html.values()) == (count if many else 0)
    assert len(drawn.since()) == (0 if many else count)
    opened = drawn.parts(view(cards), Look(frozenset({key(cards[0])})))
    assert sum("<article" in each for each in opened.values()) == (1 if many else count)
    gpus = Drawn().parts(view(gpus=[gpu(str(number)) for number in range(count)]))
    assert sum("<tbody" in each for each in gpus.values()) == (count if many else 0)


def test_the_worst_comes_first_among_engines_and_gpus_come_after_them() -> None:
    cards = [engine("a"), engine("b", Level.WARN), engine("c", Level.BAD), engine("d", Level.UNKNOWN)]
    parts = Drawn().painter.parts(view(cards, [gpu("0")], [Absent("<what>", "<why>")]), Look())
    order = ["summary", "engines", *(key(cards[at]) for at in (2, 1, 3, 0)), "gpus", key(gpu("0")), "absent"]
    assert list(parts.html) == order
    assert (parts.time, parts.level) == (100.0, "bad")
    assert parts.title == "1 in trouble, 1 with a warning, 1 unknown of 5"
    assert "<dt>&lt;what&gt;</dt><dd>&lt;why&gt;</dd>" in parts.html["absent"]
    body = page.page("1", parts, Links()).body.decode()
    assert [body.index(f'data-id="{each}"') for each in order] == sorted(
        body.index(f'data-id="{each}"') for each in order
    )


def test_where_there_is_nothing_each_part_says_so() -> None:
    html = Drawn().parts(view())
    assert list(html) == ["summary", "engines", "gpus", "absent"]
    assert "No engine yet." in html["engines"]
    assert 'data-list="e"' in html["engines"]
    assert "No GPU is being read." in html["gpus"]
    assert 'data-list="g"' in html["gpus"]
    assert html["absent"] == '<section data-id="absent"></section>'


def test_no_text_turns_the_direction_of_what_stands_beside_it() -> None:
    evil = "a\u202eb\u2066c\x1b[1m<i>"
    source = replace(
        SOURCE, target=evil, title=evil, version=evil, error=evil, warnings=(evil,), labels=((evil, evil),)
    )
    down = Condition(evil, Level.BAD, evil)
    one = EngineCard(id=f"e{evil}", source=source, state=down, model=evil, notes=(evil,))
    card = replace(gpu(evil), source=source, state=down, name=evil)
    many = [replace(one, id=f"e{number}") for number in range(9)]
    for shown in (view([one], [card], [Absent(evil, evil)]), view(many, [replace(card, id=f"g{n}") for n in range(9)])):
        parts = Drawn().painter.parts(shown, Look(frozenset({key(many[0]), key(card)})))
        html = page.page(evil, parts, Links()).body.decode()
        assert not {each for each in html if not each.isprintable()} - {"\n", "\xa0"}
        assert "<i>" not in html
        assert r"a\u202eb\u2066c\x1b[1m&lt;i&gt;" in html


@pytest.mark.parametrize(
    ("level", "mark", "icon"),
    [("bad", "■ ", "icon-bad"), ("warn", "▲ ", "icon-warn"), ("unknown", "", "icon-warn"), ("good", "", "icon")],
)
def test_the_title_and_the_icon_say_how_bad_it_is(level: str, mark: str, icon: str) -> None:
    made = page.page("<1>", Parts(1.25, "<t>", level, {"summary": "S\ud800"}), Links(docs="https://d/?a&b"))
    html = made.body.decode()
    assert f"<title>{mark}&lt;t&gt; – llm-headroom</title>" in html
    assert f'href="static/{icon}.svg"' in html
    assert '<nav><a href="https://d/?a&amp;b">Docs</a><a href="metrics">' in html
    assert html.endswith('<main data-time="1.250">S?</main></body></html>')
    assert dict(made.headers).keys() == {"Content-Security-Policy", "Cache-Control", "Referrer-Policy"}
    assert dict(made.headers)["Cache-Control"] == "no-store"


def test_the_files_of_the_page_are_those_and_no_others() -> None:
    for name, kind in page.STATIC.items():
        found = page.static(name)
        assert (found.status, found.content_type, found.headers) == (200, kind, (("Cache-Control", "no-cache"),))
        assert page.static(name).body is found.body
    assert page.static("page.py").status == 404


# Paths ---------------------------------------------------------------------------------------------------------------
def running(number: float, name: str = "t") -> Snapshot:
    """An engine that runs so many requests."""
    points = (Point(Series(schema.REQUESTS_RUNNING, {"model": "m", "target": name}), number, ""),)
    return Snapshot(target=name, engine="vllm", taken=number, points=points, health=Health(up=True))


class Exporter:
    """What is published, and the answers."""

    def __init__(self) -> None:
        self.poller = Poller(Config(discover=False))
        self.published = Published(self.poller)
        self.more: list[str] = []
        self.app = App(self.published, lambda: self.more)

    def publish(self, snapshot: Snapshot | None, name: str = "t") -> None:
        """A source has been added, and has published something if it is not None."""
        slot = self.poller.slots.setdefault(name, Slot(name, Silent(), {}))
        if snapshot is not None:
            slot.publish(snapshot)

    async def get(self, path: str, *, encoding: str = "", accept: str = "", **query: str) -> Response:
        """An answer."""
        return await self.app.handle(Request("GET", path, query, {"accept-encoding": encoding, "accept": accept}))


def unpacked(response: Response) -> bytes:
    """The body, of which a header says whether it is compressed."""
    packed = ("Content-Encoding", "gzip") in response.headers
    return zlib.decompress(response.body, wbits=31) if packed else response.body


def test_each_path_has_its_answer() -> None:
    async def test() -> None:
        exporter = Exporter()
        found = {
            path: await exporter.get(path)
            for path in ("/-/healthy", "/-/ready", "/", "/x", "/static/page.css", "/static/x", "/api/v1/snapshot")
        }
        assert [each.status for each in found.values()] == [200, 503, 200, 404, 200, 404, 200]
        assert found["/"].content_type == "text/html; charset=utf-8"
        assert found["/api/v1/snapshot"].content_type == "application/json; charset=utf-8"
        assert (await exporter.get("/probe")).status == 403
        for encoding in ("", "gzip"):
            stream = await exporter.get("/api/v1/stream", encoding=encoding)
            assert stream.content_type == "text/event-stream; charset=utf-8"
            assert (("Content-Encoding", "gzip") in stream.headers) == bool(encoding)
            assert stream.stream is not None
            await stream.stream.aclose()
        await exporter.app.close()

    run(test())


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_scrape_is_in_the_format_and_coding_that_is_asked_for(accept: str, encoding: str) -> None:
    async def test() -> None:
        exporter = Exporter()
        exporter.publish(running(3.0))
        exporter.publish(None, "new")
        found = await exporter.get("/metrics", encoding=encoding, accept=accept)
        assert (("Content-Encoding", "gzip") in found.headers) == bool(encoding)
        assert ("Vary", "Accept, Accept-Encoding") in found.headers
        assert found.content_type.startswith(accept.partition(";")[0] or "text/plain")
        text = unpacked(found).decode()
        assert 'llm_requests_running{model="m",target="t"} 3.0\n' in text
        assert text.endswith("# EOF\n") == bool(accept)
        assert (await exporter.get("/metrics", encoding=encoding, accept=accept)).body is found.body, "it is used again"
        exporter.publish(running(4.0))
        exporter.app.changed()
        again = unpacked(await exporter.get("/metrics", encoding=encoding, accept=accept)).decode()
        assert 'target="t"} 4.0\n' in again

    run(test())


def test_a_scrape_is_not_used_again_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        exporter = Exporter()
        first = await exporter.get("/metrics")
        assert (await exporter.get("/metrics")).body is first.body
        monkeypatch.setattr("llm_headroom.web.app.REUSED", -1.0)
        assert (await exporter.get("/metrics")).body is not first.body

    run(test())


def test_the_snapshot_is_of_every_source_that_has_been_read() -> None:
    async def test() -> None:
        exporter = Exporter()
        assert json.loads((await exporter.get("/api/v1/snapshot")).body)["sources"] == []
        for name in ("a", "b"):
            exporter.publish(running(3.0, name), name)
        exporter.publish(None, "new")
        exporter.publish(replace(running(math.nan, "odd"), taken=1.0), "odd")  # no JSON has that number
        data: Any = json.loads((await exporter.get("/api/v1/snapshot")).body)
        assert [each["target"] for each in data["sources"]] == ["a", "b"]
        assert set(data) == {"version", "time", "sources"}

    run(test())


def test_what_is_worth_it_is_compressed_for_who_can_read_that() -> None:
    async def test() -> None:
        exporter = Exporter()
        for path in ("/", "/static/page.css", "/static/icon.svg", "/api/v1/snapshot"):
            plain, packed = [await exporter.get(path, encoding=each) for each in ("", "gzip")]
            worth = len(plain.body) >= WORTH_PACKING
            assert ("Vary", "Accept-Encoding") in plain.headers
            assert ("Vary", "Accept-Encoding") in packed.headers
            assert ("Content-Encoding", "gzip") not in plain.headers
            assert (("Content-Encoding", "gzip") in packed.headers) == worth
            assert unpacked(packed)[:40] == plain.body[:40]
        assert 256 <= WORTH_PACKING <= 4096

    run(test())


def test_troubles_of_the_exporter_itself_are_noted_on_the_page() -> None:
    async def test() -> None:
        exporter = Exporter()
        assert b"notice" not in (await exporter.get("/")).body
        exporter.published.reload = Reload(0.0, "<broken>")
        exporter.more = ["another one"]
        exporter.app.changed()
        html = (await exporter.get("/")).body.decode()
        assert "could not be read; the old one is in force: &lt;broken&gt;" in html
        assert "another one" in html

    run(test())


def test_the_page_is_that_of_the_look_in_its_address() -> None:
    async def test() -> None:
        exporter = Exporter()
        for number in range(9):
            exporter.publish(running(3.0, str(number)), str(number))
        closed = (await exporter.get("/")).body.decode()
        own = closed.partition('data-look="')[2].partition('"')[0]
        assert (await exporter.get("/", open=own)).body.count(b"<article") == 1
        assert "<article" not in closed

    run(test())


# The stream ----------------------------------------------------------------------------------------------------------
def events(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: ")]


async def taken(response: Response, count: int) -> list[bytes]:
    """The first parts of a stream."""
    assert response.stream is not None
    found: list[bytes] = []
    async for part in response.stream:
        found.append(part)
        if len(found) == count:
            break
    await response.stream.aclose()
    return found


def test_a_stream_sends_an_order_only_when_it_has_changed_and_a_part_only_when_it_has() -> None:
    async def test() -> None:
        exporter = Exporter()
        exporter.publish(running(3.0))
        feed = Feed(exporter.poller, Pace(spacing=0.0))
        feed.changed()
        response = feed.subscribe({"form": "page"})
        assert response.stream is not None
        parts = aiter(response.stream)
        assert await anext(parts) == b"retry: 2000\n\n"
        first = events(await anext(parts))[0]
        assert first["order"] == list(first["parts"])
        exporter.publish(running(4.0))
        feed.changed()
        second = events(await anext(parts))[0]
        assert "order" not in second
        assert [name[0] for name in second["parts"]] == ["e"]
        assert {"time", "title", "level"} <= set(second)
        exporter.publish(running(4.0, "u"), "u")
        feed.changed()
        third = events(await anext(parts))[0]
        assert len(third["order"]) == len(first["order"]) + 1
        assert set(third["parts"]) < set(third["order"])
        await response.stream.aclose()

    run(test())


@pytest.mark.parametrize(
    ("query", "status", "has"),
    [
        ({}, 200, "engines"),
        ({"form": "json"}, 200, "engines"),
        ({"form": "page"}, 200, "parts"),
        ({"form": "xml"}, 400, ""),
        ({"form": ""}, 400, ""),
    ],
)
@pytest.mark.parametrize("gzip", [False, True])
def test_a_stream_has_a_form(query: Mapping[str, str], status: int, has: str, *, gzip: bool) -> None:
    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)))
        response = feed.subscribe(query, gzip=gzip)
        assert response.status == status
        if status != 200:
            assert response.stream is None
            return
        assert (("Content-Encoding", "gzip") in response.headers) == gzip
        assert ("Cache-Control", "no-store") in response.headers
        body = b"".join(await taken(response, 2))
        if gzip:
            body = zlib.decompressobj(wbits=31).decompress(body)
        (event,) = events(body)
        assert has in event
        assert json.dumps(event, separators=(",", ":")).encode() in body, "without spaces"

    run(test())


@pytest.mark.parametrize("query", [{}, {"form": "page"}])
def test_what_takes_long_to_make_is_made_the_more_rarely(query: Mapping[str, str]) -> None:
    """The view of thousands of engines takes seconds, in which nobody else has a turn."""
    took: list[float] = []
    apart: list[float] = []

    def slow() -> tuple[str, ...]:
        begun = time.monotonic()
        apart.append(begun)
        while time.monotonic() < begun + 0.05:
            pass
        took.append(time.monotonic() - begun)
        return ()

    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)), Pace(spacing=0.0), slow)
        response = feed.subscribe(query)
        assert response.stream is not None
        events = aiter(response.stream)
        await anext(events)
        for _ in range(3):
            await anext(events)
            feed.changed()
        await response.stream.aclose()

    run(test())
    pauses = [later - made for made, later in itertools.pairwise(apart)]
    assert len(pauses) == 2
    assert all(pause >= 10 * spent for pause, spent in zip(pauses, took, strict=False))


def test_so_many_streams_there_may_be_and_one_that_is_closed_makes_room() -> None:
    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)), Pace(streams=2))
        streams = [feed.subscribe({}) for _ in range(3)]
        assert [each.status for each in streams] == [200, 200, 503]
        assert streams[0].stream is not None
        await streams[0].stream.aclose()
        assert [feed.subscribe({}).status for _ in range(2)] == [200, 503]

    run(test())


def test_a_view_is_made_once_for_all_streams() -> None:
    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)))
        made = [await taken(feed.subscribe({}), 2) for _ in range(2)]
        assert made[0][1] is made[1][1]
        feed.changed()
        assert (await taken(feed.subscribe({}), 2))[1] is not made[0][1]

    run(test())


def test_a_compressed_stream_that_ends_is_whole() -> None:
    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)), Pace(lifetime=0.05))
        response = feed.subscribe({}, gzip=True)
        assert response.stream is not None
        unpacker = zlib.decompressobj(wbits=31)
        body = b"".join([unpacker.decompress(part) async for part in response.stream])
        assert (unpacker.eof, unpacker.unused_data) == (True, b"")
        assert len(events(body)) == 1
        await response.stream.aclose()

    run(test())


def test_a_stream_that_always_has_news_ends_after_its_time() -> None:
    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)), Pace(spacing=0.001, lifetime=0.02))
        response = feed.subscribe({})
        assert response.stream is not None
        async for _ in response.stream:
            feed.changed()
        await response.stream.aclose()

    run(test())


def test_a_quiet_stream_beats() -> None:
    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)), Pace(heartbeat=0.01, retry=0.5))
        response = feed.subscribe({})
        assert response.stream is not None
        stream = aiter(response.stream)
        parts = [await anext(stream) for _ in range(5)]
        assert parts[0] == b"retry: 500\n\n"
        assert parts[1].startswith(b"data: ")
        assert parts[2:] == [b":\n\n"] * 3
        await response.stream.aclose()

    run(test())


@pytest.mark.parametrize("early", [0.0, 0.003])
@pytest.mark.parametrize(("heartbeat", "most"), [(0.01, 8), (3600.0, 0)])
def test_a_quiet_stream_ends_after_its_time_and_beats_no_more_often_than_it_should(
    heartbeat: float, most: int, early: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded.timers_are_early(early, monkeypatch)

    async def test() -> None:
        feed = Feed(Poller(Config(discover=False)), Pace(heartbeat=heartbeat, lifetime=0.05))
        response = feed.subscribe({})
        assert response.stream is not None
        _, _, *beats = [each async for each in response.stream]
        assert set(beats) <= {b":\n\n"}
        assert len(beats) <= most
        await response.stream.aclose()

    run(test())
