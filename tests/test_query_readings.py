"""What each query of dashboards and rules gives for series whose values are known: a sum is no maximum.

`fixtures/query_readings.txt` holds it: for each query how many series there are, and the least, the greatest and the
sum of their values; of each panel the unit, and what is good from which value on; of each rule when it is evaluated and
fires; and over which time it looks back. Nothing writes that file: who changes a query puts the lines of the failure
there, after having asked whether they are right.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import every_series
from llm_headroom import schema
from llm_headroom.bundle import alerts
from llm_headroom.bundle.dashboards import dashboards
from llm_headroom.bundle.dashboards.colours import BAD, GOOD, UNKNOWN, WARN
from llm_headroom.bundle.dashboards.panel import PLAIN, Column
from llm_headroom.bundle.dashboards.scope import Scope
from llm_headroom.bundle.rule import Alert, Recording, expression
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import programs
from programs import prometheus_version
from prometheus_server import asked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_headroom.bundle.dashboards.panel import Panel

EXPECTED: Final = Path(__file__).parent / "fixtures" / "query_readings.txt"
LEFT_OPEN: Final = 3
"""The version of Prometheus from which on a window leaves out the sample at its begin."""
CHOSEN: Final = {"baseline": "ollama"}
COLOURS: Final = {GOOD: "good", WARN: "watch", BAD: "bad", UNKNOWN: "unknown"}
DASHBOARDS: Final = {one.uid.removeprefix("llm-headroom-"): one for one in dashboards(BundleSettings())}
PANELS: Final = [(uid, panel) for uid, one in DASHBOARDS.items() for row in one.rows for panel in row.panels]
ANNOTATIONS: Final = [(uid, each) for uid, one in DASHBOARDS.items() for each in one.annotations]


@pytest.fixture(name="address", scope="module")
def _address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("series")
    every_series.write(folder)
    with programs.prometheus(folder, {}, "--storage.tsdb.retention.time=100y") as server:
        yield server.address


def readings(address: str, expr: str, time: int) -> list[float]:
    """The values of a query with all selected."""
    query = re.sub(r"\$(\w+)", lambda match: CHOSEN.get(match[1], ".*"), expr.replace("$__range", "900s"))
    found = asked(address, "query", query=query, time=str(time))["result"]
    return sorted(float(one["value"][1]) for one in found)


def summary(address: str, expr: str) -> str:
    """How many, the least, the greatest and their sum; and the same where nothing is known of what is up."""
    return " ; ".join(
        f"{len(values)} {values[0]:.5g} {values[-1]:.5g} {math.fsum(values):.5g}" if values else "0"
        for values in (readings(address, expr, time) for time in (every_series.END, every_series.ALONE))
    )


def windows(expr: str) -> str:
    """The windows that an expression looks at and back, but for that of all rates and that of the page."""
    found = re.findall(r"(?:\[|offset )(\w+)", expr)
    return "".join(f" {each}" for each in sorted({*found} - {"5m", "__range"}))


def unbounded(expr: str) -> str:
    """An alert's expression without its comparisons with bounds: what is compared, also where nothing is wrong."""
    return re.sub(r"\s*(?:[<>]=?|[=!]=) (?:-?[\d.]+(?:e[+-]?\d+)?(?![\w.])|clamp_min\([^()]*\))", "", expr)


def judgement(panel: Panel, place: int) -> str:
    """The unit of a panel, or of a query's column, and what its values are from each bound on; then how it is drawn."""
    shown: Panel | Column = next((each for each in panel.columns if each.query == place), panel)
    steps = shown.steps or PLAIN
    bounds = ((-math.inf, steps.base), *steps.bounds) if steps.bounds else ()
    drawn = (
        {"bar": shown.bar, "width": shown.width, "decimals": shown.decimals}
        if isinstance(shown, Column)
        else {"size": f"{shown.width}x{shown.height}", "decimals": shown.decimals, "from": shown.lowest}
        | {"to": shown.highest, "at least": shown.at_least}
    )
    styles = [f"{name}={value}" for name, value in drawn.items() if value is not None]
    styles += [f"{value:g}={text}" for value, text, _ in shown.words]
    return " ".join([shown.unit.replace(" ", ""), *(f"{at:g}:{COLOURS.get(hue, hue)}" for at, hue in bounds), *styles])


