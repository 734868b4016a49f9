"""The status page in a browser, and the stream behind it over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import signal
import zlib
from typing import TYPE_CHECKING

import pytest

import nvml_library
from bounded import run
from captures import Capture
from chromium import Chromium
from engine_server import EngineServer, Reply, at_work, replayed
from exporter_process import Exporter
from free_port import free_port
from llm_headroom.config.settings import Config
from llm_headroom.model import Health, Point, Series, Snapshot
from llm_headroom.net.http_connection import Limits
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.slot import Slot
from llm_headroom.schema import REQUESTS_RUNNING, REQUESTS_WAITING
from llm_headroom.view.values import from_json
from llm_headroom.web.server import serve
from llm_headroom.web.stream import Feed, Pace
from silent_source import Silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from engine_server import Behaviour
    from llm_headroom.net.http_messages import Request, Response
    from llm_headroom.net.http_server import HttpServer

SATURATED = Capture("vllm", "0.32.0", "saturated")
STARTING = Capture("vllm", "0.32.0", "idle_startup")
SGLANG = Capture("sglang", "0.5.23", "saturated")
OLLAMA = Capture("ollama", "0.33.0-rc2", "ps_loaded")
NOWHERE = "http://127.0.0.1:9"
"""The port of the discard service, which nobody runs."""
FAST = ("--interval", "200ms", "--no-discover")
LIVE = "document.getElementById('live').textContent === 'live'"


@pytest.fixture
def vllm() -> Iterator[EngineServer]:
    with EngineServer(at_work(SATURATED)) as server:
        yield server


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


@pytest.fixture
def browser(chromium: Chromium) -> Iterator[Chromium]:
    with chromium.page() as page:
        yield page


# The page ------------------------------------------------------------------------------------------------------------
@pytest.mark.waits(12)
def test_the_page_follows_the_engines_without_being_loaded_again(vllm: EngineServer, browser: Chromium) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu", *FAST) as exporter:
        browser.open(f"{exporter.url}/")
        browser.until(r"document.querySelector('.card')?.innerText.includes('Waiting\n39')")  # 39 may be in its port
        browser.until(LIVE)
        browser.evaluate("document.querySelector('details').open = true; window.same = document.querySelector('h3')")
        vllm.routes = replayed(STARTING)
        browser.until(r"!document.querySelector('.card').innerText.includes('Waiting\n39')")
        kept = browser.evaluate("[window.same.isConnected, document.querySelector('details').open]")
        vllm.routes = {}
        browser.until("document.querySelector('.card.bad')?.innerText.includes('answered 404')")
        down = browser.evaluate("document.querySelector('main').innerText")
        title, icon = browser.evaluate("[document.title, document.querySelector('link[rel=icon]').href]")

    assert kept == [True, True]
    assert "Waiting" not in down
    assert "tiny-llama" in down, "its name stays"
    assert title == "■ 1 in trouble of 1 – llm-headroom"
    assert icon.endswith("/static/icon-bad.svg")
    assert browser.requests.count(f"{exporter.url}/") == 1
    assert all(url.startswith(exporter.url) for url in browser.requests)
    assert browser.log == []


def test_the_page_says_when_the_exporter_is_gone_and_returns_with_it(vllm: EngineServer, browser: Chromium) -> None:
    with free_port() as port:
        arguments = ("--listen", f"127.0.0.1:{port}", f"--target=vllm={vllm.url}", "--no-gpu", *FAST)
        with Exporter(*arguments):
            browser.open(f"http://127.0.0.1:{port}/")
            browser.until(LIVE)
        browser.until("document.getElementById('live').textContent === 'connection lost'")
        with Exporter(*arguments):
            browser.until(LIVE)


MANY = 9


def fleet(folder: Path, engines: Sequence[EngineServer]) -> str:
    """A configuration of so many targets, a-0, a-1, … of these engines in turn, with labels and links."""
    targets = "\n".join(
        f"- {{url: '{engine.url}/p{number}', engine: vllm, name: a-{number}, labels: {{team: search}}}}"
        for number in range(MANY)
        for engine in [engines[number % len(engines)]]
    )
    path = folder / "headroom.yml"
    links = "links: {grafana: 'https://g.example/d/engine', runbooks: 'https://r.example/alerts.md'}"
    path.write_text(f"targets:\n{targets}\n{links}\ninterval: 200ms\ndiscover: false\ngpu: false\n")
    return str(path)


def under(prefixes: int, capture: Capture) -> dict[str, Reply | Behaviour]:
    """The routes of an engine under several prefixes."""
    return {f"/p{number}{path}": reply for number in range(prefixes) for path, reply in at_work(capture).items()}


ROWS = "[...document.querySelectorAll('tbody:not([hidden]) > tr:first-child')].map(row => row.cells[1].innerText)"


def test_many_engines_are_a_table_that_sorts_filters_and_opens_cards(browser: Chromium, tmp_path: Path) -> None:
    with (
        EngineServer(under(MANY, SATURATED)) as busy,
        EngineServer(under(MANY, STARTING)) as idle,
        Exporter("--config", fleet(tmp_path, [idle, busy])) as exporter,
    ):
        exporter.until(exporter.all_up)
        browser.open(f"{exporter.url}/")
        browser.until(f"{LIVE} && document.querySelectorAll('tbody').length === {MANY}")
        browser.until("[...document.querySelectorAll('td')].some((cell) => cell.innerText.trim() === '39')")
        browser.evaluate("document.querySelectorAll('[data-sort]')[4].click()")
        down = browser.evaluate(f"[{ROWS}, document.querySelectorAll('th')[4].ariaSort]")
        browser.evaluate("document.querySelectorAll('[data-sort]')[4].click()")
        up = browser.evaluate(f"[{ROWS}, document.querySelectorAll('th')[4].ariaSort]")
        browser.evaluate(
            "const box = document.querySelector('input'); box.value = 'A-3 search';"
            "box.dispatchEvent(new Event('input', {bubbles: true}))"
        )
        browser.until(f"document.body.innerText.includes('1 of {MANY} shown')")
        filtered = browser.evaluate(ROWS)
        browser.evaluate("document.querySelector('tbody:not([hidden]) a').click()")
        browser.until("document.querySelector('tbody:not([hidden]) article')?.innerText.includes('KV cache')")
        card, query, links = browser.evaluate(
            "[document.querySelector('article').innerText, location.search,"
            " [...document.querySelectorAll('article a')].map(each => each.href)]"
        )
        without = exporter.get(f"/{query}")[2].decode()
        browser.evaluate("document.querySelector('tbody:not([hidden]) a').click()")
        browser.until("!document.querySelector('article')")
        still = browser.evaluate(ROWS)

    assert [name[:3] for name in down[0][:4]] == ["a-1", "a-3", "a-5", "a-7"]
    assert (down[1], up[1]) == ("descending", "ascending")
    assert [name[:3] for name in up[0][-4:]] == ["a-1", "a-3", "a-5", "a-7"]
    assert [name.split() for name in filtered] == [["a-3", "team=search"]]
    assert "team=search" in card
    assert "https://g.example/d/engine?var-engine=vllm&var-model=tiny-llama&var-target=a-3" in links
    assert without.count("<article") == 1, "a card opens without scripts, too"
    assert still == filtered
    assert browser.log == []


@pytest.mark.waits(10)
def test_the_page_says_who_is_in_trouble_and_leads_there(browser: Chromium, tmp_path: Path) -> None:
    with (
        EngineServer(under(MANY, STARTING)) as idle,
        Exporter("--config", fleet(tmp_path, [idle])) as exporter,
    ):
        exporter.until(exporter.all_up)
        browser.open(f"{exporter.url}/")
        browser.until(f"{LIVE} && document.querySelector('.summary')?.innerText.includes('{MANY} models, all fine')")
        idle.routes = {path: reply for path, reply in idle.routes.items() if not path.startswith("/p4/")}
        browser.until("document.querySelector('.wrong')?.innerText.includes('tiny-llama on a-4 down')")
        heard = browser.evaluate("document.getElementById('said').textContent")
        first = browser.evaluate(ROWS)[0]
        browser.evaluate("document.querySelector('.wrong a').click()")
        browser.until("document.querySelector('article.bad')?.innerText.includes('What to do')")

    assert heard == f"1 in trouble of {MANY}"
    assert first.startswith("a-4"), "the worst comes first"
    assert browser.log == []


def test_a_chart_gives_its_values_and_the_day_is_a_choice(vllm: EngineServer, browser: Chromium) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu", *FAST) as exporter:
        browser.open(f"{exporter.url}/")
        browser.until("document.querySelectorAll('svg.chart polyline.waiting').length")
        browser.evaluate(
            "const chart = document.querySelector('svg.chart'); const box = chart.getBoundingClientRect();"
            "chart.dispatchEvent(new PointerEvent('pointermove',"
            " {bubbles: true, clientX: box.right - 1, clientY: box.top + 5}))"
        )
        tip = browser.evaluate("document.getElementById('tip').textContent")
        axis = browser.evaluate("document.querySelector('.plot').innerText")
        browser.until("document.querySelector('svg.band rect.good title')?.textContent.startsWith('ok')")
        browser.evaluate("document.querySelector('h4 a[data-look]').click()")
        browser.until("document.querySelector('.plot .then')?.innerText === '24\\u00a0h ago'")

    assert "waiting 39" in tip
    assert "running 8" in tip
    assert axis.split() == ["50", "0", "60", "s", "ago", "now"]
    assert browser.log == []


def test_a_configuration_that_was_not_reloaded_shows(vllm: EngineServer, tmp_path: Path) -> None:
    path = tmp_path / "headroom.yml"
    path.write_text(f"targets: ['vllm={vllm.url}']\ngpu: false\n")
    with Exporter("--config", str(path)) as exporter:
        path.write_text("targets: 5\n")
        exporter.process.send_signal(signal.SIGHUP)
        exporter.logged("configuration not reloaded")
        broken = exporter.get("/")[2].decode()
        path.write_text(f"targets: ['vllm={vllm.url}']\ngpu: false\n")
        exporter.process.send_signal(signal.SIGHUP)
        exporter.logged("configuration reloaded")
        whole = exporter.get("/")[2].decode()

    assert "the old one is in force" in broken
    assert f"{path}:1: targets" in broken
    assert "in force" not in whole


def test_what_is_loaded_is_compressed_for_those_who_can(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu", *FAST) as exporter:
        exporter.until(exporter.all_up)
        for path in ("/", "/static/page.css", "/static/page.js", "/api/v1/snapshot"):
            _, headers, plain = exporter.get(path)
            _, packed_headers, packed = exporter.get(path, Accept_Encoding="gzip")
            assert "content-encoding" not in headers
            assert packed_headers["content-encoding"] == "gzip"
            assert len(packed) < len(plain) / 2
            assert gzip.decompress(packed)[:9] == plain[:9]


def test_without_scripts_the_page_is_whole(vllm: EngineServer, chromium: Chromium) -> None:
    wanted = ["tiny-llama", "vLLM 0.32.0", "8 running, 39 waiting", "98% of 2,048 tokens", "no traffic"]
    wanted += ["small:latest", "on the CPU", "not loaded", "the connection was refused", "1 with a warning"]
    with (
        chromium.page(scripts=False) as browser,
        EngineServer(replayed(OLLAMA)) as ollama,
        Exporter(
            *(f"--target=vllm={vllm.url}", f"--target=ollama={ollama.url}", f"--target=vllm={NOWHERE}"),
            *("--no-gpu", *FAST),
        ) as exporter,
    ):

        def whole() -> bool:
            browser.open(f"{exporter.url}/")
            shown = browser.evaluate("document.body.innerText")
            return all(text in shown for text in wanted)

        exporter.until(whole)
        live = browser.evaluate("document.getElementById('live').textContent")

    assert live == ""
    assert browser.log == []


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_need_not_scroll_sideways(width: int, vllm: EngineServer, browser: Chromium, tmp_path: Path) -> None:
    machine = nvml_library.Description(tmp_path / "gpus", nvml_library.fixture("h100"))
    with (
        EngineServer(replayed(SGLANG)) as sglang,
        Exporter(
            *(f"--target=vllm={vllm.url}", f"--target=sglang={sglang.url}", f"--target=vllm={NOWHERE}"),
            *FAST,
            extra=machine.environment(nvml_library.build(tmp_path)),
        ) as exporter,
    ):
        browser.size(width, 800)
        browser.open(f"{exporter.url}/")
        browser.until(f"{LIVE} && document.body.innerText.includes('NVIDIA H100')")
        browser.until("document.querySelectorAll('.card').length >= 4")  # the GPU may be read before the engines
        browser.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        found = browser.evaluate("[document.documentElement.scrollWidth, document.querySelectorAll('.card').length]")
        columns = browser.evaluate("new Set([...document.querySelectorAll('.card')].map(c => c.offsetLeft)).size")

    assert found == [width, 4]
    assert columns == 1


def test_names_that_engines_make_up_are_text_and_nothing_else(browser: Chromium) -> None:
    name = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    text = f'vllm:num_requests_running{{model_name="{name}"}} 1.0\n'
    with (
        EngineServer({"/metrics": Reply(text.encode())}) as hostile,
        Exporter(f"--target=vllm={hostile.url}", "--no-gpu", *FAST) as exporter,
    ):
        browser.open(f"{exporter.url}/")
        browser.until(f"{LIVE} && document.querySelector('h3')?.innerText.includes('onerror')")
        found = browser.evaluate("[document.querySelectorAll('main img, main script').length, window.hacked ?? 0]")

    assert found == [0, 0]
    assert browser.log == []


def test_the_policy_of_the_page_forbids_what_it_does_not_need(vllm: EngineServer, browser: Chromium) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu", *FAST) as exporter:
        _, headers, page = exporter.get("/")
        browser.open(f"{exporter.url}/")
        browser.until(LIVE)
        browser.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 1'}))")
        browser.evaluate("document.body.setAttribute('style', 'opacity: 0')")
        browser.until("getComputedStyle(document.body).opacity === '1' && !window.hacked")

    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert b"style=" not in page
    refused = [text for _, text in browser.log if "Content Security Policy" in text]
    assert len(refused) == 2, browser.log


def test_the_page_has_its_own_files_and_no_others(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu", *FAST) as exporter:
        kinds = {name: exporter.get(f"/static/{name}") for name in ("page.css", "page.js", "icon.svg", "icon-bad.svg")}
        missing = [exporter.get(f"/static/{name}")[0] for name in ("", "page.py", "../page.py", "..%2fpage.py")]

    assert [(status, headers["content-type"]) for status, headers, _ in kinds.values()] == [
        (200, "text/css; charset=utf-8"),
        (200, "text/javascript; charset=utf-8"),
        (200, "image/svg+xml"),
        (200, "image/svg+xml"),
    ]
    assert missing == [404, 404, 404, 404]


# The stream ----------------------------------------------------------------------------------------------------------
class Engine:
    """A poller with one engine that publishes what a test says, and the server of its streams."""

    def __init__(self, pace: Pace) -> None:
        config = Config()
        self.poller = Poller(config)
        self.feed = Feed(self.poller, pace)
        self._slot = Slot("t", Silent(), {})
        self.poller.slots["t"] = self._slot

    def publish(self, running: float) -> None:
        """The engine runs so many requests, and as many wait, at a time of its own."""
        points = tuple(
            Point(Series(each, {"model": "m"}), running, "test") for each in (REQUESTS_RUNNING, REQUESTS_WAITING)
        )
        self._slot.publish(Snapshot(target="t", engine="vllm", taken=running, points=points, health=Health(up=True)))
        self.feed.changed()

    def add(self, name: str) -> None:
        """Another engine, that says something once."""
        slot = self.poller.slots[name] = Slot(name, Silent(), {})
        slot.publish(Snapshot(target=name, engine="vllm", taken=1.0, health=Health(up=True)))
        self.feed.changed()

    async def handle(self, request: Request) -> Response:
        """What the exporter does with its stream's path."""
        return self.feed.subscribe(request.query, gzip="gzip" in request.headers.get("accept-encoding", ""))


