"""What `top` shows, and what its keys do, without a terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from llm_headroom.commands.top_screen import SORTS, Chosen, pressed, report, screen
from llm_headroom.model import Level
from llm_headroom.view.values import (
    Absent,
    Condition,
    EngineCard,
    GpuCard,
    KvCache,
    Latency,
    Load,
    Objective,
    Quantile,
    Router,
    Source,
    View,
)

GOOD = Condition("serving", Level.GOOD)


@pytest.mark.parametrize(
    ("keys", "changes"),
    [
        ("s", {"sort": 1}),
        ("ss", {"sort": 2}),
        ("S", {"sort": len(SORTS) - 1}),
        ("s" * len(SORTS), {}),
        ("r", {"reverse": True}),
        ("rr", {}),
        ("rs", {"sort": 1}),
        ("/", {"typing": True}),
        ("n/", {"typing": True}),
        ("/ab", {"typing": True, "words": "ab"}),
        ("/abc\x7f\b", {"typing": True, "words": "a"}),
        ("/q\r", {"words": "q"}),
        ("/q\n", {"words": "q"}),
        ("/q\x1b", {}),
        ("/a\x01\x1b[Ab\r", {"words": "ab"}),
        ("?", {"help": True}),
        ("??", {}),
        ("/a\rnn?\x1b", {}),
        ("n", {"page": 1}),
        ("n \x1b[6~\x1b[B\x1bOB", {"page": 5}),
        ("nnnp", {"page": 2}),
        ("nnnnnpb\x1b[5~\x1b[A\x1bOA", {}),
        ("pn", {"page": 1}),
        ("nns", {"sort": 1}),
        ("nnr", {"page": 2, "reverse": True}),
        ("x\x1b[15~", {}),
    ],
)
def test_what_keys_do(keys: str, changes: dict[str, Any]) -> None:
    assert pressed(Chosen(), keys) == Chosen(**changes)


@pytest.mark.parametrize("keys", ["q", "Q", "\x03", "ssq", "/a\rq", "qs"])
def test_keys_that_quit(keys: str) -> None:
    assert pressed(Chosen(), keys) is None


def source(target: str, **fields: Any) -> Source:  # noqa: ANN401 - fields of the class
    known: dict[str, Any] = {"engine": "vllm", "title": "vLLM", "version": "0.9", "up": True}
    return Source(target=target, taken=0.0, duration=0.0, **(known | fields))


def card(target: str, state: Condition = GOOD, **fields: Any) -> EngineCard:  # noqa: ANN401 - fields of the class
    return EngineCard(id=target, source=source(target), state=state, **fields)


def ttft(p95: Quantile) -> tuple[Latency, ...]:
    return (Latency("llm_time_to_first_token_seconds", 300.0, 10.0, (p95,)),)


def view(*engines: EngineCard, gpus: tuple[GpuCard, ...] = (), **fields: Any) -> View:  # noqa: ANN401 - fields of the class
    known: dict[str, Any] = {"version": "1", "time": 100.0, "sources": 3, "up": 2, "absent": ()}
    return View(engines=engines, gpus=gpus, **(known | fields))


def raw(shown: RenderableType, width: int) -> list[str]:
    """What a terminal without colours shows, with its spaces."""
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(shown, crop=False)
    return captured.get().splitlines()


def lines(shown: RenderableType, width: int) -> list[str]:
    """What a terminal without colours shows."""
    return [" ".join(line.split()) for line in raw(shown, width)]


def rows(shown: RenderableType, width: int) -> list[str]:
    """The rows of the tables, which are indented, without their heads."""
    return [" ".join(line.split()) for line in raw(shown, width) if line[:1] == " " and line[1:2] in "■▲?✓"]


def coloured(shown: RenderableType, word: str, width: int) -> set[str]:
    """The styles of the pieces of what is shown that hold a word."""
    return {str(piece.style) for piece in Console(width=width).render(shown) if word in piece.text}


SLOW = replace(
    card(
        "b", Condition("saturated", Level.BAD, "requests wait"), model="m2", waiting=9.0, saturation=1.2, notes=("n",)
    ),
    latencies=ttft(Quantile(0.95, 2.0, 4.0, 3.0)),
    kv=KvCache(usage=0.97, headroom_requests=1.0),
    load=(Load("inter_token_latency", 9.0, "compute", None, suspect=False), Load("ttft", 0.8, "", None, suspect=False)),
    objectives=(Objective("ttft", 2.5, 0.95, 0.5, 10.0),),
    running=12.0,
    generation_rate=250.0,
)
FINE = replace(
    card("a", model="m3", waiting=0.0, running=1.0, saturation=0.1),
    latencies=(
        *ttft(Quantile(0.95, 0.2, 0.4, 0.25)),
        Latency("llm_inter_token_latency_seconds", 300.0, 10.0, (Quantile(0.95, 0.1, None, None),)),
    ),
    kv=KvCache(usage=0.25),
    objectives=(Objective("ttft", 2.5, 0.95, 1.0, 10.0), Objective("inter_token_latency", 0.1, 0.95, 1.0, 10.0)),
)
ROUTER = card("c", model="m1", router=Router(active=4.0, waiting=5.0), running=7.0, waiting=11.0)
UNKNOWN = card(
    "d",
    Condition("unknown", Level.UNKNOWN, "it was not read"),
    model="m4",
    latencies=ttft(Quantile(0.95, 9.0, None, None)),
)
GPU = GpuCard(
    id="0",
    source=source("gpu"),
    state=Condition("hot", Level.WARN, "it is hot"),
    gpu="0",
    name="H100",
    profile="1g.10gb",
    total=4 * 2**30,
    free=2**30,
    utilization=0.5,
    power=310.4,
    temperature=84.0,
)
ALL = view(SLOW, FINE, ROUTER, UNKNOWN, gpus=(GPU,), notices=("a notice",))


@pytest.mark.parametrize(
    ("sort", "order", "turned"),
    [
        ("state", "bdac", "acdb"),
        ("target", "abcd", "dcba"),
        ("model", "cbad", "dabc"),
        ("waiting", "bcad", "acbd"),
        ("first tokens", "dbac", "abdc"),
        ("KV cache", "bacd", "abcd"),
        ("saturation", "bacd", "abcd"),
        ("takes", "bacd", "bacd"),
    ],
)
def test_engines_are_sorted_and_what_is_not_known_comes_last(sort: str, order: str, turned: str) -> None:
    for reverse, wanted in ((False, order), (True, turned)):
        shown = screen(ALL, "", 100.0, Chosen(sort=SORTS.index(sort), reverse=reverse), width=80, height=40)
        assert "".join(row.split()[2] for row in rows(shown, 80)[:4]) == wanted
        assert lines(shown, 80)[-1] == f"by {sort} ? help q quits"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("m2", "b"),
        ("SATURATED", "b"),
        ("wait", "b"),
        ("serving m3", "a"),
        ("serving m2", ""),
        ("vllm b", "b"),
        ("h100", ""),
        ("not read", "d"),
    ],
)
def test_a_filter_is_words_that_all_occur(words: str, found: str) -> None:
    shown = screen(ALL, "", 100.0, Chosen(words=words), width=80, height=40)
    assert "".join(row.split()[2] for row in rows(shown, 80) if row[0] != "▲") == found
    assert ("Nothing fits the filter." in lines(shown, 80)) is (words == "serving m2")


def test_a_filter_finds_labels_and_gpus() -> None:
    labelled = replace(FINE, source=source("a", labels=(("zone", "eu"),)))
    shown = lines(
        screen(view(labelled, SLOW, gpus=(GPU,)), "", 100.0, Chosen(words="zone=eu"), width=140, height=9), 140
    )
    assert [line.split()[2] for line in shown[2:-1]] == ["a"]
    assert (
        shown[-1]
        == "engines hidden: 1 filtered out GPUs hidden: 1 filtered out filter: zone=eu by state ? help q quits"
    )


def test_everything_of_a_wide_terminal() -> None:
    assert lines(screen(ALL, "", 107.0, Chosen(), width=200, height=40), 200) == [
        ("llm-headroom ■ 1 in trouble ▲ 1 with a warning ? 1 unknown ✓ 2 fine 2 of 3 sources up 7 s ago a notice"),
        "STATE TARGET MODEL ENGINE TAKES RUN WAIT TOK/S TTFT P95 ITL P95 KV CACHE KV FITS SAT WHY",
        "■ saturated b m2 vLLM 0.9 0.80 × 12 9 250 3 s – ████████ 97% 1.0 120% requests wait; n",
        "? unknown d m4 vLLM 0.9 – – – – > 9 s – – – – it was not read",
        "✓ serving a m3 vLLM 0.9 – 1 0 – 0.25 s > 0.1 s ██░░░░░░ 25% – 10%",
        "✓ serving c m1 vLLM 0.9 – 4 5 – – – – – –",
        "STATE GPU NAME BUSY MEMORY FREE POWER TEMP WHY",
        "▲ hot 0 H100 1g.10gb 50% ██████░░ 75% 1.0 GiB 310 W 84 °C it is hot",
        "by state ? help q quits",
    ]


IMPORTANCE = (
    "STATE", "TARGET", "TAKES", "WAIT", "TTFT P95", "KV CACHE", "MODEL", "RUN", "TOK/S", "ITL P95", "KV FITS", "WHY",
    "SAT", "ENGINE",
)  # fmt: skip


def test_what_is_more_important_has_room_first_and_what_is_shown_is_not_cut_off() -> None:
    everything = " ".join(row for row in rows(screen(ALL, "", 100.0, Chosen(), width=200, height=40), 200)).split()
    had = 0
    for width in range(60, 140):
        shown = screen(ALL, "", 100.0, Chosen(), width=width, height=40)
        head = next(line for line in lines(shown, width) if line.startswith("STATE TARGET"))
        names = {name for name in IMPORTANCE if name in head}
        assert names == set(IMPORTANCE[: len(names)]), width
        assert len(names) >= had
        had = len(names)
        cells = " ".join(row for row in rows(shown, width) if not row.startswith("▲")).split()
        assert set(cells) <= {*everything, "███░", "████", "█░░░"}, f"what is cut off at {width}"
    assert had == len(IMPORTANCE)


LONG = replace(
    SLOW,
    source=source("inference-gateway-7f9c5.models.example:8000"),
    state=Condition("saturated", Level.BAD, "many requests wait, " * 5),
    model="an-organisation/a-model-with-a-long-name-31b-instruct",
)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (120, 40), (160, 50)])
def test_long_names_push_no_number_and_no_state_out_of_its_column(width: int, height: int) -> None:
    shown = screen(view(LONG, FINE, gpus=(GPU,)), "", 100.0, Chosen(), width=width, height=height)
    (row,) = (line for line in rows(shown, width) if line.startswith("■"))
    for whole in ("■ saturated", "0.80 ×", " 9 ", " 3 s ", "97%"):
        assert whole in row
    assert "an-organisation" not in row or "instruct" in row, "the end of a model's name says which it is"
    assert all(len(line) <= width for line in raw(shown, width))
    assert " ".join(lines(shown, width)).count("many requests wait") >= 5, "the reason is whole"


def test_reasons_stand_above_where_their_rows_have_no_room_or_are_elsewhere() -> None:
    def said(*engines: EngineCard, width: int = 200, height: int = 40, **chosen: Any) -> list[str]:  # noqa: ANN401 - fields
        shown = lines(screen(view(*engines), "", 100.0, Chosen(**chosen), width=width, height=height), width)
        return shown[1 : next(number for number, line in enumerate(shown) if line.startswith("STATE"))]

    fine = [card(f"t{number}") for number in range(30)]
    assert said(FINE, SLOW) == []
    assert said(FINE) == said(FINE, width=80) == []
    assert said(FINE, SLOW, width=80) == ["■ b saturated: requests wait; n"]
    assert said(*fine, SLOW, height=20, sort=SORTS.index("target"), reverse=True) == ["■ b saturated: requests wait; n"]
    assert said(*fine, SLOW, words="serving") == ["■ b saturated: requests wait; n"]
    assert said(FINE, SLOW, width=80, height=11) == [], "there the title says it"
    bad = [card(f"b{number}", Condition("down", Level.BAD, "reason " * 30)) for number in range(5)]
    whole, cut = said(*bad, width=120, height=40), said(*bad, width=120, height=15)
    assert [line[:4] for line in cut] == ["■ b0", "■ b1", "■ b2"]
    assert (len(whole), "".join(whole).count("reason"), [line[-1] for line in cut]) == (6, 90, ["…"] * 3)


@pytest.mark.parametrize("height", range(6, 30))
def test_what_the_rows_have_no_room_for_is_said_once_whatever_the_height(height: int) -> None:
    """By the title where there are few lines, else in lines of its own."""
    shown = lines(screen(view(FINE, SLOW), "", 100.0, Chosen(), width=80, height=height), 80)
    assert sum("b saturated" in line for line in shown) == 1


def test_long_reasons_are_whole_and_break_no_line_of_a_pipe() -> None:
    why = " ".join(f"reason{number}" for number in range(12))
    long = replace(SLOW, state=Condition("saturated", Level.BAD, why), model="a-model-with-a-name " * 2)
    hot = replace(GPU, state=Condition("hot", Level.WARN, why))
    shown, whole = (
        lines(screen(view(long, gpus=(hot,)), "", 100.0, Chosen(), width=100, height=40), 100),
        lines(report(view(long, gpus=(hot,)), "", 100.0, width=100), 100),
    )
    for each in (shown, whole):
        words = " ".join(each).replace(";", "").split()
        assert [words.count(f"reason{number}") for number in range(12)] == [2] * 12
    piped = lines(report(view(long, gpus=(hot,)), "", 100.0, width=10_000), 10_000)
    assert [line[:7] for line in piped] == ["llm-hea", "STATE T", "■ satur", "STATE G", "▲ hot 0"]
    assert piped[2].endswith(f"{why}; n")


def test_of_what_nothing_is_known_there_are_dashes() -> None:
    known = view(card("x"), gpus=(GpuCard(id="0", source=source("gpus"), state=GOOD),))
    shown = lines(screen(known, "", 100.0, Chosen(), width=200, height=40), 200)
    assert shown[2] == "✓ serving x vLLM 0.9 – – – – – – – – –"
    assert shown[4] == "✓ serving gpus – – – – –"
    part = replace(GPU, free=None, profile="", name="L4", notes=("a note",), state=Condition("ok", Level.GOOD, "why"))
    (row,) = lines(screen(view(gpus=(part,)), "", 100.0, Chosen(), width=200, height=40), 200)[2:3]
    assert row == "✓ ok 0 L4 50% – – 310 W 84 °C a note"
    bare = card("y", state=Condition("down", Level.BAD), notes=("a note",))
    bare = replace(bare, source=source("y", version=""))
    shown = lines(screen(view(bare), "", 100.0, Chosen(), width=200, height=40), 200)
    assert shown[2] == "■ down y vLLM – – – – – – – – – a note"


@pytest.mark.parametrize(
    ("usage", "bar"),
    [
        (-0.5, "░░░░░░░░ -50%"),
        (0.05, "░░░░░░░░ 5%"),
        (0.07, "█░░░░░░░ 7%"),
        (1.0, "████████ 100%"),
        (3.0, "████████ 300%"),
    ],
)
def test_a_bar_is_never_longer_than_itself(usage: float, bar: str) -> None:
    shown = screen(view(card("x", kv=KvCache(usage=usage))), "", 100.0, Chosen(), width=100, height=40)
    assert bar in lines(shown, 100)[2]


def test_latencies_are_judged_by_their_own_objectives_and_others_are_not_shown() -> None:
    late = replace(
        card("x"),
        latencies=(
            Latency("llm_time_to_first_token_seconds", 300.0, 0.0, ()),
            Latency("llm_inter_token_latency_seconds", 300.0, 10.0, (Quantile(0.95, 0.4, 0.8, 0.5),)),
            Latency("llm_request_duration_seconds", 300.0, 10.0, (Quantile(0.95, 7.0, 8.0, 7.5),)),
        ),
        objectives=(Objective("inter_token_latency", 0.3, 0.95, 1.0, 10.0),),
    )
    shown = screen(view(late), "", 100.0, Chosen(), width=200, height=40)
    assert "no traffic 0.5 s" in lines(shown, 200)[2]
    assert "7.5" not in lines(shown, 200)[2]
    assert (coloured(shown, "0.5 s", 200), coloured(shown, "no traffic", 200)) == ({"bold red"}, {"dim"})


def test_the_title_names_the_worst_only_where_something_is_wrong() -> None:
    def title(*cards: EngineCard, gpus: tuple[GpuCard, ...] = (), now: float = 100.0) -> str:
        return lines(screen(view(*cards, gpus=gpus), "", now, Chosen(), width=200, height=11), 200)[0]

    assert title(FINE) == "llm-headroom ✓ 1 fine 2 of 3 sources up 0 s ago"
    assert title(FINE, now=90.0) == "llm-headroom ✓ 1 fine 2 of 3 sources up 0 s ago"
    assert title(FINE, UNKNOWN, gpus=(GPU,)).endswith("0 s ago GPU 0 hot: it is hot")
    assert title(UNKNOWN).endswith("0 s ago d unknown: it was not read")
    assert title() == "llm-headroom 2 of 3 sources up 0 s ago"


def test_of_two_states_of_a_level_the_worse_comes_first_and_gpus_are_sorted_by_nothing_else() -> None:
    bad = {name: Condition(name, Level.BAD) for name in ("slow", "down", "lost", "error")}
    engines = (card("a", bad["slow"]), card("z", bad["down"]))
    gpus = tuple(replace(GPU, gpu=gpu, state=bad[name]) for gpu, name in (("1", "error"), ("2", "lost")))
    for sort, order in ((0, "za21"), (SORTS.index("target"), "az21")):
        shown = screen(view(*engines, gpus=gpus), "", 100.0, Chosen(sort=sort), width=100, height=40)
        assert "".join(row.split()[2] for row in rows(shown, 100)) == order


def test_names_cannot_move_the_terminal() -> None:
    evil = "\x1b[2Jx"
    bad = replace(
        card("x", Condition("down", Level.BAD, evil), model=evil, notes=(evil,)),
        source=source(evil, title=evil, error=evil),
    )
    every = view(
        bad, gpus=(replace(GPU, gpu=evil, name=evil),), notices=(evil,), absent=(Absent(evil, evil),)
    )  # fmt: skip
    for shown in (
        screen(every, evil, 100.0, Chosen(), width=200, height=40),
        screen(every, evil, 100.0, Chosen(words="\x1b[2jx"), width=200, height=40),
        screen(every, evil, 100.0, Chosen(words=evil, typing=True), width=200, height=40),
        report(every, evil, 100.0, width=200),
    ):
        assert "\x1b" not in "".join(raw(shown, 200))


def test_late_first_tokens_are_red_and_others_are_not() -> None:
    shown = screen(ALL, "", 100.0, Chosen(), width=200, height=40)
    assert coloured(shown, "3 s", 200) == {"bold red", "bold dim"}  # and how old it is
    assert coloured(shown, "0.25 s", 200) == {"None"}
    assert coloured(shown, "> 0.1 s", 200) == {"None"}  # beyond 0.1 s, and 0.1 s is the objective
    assert coloured(shown, "it is hot", 200) == {"yellow"}


def test_what_is_old_is_dim_and_says_why() -> None:
    shown = screen(ALL, "it went away", 400.0, Chosen(), width=200, height=40)
    assert lines(shown, 200)[0].startswith("llm-headroom it went away ■ 1 in trouble")
    assert "5 min ago" in lines(shown, 200)[0]
    assert coloured(shown, "it went away", 200) == {"bold red"}
    for word in ("vLLM 0.9", "m2", "120%", "310 W", "1 in trouble"):
        assert all("dim" in style for style in coloured(shown, word, 200)), word
    assert coloured(screen(ALL, "", 400.0, Chosen(), width=200, height=40), "1 in trouble", 200) == {"bold red"}


def test_the_filter_while_it_is_typed_and_the_help() -> None:
    shown = lines(screen(ALL, "", 100.0, Chosen(typing=True, words="m2"), width=80, height=40), 80)
    assert shown[-1] == "filter: m2▏ Enter keeps it, Esc clears it"
    shown = lines(screen(ALL, "", 100.0, Chosen(help=True), width=80, height=40), 80)
    assert "q quit" in shown
    assert shown[-1] == "? goes back, q quits"
    assert coloured(screen(ALL, "", 100.0, Chosen(help=True), width=80, height=40), "goes back", 80) == {"dim"}


@pytest.mark.parametrize(("words", "said"), [("", "No engine and no GPU yet."), ("x", "Nothing fits the filter.")])
def test_where_there_is_nothing_it_says_so_faintly(words: str, said: str) -> None:
    assert coloured(screen(view(), "", 100.0, Chosen(words=words), width=80, height=40), said, 80) == {"dim"}


def test_pages_of_engines_and_gpus() -> None:
    many = view(*(card(f"t{n}") for n in range(10)), gpus=tuple(replace(GPU, gpu=f"g{n}") for n in range(4)))
    pages = []
    for page in range(5):
        shown = lines(screen(many, "", 100.0, Chosen(sort=2, page=page), width=80, height=10), 80)
        pages.append([line.split()[2] for line in shown if line[0] in "✓▲"])
    assert pages == [
        ["t0", "t1", "t2", "t3", "g0", "g1"],
        ["t4", "t5", "t6", "t7", "g2", "g3"],
        ["t8", "t9", "g2", "g3"],
        ["t8", "t9", "g2", "g3"],
        ["t8", "t9", "g2", "g3"],
    ]
    shown = lines(screen(many, "", 100.0, Chosen(sort=2, page=2), width=140, height=10), 140)
    assert shown[-1] == (
        "engines hidden: 8 on other pages GPUs hidden: 2 on other pages page 3 of 3 (n, p) by target ? help q quits"
    )


@pytest.mark.parametrize(
    ("engines", "gpus", "height", "shown"),
    [
        (9, 9, 1, (1, 1)),
        (9, 9, 6, (1, 1)),
        (9, 9, 7, (2, 1)),
        (9, 9, 10, (4, 2)),
        (9, 1, 10, (5, 1)),
        (9, 0, 8, (5, 0)),
        (0, 9, 8, (0, 5)),
        (0, 9, 1, (0, 2)),
        (9, 0, 1, (2, 0)),
    ],
)
def test_how_many_fit(engines: int, gpus: int, height: int, shown: tuple[int, int]) -> None:
    every = view(*(card(f"t{n}") for n in range(engines)), gpus=tuple(replace(GPU, gpu=f"g{n}") for n in range(gpus)))
    found = lines(screen(every, "", 100.0, Chosen(), width=80, height=height), 80)
    assert tuple(sum(line.startswith(mark) for line in found) for mark in "✓▲") == shown


def test_the_page_is_that_of_whatever_has_more_of_them() -> None:
    many = view(card("t"), gpus=tuple(replace(GPU, gpu=f"g{n}") for n in range(9)))
    for page, said in ((0, "page 1 of 5"), (3, "page 4 of 5"), (9, "page 5 of 5")):
        found = lines(screen(many, "", 100.0, Chosen(page=page), width=80, height=10), 80)
        assert said in found[-1]
    assert [line.split()[2] for line in found if line[0] in "✓▲"] == ["t", "g8"]
    two = view(*(card(f"t{n}") for n in range(8)))
    assert "page 1 of 2" in lines(screen(two, "", 100.0, Chosen(), width=80, height=10), 80)[-1]
    narrow = lines(screen(two, "", 100.0, Chosen(words="serving t"), width=40, height=10), 40)
    assert (len(narrow), narrow[-1][-1]) == (10, "…")


def test_a_report_has_everything_at_once_with_whole_errors() -> None:
    down = replace(card("e"), source=source("e", up=False, error="refused " * 30))
    assert lines(
        report(view(FINE, down, gpus=(GPU,), absent=(Absent("Ollama", "nothing listens"),)), "", 100.0, width=80), 80
    )[-2:] == [f"e: {'refused ' * 30}".strip(), "not found: Ollama: nothing listens"]
    heads = [line.split()[0] for line in lines(report(ALL, "", 100.0, width=140), 140)]
    assert heads == ["llm-headroom", "STATE", "■", "?", "✓", "✓", "STATE", "▲"]
    assert lines(report(view(), "", 100.0, width=80), 80)[1:] == ["No engine and no GPU yet."]
    for some in (view(FINE), view(gpus=(GPU,))):
        assert len(lines(report(some, "", 100.0, width=80), 80)) == 3
    assert lines(screen(view(), "", 100.0, Chosen(), width=80, height=9), 80)[1] == "No engine and no GPU yet."
