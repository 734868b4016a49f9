"""One judgement: on the same series a page fires if and only if the engine is in the state that it speaks of.

Histories of engines are played through the derivation, and what it exports through Prometheus' own evaluation of the
shipped rules. A page may come and go by at most `GRACE` seconds beside its state.
"""

from __future__ import annotations

import math
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from llm_headroom import schema
from llm_headroom.derive import memory as derivation
from llm_headroom.derive import state
from llm_headroom.model import Cause, Failure, Health, Histogram, Metric, Point, Series, Snapshot, State
from llm_headroom.poll.health import health_points
from programs import program

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_headroom.model import Metric

RULES: Final = Path(__file__).parents[1] / "alerts" / "llm-headroom.rules.yml"
PAGES: Final = {
    "LLMFirstTokensSlow": State.SLOW,
    "LLMErrorRatioHigh": State.FAILING,
    "LLMModelDown": State.DOWN,
    "LLMEngineStalled": State.STALLED,
    "LLMQueueStarved": State.BLOCKED,
    "LLMInterTokenLatencySlow": State.LAGGING,
}
"""And one ticket, which says of later tokens what the first page says of first ones."""
POLL: Final = 5.0
SCRAPE: Final = 15
KEPT: Final = 180
GRACE: Final = {
    "LLMFirstTokensSlow": (60, 75),
    "LLMErrorRatioHigh": (390, KEPT + 90),
    "LLMModelDown": (150, KEPT + 60),
    "LLMEngineStalled": (90, KEPT + 60),
    "LLMQueueStarved": (120, KEPT + 60),
    "LLMInterTokenLatencySlow": (840, KEPT + 90),
}
"""Seconds by which each page may come and may go after its state: how long it must hold or is kept, and two scrapes."""
SOON: Final = {
    "every request fails": ("LLMErrorRatioHigh", 75),
    "tokens at a crawl": ("LLMTokensTrickle", 150),
    "llama.cpp's slots are taken, and the next ones wait": ("LLMFirstTokensSlow", 45),
    "llama.cpp's slots are taken for good": ("LLMFirstTokensSlow", 45),
}
"""What must page within so many seconds, of the histories in which everything is as bad as it can be."""
BEGIN: Final = 600
"""When the troubles begin."""
BASE: Final = {"engine": "vllm", "target": "t"}
SCRAPED: Final = {"job": "llm-headroom", "instance": "host:9836"}


