"""The parser against prometheus_client, on captures of real engines (tests/fixtures/captures) and on generated text."""

from __future__ import annotations

import gc
import re
import sys
import tracemalloc
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from llm_headroom.exposition.text import Exposition, Parser

CAPTURES = Path(__file__).parent / "fixtures" / "captures"
FILES = [str(path.relative_to(CAPTURES)) for path in sorted(CAPTURES.glob("*/*/*.prom"))]

Row: TypeAlias = tuple[str, tuple[tuple[str, str], ...], str, str]


def is_openmetrics(body: bytes) -> bool:
    """By content: some servers answer in the text format whatever they were asked for."""
    return body.endswith(b"# EOF\n")


def parse(body: bytes, parser: Parser | None = None) -> Exposition:
    return (parser or Parser()).parse(body, openmetrics=is_openmetrics(body))


def rows(exposition: Exposition) -> list[Row]:
    assert len(exposition.layout.keys) == len(exposition.values)
    return [(*key, repr(value)) for key, value in zip(exposition.layout.keys, exposition.values, strict=True)]


def same(one: Exposition, other: Exposition) -> bool:
    return (
        rows(one) == rows(other)
        and one.layout.families == other.layout.families
        and one.layout.invalid == other.layout.invalid
    )


def in_client_terms(exposition: Exposition, *, openmetrics: bool) -> list[Row]:
    """prometheus_client says unknown for untyped, and its text parser appends `_total` to counters that lack it."""
    return [
        (
            name + "_total" if kind == "counter" and not openmetrics and not name.endswith("_total") else name,
            tuple(sorted(labels)),
            "unknown" if kind == "untyped" else kind,
            value,
        )
        for name, labels, kind, value in rows(exposition)
    ]


def client_rows(body: bytes, *, openmetrics: bool) -> list[Row]:
    families = openmetrics_families if openmetrics else text_families
    return [
        (sample.name, tuple(sorted(sample.labels.items())), family.type, repr(float(sample.value)))
        for family in families(body.decode())
        for sample in family.samples
    ]


def renamed(body: bytes) -> bytes:
    """OpenMetrics with the names of TYPE and HELP lines written as those of the samples are.

    prometheus_client 0.23 and newer writes `vllm_x` as a sample and `vllm:x` in its TYPE line if it is not asked for
    `escaping=allow-utf-8`. Its own parser then takes the samples for untyped ones, and refuses the body
    ("Clashing name: …") where samples of one such family do not follow one another.
    """
    return re.sub(rb"(?m)^# (?:HELP|TYPE) \S+", lambda line: line[0].replace(b":", b"_"), body)


# Two API servers, whose instrumentation registers its families twice: http_* come with two TYPE and HELP lines.
REPEATED_FAMILIES = [name for name in FILES if re.match(r"vllm/0\.32\.0-dp2-api2/.*openmetrics", name)]


@pytest.mark.parametrize("name", [name for name in FILES if name not in REPEATED_FAMILIES])
def test_a_capture_gives_what_prometheus_client_gives(name: str) -> None:
    body = (CAPTURES / name).read_bytes()
    openmetrics = is_openmetrics(body)
    got = parse(body)
    assert got.values
    assert got.layout.invalid == 0
    assert got.layout.problems == ()
    assert in_client_terms(got, openmetrics=openmetrics) == client_rows(
        renamed(body) if openmetrics else body, openmetrics=openmetrics
    )


@pytest.mark.parametrize("name", [name for name in FILES if re.match(r"vllm/0\.(12|32).*openmetrics", name)])
def test_openmetrics_that_prometheus_client_refuses_has_all_its_types(name: str) -> None:
    body = (CAPTURES / name).read_bytes()
    with pytest.raises(ValueError, match="Clashing name"):
        client_rows(body, openmetrics=True)
    got = parse(body)
    assert got.layout.families["vllm:request_success"] == "counter"
    assert {key.type for key in got.layout.keys if key.name == "vllm_request_success_total"} == {"counter"}
    assert {key.type for key in got.layout.keys if key.name.startswith("vllm_")} == {"counter", "gauge", "histogram"}


