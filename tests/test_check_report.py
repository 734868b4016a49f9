"""The report of `check` as text."""

from __future__ import annotations

from typing import Any

import pytest

from llm_headroom.commands.check_report import NOTHING, fine, measured, rank, text_report, value
from llm_headroom.model import Cause


def source(target: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of the report
    return {
        "target": target,
        "engine": "vllm",
        "version": "0.9",
        "up": True,
        "duration_seconds": 0.01234,
        "states": [{"model": "m", "level": "good", "state": "serving", "reason": ""}],
        "error": None,
        "warnings": [],
        "points": [],
        "missing": [],
        "unmapped": [],
        **fields,
    }


@pytest.mark.parametrize(
    ("number", "unit", "labels", "written"),
    [
        (1536.0, "By", None, "2 KiB"),
        (1.5 * 2**30, "By", None, "1.5 GiB"),
        (2.0 * 2**20, "By/s", None, "2.0 MiB/s"),
        (0.25, "s", None, "0.25 s"),
        (0.0532, "s", None, "53.2 ms"),
        (0.875, "1", None, "87.5%"),
        (1.0, "{flag}", None, "yes"),
        (0.0, "{flag}", None, "no"),
        (1.0, "{info}", None, ""),
        (64.4, "Cel", None, "64 °C"),
        (1.98e9, "Hz", None, "1,980 MHz"),
        (3.14159, "{currency}", {"currency": "EUR"}, "3.142 EUR"),
        (3.14159, "{currency}", None, "3.142"),
        (1.0, "{request}", None, "1 request"),
        (0.0, "{request}", None, "0 requests"),
        (2.0, "{request}", None, "2 requests"),
        (2.0, "{process}", None, "2 processes"),
        (12345.0, "{token}", None, "12,345 tokens"),
        (441104.5, "{token}", None, "441,104 tokens"),
        (0.123456, "{token}/s", None, "0.1235 tokens/s"),
        (1.0, "{token}/s", None, "1 token/s"),
        (250.0, "W", None, "250 W"),
        (1e15, "{token}", None, "1000000000000000 tokens"),
        (-2e15, "J", None, "-2000000000000000 J"),
        (999999999999999.0, "{token}", None, "999,999,999,999,999 tokens"),
    ],
)
def test_a_number_with_its_unit(number: float, unit: str, labels: dict[str, str] | None, written: str) -> None:
    assert measured(number, unit, labels) == written


@pytest.mark.parametrize(
    ("metric", "fields", "written"),
    [
        ("llm_requests_running", {"value": 3.0}, "3 requests"),
        ("llm_engine_start_time_seconds", {"value": 1.7e9}, "2023-11-14 22:13:20 UTC"),
        ("llm_config_last_reload_success_timestamp_seconds", {"value": 0.0}, "1970-01-01 00:00:00 UTC"),
        ("llm_config_last_reload_success_timestamp_seconds", {"value": 1e18}, "1e+18 s"),
        ("llm_time_to_first_token_seconds", {"histogram": {"count": 4.0, "sum": 1.0}}, "4 counted, mean 0.25 s"),
        ("llm_time_to_first_token_seconds", {"histogram": {"count": 0.0, "sum": 0.0}}, "0 counted"),
    ],
)
def test_the_value_of_a_point(metric: str, fields: dict[str, Any], written: str) -> None:
    assert value({"metric": metric, "labels": {}, **fields}) == written


def test_everything_that_a_report_may_hold_the_worst_first() -> None:
    reports = [
        source("fine", states=[]),
        source(
            "bad",
            engine=None,
            version="",
            up=False,
            states=[{"model": "", "level": "bad", "state": "down", "reason": "refused\x1b[31m"}],
            error={"cause": "unreachable", "message": "refused"},
            missing=[{"metric": "llm_requests_running", "reason": "hidden: it is down"}],
        ),
        source(
            "mixed",
            states=[
                {"model": "m", "level": "good", "state": "serving", "reason": ""},
                {"gpu": "0", "level": "warn", "state": "hot", "reason": "it is hot"},
            ],
            warnings=[{"cause": "some_cause", "message": "a warning"}],
            points=[
                {
                    "metric": "llm_requests_running",
                    "labels": {"engine": "vllm", "model": "m"},
                    "value": 3,
                    "source": "a",
                },
                {"metric": "llm_up", "labels": {"target": "mixed"}, "value": 1.0, "source": "b"},
            ],
            missing=[
                {"metric": "llm_requests_waiting", "reason": "it exposes none"},
                {"metric": "llm_requests_limit", "reason": "it exposes none"},
            ],
            unmapped=["vllm:one", "vllm:two"],
        ),
    ]
    absent = [{"address": "127.0.0.1:11434", "usual": "Ollama", "error": {"message": "nothing listens there"}}]
    assert text_report(reports, absent).splitlines() == [
        "bad  unknown engine  DOWN  (read in 12.3 ms)",
        r"  ■ down: refused\x1b[31m",
        "  error (unreachable): refused",
        "",
        "mixed  vllm 0.9  up  (read in 12.3 ms)",
        "  ✓ m is serving",
        "  ▲ GPU 0 is hot: it is hot",
        "  warning (some_cause): a warning",
        "  metrics, and where they come from",
        "    llm_requests_running{model=m}  3 requests  a",
        "    llm_up                           1 source  b",
        "  missing, and what to do",
        "    it exposes none:",
        "        llm_requests_waiting, llm_requests_limit",
        "  exposed by the engine and not used here",
        "    vllm:one, vllm:two",
        "",
        "fine  vllm 0.9  up  (read in 12.3 ms)",
        "",
        "Looked for on this host and not found",
        "  127.0.0.1:11434    Ollama: nothing listens there",
    ]
    assert text_report([], []) == NOTHING
    assert text_report(iter([source("fine", states=[])]), []).splitlines() == ["fine  vllm 0.9  up  (read in 12.3 ms)"]


def test_long_lists_are_wrapped() -> None:
    lacking = [{"metric": f"llm_metric_{number}", "reason": "it has a long reason " * 9} for number in range(30)]
    lines = text_report([source("a", unmapped=[f"vllm:{n}" for n in range(60)], missing=lacking)], []).splitlines()
    widths = {
        indent: max(len(line) for line in lines if len(line) - len(line.lstrip()) == indent) for indent in (4, 6, 8)
    }
    assert widths == {4: 110, 6: 91, 8: 109}
    assert sum(line.startswith("    vllm:") for line in lines) == 6


@pytest.mark.parametrize(
    ("fields", "place", "good"),
    [
        ({"states": []}, 3, True),
        ({"states": [], "up": False}, 0, False),
        ({"states": [{"level": "unknown"}]}, 2, True),
        ({"states": [{"level": "good"}, {"level": "warn"}]}, 1, False),
        ({"up": False}, 3, False),
        ({"warnings": [{"cause": Cause.NOT_THIS_ENGINE}]}, 3, False),
        ({"warnings": [{"cause": Cause.TOO_LARGE}]}, 3, True),
    ],
)
def test_how_bad_a_source_is(fields: dict[str, Any], place: int, *, good: bool) -> None:
    assert (rank(source("a", **fields)), fine(source("a", **fields))) == (place, good)


@pytest.mark.parametrize(
    ("state", "reason", "line"),
    [
        (
            "loading",
            "no response since llm-headroom started 0 s ago: refused",
            "no response since llm-headroom started 0 s ago",
        ),
        ("misread", "refused", ""),
    ],
)
def test_an_error_is_written_once(state: str, reason: str, line: str) -> None:
    states = [{"model": "", "level": "warn", "state": state, "reason": reason}]
    report = source("a", up=False, states=states, error={"cause": "refused", "message": "refused"})

    assert text_report([report], []).splitlines()[1:] == [
        f"  ▲ {state}: {line}" if line else f"  ▲ {state}",
        "  error (refused): refused",
    ]