class Client:
    """One reader of a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def line(self, start: str) -> str:
        """The rest of the next line that starts so."""
        while line := (await self.reader.readline()).decode():
            if line.startswith(start):
                return line.removeprefix(start).strip()
        raise EOFError(start)

    async def running(self) -> float | None:
        """The running requests of the next event."""
        return from_json(json.loads(await self.line("data: "))).engines[0].running


@contextlib.asynccontextmanager
async def served(pace: Pace) -> AsyncIterator[tuple[Engine, HttpServer]]:
    engine = Engine(pace)
    engine.publish(1.0)
    # Whatever is under way for so long would hold the test up until it fails.
    server = await serve(engine.handle, ["127.0.0.1:0"], limits=Limits(grace_seconds=1000))
    try:
        yield engine, server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def client(server: HttpServer, query: str = "", method: str = "GET") -> AsyncIterator[Client]:
    host, _, port = server.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"{method} /api/v1/stream{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_every_client_hears_of_every_change() -> None:
    async def test() -> None:
        async with served(Pace(spacing=0.0)) as (engine, server), client(server) as first, client(server) as second:
            assert [await each.running() for each in (first, second)] == [1.0, 1.0]
            for value in (2.0, 3.0):
                engine.publish(value)
                assert [await each.running() for each in (first, second)] == [value, value]

    run(test())


def test_a_stream_says_what_it_is_and_when_to_come_back() -> None:
    async def test() -> None:
        async with served(Pace()) as (_, server), client(server) as one:
            assert await one.line("HTTP/1.1 ") == "200 OK"
            assert await one.line("Content-Type: ") == "text/event-stream; charset=utf-8"
            assert await one.line("Cache-Control: ") == "no-store"
            assert await one.line("retry: ") == "2000"

    run(test())


def test_changes_that_come_too_fast_are_told_as_one() -> None:
    async def test() -> None:
        async with served(Pace(spacing=0.3)) as (engine, server), client(server) as one:
            assert await one.running() == 1.0
            for value in range(2, 50):
                engine.publish(float(value))
                await asyncio.sleep(0)  # the stream has its turn after each of them
            told = [await one.running()]
            while told[-1] != 49.0:
                told.append(await one.running())
            assert len(told) < 10

    run(test())


def test_a_stream_without_news_beats_and_ends_after_its_time() -> None:
    async def test() -> None:
        async with served(Pace(heartbeat=0.05, lifetime=0.5)) as (_, server), client(server) as one:
            assert await one.running() == 1.0
            rest = await one.reader.read()
            assert b":\n\n" in rest
            assert rest.endswith(b"0\r\n\r\n")

    run(test())


def test_a_stream_with_news_ends_after_its_time_too() -> None:
    async def test() -> None:
        async with served(Pace(spacing=0.01, lifetime=0.3)) as (engine, server), client(server) as one:

            async def publish() -> None:
                value = 1.0
                while True:
                    value += 1
                    engine.publish(value)
                    await asyncio.sleep(0.01)

            publishing = asyncio.create_task(publish())
            assert (await one.reader.read()).endswith(b"0\r\n\r\n")
            publishing.cancel()

    run(test())


def test_no_more_streams_than_the_limit_and_a_client_that_leaves_makes_room() -> None:
    async def test() -> None:
        async with served(Pace(streams=2)) as (_, server), client(server) as first:
            async with client(server) as second:
                assert [await each.running() for each in (first, second)] == [1.0, 1.0]
                async with client(server) as third:
                    assert (await third.line("HTTP/1.1 ")).startswith("503")
            status = "503"
            while status.startswith("503"):  # until the server has seen the second one leave
                async with client(server) as fourth:
                    status = await fourth.line("HTTP/1.1 ")
            assert status == "200 OK"

    run(test())


def test_a_head_request_takes_no_stream() -> None:
    async def test() -> None:
        async with served(Pace(streams=1)) as (_, server):
            async with client(server, method="HEAD") as one:
                assert (await one.reader.read()).startswith(b"HTTP/1.1 200 OK")
            async with client(server) as two:
                assert await two.running() == 1.0

    run(test())


def test_a_client_that_reads_nothing_holds_nobody_up() -> None:
    async def test() -> None:
        async with (
            served(Pace(spacing=0.0)) as (engine, server),
            client(server, "?form=page") as _,
            client(server) as two,
        ):
            for value in range(1, 200):
                engine.publish(float(value))
                while await two.running() != float(value):
                    pass

    run(test())


def test_the_end_of_the_server_is_the_end_of_its_streams() -> None:
    async def test() -> None:
        async with contextlib.AsyncExitStack() as stack:
            _, server = await stack.enter_async_context(served(Pace()))
            clients = [await stack.enter_async_context(client(server)) for _ in range(2)]
            assert [await each.running() for each in clients] == [1.0, 1.0]
            await server.close()
            for each in clients:
                with contextlib.suppress(ConnectionResetError):
                    await each.reader.read()

    run(test())


def test_the_page_s_form_is_html_and_an_unknown_form_is_refused() -> None:
    async def test() -> None:
        async with served(Pace()) as (_, server):
            async with client(server, "?form=page") as one:
                event = json.loads(await one.line("data: "))
                assert set(event["order"]) == set(event["parts"]) > {"summary", "engines", "gpus", "absent"}
                assert any('<article class="card good"' in html for html in event["parts"].values())
            async with client(server, "?form=xml") as two:
                assert (await two.line("HTTP/1.1 ")).startswith("400")

    run(test())


def test_a_page_is_sent_what_has_changed_and_nothing_else() -> None:
    async def test() -> None:
        async with served(Pace(spacing=0.0)) as (engine, server):
            for number in range(20):
                engine.add(f"other-{number}")
            async with client(server, "?form=page") as one:
                first = await one.line("data: ")
                engine.publish(2.0)
                second = await one.line("data: ")
        changed = json.loads(second)
        assert len(changed["parts"]) == 1
        assert "order" not in changed
        assert '<tbody data-id="e' in next(iter(changed["parts"].values()))
        assert len(second) < len(first) / 10

    run(test())


def test_a_compressed_stream_can_be_read_event_by_event() -> None:
    async def test() -> None:
        async with served(Pace(spacing=0.0)) as (engine, server):
            host, _, port = server.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Encoding: gzip" in head
            unpacked, seen = zlib.decompressobj(wbits=31), b""
            for value in (1.0, 2.0, 3.0):
                while f'"running":{value}'.encode() not in seen:
                    size = int((await reader.readline()).strip(), 16)
                    seen += unpacked.decompress(await reader.readexactly(size))
                    await reader.readline()
                engine.publish(value + 1)
            writer.close()

    run(test())


def test_the_exporter_streams_what_it_polls_and_ends_at_once(vllm: EngineServer) -> None:
    with Exporter(f"--target=vllm={vllm.url}", "--no-gpu", *FAST) as exporter:
        host = exporter.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request("GET", "/api/v1/stream")
        response = connection.getresponse()
        model = ""
        while model != "tiny-llama":
            line = response.readline()
            if line.startswith(b"data: "):
                engines = from_json(json.loads(line[6:])).engines
                model = engines[0].model if engines else ""
    assert exporter.process.poll() == 0
    response.close()
    connection.close()
