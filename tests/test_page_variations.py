"""What each value changes on a card, in a row and in the summary, line by line of HTML.

`pytest --update` writes the file; review the diff.
"""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import unified_diff
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from llm_headroom.config.people import Links
from llm_headroom.model import Level
from llm_headroom.thresholds import LOAD_HEADROOM_LOW
from llm_headroom.view.day import Minute
from llm_headroom.view.values import (
    Condition,
    EngineCard,
    GpuCard,
    KvCache,
    Latency,
    Line,
    Load,
    Missing,
    Objective,
    Quantile,
    Risk,
    Router,
    Share,
    Slow,
    Source,
    View,
)
from llm_headroom.web import cards, table
from llm_headroom.web.cards import Around
from llm_headroom.web.look import Look, key
from llm_headroom.web.summary import name, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FILE: Final = Path(__file__).parent / "fixtures" / "pages" / "variations.txt"
NOW: Final = 90_000.0
GIB: Final = float(1 << 30)
AROUND: Final = Around(NOW, Look(), (), Links())
SOURCE: Final = Source(target="t", engine="vllm", title="vLLM", version="", up=True, taken=NOW, duration=0.1)
ENGINE: Final = EngineCard(id="e1", source=SOURCE, state=Condition("ok", Level.GOOD))
GPU: Final = GpuCard(id="g1", source=SOURCE, state=Condition("ok", Level.GOOD))
TTFT: Final = "llm_time_to_first_token_seconds"
DOWN: Final = replace(SOURCE, up=False, error="it is <gone>", taken=NOW - 3.0)
FULL: Final = {
    "running": 1.0,
    "kv": KvCache(usage=0.5),
    "offload": 1.0,
    "latencies": (Latency(TTFT, 120.0, 0.0),),
    "objectives": (Objective("ttft", None, None, 1.0, 1.0),),
    "risks": (Risk("llm_eviction_risk_ratio", 0.1),),
    "missing": (Missing("why", ("llm_x",)),),
    "load": (Load("ttft", 2.0, "", None, suspect=False),),
}


def quantiles(*estimates: float | None) -> tuple[Quantile, ...]:
    """Of the three ranks, in buckets from one second on."""
    ranks = zip((0.5, 0.95, 0.99), estimates, strict=True)
    return tuple(Quantile(rank, 1.0, None if each is None else 4.0, each) for rank, each in ranks)


def loads(*headrooms: float) -> tuple[Load, ...]:
    return tuple(Load("ttft", each, "", None, suspect=False) for each in headrooms)


