"""Lines of the log in their two forms."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import pytest

from llm_headroom.commands.logs import Json, Logfmt, Unblocked


def record(message: str, **fields: Any) -> logging.LogRecord:  # noqa: ANN401 - whatever is logged
    made = logging.makeLogRecord({"levelname": "WARNING", "msg": message, **fields})
    made.created = 1_700_000_000.1234
    return made


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("http://a:1/b?c", "http://a:1/b?c"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ("back\\slash", r'"back\\slash"'),
        ("line\nfeed", r'"line\nfeed"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("\x9b31m", r'"\u009b31m"'),
        ("a\u202eb", r'"a\u202eb"'),
        ("\udcff", r'"\udcff"'),
        ("größer", "größer"),
        (3, "3"),
        (0.1234567, "0.123457"),
        (1e9, "1e+09"),
        (None, "None"),
        (["a", 1], "\"['a', 1]\""),
    ],
)
def test_values_of_logfmt(value: object, written: str) -> None:
    assert Logfmt().format(record("polled", value=value)) == (
        f"time=2023-11-14T22:13:20.123Z level=warning msg=polled value={written}"
    )


def test_json_has_the_same_fields_as_they_are() -> None:
    line = Json().format(record("it ends", seconds=0.1234567, who="größer", other=("a", None)))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "warning",
        "msg": "it ends",
        "seconds": 0.1234567,
        "who": "größer",
        "other": ["a", None],
    }
    assert "\n" not in line


def test_no_form_lets_a_text_turn_or_colour_a_terminal() -> None:
    evil = "a\x1b[31m\x9b2J\u202eb\u2028\U000e0001 größer"
    shown = record("it ends", who=evil)
    assert Json().format(shown).isprintable()
    assert json.loads(Json().format(shown))["who"] == evil
    assert Logfmt().format(shown).isprintable()
    assert json.loads(Logfmt().format(shown).partition(" who=")[2]) == evil


def test_a_traceback_is_one_field() -> None:
    try:
        int("no such thing")
    except ValueError:
        broken = record("failed", exc_info=sys.exc_info())
    trace = json.loads(Json().format(broken))["trace"]
    assert trace.splitlines()[-1].startswith("ValueError: invalid literal")
    assert Logfmt().format(broken).count("\n") == 0
    assert "ValueError: invalid literal" in Logfmt().format(broken)


def test_a_log_that_nobody_reads_stops_nothing_and_says_later_what_was_lost() -> None:
    reading, writing = os.pipe()
    log = logging.getLogger("unread")
    log.propagate = False
    with os.fdopen(writing, "w", encoding="utf-8") as stream, os.fdopen(reading, "rb") as reader:
        handler = Unblocked(stream)
        handler.setFormatter(Json())
        log.addHandler(handler)
        for number in range(1000):
            log.warning("x" * 500, extra={"number": number})
        log.warning("x" * 100_000)
        unread = os.read(reader.fileno(), 2**20).splitlines()
        log.warning("read again")
        log.removeHandler(handler)
        noted, again = map(json.loads, os.read(reader.fileno(), 2**20).splitlines()[-2:])

    taken = [json.loads(line)["number"] for line in unread[:-1]]
    assert taken == list(range(len(taken)))
    assert (noted["msg"], noted["level"]) == ("log lines lost", "warning")
    assert len(taken) + noted["lines"] in {1000, 1001}
    assert again["msg"] == "read again"