@pytest.mark.parametrize("name", REPEATED_FAMILIES)
def test_families_that_occur_twice_are_kept(name: str) -> None:
    body = (CAPTURES / name).read_bytes()
    with pytest.raises(ValueError, match=r"Clashing name: http_|metadata after samples: # HELP http_"):
        client_rows(renamed(body), openmetrics=True)
    got = parse(body)
    assert got.layout.invalid == 0
    # The text parser takes what OpenMetrics has, but for the types.
    assert [(name, sorted(labels), value) for name, labels, _, value in rows(got)] == [
        (name, list(labels), value) for name, labels, _, value in client_rows(body, openmetrics=False)
    ]
    kinds = {key.type for key in got.layout.keys if key.name.startswith("http_request_duration_highr_seconds_")}
    assert kinds == {"histogram"}


def test_labels_stand_in_the_order_of_the_line() -> None:
    (key,) = parse(b'a{z="1",b="2",m="3"} 1\n').layout.keys
    assert key.labels == (("z", "1"), ("b", "2"), ("m", "3"))


def test_declared_families_without_samples_are_told() -> None:
    body = b"# HELP a x\n# TYPE a counter\n# HELP b y\n# TYPE c histogram\nd 1\n"
    assert parse(body).layout.families == {"a": "counter", "b": "untyped", "c": "histogram"}


STATES: dict[str, list[str]] = {}
for _name in FILES:
    _directory, _, _file = _name.rpartition("/")
    STATES.setdefault(f"{_directory}/*.{_file.partition('.')[2]}", []).append(_name)


@pytest.mark.parametrize("states", STATES)
def test_successive_states_of_an_engine_read_as_each_by_itself(states: str) -> None:
    bodies = [(CAPTURES / name).read_bytes() for name in STATES[states]]
    expected = [parse(body) for body in bodies]
    parser = Parser()
    for index in [*range(len(bodies)), *reversed(range(len(bodies)))]:
        for _ in range(2):
            got = parse(bodies[index], parser)
            assert same(got, expected[index])
        assert parse(bodies[index], parser).layout is got.layout


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b'{"a.b", x="y"} 1', ("a.b", (("x", "y"),), "1.0")),
        (b'{"a.b"} 1', ("a.b", (), "1.0")),
        (b'{"quote \\" and } brace","l{b,l" = "v" , } 1', ('quote " and } brace', (("l{b,l", "v"),), "1.0")),
        (b'a{x="\\\\n \\n \\" \\q"} 1', ("a", (("x", '\\n \n " \\q'),), "1.0")),
        (
            b'a{x="}",y=",",z="{",w=" # ",v=""} 1',
            ("a", (*zip("xyzwv", ["}", ",", "{", " # ", ""], strict=True),), "1.0"),
        ),
        ('a{x="\u2028\x0b\x85 é"} 1'.encode(), ("a", (("x", "\u2028\x0b\x85 é"),), "1.0")),
        (b'a{x="y",} 1', ("a", (("x", "y"),), "1.0")),
        (b' \ta\t {x = "y" , z=""}\t  1 \t', ("a", (("x", "y"), ("z", "")), "1.0")),
        (b"a{} 1\r", ("a", (), "1.0")),
        (b'a{x="y"}1', ("a", (("x", "y"),), "1.0")),
        (b"a 1 1700000000000", ("a", (), "1.0")),
        (b"a\t1\t-5", ("a", (), "1.0")),
        (b'a 1 # {trace="}\\" # {"} 0.5', ("a", (), "1.0")),
        (b'a{x="y"} 1 1.5 # {} 0.5 1700000000.25', ("a", (("x", "y"),), "1.0")),
        (b"a NaN", ("a", (), "nan")),
        (b"a +Inf", ("a", (), "inf")),
        (b"a -inf", ("a", (), "-inf")),
        (b"a Infinity", ("a", (), "inf")),
        (b"a -1.5E-3", ("a", (), "-0.0015")),
    ],
)
@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_well_formed_line_is_read(line: bytes, row: tuple[str, object, str], *, openmetrics: bool) -> None:
    name, labels, value = row
    parser = Parser()
    for _ in range(3):
        got = parser.parse(line + b"\n# EOF\n", openmetrics=openmetrics)
        assert rows(got) == [(name, labels, "untyped", value)]
        assert got.layout.invalid == 0


def test_a_family_s_name_in_quotes_may_hold_blanks_and_escapes() -> None:
    body = b'# HELP "a b \\" c" of two words\n# TYPE "a b \\" c" gauge\n{"a b \\" c"} 1\n# TYPE "d" counter\nd 2\n'
    got = parse(body)
    assert rows(got) == [('a b " c', (), "gauge", "1.0"), ("d", (), "counter", "2.0")]
    assert dict(got.layout.families) == {'a b " c': "gauge", "d": "counter"}
    assert got.layout.invalid == 0