def found(address: str) -> set[str]:
    """A line for each query."""
    lines = {
        f"{uid} | {panel.title} | {place} | {summary(address, query.expr)} | {judgement(panel, place)}"
        f"{windows(query.expr)}"
        for uid, panel in PANELS
        for place, query in enumerate(panel.queries)
    }
    lines |= {
        f"{uid} | {panel.title} | column {column.title} | {column.label} | width={column.width} {column.link}".rstrip()
        for uid, panel in PANELS
        for column in panel.columns
    }
    lines |= {
        f"{uid} | annotation {each.name} | 0 | {summary(address, each.expr)} | "
        f"{'at its value' if each.exact else 'when seen'}{windows(each.expr)}"
        for uid, each in ANNOTATIONS
    }
    groups = {rule.name: group.interval for group in alerts.GROUPS.values() for rule in group.rules}
    rules: tuple[Alert | Recording, ...] = (*alerts.ALERTS, *alerts.RECORDINGS)
    lines |= {
        f"rules | {rule.name} | 0 | {summary(address, expression(rule.expr, BundleSettings()))} | "
        f"{f'{rule.severity} after {rule.wait}, ' if isinstance(rule, Alert) else ''}each {groups[rule.name]}"
        f"{windows(expression(rule.expr, BundleSettings()))}"
        for rule in rules
    }
    return lines | {
        f"rules | {rule.name} | 1 | {summary(address, unbounded(expression(rule.expr, BundleSettings())))} | unbounded"
        for rule in alerts.ALERTS
    }