class Engine:
    """An engine's counters under 2 requests/s, each of 400 prompt and 100 output tokens."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(
            ("first", "late", "trickled", "prompts", "generated", "finished", "failed", "steps", "waited"), 0.0
        )
        self.running = 4.0
        self.waiting = 0.0
        self.overdue: float | None = 0.0
        self.blind = False

    def work(self, requests: float = 10.0, *, late: float = 0.0, failed: float = 0.0, trickled: float = 0.0) -> None:
        """Five seconds of work."""
        grown = {"first": requests, "late": late, "prompts": 400 * requests, "generated": 100 * requests}
        grown |= {"finished": requests - failed, "failed": failed, "steps": 250.0, "trickled": trickled}
        grown["waited"] = 0.05 * (100 * requests - trickled) + trickled
        for name, amount in grown.items():
            self.counts[name] += amount

    def crawl(self) -> None:
        """Five seconds in which each token takes a second."""
        for name in ("generated", "trickled", "waited"):
            self.counts[name] += 5.0 * self.running
        self.counts["steps"] += 5.0

    def go_on(self) -> None:
        """Five seconds of what runs already: nothing begins or ends."""
        self.counts["generated"] += 100
        self.counts["steps"] += 250

    def points(self) -> list[Point]:
        """What it exposes."""
        own = self.counts
        ttft = Histogram((1.0, 2.5, 5.0, math.inf), (*([own["first"] - own["late"]] * 2), *([own["first"]] * 2)), 1.0)
        gaps = Histogram((0.2, math.inf), (own["generated"] - own["trickled"], own["generated"]), own["waited"])

        def point(metric: Metric, value: float | Histogram, **labels: str) -> Point:
            return Point(Series(metric, {**BASE, "model": "m", **labels}), value, "test")

        always = [
            point(schema.REQUESTS_RUNNING, self.running),
            point(schema.REQUESTS_WAITING, self.waiting),
            point(schema.PROMPT_TOKENS, own["prompts"]),
            point(schema.GENERATION_TOKENS, own["generated"]),
            point(schema.ENGINE_STEPS, own["steps"]),
        ]
        if self.blind:
            return always
        return [
            *always,
            point(schema.TIME_TO_FIRST_TOKEN, ttft),
            point(schema.INTER_TOKEN_LATENCY, gaps),
            point(schema.REQUESTS_FINISHED, own["finished"], reason="stop"),
            point(schema.REQUESTS_FAILED, own["failed"], reason="error"),
            *([] if self.overdue is None else [point(schema.PROXY_OVERDUE, self.overdue, slo="ttft")]),
        ]


def calm(engine: Engine, _: float) -> None:
    engine.work()


def late(engine: Engine, at: float) -> None:
    engine.work(late=2.0 if 600 <= at < 900 else 0.0)


def one_late(engine: Engine, at: float) -> None:
    engine.work(late=1.0 if at in {600, 900} else 0.0)


def trickling(engine: Engine, at: float) -> None:
    engine.work(trickled=300.0 if 600 <= at < 1800 else 0.0)


def crawling(engine: Engine, at: float) -> None:
    if 600 <= at < 1800:
        engine.crawl()
    else:
        engine.work()


def few_late(engine: Engine, at: float) -> None:
    """Three requests in two minutes, all of them late, and then in time; no proxy sees them."""
    engine.overdue = None
    if at % 40 == 0:
        engine.work(1.0, late=1.0 if 600 <= at < 1500 else 0.0)
    else:
        engine.work(0.0)


def few_fail(engine: Engine, at: float) -> None:
    """A request every minute and a half, all of which fail, and then none does."""
    if at % 90 == 0:
        engine.work(1.0, failed=1.0 if 600 <= at < 1800 else 0.0)
    else:
        engine.work(0.0)


def all_fail(engine: Engine, at: float) -> None:
    engine.work(failed=10.0 if 600 <= at < 1500 else 0.0)


def few_stray(engine: Engine, at: float) -> None:
    """Four of ten requests fail at once, after calm and before it."""
    engine.work(failed=4.0 if at == 600 else 0.0)


def failing(engine: Engine, at: float) -> None:
    engine.work(failed=2.0 if 600 <= at < 1500 else 0.0)


def some_fail(engine: Engine, at: float) -> None:
    engine.work(failed=0.3 if at >= 600 else 0.0)


def stalled(engine: Engine, at: float) -> None:
    if not 600 <= at < 1200:
        engine.work()


def blocked(engine: Engine, at: float) -> None:
    engine.waiting = 5.0 if 600 <= at < 1500 else 0.0
    if engine.waiting:
        engine.go_on()
    else:
        engine.work()


def unseen(engine: Engine, at: float) -> None:
    """The same without a proxy: first tokens are late as long as they are owed, and then nothing is taken in."""
    engine.overdue = None
    blocked(engine, at)
    engine.waiting *= 4


def slots_taken(engine: Engine, at: float) -> None:
    """Of llama.cpp's: all slots are taken, five requests wait, and each half a minute one gets its turn."""
    engine.blind, engine.overdue = True, None
    engine.waiting = 5.0 if 600 <= at < 1500 else 0.0
    if engine.waiting and at % 30:
        engine.go_on()
    else:
        engine.work(1.0)


def slots_held(engine: Engine, at: float) -> None:
    """The same, but none gets its turn."""
    engine.blind, engine.overdue = True, None
    blocked(engine, at)


def awaited(engine: Engine, at: float) -> None:
    """A proxy sees that first tokens are owed, of which none comes; what runs goes on."""
    engine.overdue = 5.0 if 600 <= at < 1200 else 0.0
    if engine.overdue:
        engine.go_on()
    else:
        engine.work()


def queue(engine: Engine, at: float) -> None:
    engine.waiting = 30.0 if at >= 600 else 0.0
    engine.work()


def absent(begin: float, end: float) -> Callable[[Engine, float], Failure | None]:
    def play(engine: Engine, at: float) -> Failure | None:
        if begin <= at < end:
            return Failure(Cause.REFUSED, "connection refused")
        engine.work()
        return None

    return play