MALFORMED = [
    b"a",
    b"a ",
    b"a x",
    b"a 1_000",
    b"a 1 1_0",
    b"a 0x10",
    b"a 1 x",
    b"a 1 2 3",
    b"a 1,5",
    b"a #1",
    b'a 1 # {x="y"}',
    b'a 1 # {x="y" 1',
    b"5",
    b"nan",
    b"1a 1",
    b"a-b 1",
    b"a\x0b5",
    b'a{x="y" 1',
    b'a{x="y} 1',
    b"a{x=y} 1",
    b"a{x} 1",
    b"a{x=} 1",
    b'a{1x="y"} 1',
    b'a{x="y" z="w"} 1',
    b'a{x="y",,z="w"} 1',
    b'a{x="y",x="z"} 1',
    b'a{"b"} 1',
    b'{"b","c"} 1',
    b'{x="y"} 1',
    b"{} 1",
    b'{""} 1',
    b'a{x="\xff"} 1',
    "a \u0661".encode(),
    b"a {count:1,sum:2}",
    b"# TYPE a",
    b"# TYPE a b",
    b"# TYPE 1a gauge",
    b"# HELP",
    b'# TYPE "\xff" gauge',
    b'# TYPE "" gauge',
    b'# TYPE "a gauge',
    b'# HELP "a b c',
]


@pytest.mark.parametrize("line", MALFORMED)
@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_malformed_line_is_dropped_and_counted_and_all_else_is_kept(line: bytes, *, openmetrics: bool) -> None:
    parser = Parser()
    good = parser.parse(b'# TYPE g gauge\ng{x="y"} 1\nbefore 2\nafter 3\n# EOF\n', openmetrics=openmetrics)
    assert good.layout.invalid == 0
    body = b'# TYPE g gauge\ng{x="y"} 1\nbefore 2\n' + line + b"\nafter 3\n# EOF\n"
    for warm in (parser, Parser()):
        got = warm.parse(body, openmetrics=openmetrics)
        assert rows(got) == rows(good)
        assert got.layout.invalid == 1
        (problem,) = got.layout.problems
        assert problem.startswith("line 4: ")
        assert repr(line.decode(errors="replace")) in problem
        assert warm.parse(body, openmetrics=openmetrics).layout is got.layout


def test_problems_are_few_and_short() -> None:
    got = parse(b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(50)))
    assert got.layout.invalid == 50
    assert [problem.partition(":")[0] for problem in got.layout.problems] == [f"line {n}" for n in range(1, 6)]
    assert max(map(len, got.layout.problems)) < 200
    assert parse(b'a{b="\xff"} 1\n').layout.problems == ("line 1: it is not UTF-8: 'a{b=\"�\"} 1'",)


ABOVE = [b"", b" \t", b"# a comment", b"# HELP a b", b"# TYPE a gauge", b"a 1", b'b{x="y"} 1', b"1x 1"]


@given(st.lists(st.sampled_from(ABOVE), max_size=6), st.none() | st.lists(st.sampled_from(ABOVE), max_size=3))
def test_a_problem_names_its_line_whatever_stands_above(above: list[bytes], beyond: list[bytes] | None) -> None:
    """`beyond` is what follows the end of OpenMetrics, of which every line is a problem."""
    end = [] if beyond is None else [b"# EOF", *beyond]
    lines = [*above, *end, b"2x 2"]
    wrong = [
        f"line {number}"
        for number, line in enumerate(lines, 1)
        if re.match(rb"\dx", line) or (end and number > len(above) + 1 and line.strip())
    ]
    got = Parser().parse(b"".join(line + b"\n" for line in lines), openmetrics=bool(end))
    assert [problem.partition(":")[0] for problem in got.layout.problems] == wrong[:5]


@pytest.mark.parametrize("body", [b"", b"\n", b" \n\t\r\n", b"# a comment\n#\n#TYPE a gauge\n"])
def test_a_body_may_hold_no_samples(body: bytes) -> None:
    got = parse(body)
    assert got.values == []
    assert got.layout.keys == ()
    assert got.layout.families == {}
    assert got.layout.invalid == 0


