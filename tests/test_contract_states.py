"""One judgement: on the same series a page fires if and only if the engine is in the state that it speaks of.

Histories of engines are played through the derivation, and what it exports through Prometheus' own evaluation of the
shipped rules: all histories at once, each as an exporter and a cluster of its own. A page may come and go by at most
`GRACE` seconds beside its state.
"""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from llm_headroom import schema
from llm_headroom.derive import memory as derivation
from llm_headroom.derive import state
from llm_headroom.model import Cause, Failure, Health, Histogram, Metric, Point, Series, Snapshot, State
from llm_headroom.poll.health import health_points
from programs import program
from rules_read import document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
    "half of the requests hang": ("LLMFirstTokensSlow", 60),
    "llama.cpp's slots are taken, and the next ones wait": ("LLMFirstTokensSlow", 45),
    "llama.cpp's slots are taken for good": ("LLMFirstTokensSlow", 45),
}
"""What must page within so many seconds, of the histories in which everything is as bad as it can be."""
BEGIN: Final = 600
"""When the troubles begin."""
BASE: Final = {"engine": "vllm", "target": "t"}
Scrapes = dict[str, list[float | None]]
"""Series, with what each scrape found of them; None where one was not there."""


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


def half_hang(engine: Engine, at: float) -> None:
    """Half of the requests wait for a prefill worker that is dead, for five minutes; the other half is in time."""
    engine.overdue = None
    if 600 <= at < 1500:
        engine.work(5.0)
        engine.waiting = min(engine.waiting + 5.0, 300.0)
    else:
        engine.work()
        engine.waiting = 0.0


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
    "half of the requests hang": (half_hang, {State.SLOW}),
    "llama.cpp's slots are taken, and the next ones wait": (slots_taken, {State.SLOW}),
    "llama.cpp's slots are taken for good": (slots_held, {State.SLOW, State.BLOCKED}),
    "a queue that is worked off": (queue, set()),
    "a crash": (absent(600, 1200), {State.DOWN}),
    "it loads for ten minutes": (absent(0, 600), set()),
    "a lost poll": (absent(600, 605), set()),
}


@functools.cache
def played(
    name: str, away: tuple[float, float] = (math.inf, math.inf), until: int = 2400
) -> tuple[list[State | None], Scrapes]:
    """The state at each scrape of a history, and the series that were scraped.

    `away` is from when to when there is no exporter: the one that is there afterwards knows nothing of before.
    """
    play, _ = HISTORIES[name]
    engine, memory, judge = Engine(), derivation.Memory(), None
    states: list[State | None] = []
    series: Scrapes = defaultdict(list)
    last: float | None = None
    up = named(name, "up", {})
    for at in range(0, until, int(POLL)):
        failure = play(engine, float(at))
        if away[0] <= at < away[1]:
            memory, judge, last = derivation.Memory(), None, None
            if at % SCRAPE == 0:
                states.append(None)
                scraped(series, len(states), {up: 0.0})
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
        samples = {up: 1.0}
        for each in exported:
            metric, labels = each.series.metric.name, dict(each.series.labels)
            if isinstance(each.value, Histogram):
                parts = {f"{metric}_count": each.value.count, f"{metric}_sum": each.value.sum}
            else:
                parts = {metric: each.value}
            samples |= {named(name, part, labels): value for part, value in parts.items() if part in read()}
        scraped(series, len(states), samples)
    for values in series.values():
        values.extend([None] * (len(states) - len(values)))
    return states, series


@functools.cache
def needed() -> list[dict[str, Any]]:
    """The shipped groups, with the rules alone that make these pages."""
    groups = [
        {"name": group["name"], "rules": [rule for rule in group["rules"] if _needed(rule)]}
        for group in document(RULES)["groups"]
    ]
    return [group for group in groups if group["rules"]]


@functools.cache
def read() -> frozenset[str]:
    """Every word of these rules, and so every name that they read: promtool is spared the other series."""
    return frozenset(word for group in needed() for rule in group["rules"] for word in re.findall(r"\w+", rule["expr"]))


def named(history: str, metric: str, labels: dict[str, str]) -> str:
    """A series as Prometheus names it, with what a scrape adds."""
    added = {"job": "llm-headroom", "instance": f"{history}:9836", "cluster": history}
    text = ",".join(f'{name}="{value}"' for name, value in {**labels, **added}.items())
    return f"{metric}{{{text}}}"


def scraped(series: Scrapes, scrapes: int, samples: dict[str, float]) -> None:
    """Note what the last of so many scrapes has."""
    for name, value in samples.items():
        values = series[name]
        values += [None] * (scrapes - 1 - len(values)) + [value]


def written(name: str, values: list[float | None]) -> dict[str, str]:
    """A series as promtool reads it."""
    text = ["stale" if value is None else f"{value:.10g}" for value in values]
    return {"series": name, "values": " ".join(text)}


def fires(history: str, scrape: int, pages: dict[str, bool]) -> dict[str, Any]:
    """A check of promtool's: of these pages those fire at a scrape that must, and no other."""
    return {
        "expr": f"group by (alertname) ({_alerts(history, pages)})",
        "eval_time": f"{scrape * SCRAPE}s",
        "exp_samples": [{"labels": f'{{alertname="{page}"}}', "value": 1} for page, must in pages.items() if must],
    }


