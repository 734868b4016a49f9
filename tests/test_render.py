"""What points look like in each output format, beside what is read from captures (see test_golden)."""

from __future__ import annotations

import pytest

from llm_headroom import schema
from llm_headroom.model import (
    Cause,
    Failure,
    Health,
    Histogram,
    Judged,
    Point,
    SampleState,
    Series,
    Snapshot,
    State,
)
from llm_headroom.render import json
from llm_headroom.render.families import families
from llm_headroom.render.prometheus import Format, Renderer, bound_text, exposition, negotiate, unit_word

RUNNING, WAITING, TOKENS = schema.REQUESTS_RUNNING, schema.REQUESTS_WAITING, schema.GENERATION_TOKENS
TTFT, UP = schema.TIME_TO_FIRST_TOKEN, schema.GPUS
SEEN = Histogram((0.5, 1.0, float("inf")), (1.0, 2.0, 4.0), 7.25)


def lines(*points: Point) -> list[str]:
    """The lines of an exposition that are no comments."""
    body = exposition([Renderer().lines(points)], Format.TEXT).decode()
    return [line for line in body.splitlines() if not line.startswith("#")]


def test_numbers_with_and_without_labels() -> None:
    labels = {"model": 'a "b" \\ c\nd 5%', "target": "t"}
    assert lines(Point(Series(UP, {}), 3.0, ""), Point(Series(RUNNING, labels), 0.1, "")) == [
        'llm_requests_running{model="a \\"b\\" \\\\ c\\nd 5%",target="t"} 0.1',
        "llm_gpus 3.0",
    ]


def test_histograms_with_and_without_labels() -> None:
    found = lines(Point(Series(TTFT, {}), SEEN, ""), Point(Series(TTFT, {"model": "5%s\0"}), SEEN, ""))
    assert found == [
        'llm_time_to_first_token_seconds_bucket{le="0.5"} 1.0',
        'llm_time_to_first_token_seconds_bucket{le="1.0"} 2.0',
        'llm_time_to_first_token_seconds_bucket{le="+Inf"} 4.0',
        "llm_time_to_first_token_seconds_count 4.0",
        "llm_time_to_first_token_seconds_sum 7.25",
        'llm_time_to_first_token_seconds_bucket{model="5%s\0",le="0.5"} 1.0',
        'llm_time_to_first_token_seconds_bucket{model="5%s\0",le="1.0"} 2.0',
        'llm_time_to_first_token_seconds_bucket{model="5%s\0",le="+Inf"} 4.0',
        'llm_time_to_first_token_seconds_count{model="5%s\0"} 4.0',
        'llm_time_to_first_token_seconds_sum{model="5%s\0"} 7.25',
    ]


def test_a_number_in_the_place_of_a_histogram_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(Point(Series(TTFT, {}), 1.0, ""), Point(Series(UP, {}), 3.0, "")) == ["llm_gpus 3.0"]
    assert caplog.records == []


def test_the_lines_about_a_family_in_both_formats() -> None:
    points = [
        Point(Series(TOKENS, {}), 2.0, ""),
        Point(Series(TTFT, {}), SEEN, ""),
        Point(Series(WAITING, {}), 1.0, ""),
    ]
    comments = {
        form: [line for line in exposition([Renderer().lines(points)], form).decode().splitlines() if "#" in line]
        for form in Format
    }
    assert comments[Format.TEXT] == [
        f"# HELP {WAITING.name} {WAITING.help}",
        f"# TYPE {WAITING.name} gauge",
        f"# HELP {TOKENS.name} {TOKENS.help}",
        f"# TYPE {TOKENS.name} counter",
        f"# HELP {TTFT.name} {TTFT.help}",
        f"# TYPE {TTFT.name} histogram",
    ]
    assert comments[Format.OPENMETRICS] == [
        f"# TYPE {WAITING.name} gauge",
        f"# HELP {WAITING.name} {WAITING.help}",
        "# TYPE llm_generation_tokens counter",
        f"# HELP llm_generation_tokens {TOKENS.help}",
        f"# TYPE {TTFT.name} histogram",
        f"# UNIT {TTFT.name} seconds",
        f"# HELP {TTFT.name} {TTFT.help}",
        "# EOF",
    ]