ENGINES: Final[Mapping[str, Mapping[str, Any]]] = {
    "a model has its target beside it": {"model": "<m>"},
    "a version": {"source": replace(SOURCE, version="1.2")},
    "a state since a time with a reason": {"state": Condition("slow", Level.WARN, "<late>", NOW - 90.0)},
    "notes": {"notes": ("one", "<two>")},
    "down, never read": {"source": DOWN, **FULL},
    "down, read before": {"source": replace(DOWN, last_success=NOW - 50.0)},
    "down, as the state says": {"source": DOWN, "state": Condition("down", Level.BAD, "since it is <gone>")},
    "a warning": {"source": replace(SOURCE, warnings=("<odd>", "even"))},
    "loads at their limits": {"load": loads(0.999, 1.0, LOAD_HEADROOM_LOW - 0.001, LOAD_HEADROOM_LOW)},
    "a load of an objective without a name of its own": {"load": (Load("<o>", 2.0, "compute", None, suspect=False),)},
    "a load with its requests, and suspect": {"load": (Load("request_duration", 20.0, "", 4.25, suspect=True),)},
    "running alone": {"running": 3.0},
    "waiting alone": {"waiting": 3.0},
    "generated alone": {"generation_rate": 3.0},
    "prompts alone": {"prompt_rate": 3.0},
    "a limit comes before the replicas": {"running": 3.0, "limit": 8.0, "replicas": 2},
    "one replica": {"running": 3.0, "replicas": 1},
    "two replicas": {"running": 3.0, "replicas": 2},
    "a router of nothing": {"router": Router(), "running": 3.0},
    "a router": {"router": Router(active=1.0, waiting=2.0, workers=3.0, healthy=2.0, request_rate=4.0)},
    "a router's workers": {"router": Router(workers=3.0)},
    "a KV cache of nothing": {"kv": KvCache()},
    "a KV cache's usage": {"kv": KvCache(usage=0.25)},
    "a KV cache without capacity": {"kv": KvCache(usage=0.25, used=5.0, free=7.0)},
    "a KV cache in tokens": {"kv": KvCache(usage=0.25, capacity=2000.0, used=500.0, evictable=100.0, free=1400.0)},
    "a KV cache's capacity": {"kv": KvCache(capacity=2000.0, evictable=100.0)},
    "a KV cache's fullest replica": {"kv": KvCache(worst=0.5)},
    "a KV cache's peak": {"kv": KvCache(peak=0.5)},
    "room for requests": {"kv": KvCache(headroom_requests=3.0)},
    "room for tokens": {"kv": KvCache(headroom_tokens=3.0)},
    "room for tokens, and its share": {"kv": KvCache(headroom_tokens=3.0, headroom_ratio=0.5)},
    "soon full": {"kv": KvCache(exhaustion_seconds=30.0)},
    "a model in memory": {"loaded": True},
    "a model that is not in memory": {"loaded": False},
    "a model that is not in memory, with a share": {"loaded": False, "offload": 0.5},
    "a model in memory, with a share": {"loaded": True, "offload": 0.5},
    "a share on GPUs alone": {"offload": 0.5, "memory": (Share("total", 8 * GIB), Share("device", 4 * GIB))},
    "a share of nothing": {"offload": 0.5, "memory": (Share("total", 0.0),)},
    "parts of memory": {"memory": (Share("weights", GIB), Share("kv_used", 0.0), Share("odd_<part>", 2 * GIB))},
    "a whole without a share": {"memory": (Share("total", 8 * GIB),), "loaded": True},
    "unloaded soon": {"offload": 1.0, "expires": NOW + 60.0},
    "unloaded now": {"offload": 1.0, "expires": NOW},
    "a latency without traffic": {"latencies": (Latency(TTFT, 120.0, 0.0),)},
    "a latency without traffic that has an objective": {
        "latencies": (Latency(TTFT, 120.0, 0.0),),
        "objectives": (Objective("ttft", 2.5, None, 1.0, 5.0),),
        "slow": (Slow("60s", 0.0), Slow("300s", 1.0)),
    },
    "a latency": {"latencies": (Latency(TTFT, 120.0, 5.0, quantiles(2.0, 3.0, None)),)},
    "a latency beyond its objective": {
        "latencies": (Latency(TTFT, 60.0, 5.0, quantiles(2.0, 3.0, None)), Latency("llm_<other>", 90.0, 0.0)),
        "objectives": (Objective("ttft", 2.0, None, 1.0, 5.0),),
        "slow": (Slow("5m", 0.0), Slow("<1h>", 0.25)),
    },
    "slow first tokens without a threshold": {
        "latencies": (Latency(TTFT, 60.0, 5.0, quantiles(0.1, 0.2, 0.3)),),
        "slow": (Slow("5m", 0.5),),
    },
    "risks": {
        "risks": tuple(Risk("llm_eviction_risk_ratio", each) for each in (0.1, 0.3, 0.9)),
    },
    "objectives": {
        "objectives": (
            Objective("ttft", 2.0, 0.95, 0.95, 9.0),
            Objective("request_duration", None, 0.95, 0.949, 9.0),
            Objective("<o>", None, None, 0.0, 9.0),
        )
    },
    "one metric is missing": {"missing": (Missing("<why>", ("llm_x",)),)},
    "two metrics are missing": {"missing": (Missing("why", ("llm_x", "<llm_y>")),)},
    "metrics are missing for two reasons": {"missing": (Missing("a", ("llm_x",)), Missing("b", ("llm_y",)))},
    "a history": {"lines": (Line("running", (1.0, None, 3.0)),), "ages": (10.0, 5.0, 0.0)},
}