def test_a_sample_is_of_the_family_that_its_line_stands_in() -> None:
    body = (
        b"a 0\n# HELP a help\na 1\n# TYPE a counter\na 2\na_created 3\na 4\n"
        b"# TYPE h histogram\nh_bucket 1\nh_sum 2\nh_count 3\n# HELP h later\nh_sum 4\nh 5\nh_sum 6\n"
        b"# TYPE a gauge\na 7\n# TYPE u unknown\nu 8\n"
    )
    got = parse(body)
    kinds = ["untyped", "counter", "counter", "untyped", "untyped", *["histogram"] * 4, "untyped", "untyped"]
    assert [key.type for key in got.layout.keys] == [*kinds, "gauge", "unknown"]
    assert in_client_terms(got, openmetrics=False) == client_rows(body, openmetrics=False)


def test_openmetrics_families_have_their_own_suffixes() -> None:
    body = (
        b"# TYPE a counter\na_total 1\na_created 2\n# TYPE g gaugehistogram\n"
        b'g_bucket{le="+Inf"} 1\ng_gcount 1\ng_gsum 2\n# TYPE i info\ni_info{v="1"} 1\n# TYPE s stateset\ns{s="x"} 1\n'
        b'# TYPE x:y counter\n# UNIT x:y seconds\nx:y_total{p="q"} 3\nx_y_total{p="r"} 4\nz_total 5\n# EOF\n'
    )
    kinds = [*["counter"] * 2, *["gaugehistogram"] * 3, "info", "stateset", "counter", "counter", "untyped"]
    got = parse(body)
    assert [key.type for key in got.layout.keys] == kinds
    assert got.layout.invalid == 0


def test_a_last_line_without_line_feed_is_dropped() -> None:
    parser = Parser()
    whole = parse(b"a 1\nb 123\n", parser)
    for body in (b"a 1\nb 123", b"a 1\nb 12", b"a 1\nb ", b"a 1\nb"):
        for warm in (parser, Parser()):
            got = parse(body, warm)
            assert rows(got) == rows(whole)[:1]
            assert got.layout.invalid == 1
            assert "may be cut" in got.layout.problems[0]


@pytest.mark.parametrize(
    ("body", "invalid"),
    [
        (b"a 1\n# EOF\n", 0),
        (b"a 1\n# EOF", 0),
        (b"a 1\n", 1),
        (b"", 1),
        (b"a 1\n# EO", 2),
        (b"a 1\n# EOF\nb 2\n\n", 1),
        (b"a 1\n# EOF\nb 2\n# TYPE c gauge\n# EOF\n", 3),
    ],
)
def test_openmetrics_ends_with_eof(body: bytes, invalid: int) -> None:
    got = Parser().parse(body, openmetrics=True)
    assert rows(got) == ([("a", (), "untyped", "1.0")] if body else [])
    assert got.layout.invalid == invalid
    assert len(got.layout.problems) == invalid


def test_the_layout_is_kept_while_only_values_move() -> None:
    body = b'# TYPE a gauge\na{x="y"} %s\n\nb %s\n'
    parser = Parser()
    layout = parse(body % (b"1", b"2"), parser).layout
    for one, other in ((b"1", b"3"), (b"NaN", b"-Inf"), (b"1e300", b" 5"), (b"1 170", b"2"), (b"1", b"0.125")):
        got = parse(body % (one, other), parser)
        assert got.layout is layout
        assert got.values == pytest.approx([float(one.split()[0]), float(other)], nan_ok=True)


ODD = (
    *(
        b"NaN",
        b"+Inf",
        b"-Inf",
        b"1e400",
        b"5",
        b"-5",
        b"-0",
        b" -0",
        b"-0.0",
        b"-0.5",
        b"5e-05",
        b"1E5",
        b"01",
        b".5",
        b"5.",
    ),
    *(
        b"+1",
        b"1_0",
        b"1,2",
        b"",
        b"0x10",
        b"[1",
        b"1]",
        b"null",
        b"true",
        b'"1"',
        b" 7",
        b"123456789012345678901234567890",
    ),
)
"""What is a number for Python, for JSON, for both, or for neither."""


@pytest.mark.parametrize("text", ODD, ids=repr)
def test_a_number_is_the_same_whether_its_line_is_known_or_new(text: bytes) -> None:
    body = b"# TYPE a gauge\na %b\nb %b\nc %b\n"
    parser = Parser()
    for values in ((b"1", b"2", b"3"), (text, b"2.5", b"NaN"), (b"7", text, b"1e-05"), (b"1", b"-2", text)):
        assert same(parse(body % values, parser), parse(body % values))