def one_fires(history: str, scrape: int, *pages: str) -> dict[str, Any]:
    """A check of promtool's: at least one of these pages fires at a scrape."""
    samples = [{"labels": "{}", "value": 1}]
    return {"expr": f"group({_alerts(history, pages)})", "eval_time": f"{scrape * SCRAPE}s", "exp_samples": samples}


def _alerts(history: str, pages: Iterable[str]) -> str:
    return f'ALERTS{{cluster="{history}", alertname=~"{"|".join(pages)}", alertstate="firing"}}'


def wrong(folder: Path, series: Iterable[Scrapes], checks: list[dict[str, Any]]) -> dict[str, str]:
    """Of which histories promtool finds a check wrong, and the first of them, by the shipped rules over the series."""
    (folder / "rules.yml").write_text(json.dumps({"groups": needed()}))  # JSON is YAML, and written in no time
    test = {
        "interval": f"{SCRAPE}s",
        "input_series": [written(each, values) for one in series for each, values in one.items()],
        "promql_expr_test": checks,
    }
    file = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{SCRAPE}s",
        "group_eval_order": [group["name"] for group in needed()],  # else promtool draws one
        "tests": [test],
    }
    (folder / "test.yml").write_text(json.dumps(file))
    done = subprocess.run(
        [program("promtool", "prometheus"), "test", "rules", "test.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    found = re.findall(r'(expr: "[^\n]*?cluster=[\\]*"(.*?)[\\]*".*?\n *got:[^\n]*)', said, re.DOTALL)
    by_name = {name: text for text, name in reversed(found)}
    assert bool(by_name) == bool(done.returncode), said[-3000:]
    return by_name


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


def at_once(name: str, scrape: int) -> dict[str, bool]:
    """Whether the page of `SOON` must fire at a scrape; none where it may. Tokens trickle in no other history."""
    page, seconds = SOON.get(name, ("LLMTokensTrickle", math.inf))
    if scrape < BEGIN // SCRAPE or math.isinf(seconds):
        return {page: False}
    return {page: True} if (BEGIN + seconds) / SCRAPE <= scrape < 100 else {}


@pytest.mark.works(10)
def test_a_page_fires_if_and_only_if_the_state_is_there(tmp_path: Path) -> None:
    checks = []
    fired: dict[str, set[State]] = {name: set() for name in HISTORIES}
    for name, (_, wanted) in HISTORIES.items():
        states, _ = played(name)
        for scrape in range(len(states)):
            may = {page: expected(page, states, scrape) for page in PAGES}
            must = {page: fires for page, fires in may.items() if fires is not None}
            fired[name] |= {PAGES[page] for page, fires in must.items() if fires}
            soon = at_once(name, scrape)
            assert must | soon == soon | must, (name, scrape)  # else no rules could give both
            checks.append(fires(name, scrape, must | soon))
            users_wait = {*states[max(0, scrape - 4) : scrape + 7]} <= {State.SLOW, State.BLOCKED}
            if State.SLOW in wanted and scrape >= 4 and users_wait:  # between these two pages there is no gap
                checks.append(one_fires(name, scrape, "LLMFirstTokensSlow", "LLMQueueStarved"))

    wanted_states = {name: wanted for name, (_, wanted) in HISTORIES.items()}
    assert {name: {each for each in played(name)[0] if each in PAGES.values()} for name in HISTORIES} == wanted_states
    assert wrong(tmp_path, (played(name)[1] for name in HISTORIES), checks) == {}
    assert fired == wanted_states


@pytest.mark.works(4)
@pytest.mark.parametrize("seconds", [15.0, 150.0], ids=["restart", "upgrade"])
def test_no_page_ends_because_the_exporter_restarts(seconds: float, tmp_path: Path) -> None:
    """The one that comes knows nothing of what the one that ended knew.

    Where half of the requests hang, and the others are in time, it sees these first, which is no more than a scrape.
    """
    of_states = {of: page for page, of in PAGES.items()}
    checks, series = [], []
    for name, (_, wanted) in HISTORIES.items():
        if not wanted or name == "half of the requests hang":
            continue
        states, _ = played(name)
        worst = max(wanted, key=states.count)
        page = of_states[worst]
        there = [scrape for scrape, one in enumerate(states) if one is worst]
        begun = there[0] + math.ceil(GRACE[page][0] / SCRAPE)
        last = there[-1] - math.ceil(state.CLEAR.get(worst, 0.0) / SCRAPE) - 2
        away = (begun + 3) * SCRAPE - 1.0
        assert away + seconds < last * SCRAPE, name
        series.append(played(name, (away, away + seconds), last * SCRAPE)[1])
        checks += [fires(name, scrape, {page: True}) for scrape in range(begun, last)]

    assert wrong(tmp_path, series, checks) == {}


def _needed(rule: dict[str, str]) -> bool:
    return rule.get("alert") in {*PAGES, *(page for page, _ in SOON.values())} or rule.get("record", "").startswith(
        ("target_model:", "target:llm_up")
    )