MEMORY: Final = {"total": 80 * GIB, "used": 60 * GIB}
GPUS: Final[Mapping[str, Mapping[str, Any]]] = {
    "a number": {"gpu": "0"},
    "a name": {"name": "<H100>"},
    "a name and a profile": {"name": "H100", "profile": "1g.10gb"},
    "values": {"utilization": 0.5, "power": 70.4, "temperature": 40.6, "free": GIB, "total": 80 * GIB},
    "a limit of power": {"power_limit": 700.0, "lines": (Line("power", (70.0, 90.0)),), "ages": (5.0, 0.0)},
    "a whole of memory": {"total": 80 * GIB, "lines": (Line("memory_used", (GIB,)),), "ages": (0.0,)},
    "memory that nobody is known to hold": MEMORY,
    "memory without a whole": {**MEMORY, "total": None},
    "memory of nothing": {**MEMORY, "total": 0.0},
    "memory of which the used part is unknown": {**MEMORY, "used": None},
    "free and reserved memory": {**MEMORY, "free": 16 * GIB, "reserved": 4 * GIB},
    "memory of parts": {**MEMORY, "parts": (Share("weights", 40 * GIB), Share("kv_used", 10 * GIB))},
    "memory of parts and of others": {**MEMORY, "parts": (Share("weights", 40 * GIB),), "unattributed": 20 * GIB},
    "memory of others alone": {**MEMORY, "unattributed": 20 * GIB},
    "memory of engines": {**MEMORY, "engines": (Share("<a>", GIB), Share("b", 2 * GIB))},
    "a risk": {"risks": (Risk("llm_eviction_risk_ratio", 0.9),)},
    "missing": {"missing": (Missing("why", ("llm_x",)),)},
    "down": {"source": DOWN, **MEMORY, "risks": FULL["risks"], "missing": FULL["missing"], "notes": ("note",)},
}

ENGINE_ROWS: Final[Mapping[str, Mapping[str, Any]]] = {
    "a row's labels": {"source": replace(SOURCE, labels=(("team", "<a>"), ("zone", "b")))},
    "a row's model": {"model": "<m>", "source": replace(SOURCE, version="1")},
    "a row's load": {"load": (Load("inter_token_latency", 0.5, "", None, suspect=False), *loads(1.1))},
    "a row's load with what binds": {"load": (Load("ttft", 0.99, "kv_cache", 4.0, suspect=False),)},
    "a row's load that is suspect": {"load": (Load("ttft", 16.0, "compute", None, suspect=True),)},
    "a row's load of other objectives": {"load": (Load("inter_token_latency", 0.5, "", None, suspect=False),)},
    "a row's queue": {"waiting": 3.0},
    "a row's queue at a router": {"waiting": 3.0, "router": Router(waiting=5.0)},
    "a row's latency": {"latencies": (Latency("x", 1.0, 1.0), Latency(TTFT, 120.0, 5.0, quantiles(1.0, 3.0, None)))},
    "a row's latency beyond the last bucket": {"latencies": (Latency(TTFT, 120.0, 5.0, quantiles(1.0, None, None)),)},
    "a row's latency without traffic": {"latencies": (Latency(TTFT, 120.0, 0.0),)},
    "a row's latency beyond its objective": {
        "latencies": (Latency(TTFT, 120.0, 5.0, quantiles(1.0, 3.0, None)),),
        "objectives": (Objective("request_duration", 9.0, None, 1.0, 1.0), Objective("ttft", 2.9, None, 1.0, 1.0)),
    },
    "a row's latency at its objective": {
        "latencies": (Latency(TTFT, 120.0, 5.0, quantiles(1.0, 3.0, None)),),
        "objectives": (Objective("ttft", 3.0, None, 1.0, 1.0),),
    },
    "a row's KV cache": {"kv": KvCache(usage=0.5, headroom_requests=7.0)},
    "a row's saturation": {"saturation": 0.75},
    "a row's state with a reason": {"state": Condition("slow", Level.WARN, "<late>")},
    "a row's good state has no reason": {"state": Condition("ok", Level.GOOD, "fine")},
    "a row's state that no model has": {"state": Condition("not loaded", Level.GOOD)},
}