def test_the_layout_is_kept_when_only_comments_space_or_the_text_of_malformed_lines_change() -> None:
    parser = Parser()
    layout = parse(b"# HELP a x\n# TYPE a gauge\na 1\n1 2\n", parser).layout
    for body in (
        b"# HELP a z\n# TYPE a gauge\na 1\n1 3\n",
        b"# TYPE a gauge\na   1\n\n1 4\n",
        b"# TYPE a gauge\n1 4\na   1\n\n",
    ):
        assert parse(body, parser).layout is layout


def test_a_new_layout_comes_with_another_key_family_or_number_of_invalid_lines() -> None:
    parser = Parser()
    bodies = (
        b"# TYPE a gauge\na 1\n",
        b"# TYPE a counter\na 1\n",
        b"# TYPE a counter\n# TYPE b gauge\na 1\n",
        b'# TYPE a counter\na{x="y"} 1\n',
        b'# TYPE a counter\na{x="y"} 1\nz\n',
    )
    layouts = [parse(body, parser).layout for body in bodies]
    assert len({id(layout) for layout in layouts}) == len(bodies)
    assert [layout.invalid for layout in layouts] == [0, 0, 0, 0, 1]


def test_parsers_of_like_endpoints_do_not_disturb_one_another() -> None:
    body = (CAPTURES / "vllm/0.32.0/saturated.prom").read_bytes()
    bodies = [
        body,
        body,
        body + b'late_total{a="b"} 1\n',
        body.replace(b"tiny-llama", b"big-llama"),
        body.replace(b"counter\n", b"gauge\n", 1),
    ]
    parsers = [Parser() for _ in bodies]
    for _ in range(3):
        for one, parser in zip(bodies, parsers, strict=True):
            assert same(parse(one, parser), parse(one))
    for parser in parsers:
        assert same(parse(bodies[2], parser), parse(bodies[2]))


def test_a_parser_may_be_told_another_format_for_the_same_body() -> None:
    body = b"# TYPE a counter\na_total 1\n# EOF\n"
    parser = Parser()
    for openmetrics, kind in [(False, "untyped"), (True, "counter"), (True, "counter"), (False, "untyped")]:
        got = parser.parse(body, openmetrics=openmetrics)
        assert rows(got) == [("a_total", (), kind, "1.0")]


@pytest.mark.parametrize("family", [b"# TYPE a gauge\n%s# TYPE a counter\n", b"# HELP a x\n%s# TYPE a counter\n"])
def test_a_series_that_appears_ahead_of_its_type_line_has_that_type(family: bytes) -> None:
    rest = b'a{x="1"} 1\n' + b"".join(b"# TYPE g%d gauge\ng%d 1\n" % (number, number) for number in range(20))
    for body in (rest, b"# TYPE z gauge\nz 1\n" + rest):
        parser = Parser()
        for appearing in (b"", b'a{x="0"} 0\n', b'a{x="0"} 0\na{x="2"} 2\n'):
            got = parse(body.replace(b"a{", family % appearing + b"a{", 1), parser)
            assert {key.type for key in got.layout.keys if key.name == "a"} == {"counter"}


def test_series_that_are_gone_are_forgotten() -> None:
    parser = Parser()

    def scrape(number: int) -> None:
        body = b"".join(b'# TYPE f%d gauge\nf%d{id="%d"} 1\n' % (number, number, n) for n in range(number, number + 50))
        parse(body, parser)

    scrape(1000)
    gc.collect()
    tracemalloc.start()
    try:
        scrape(1001)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1002, 1102):
            scrape(number)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