def test_a_family_stands_once_with_the_lines_of_all_sources_in_the_order_of_the_schema() -> None:
    renderers = Renderer(), Renderer()
    one = [Point(Series(UP, {}), 1.0, ""), Point(Series(RUNNING, {"target": "a"}), 1.0, "")]
    other = [Point(Series(RUNNING, {"target": "b"}), 2.0, "")]
    for value in (3.0, 4.0):
        again = [*other, Point(Series(RUNNING, {"target": "c"}), value, "")]
        sources = [renderer.lines(points) for renderer, points in zip(renderers, (one, again), strict=True)]
        body = exposition(sources, Format.TEXT).decode()
        assert [line for line in body.splitlines() if "#" not in line] == [
            'llm_requests_running{target="a"} 1.0',
            'llm_requests_running{target="b"} 2.0',
            f'llm_requests_running{{target="c"}} {value}',
            "llm_gpus 1.0",
        ]
        assert body.count("# TYPE") == 2
    moved = renderers[1].lines([Point(Series(RUNNING, {"target": "d"}), 1.0, "")])
    assert exposition([moved], Format.TEXT).endswith(b'\nllm_requests_running{target="d"} 1.0\n')


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.9", Format.OPENMETRICS),
        ("application/openmetrics-text;version=x", Format.TEXT),
    ],
)
def test_the_format_is_the_one_that_is_asked_for(accept: str, form: Format) -> None:
    assert negotiate(accept) is form


def test_words_of_bounds_and_units() -> None:
    assert [bound_text(bound) for bound in (float("inf"), 0.25, 1e-05)] == ["+Inf", "0.25", "1e-05"]
    assert [unit_word(metric) for metric in (TTFT, RUNNING, schema.GPU_POWER)] == ["seconds", "", "watts"]


def test_families_for_a_registry_hold_every_point_once() -> None:
    points = [
        Point(Series(UP, {}), 1.0, ""),
        Point(Series(TOKENS, {"model": "m"}), 5.0, ""),
        Point(Series(TTFT, {"model": "m"}), SEEN, ""),
        Point(Series(TOKENS, {}), 6.0, ""),
    ]
    found = families(points)
    assert [(each.name, each.type, each.unit) for each in found] == [
        ("llm_generation_tokens", "counter", ""),
        ("llm_time_to_first_token_seconds", "histogram", "seconds"),
        ("llm_gpus", "gauge", ""),
    ]
    samples = [(one.name, one.labels, one.value) for each in found for one in each.samples]
    name = "llm_time_to_first_token_seconds"
    assert samples == [
        ("llm_generation_tokens_total", {"model": "m"}, 5.0),
        ("llm_generation_tokens_total", {}, 6.0),
        (f"{name}_bucket", {"model": "m", "le": "0.5"}, 1.0),
        (f"{name}_bucket", {"model": "m", "le": "1.0"}, 2.0),
        (f"{name}_bucket", {"model": "m", "le": "+Inf"}, 4.0),
        (f"{name}_count", {"model": "m"}, 4.0),
        (f"{name}_sum", {"model": "m"}, 7.25),
        ("llm_gpus", {}, 1.0),
    ]


def test_a_source_as_json() -> None:
    failure = Failure(Cause.REFUSED, "it refuses")

    def judged(state: State, reason: str, since: float) -> dict[str, object]:
        return {"state": state.value, "level": state.level.value, "reason": reason, "since": since}

    states = (
        Judged(state=State.STALLED, reason="full", since=5.0, model="m"),
        Judged(state=State.DOWN, reason="gone", since=6.0, gpu="0", uuid="u"),
    )
    health = Health(
        up=True,
        error=failure,
        warnings=(failure,),
        duration_seconds=0.5,
        last_success=4.0,
        samples={SampleState.MAPPED: 3},
        unmapped=("x",),
        version="1.2",
    )
    points = (Point(Series(RUNNING, {"model": "m"}), 2.0, "up"), Point(Series(TTFT, {}), SEEN, "stream"))
    snapshot = Snapshot(target="t", engine="vllm", taken=3.0, health=health, states=states, points=points)
    said = {"cause": "refused", "message": "it refuses"}
    assert json.source(snapshot) == {
        "target": "t",
        "engine": "vllm",
        "version": "1.2",
        "up": True,
        "error": said,
        "warnings": [said],
        "taken": 3.0,
        "last_success": 4.0,
        "duration_seconds": 0.5,
        "samples": {"mapped": 3},
        "states": [
            {"model": "m", **judged(State.STALLED, "full", 5.0)},
            {"gpu": "0", "uuid": "u", **judged(State.DOWN, "gone", 6.0)},
        ],
        "points": [
            {"metric": RUNNING.name, "labels": {"model": "m"}, "value": 2.0, "source": "up"},
            {
                "metric": TTFT.name,
                "labels": {},
                "histogram": {"sum": 7.25, "count": 4.0, "buckets": [[0.5, 1.0], [1.0, 2.0], ["+Inf", 4.0]]},
                "source": "stream",
            },
        ],
        "unmapped": ["x"],
    }
    quiet = json.source(Snapshot(target="t", engine="", taken=0.0, health=Health(up=False)))
    assert (quiet["error"], quiet["states"], quiet["points"], quiet["last_success"]) == (None, [], [], None)