GPU_ROWS: Final[Mapping[str, Mapping[str, Any]]] = {
    "a row's number": {"gpu": "12"},
    "a row's name": {"name": "<H100>", "profile": "1g"},
    "a row's memory": {"total": 80 * GIB, "free": 20 * GIB},
    "a row's memory of which it is not known what is free": {"total": 80 * GIB},
    "a row's values": {"utilization": 0.25, "power": 70.4, "temperature": 40.6},
}


def differences(
    bare: str, variations: Mapping[str, Mapping[str, Any]], draw: Callable[[Mapping[str, Any]], str]
) -> Iterator[str]:
    """What is there in one and not in the other, tag by tag."""
    before = bare.replace("><", ">\n<").splitlines()
    yield from before
    for said, changes in variations.items():
        yield f"\n== {said}"
        after = draw(changes).replace("><", ">\n<").splitlines()
        yield from (
            line for line in unified_diff(before, after, n=0, lineterm="") if line[:2] not in ("--", "++", "@@")
        )
    yield ""


def test_what_each_value_changes_is_what_it_was(update: bool) -> None:  # noqa: FBT001 - a fixture
    found = [
        *differences(cards.engine(ENGINE, AROUND), ENGINES, lambda each: cards.engine(replace(ENGINE, **each), AROUND)),
        *differences(cards.gpu(GPU, AROUND), GPUS, lambda each: cards.gpu(replace(GPU, **each), AROUND)),
        *differences(
            table.engine_row(ENGINE, Look(), ""),
            ENGINE_ROWS,
            lambda each: table.engine_row(replace(ENGINE, **each), Look(), ""),
        ),
        *differences(
            table.gpu_row(GPU, Look(), ""), GPU_ROWS, lambda each: table.gpu_row(replace(GPU, **each), Look(), "")
        ),
    ]
    text = "\n".join(found)
    if update:
        FILE.write_text(text, encoding="utf-8")
    assert text == FILE.read_text(encoding="utf-8")


RUNBOOKS: Final = ("What to do", "https://r/?a&b")
BAD: Final = Condition("down", Level.BAD)


@pytest.mark.parametrize(
    ("links", "changes", "expected"),
    [
        (Links(), {"state": BAD}, []),
        (Links(runbooks="https://r/?a&b"), {"state": BAD}, [RUNBOOKS]),
        (Links(runbooks="https://r/?a&b"), {"state": Condition("slow", Level.WARN)}, [RUNBOOKS]),
        (Links(runbooks="https://r/?a&b"), {}, []),
        (Links(grafana="https://g/"), {}, [("Dashboard", "https://g/?var-engine=vllm&var-target=t")]),
        (
            Links(grafana="https://g/"),
            {"model": "a&\ud800"},
            [("Dashboard", "https://g/?var-engine=vllm&var-model=a%26%3F&var-target=t")],
        ),
        (
            Links(prometheus="https://p"),
            {"source": replace(SOURCE, target='"ä\ud800')},
            [("Series", "https://p/graph?g0.expr=%7Btarget%3D%22%5C%22%C3%A4%3F%22%7D&g0.tab=1")],
        ),
    ],
)
def test_a_card_leads_where_the_links_are_configured_to(
    links: Links, changes: Mapping[str, Any], expected: list[tuple[str, str]]
) -> None:
    html = cards.engine(replace(ENGINE, **changes), AROUND._replace(links=links))
    assert [(said, unescape(url)) for url, said in re.findall('<a href="([^"]*)">([^<]*)</a>', html)] == expected


def test_several_links_are_one_line_and_none_are_none() -> None:
    links = Links(grafana="https://g/", prometheus="https://p/")
    assert cards.engine(ENGINE, AROUND).count("<p") + 1 == cards.engine(ENGINE, AROUND._replace(links=links)).count(
        "<p"
    )


@pytest.mark.parametrize(
    ("many", "expected"),
    [
        (False, f'<article class="card bad" id="{key(GPU)}" data-id="{key(GPU)}"><p>t: '),
        (True, f'<tbody data-id="{key(GPU)}"><tr><td class="bad" colspan="8">t: '),
    ],
)
def test_in_place_of_a_card_that_cannot_be_drawn_is_its_name(*, many: bool, expected: str) -> None:
    assert cards.unshown(GPU, many=many).startswith(expected)