# What it costs -------------------------------------------------------------------------------------------------------
def steps(body: bytes, parser: Parser) -> int:
    """Calls that a body takes: a measure of work that is the same on every machine."""
    count = 0

    def note(_frame: object, event: str, _what: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(note)
    try:
        parse(body, parser)
    finally:
        sys.setprofile(None)
    return count


def families(*, more: bytes = b"", value: int = 1) -> bytes:
    """A hundred families of twenty series each; `more` are lines at the end of the fiftieth."""
    return b"".join(
        b"# TYPE f%d gauge\n" % family
        + b"".join(b'f%d{id="%d"} %d\n' % (family, number, value) for number in range(20))
        + more * (family == 50)
        for family in range(100)
    )


def test_a_body_with_the_lines_of_the_last_one_is_read_at_once() -> None:
    parser = Parser()

    assert steps(families(), parser) > 2000
    assert steps(families(value=2), parser) < 60


@pytest.mark.parametrize("change", [b'f50{id="new"} 1\n', b'f50{id="a"} 1\nf50{id="b"} 1\n'])
def test_of_a_body_that_differs_in_a_family_that_family_is_read(change: bytes) -> None:
    parser = Parser()
    parse(families(), parser)

    assert steps(families(more=change, value=2), parser) < 500
    assert steps(families(more=change, value=3), parser) < 60
    assert steps(families(value=4), parser) < 500
    assert same(parse(families(value=5), parser), parse(families(value=5)))


def test_of_a_body_with_another_series_in_place_of_one_its_family_is_read() -> None:
    parser, body = Parser(), families()
    parse(body, parser)
    changed = body.replace(b'f50{id="7"}', b'f50{name="7"}')

    assert steps(changed, parser) < 500
    assert same(parse(changed, parser), parse(changed))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"# TYPE a gauge\na 1\n", b"# TYPE a gaugehistogram\na 1\n"),
        (b"# TYPE a gauge\na 1\n", b"# TYPE a gauge\na 1_0\n"),
        (b"# TYPE a gauge\na 1\n", b"# TYPE a gauge\n1\n"),
        (b"# TYPE a gauge\na 1\n\n", b"# TYPE a gauge\na 1\nb 2\n"),
        (b"# TYPE a gauge\na 1\n#\nb 2\n", b"# TYPE a gauge\na 1\n# TYPE b counter\nb 2\n"),
        (b"# TYPE a gauge\na 1\n1\n", b"# TYPE a gauge\na 1\n1 2 3 4\n"),
        (b"a 1\n", b"5\n\nx"),  # as many bytes beside numbers, in more lines
    ],
)
def test_a_line_that_is_no_sample_and_goes_on_is_another_one(before: bytes, after: bytes) -> None:
    for rest in (b"", families()):
        parser = Parser()
        parse(before + rest, parser)
        assert same(parse(after + rest, parser), parse(after + rest))


def test_like_endpoints_share_what_is_remembered_of_them() -> None:
    """Replicas of one version: hundreds of them must not cost hundreds of times the memory."""
    one, other, differing = Parser(), Parser(), Parser()
    layout = parse(families(), one).layout

    assert parse(families(value=3), other).layout is layout
    third = parse(families(more=b'f50{id="new"} 1\n'), differing).layout
    assert third.families is layout.families
    known = {id(key) for key in layout.keys}
    assert [key.labels for key in third.keys if id(key) not in known] == [(("id", "new"),)]


# Generated expositions -----------------------------------------------------------------------------------------------
nasty = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\{},=# \n\t'), max_size=8)
plain_names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,6}", fullmatch=True)
SPELLINGS = ["0", "-1", "+2", "1.5", "1e3", "1E-3", ".5", "5.", "NaN", "nan", "+Inf", "-Inf", "Inf", "inf", "Infinity"]
numbers = st.sampled_from(SPELLINGS) | st.one_of(st.floats().map(repr), st.integers(-(10**20), 10**20).map(str))
spaces = st.sampled_from([" ", "  ", "\t", " \t"])


def quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


# A name is quoted with something before and after whatever is nasty in it: prometheus_client strips a quoted name.
quoted_names = nasty.map(lambda inner: f"q.{inner}.")
# `le` is what buckets have of their own.
label_names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,4}", fullmatch=True).filter(lambda name: name != "le")


@st.composite
def label_texts(draw: st.DrawFn) -> list[str]:
    names = draw(st.lists(label_names | quoted_names, max_size=3, unique=True))
    return [f"{quoted(name) if '.' in name else name}={quoted(draw(nasty))}" for name in names]


@st.composite
def sample_lines(draw: st.DrawFn, name: str) -> str:
    labels = draw(label_texts())
    if "." in name:
        series = "{" + ",".join([quoted(name), *labels]) + "}"
    else:
        series = name + ("{" + ",".join(labels) + draw(st.sampled_from(["", ",", " "])) + "}" if labels else "")
    gap = draw(st.sampled_from([" ", "\t"]))
    timestamp = draw(st.sampled_from(["", gap + "1700000000000", gap + "-1"]))
    return series + draw(spaces) + draw(numbers) + timestamp + draw(st.sampled_from(["", " ", "\r"]))