HISTORIES: Final[dict[str, tuple[Callable[[Engine, float], Failure | None], set[State]]]] = {
    "calm": (calm, set()),
    "late first tokens": (late, {State.SLOW}),
    "first tokens that do not come": (awaited, {State.SLOW}),
    "a late first token now and then": (one_late, set()),
    "tokens that trickle": (trickling, {State.LAGGING}),
    "tokens at a crawl": (crawling, {State.LAGGING}),
    "late first tokens of few requests": (few_late, {State.SLOW}),
    "few requests, which all fail": (few_fail, {State.FAILING}),
    "every request fails": (all_fail, {State.FAILING}),
    "a few stray failures": (few_stray, set()),
    "a fifth of the requests fail": (failing, {State.FAILING}),
    "three in a hundred fail": (some_fail, set()),
    "the engine core stands still": (stalled, {State.STALLED}),
    "nothing is taken in": (blocked, {State.BLOCKED}),
    "nothing is taken in, and no proxy sees it": (unseen, {State.SLOW, State.BLOCKED}),
    "llama.cpp's slots are taken, and the next ones wait": (slots_taken, {State.SLOW}),
    "llama.cpp's slots are taken for good": (slots_held, {State.SLOW, State.BLOCKED}),
    "a queue that is worked off": (queue, set()),
    "a crash": (absent(600, 1200), {State.DOWN}),
    "it loads for ten minutes": (absent(0, 600), set()),
    "a lost poll": (absent(600, 605), set()),
}


def played(
    play: Callable[[Engine, float], Failure | None], away: tuple[float, float] = (math.inf, math.inf)
) -> tuple[list[State | None], dict[str, list[float | None]]]:
    """The state at each scrape of 40 minutes, and the series that were scraped; None where one was not there.

    `away` is from when to when there is no exporter: the one that is there afterwards knows nothing of before.
    """
    engine, memory, judge = Engine(), derivation.Memory(), None
    states: list[State | None] = []
    series: dict[str, list[float | None]] = defaultdict(list)
    last: float | None = None
    for at in range(0, 2400, int(POLL)):
        failure = play(engine, float(at))
        if away[0] <= at < away[1]:
            memory, judge, last = derivation.Memory(), None, None
            if at % SCRAPE == 0:
                states.append(None)
                scraped(series, len(states), {UP: 0.0})
            continue
        points: tuple[Point, ...] = ()
        if failure is None:
            own = engine.points()
            memory, derived = derivation.advance(memory, own, float(at), base=BASE)
            points, last = (*own, *derived), float(at)
        health = Health(up=failure is None, error=failure, last_success=last)
        snapshot = Snapshot(target="t", engine="vllm", taken=float(at), points=points, health=health)
        judge, judged = state.judge(judge, snapshot, float(at))
        if at % SCRAPE:
            continue
        states.append(judged[0].state)
        exported = [*points, *state.state_points(judged, BASE), *health_points(snapshot, {}, {}, BASE)]
        samples = {UP: 1.0}
        for each in exported:
            if isinstance(each.value, Histogram):
                samples[named(each.series, "_count")] = each.value.count
                samples[named(each.series, "_sum")] = each.value.sum
            else:
                samples[named(each.series)] = each.value
        scraped(series, len(states), samples)
    for values in series.values():
        values.extend([None] * (len(states) - len(values)))
    return states, series


UP: Final = 'up{job="llm-headroom",instance="host:9836"}'


def named(series: Series, part: str = "") -> str:
    """A series as Prometheus names it, with what a scrape adds."""
    labels = ",".join(f'{name}="{value}"' for name, value in {**dict(series.labels), **SCRAPED}.items())
    return f"{series.metric.name}{part}{{{labels}}}"


def scraped(series: dict[str, list[float | None]], scrapes: int, samples: dict[str, float]) -> None:
    """Note what the last of so many scrapes has."""
    for name, value in samples.items():
        values = series[name]
        values += [None] * (scrapes - 1 - len(values)) + [value]


def written(name: str, values: list[float | None]) -> dict[str, str]:
    """A series as promtool reads it."""
    text = ["stale" if value is None else f"{value:.10g}" for value in values]
    return {"series": name, "values": " ".join(text)}


def fires(alert: str, scrape: int, must: float, name: str = "vector(0)") -> dict[str, Any]:
    """A check of promtool's, whether an alert fires at a scrape."""
    return {
        "expr": f'count(ALERTS{{alertname=~"{alert}", alertstate="firing"}}) > bool 0 or {name}',
        "eval_time": f"{scrape * SCRAPE}s",
        "exp_samples": [{"labels": "{}", "value": float(must)}],
    }