@pytest.mark.parametrize("day", [False, True])
def test_the_other_history_is_a_link(*, day: bool) -> None:
    look = Look(day=day)
    changes: Mapping[str, Any] = {"lines": (Line("running", (1.0,)), Line("power", (1.0,))), "ages": (0.0,)}
    around = AROUND._replace(look=look, minutes=(Minute(1499, {"running": 1.0, "power": 1.0}, None),))
    expected = '<a href="?" data-look>minutes</a> <b>24 h</b>' if day else '<a href="?range=24h" data-look>24 h</a>'
    assert expected in cards.engine(replace(ENGINE, **changes), around)
    assert expected in cards.gpu(replace(GPU, **changes), around)


@pytest.mark.parametrize(
    ("look", "opened", "expected"),
    [
        (Look(), "", ("?open=K#K", "false", True)),
        (Look(frozenset({key(GPU)})), "<article>", ("?#K", "true", False)),
        (Look(frozenset({"gz"}), day=True), "", ("?open=K,gz&amp;range=24h#K", "false", True)),
    ],
)
def test_a_row_opens_and_closes_its_card(look: Look, opened: str, expected: tuple[str, str, bool]) -> None:
    html = table.gpu_row(GPU, look, opened)
    address, expanded, anchored = expected
    assert f'<a href="{address}" data-look="K" aria-expanded="{expanded}">'.replace("K", key(GPU)) in html
    assert (f' id="{key(GPU)}"' in html) == anchored
    below = '<tr class="below"><td colspan="8"><article></td></tr></tbody>'
    assert html.endswith(below) if opened else "below" not in html


def test_a_table_s_head_says_what_its_columns_do_not() -> None:
    columns = (table.Column("A"), table.Column("B", number=True, hint="why"))
    html = table.head(columns, "e", "Engines")
    assert html.endswith(
        '<table class="many" data-list="e"><thead><tr>'
        '<th scope="col"><button type="button" data-sort="0">A</button></th>'
        '<th scope="col" class=number><button type="button" data-sort="1" title="why" >B</button></th></tr></thead>'
    )


def view(*engines: EngineCard, gpus: tuple[GpuCard, ...] = (), notices: tuple[str, ...] = ()) -> View:
    return View("1", NOW, 0, 0, engines, gpus, (), notices)


def card(at: int, level: Level, state: str = "x", since: float | None = None) -> EngineCard:
    source = replace(SOURCE, target=f"t{at}")
    return replace(ENGINE, id=f"e{at}", source=source, state=Condition(state, level, "", since))


@pytest.mark.parametrize(
    ("shown", "level", "title"),
    [
        (view(), Level.UNKNOWN, "No engine and no GPU yet."),
        (view(notices=("a",)), Level.WARN, "No engine and no GPU yet."),
        (view(ENGINE), Level.GOOD, "1 model, all fine"),
        (view(gpus=(GPU,)), Level.GOOD, "1 GPU, all fine"),
        (view(ENGINE, ENGINE, gpus=(GPU, GPU)), Level.GOOD, "2 models and 2 GPUs, all fine"),
        (view(ENGINE, notices=("a",)), Level.WARN, "1 model, all fine"),
        (view(ENGINE, card(1, Level.WARN), notices=("a",)), Level.WARN, "1 with a warning of 2"),
        (view(card(1, Level.UNKNOWN), gpus=(GPU,)), Level.UNKNOWN, "1 unknown of 2"),
        (
            view(card(1, Level.UNKNOWN), card(2, Level.WARN), card(3, Level.BAD), card(4, Level.BAD)),
            Level.BAD,
            "2 in trouble, 1 with a warning, 1 unknown of 4",
        ),
    ],
)
def test_the_summary_is_as_bad_as_the_worst(shown: View, level: Level, title: str) -> None:
    made = summary(shown, Look())
    assert (made.level, made.title) == (level, title)
    assert made.html.startswith(f'<div class="summary {level}"><p>')
    assert made.html.count('<p class="notice warn">a</p>') == len(shown.notices)
    assert ("wrong" in made.html) == any(each.level is not Level.GOOD for each in shown.engines)