@st.composite
def text_bodies(draw: st.DrawFn) -> bytes:
    lines = []
    for name in draw(st.lists(plain_names | quoted_names, max_size=4, unique=True)):
        kind = draw(st.sampled_from(["counter", "gauge", "histogram", "summary", "unknown", "info", None]))
        token = quoted(name) if "." in name else name
        metadata = [f"# HELP {token}" + draw(st.sampled_from(["", " x", ' a # "quoted" \\\\ {help}']))]
        if kind:
            metadata.append(f"#{draw(spaces)}TYPE {token} {kind}")
        lines += draw(st.permutations(metadata)) if draw(st.booleans()) else []
        suffixes = {"histogram": ["_bucket", "_sum", "_count"], "summary": ["", "_sum", "_count"]}.get(kind or "", [""])
        for _ in range(draw(st.integers(0, 3))):
            suffix = draw(st.sampled_from([*suffixes, *suffixes, *suffixes, "_created"]))
            lines.append(draw(sample_lines(name + suffix)))
        lines += draw(st.lists(st.sampled_from(["", "  ", "# a comment", "#"]), max_size=1))
    return "".join(line + "\n" for line in lines).encode()


@given(text_bodies())
@settings(max_examples=150, deadline=None)
def test_valid_text_gives_what_prometheus_client_gives(body: bytes) -> None:
    got = parse(body)
    assert got.layout.invalid == 0, got.layout.problems
    assert in_client_terms(got, openmetrics=False) == client_rows(body, openmetrics=False)


@st.composite
def openmetrics_bodies(draw: st.DrawFn) -> bytes:
    lines = []
    for index in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from([f"m{index}", f"ns:m{index}", f"q.{index}"]))
        kind = draw(st.sampled_from(["counter", "gauge", "histogram", "summary", "info", "unknown"]))
        lines.append(f"# TYPE {quoted(name) if '.' in name else name} {kind}")
        labels = draw(label_texts())
        stamp = draw(st.sampled_from(["", " 1700000000", " 1700000000.25"]))
        exemplar = draw(st.sampled_from(["", ' # {trace_id="a"} 0.5', ' # {t="} # {"} 1 1700000000.5']))
        number = draw(st.floats(0, 1e9).map(repr) | st.integers(0, 10**9).map(str))
        texts = {
            "counter": [("_total", "", number, exemplar), ("_created", "", "1.5", "")],
            "gauge": [("", "", draw(numbers), "")],
            "histogram": [
                ("_bucket", 'le="1.0"', "1", exemplar),
                ("_bucket", 'le="+Inf"', "3.0", ""),
                ("_count", "", "3", ""),
                ("_sum", "", number, ""),
            ],
            "summary": [("", 'quantile="0.5"', number, ""), ("_count", "", "2", ""), ("_sum", "", number, "")],
            "info": [("_info", "", "1", "")],
            "unknown": [("", "", draw(numbers), "")],
        }[kind]
        for suffix, own, value, after in texts:
            inside = [*([own] if own else []), *labels]
            if "." in name:
                series = "{" + ",".join([quoted(name + suffix), *inside]) + "}"
            else:
                series = name + suffix + ("{" + ",".join(inside) + "}" if inside else "")
            lines.append(f"{series} {value}{stamp}{after}")
    return "".join(line + "\n" for line in [*lines, "# EOF"]).encode()


@given(openmetrics_bodies())
@settings(max_examples=100, deadline=None)
def test_valid_openmetrics_gives_what_prometheus_client_gives(body: bytes) -> None:
    got = parse(body)
    assert got.layout.invalid == 0, got.layout.problems
    assert in_client_terms(got, openmetrics=True) == client_rows(body, openmetrics=True)