def checked(folder: Path, series: dict[str, list[float | None]], checks: list[dict[str, Any]]) -> str:
    """What promtool finds wrong of checks on the shipped rules over what was scraped; nothing if all is well."""
    groups = [
        {"name": group["name"], "rules": [rule for rule in group["rules"] if _needed(rule)]}
        for group in yaml.safe_load(RULES.read_text())["groups"]
    ]
    groups = [group for group in groups if group["rules"]]
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    test = {
        "interval": f"{SCRAPE}s",
        "input_series": [written(each, values) for each, values in series.items()],
        "promql_expr_test": checks,
    }
    order = [group["name"] for group in groups]  # else promtool draws one
    document = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{SCRAPE}s",
        "group_eval_order": order,
        "tests": [test],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [program("promtool", "prometheus"), "test", "rules", "test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout[-3000:] + done.stderr[-3000:] if done.returncode else ""


def expected(page: str, states: list[State | None], scrape: int) -> bool | None:
    """Whether the page must fire at a scrape; None where it may.

    A state outlasts its last sign, so the page may be over before it; and it may go on while a worse state's page
    inhibits it.
    """
    if states[scrape] is State.BLOCKED and page == "LLMFirstTokensSlow":
        return None
    rise, fall = (math.ceil(each / SCRAPE) for each in GRACE[page])
    there = [each is PAGES[page] for each in states]
    outlasted = math.ceil(state.CLEAR.get(PAGES[page], 0.0) / SCRAPE) + 2
    if scrape >= rise and all(there[scrape - rise : scrape + outlasted + 1]):
        return True
    return None if any(there[max(0, scrape - fall) : scrape + outlasted + 1]) else False


@pytest.mark.parametrize("name", HISTORIES)
def test_a_page_fires_if_and_only_if_the_state_is_there(name: str, tmp_path: Path) -> None:
    play, wanted = HISTORIES[name]
    states, series = played(play)
    checks = [
        fires(page, scrape, must)
        for page in PAGES
        for scrape in range(len(states))
        if (must := expected(page, states, scrape)) is not None
    ]
    gapless = [  # users wait all the time: between these two pages there is no gap
        fires("LLMFirstTokensSlow|LLMQueueStarved", scrape, must=True)
        for scrape in range(4, len(states))
        if State.SLOW in wanted and {*states[scrape - 4 : scrape + 7]} <= {State.SLOW, State.BLOCKED}
    ]
    soon, seconds = SOON.get(name, ("LLMTokensTrickle", math.inf))
    quick = [fires(soon, scrape, must=False) for scrape in range(BEGIN // SCRAPE)]
    if math.isinf(seconds):
        quick += [fires(soon, scrape, must=False) for scrape in range(len(states))]
    else:
        quick += [fires(soon, scrape, must=True) for scrape in range(math.ceil((BEGIN + seconds) / SCRAPE), 100)]

    assert {each for each in states if each in PAGES.values()} == wanted
    assert not checked(tmp_path, series, checks + gapless + quick)
    fired = {page for page in PAGES for check in checks if page in check["expr"] and check["exp_samples"][0]["value"]}
    assert {PAGES[page] for page in fired} == wanted


@pytest.mark.parametrize("seconds", [15.0, 150.0], ids=["restart", "upgrade"])
@pytest.mark.parametrize("name", [name for name, (_, wanted) in HISTORIES.items() if wanted])
def test_no_page_ends_because_the_exporter_restarts(name: str, seconds: float, tmp_path: Path) -> None:
    """The one that comes knows nothing of what the one that ended knew."""
    play, wanted = HISTORIES[name]
    states, _ = played(play)
    of_states = {of: page for page, of in PAGES.items()}
    worst = max(wanted, key=states.count)
    page = of_states[worst]
    there = [scrape for scrape, one in enumerate(states) if one is worst]
    begun = there[0] + math.ceil(GRACE[page][0] / SCRAPE)
    last = there[-1] - math.ceil(state.CLEAR.get(worst, 0.0) / SCRAPE) - 2
    away = (begun + 3) * SCRAPE - 1.0

    _, series = played(play, (away, away + seconds))

    checks = [fires(page, scrape, must=True) for scrape in range(begun, last)]
    assert not checked(tmp_path, series, checks)


def _needed(rule: dict[str, str]) -> bool:
    return rule.get("alert") in {*PAGES, *(page for page, _ in SOON.values())} or rule.get("record", "").startswith(
        ("target_model:", "target:llm_up")
    )