def test_what_could_not_be_read_is_not_fine_although_its_state_waits_for_the_next_poll() -> None:
    lost = replace(card(1, Level.GOOD), source=replace(SOURCE, target="t1", up=False, error="refused"))
    made = summary(view(lost, lost, ENGINE), Look())
    assert (made.level, made.title) == (Level.UNKNOWN, "t1 could not be read at its last poll, and was fine before")
    more = replace(lost, source=replace(lost.source, target="t2"))
    made = summary(view(lost, more, notices=("a",)), Look())
    words = "2 sources could not be read at their last poll, and were fine before"
    assert (made.level, made.title) == (Level.WARN, words)


def test_the_summary_names_the_engine_that_takes_least_more() -> None:
    def taking(at: int, *headroom: float, level: Level = Level.GOOD) -> EngineCard:
        loads = tuple(Load("ttft", each, "kv_cache", None, suspect=False) for each in headroom)
        return replace(card(at, level), load=loads)

    def said(*engines: EngineCard) -> list[str]:
        found = re.findall('<p class="least">(.*?)</p>', summary(view(*engines), Look()).html)
        return [unescape(re.sub("<[^>]*>", "", each)) for each in found]

    assert said(taking(1, 1.8)) == ["t1 takes 1.8 × its traffic; KV cache binds."]
    least = ["Least headroom: t2 takes 1.2 × its traffic; KV cache binds."]
    assert said(taking(1, 1.8), taking(2, 1.2), taking(3)) == least
    assert said(taking(1, 1.8), taking(2, 1.2), taking(3, level=Level.BAD)) == least
    assert said(taking(1), taking(2)) == []


def test_a_card_says_why_its_load_headroom_is_not_known() -> None:
    lacks = (Missing("derived: it is too early", ("llm_saturation_ratio", "llm_load_headroom_ratio")),)
    known = Load("ttft", 1.8, "kv_cache", None, suspect=False)
    for made, said in (
        (replace(ENGINE, missing=lacks), True),
        (replace(ENGINE, missing=lacks, loaded=True), True),
        (replace(ENGINE, missing=lacks, load=(known,)), False),
        (replace(ENGINE, missing=lacks, loaded=False), False),
        (replace(ENGINE, missing=(Missing("x", ("llm_up",)),)), False),
        (replace(ENGINE, source=DOWN, missing=lacks), False),
    ):
        assert ("Not known: it is too early<" in cards.engine(made, AROUND)) is said


@pytest.mark.parametrize(("wrong", "more"), [(3, []), (4, ["and 1 more"]), (5, ["and 2 more"])])
def test_three_in_trouble_are_named_those_of_longest_first(wrong: int, more: list[str]) -> None:
    html = summary(view(*(card(at, Level.BAD, since=100.0 - at) for at in range(wrong))), Look()).html
    assert re.findall(">(t[0-9])</a>", html) == [f"t{at}" for at in range(wrong - 1, wrong - 4, -1)]
    assert re.findall("<li>(and [^<]*)</li>", html) == more


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (Condition("x", Level.BAD), "</a> <b>x</b></li>"),
        (Condition("x", Level.BAD, "<why>"), "</a> <b>x</b>: &lt;why&gt;</li>"),
        (Condition("x", Level.BAD, "", NOW + 5.0), '</a> <b>x</b>, for <time data-at="90005">0 s</time></li>'),
    ],
)
def test_a_card_in_trouble_says_for_how_long_and_why(made: Condition, expected: str) -> None:
    assert expected in summary(view(replace(ENGINE, state=made)), Look()).html


def test_who_is_in_trouble_is_opened_by_its_link_and_never_closed() -> None:
    own = key(card(1, Level.BAD))
    for look in (Look(), Look(frozenset({own}))):
        assert f'<a href="?open={own}#{own}"' in summary(view(card(1, Level.BAD)), look).html


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, "GPUs"), ({"name": "H"}, "GPU  (H)"), ({"gpu": "1"}, "GPU 1"), ({"gpu": "1", "name": "H"}, "GPU 1 (H)")],
)
def test_a_gpu_is_called_by_its_number_and_its_name(changes: Mapping[str, Any], expected: str) -> None:
    assert name(replace(GPU, **changes)) == expected