# Changes between scrapes ---------------------------------------------------------------------------------------------
TYPED = (
    b'# HELP a x\n# TYPE a gauge\na{x="1"} 1\na{x="2"} 2\na{x="3"} 3\n# HELP h x\n# TYPE h histogram\n'
    b'h_bucket{le="1"} 1\nh_bucket{le="+Inf"} 2\nh_sum 3\nh_count 4\n# TYPE b_total counter\nb_total 5\n'
    b'# HELP c x\n# TYPE c gauge\nc{x="1"} 1\nc{x="2"} 2\n# TYPE d gauge\nd 1\n# TYPE e gauge\ne 1\ne{f="g"} 2\n'
)
BASES = [
    TYPED,
    TYPED + b"# EOF\n",
    (CAPTURES / "llamacpp/b10488/idle.prom").read_bytes(),
    (CAPTURES / "sglang/0.4.4-collector-only/idle.openmetrics.prom").read_bytes(),
]
INSERTED = st.sampled_from(
    [
        *MALFORMED,
        b"",
        b"#",
        b'a{x="9"} 9',
        b"a1 5",
        b"a 7 1700000000000",
        b"h_sum 8",
        b"b_total 1",
        b'c{x="new"} 4',
        b"# TYPE a counter",
        b"# TYPE a gauge",
        b"# TYPE h summary",
        b"# HELP c y",
        b"# TYPE c untyped",
        b"# EOF",
    ]
)
VALUES = st.sampled_from(
    [b"0", b"NaN", b"-Inf", b"1_0", b"", b"x", b"7 1700000000000", b'7 # {a="b"} 1', b"8 ", b"9\r"]
)


@st.composite
def changes(draw: st.DrawFn, lines: list[bytes]) -> list[bytes]:
    lines = list(lines)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        what = draw(st.sampled_from(["value", "value", "insert", "insert", "copy", "delete", "swap", "replace"]))
        if what == "insert" or not lines:
            lines.insert(at, draw(INSERTED))
        elif what == "value":
            lines[at] = lines[at][: lines[at].rfind(b" ") + 1] + draw(VALUES)
        elif what == "copy":
            lines.insert(at, draw(st.sampled_from(lines)))
        elif what == "delete":
            del lines[at]
        elif what == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] = draw(INSERTED)
    return lines


@given(st.data())
@settings(max_examples=250, deadline=None)
def test_a_parser_that_saw_other_scrapes_reads_as_a_new_one(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(BASES))
    openmetrics = is_openmetrics(body)
    parser = Parser()
    last = parser.parse(body, openmetrics=openmetrics)
    lines = body.split(b"\n")
    for _ in range(data.draw(st.integers(1, 4))):
        # From the first body or from the last one: changes come and go, or pile up.
        lines = data.draw(changes(data.draw(st.sampled_from([body.split(b"\n"), lines]))))
        body_now = b"\n".join(lines)
        got = parser.parse(body_now, openmetrics=openmetrics)
        fresh = Parser().parse(body_now, openmetrics=openmetrics)
        assert same(got, fresh)
        unchanged = (got.layout.keys, got.layout.families, got.layout.invalid) == (
            last.layout.keys,
            last.layout.families,
            last.layout.invalid,
        )
        assert (got.layout is last.layout) is unchanged
        last = got


@pytest.mark.parametrize(
    "name",
    [
        "vllm/0.32.0/saturated.prom",
        "vllm/0.8.5-V0/moderate.openmetrics.prom",
        "sglang/0.5.2/saturated.prom",
        "sglang/0.5.23/idle.openmetrics.prom",
    ],
)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_cut_body_says_nothing_that_the_whole_one_does_not(name: str, data: st.DataObject) -> None:
    body = (CAPTURES / name).read_bytes()
    openmetrics = is_openmetrics(body)
    warm = Parser()
    whole = warm.parse(body, openmetrics=openmetrics)
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    for parser in (warm, Parser()):
        got = parser.parse(cut, openmetrics=openmetrics)
        assert rows(got) == rows(whole)[: len(got.values)]
        partial = cut != b"" and not cut.endswith(b"\n") and not cut.endswith(b"\n# EOF")
        missing = openmetrics and not cut.endswith(b"\n# EOF")
        assert got.layout.invalid == partial + missing
        assert len(got.layout.problems) == got.layout.invalid


fragments = st.sampled_from(
    [b"a", b"{", b"}", b'"', b"\\", b",", b"=", b" ", b"\n", b"# TYPE ", b"# EOF\n", b"1", b"nan", b"\xff", b"#", b"_"]
)


@given(st.lists(st.binary() | st.lists(fragments, max_size=40).map(b"".join), max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_bytes_raise(bodies: list[bytes], openmetrics: bool) -> None:  # noqa: FBT001 - drawn, never passed by hand
    parser = Parser()
    for body in bodies:
        got = parser.parse(body, openmetrics=openmetrics)
        assert same(got, Parser().parse(body, openmetrics=openmetrics))
        assert len(got.layout.problems) <= min(5, got.layout.invalid)
