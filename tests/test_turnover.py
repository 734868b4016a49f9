"""How often models were loaded and unloaded, counted from one poll to the next."""

from __future__ import annotations

from llm_headroom import schema
from llm_headroom.derive import turnover
from llm_headroom.derive.loaded import loaded
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.model import Point, Series

BASE = {"engine": "ollama", "target": "t"}


def poll(loaded: dict[str, float], idle: tuple[str, ...] = (), starts: dict[str, float] | None = None) -> list[Point]:
    """Models in memory with their contexts, others of the library, and when runners started."""
    points = [Point(Series(schema.MODELS_LOADED, BASE), float(len(loaded)), "")]
    for model, context in loaded.items():
        labels = {**BASE, "model": model}
        points += [
            Point(Series(schema.MODEL_LOADED, labels), 1.0, ""),
            Point(Series(schema.MODEL_CONTEXT, labels), context, ""),
        ]
    points += [Point(Series(schema.MODEL_LOADED, {**BASE, "model": model}), 0.0, "") for model in idle]
    for model, start in (starts or {}).items():
        points.append(Point(Series(schema.ENGINE_START, {**BASE, "model": model}), start, ""))
    return points


def counted(*polls: list[Point]) -> dict[str, tuple[int, int]]:
    known = None
    for points in polls:
        known = turnover.advance(known, loaded(points))
    assert known is not None
    return {model: (count.loads, count.unloads) for model, count in known.counts.items()}


def test_what_is_in_memory_at_first_sight_was_not_loaded_before_our_eyes() -> None:
    assert counted(poll({"a": 2048.0}, idle=("b",))) == {"a": (0, 0), "b": (0, 0)}


def test_models_that_come_and_go_are_counted() -> None:
    assert counted(poll({"a": 2048.0}), poll({"b": 2048.0}), poll({"a": 2048.0})) == {"a": (1, 1), "b": (1, 1)}


def test_a_load_that_is_the_first_one_of_its_model_grows_from_0() -> None:
    before, after = poll({}, idle=("a",)), poll({"a": 2048.0})

    assert counted(before) == {"a": (0, 0)}
    assert counted(before, after) == {"a": (1, 0)}


def test_another_context_is_another_load() -> None:
    assert counted(poll({"a": 1024.0}), poll({"a": 2048.0}), poll({"a": 1024.0})) == {"a": (2, 2)}


def test_another_process_is_another_load() -> None:
    first, second = poll({"a": 1024.0}, starts={"a": 100.0}), poll({"a": 1024.0}, starts={"a": 110.0})

    assert counted(first, second) == {"a": (1, 1)}


def test_a_process_that_is_not_seen_for_a_while_is_no_other_one() -> None:
    seen, unseen = poll({"a": 1024.0}, starts={"a": 100.0}), poll({"a": 1024.0})

    assert counted(seen, unseen, seen) == {"a": (0, 0)}
    assert counted(seen, unseen, poll({"a": 1024.0}, starts={"a": 150.0})) == {"a": (1, 1)}


def test_a_clock_that_is_set_a_little_is_no_load() -> None:
    assert counted(poll({"a": 1.0}, starts={"a": 100.0}), poll({"a": 1.0}, starts={"a": 101.5})) == {"a": (0, 0)}


def test_counts_of_engines_that_load_nothing_by_themselves_are_absent() -> None:
    awake = Point(Series(schema.MODEL_LOADED, {"engine": "vllm", "model": "a", "target": "t"}), 1.0, "")

    assert turnover.advance(None, loaded([awake])) is None


def test_memory_of_models_is_bounded() -> None:
    polls = [poll({f"model-{number}": 1024.0}) for number in range(300)]

    assert len(counted(*polls)) == 200


def test_the_counters_come_with_the_other_derived_signals_and_outlast_polls() -> None:
    memory = Memory()
    for at, points in enumerate(
        (poll({}, idle=("a",)), poll({"a": 2048.0}), poll({}, idle=("a",)), poll({"a": 2048.0}))
    ):
        memory, derived = advance(memory, points, float(at), base=BASE)

    labels = {**BASE, "model": "a"}
    values = {point.series: point.value for point in derived}
    assert values[Series(schema.MODEL_LOADS, labels)] == 2.0
    assert values[Series(schema.MODEL_UNLOADS, labels)] == 1.0