def test_every_query_gives_what_its_title_says(address: str) -> None:
    if prometheus_version() >= LEFT_OPEN:
        pytest.skip(f"what is expected was read with Prometheus {LEFT_OPEN - 1}: windows had both their ends")
    now = found(address)
    expected = {line for line in EXPECTED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")}

    changed = [f"+ {line}" for line in sorted(now - expected)] + [f"- {line}" for line in sorted(expected - now)]
    if changed:
        pytest.fail("\n".join(changed))


@pytest.mark.parametrize("chosen", [{}, {"instance": "(a:9836|b:9836)"}, {"target": "one:8000"}], ids=str)
def test_compare_reads_what_is_recorded_of_all_and_the_own_buckets_of_some(
    address: str, chosen: dict[str, str]
) -> None:
    expr = next(panel.queries[0].expr for uid, panel in PANELS if (uid, panel.title) == ("compare", "TTFT p95"))
    query = re.sub(r"\$(\w+)", lambda name: chosen.get(name[1], ".*"), expr.replace("$__range", "900s"))
    buckets = " or ".join(re.findall(r"[\w:]+_bucket[\w:]*\{[^}]*\}", query))
    found = asked(address, "query", query=buckets, time=str(every_series.END))["result"]

    own = "llm_time_to_first_token_seconds_bucket"
    assert {each["metric"]["__name__"] for each in found} == {own if chosen else f"engine_model:{own}:rate5m"}
    if chosen:
        only = ", ".join(f'{name}=~"{value}"' for name, value in chosen.items())
        plain = f"histogram_quantile(0.95, sum by (engine, le) (rate({own}{{{only}}}[900s])))"
        assert readings(address, query, every_series.END) == readings(address, plain, every_series.END)


def test_parts_of_a_request_without_a_histogram_follow_from_the_others(address: str) -> None:
    """Every histogram's mean is 0.7 s here; 1 s of the longer one, where its observations are added up as such."""
    _, prefill, decode, _ = next(panel.queries for uid, panel in PANELS if panel.title.startswith("Mean request"))

    def left(expr: str, longer: str = "-", without: Sequence[str] = ()) -> list[float]:
        expr = expr.replace(f"llm_{longer}_seconds_sum", f"llm_{longer}_seconds_count")
        for name in without:
            expr = expr.replace(f"llm_request_{name}_seconds", "llm_not_exposed")
        return [round(value, 6) for value in readings(address, expr, every_series.END)]

    assert left(prefill.expr) == left(decode.expr) == [0.7]
    assert left(prefill.expr, "time_to_first_token", ["prefill"]) == [0.3]
    assert left(prefill.expr, without=["prefill", "queue"]) == [0.7]
    assert left(decode.expr, "request_duration", ["decode"]) == [0.3]


EXHAUSTION, RATIO, TOKENS = (
    f"llm_kv_cache_{name}" for name in ("exhaustion_seconds", "headroom_ratio", "headroom_tokens")
)


@pytest.mark.parametrize(
    ("title", "changes", "expected"),
    [
        ("Pages firing", {"ALERTS": "NONE"}, [0.0]),
        ("Pages firing", {"ALERTS": "NONE", "engine_model:": "NONE:"}, []),
        ("Full in", {EXHAUSTION: "NONE"}, [-3.0]),  # nothing grows
        ("Full in", {EXHAUSTION: "NONE", RATIO: f"0 * {RATIO}"}, [0.0]),  # it is full
        ("Full in", {EXHAUSTION: "NONE", TOKENS: "NONE"}, [-2.0]),  # not exposed
        ("Spilled", {"llm_model_offload_ratio": "NONE"}, [0.0]),
        ("On GPU", {"llm_model_loaded": "0 * llm_model_loaded"}, []),  # no model is loaded
        ("Throttled", {'state="throttled"': 'state=~".+"'}, [4.0]),  # each of four GPUs is in one state
        ("In trouble", {"lost|error": "throttled|ok"}, [0.0]),
    ],
)
def test_what_a_tile_says_where_something_is_absent_or_in_another_state(
    address: str, title: str, changes: dict[str, str], expected: list[float]
) -> None:
    expr = next(panel.queries[0].expr for _, panel in PANELS if panel.title == title)
    for before, after in changes.items():
        expr = expr.replace(before, after)
    assert readings(address, expr, every_series.END) == expected


def test_what_is_not_known_to_be_reusable_is_free(address: str) -> None:
    queries = next(panel.queries for uid, panel in PANELS if (uid, panel.title) == ("kv", "Tokens by use"))
    used, reusable, free, capacity = (readings(address, query.expr, every_series.END)[0] for query in queries)
    assert used + reusable + free == pytest.approx(capacity)
    without = queries[2].expr.replace("llm_kv_cache_evictable_tokens", "NONE")
    assert readings(address, without, every_series.END) == pytest.approx([capacity - used])


@pytest.mark.parametrize(
    ("counted", "share"), [("requests_f", 92 / (92 + 106.6)), ("http_responses", 25 / 45.2), ("router", 124.6 / 26.6)]
)
def test_what_fails_is_a_share_of_all_that_a_target_counts(address: str, counted: str, share: float) -> None:
    expr = re.sub(rf"llm_(?!{counted})\w+_total", "NONE", Scope().failed())
    assert readings(address, expr, every_series.END) == pytest.approx([share])


def test_there_are_no_more_curves_than_can_be_told_apart(address: str) -> None:
    def found(expr: str) -> list[float]:
        return readings(address, expr, every_series.END - (every_series.DEAD + 2) * every_series.STEP)  # all are alive

    scope, states, reasons = Scope(), "instance, target, state", "instance, target, reason"
    samples, requests = scope.of(schema.SOURCE_SAMPLES), scope.rate(schema.REQUESTS_FINISHED)
    high, low = (found(f"{which} by ({states}) ({samples})") for which in ("max", "min"))
    assert len(high) > 10
    assert found(scope.worst(schema.SOURCE_SAMPLES, states)) == high[-10:]
    assert found(scope.worst(schema.SOURCE_SAMPLES, states, highest=False)) == low[:10]
    assert found(scope.worst_mean(schema.SOURCE_SAMPLES, states)) == pytest.approx(high[-10:])
    grown = found(f"sum by ({reasons}) ({requests})")
    assert len(grown) > 10
    assert found(scope.worst_rate(schema.REQUESTS_FINISHED, reasons)) == grown[-10:]
