"""What tokens cost, on polls made of literals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from captures import value
from llm_headroom import schema
from llm_headroom.derive import economy
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    from collections.abc import Iterable

LABELS = {"engine": "vllm", "target": "t"}
PRICE = economy.Price(3.6, "EUR")


def tokens(**models: float) -> list[Point]:
    return [
        Point(Series(schema.GENERATION_TOKENS, {**LABELS, "model": model}), count, "test")
        for model, count in models.items()
    ]


def gpus(*joules: float, share: float = 1.0) -> economy.Gpus:
    return economy.Gpus(len(joules), {f"GPU-{n}": (energy, share) for n, energy in enumerate(joules)})


def run(
    polls: Iterable[tuple[float, list[Point], economy.Gpus | None]], price: economy.Price | None = PRICE
) -> list[Point]:
    ledger, held = None, None
    for at, points, held in polls:
        ledger = economy.advance(ledger, points, held, price, at)
    assert ledger is not None
    return list(economy.points(ledger, held, price, LABELS))


def test_cost_and_energy_per_token_follow_from_price_power_and_throughput() -> None:
    # 2 GPUs of 300 W at 3.60 an hour each: 0.002 and 600 J a second; 100 tokens/s of two models
    derived = run(
        (at, tokens(a=60.0 * at, b=40.0 * at), gpus(300.0 * at, 300.0 * at)) for at in map(float, range(0, 601, 5))
    )

    assert value(derived, "llm_engine_gpus") == 2
    assert value(derived, "llm_engine_cost_total") == pytest.approx(600 * 0.002)
    assert value(derived, "llm_engine_energy_joules_total") == pytest.approx(600 * 600)
    assert value(derived, "llm_cost_per_million_tokens") == pytest.approx(0.002 / 100 * 1e6)
    assert value(derived, "llm_energy_per_token_joules") == pytest.approx(6.0)
    assert {point.series.label("currency") for point in derived} == {"", "EUR"}


def test_idle_time_is_paid_for() -> None:
    busy = [(float(at), tokens(a=100.0 * at), gpus(0.0)) for at in range(0, 301, 5)]
    idle = [(float(at), tokens(a=30_000.0), gpus(0.0)) for at in range(305, 601, 5)]
    worked, rested = (
        value(run(busy), "llm_cost_per_million_tokens"),
        value(run([*busy, *idle]), "llm_cost_per_million_tokens"),
    )
    assert isinstance(worked, float)
    assert isinstance(rested, float)
    assert rested > 2 * worked


def test_without_price_gpus_tokens_or_energy_nothing_is_made_up() -> None:
    assert run([(0.0, tokens(), None), (5.0, tokens(), None)]) == []
    unpriced = run([(0.0, tokens(a=0.0), gpus(0.0)), (5.0, tokens(a=500.0), gpus(10.0))], price=None)
    assert {point.series.metric.name for point in unpriced} == {
        "llm_engine_gpus",
        "llm_engine_energy_joules_total",
        "llm_energy_per_token_joules",
    }
    configured = run([(0.0, [], economy.Gpus(4)), (3600.0, [], economy.Gpus(4)), (3660.0, [], economy.Gpus(4))])
    assert {point.series.metric.name for point in configured} == {"llm_engine_gpus", "llm_engine_cost_total"}
    assert value(configured, "llm_engine_cost_total") == pytest.approx(4 * 3.6 / 60)  # nobody saw the hour before


def test_sums_go_on_over_restarts_of_the_engine_and_of_the_driver() -> None:
    derived = run(
        [
            (0.0, tokens(a=1_000.0), gpus(5_000.0)),
            (10.0, tokens(a=2_000.0), gpus(8_000.0)),
            (20.0, tokens(a=500.0), gpus(1_000.0)),  # both began anew
            (20.0, tokens(a=9e9), gpus(9e9)),  # a clock that stands
        ]
    )
    assert value(derived, "llm_engine_energy_joules_total") == pytest.approx(3_000 + 1_000)
    per_token = value(derived, "llm_energy_per_token_joules")
    assert per_token == pytest.approx(4_000 / 1_500, rel=0.05)


def test_a_device_that_joins_counts_from_then_on() -> None:
    derived = run(
        [(0.0, tokens(), gpus(100.0)), (5.0, tokens(), gpus(150.0, 1e6)), (10.0, tokens(), gpus(200.0, 1e6 + 20))]
    )
    assert value(derived, "llm_engine_energy_joules_total") == pytest.approx(100 + 20)


def test_tokens_of_a_time_whose_energy_or_price_is_not_known_do_not_lower_what_one_costs() -> None:
    late = run(
        [
            (0.0, tokens(a=0.0), economy.Gpus(1)),
            (60.0, tokens(a=6_000.0), gpus(1e6)),
            (120.0, tokens(a=12_000.0), gpus(1e6 + 60_000.0)),
        ]
    )
    assert value(late, "llm_energy_per_token_joules") == pytest.approx(10.0)
    priced = run([(0.0, tokens(a=0.0), None), (60.0, tokens(a=6_000.0), None), (120.0, tokens(a=12_000.0), gpus(1.0))])
    assert value(priced, "llm_cost_per_million_tokens") == pytest.approx(0.001 * 60 / 6_000 * 1e6)


def test_time_without_a_device_is_not_paid_for_by_who_takes_one_later() -> None:
    derived = run(
        [
            (0.0, tokens(a=0.0), economy.Gpus(0)),
            (60.0, tokens(a=900.0), economy.Gpus(0)),
            (65.0, tokens(a=1_000.0), gpus(5_000.0)),
            (70.0, tokens(a=1_500.0), gpus(6_000.0)),
        ]
    )
    assert value(derived, "llm_engine_cost_total") == pytest.approx(0.001 * 10)
    assert value(derived, "llm_engine_energy_joules_total") == pytest.approx(1_000.0)
    assert value(derived, "llm_cost_per_million_tokens") == pytest.approx(0.001 * 10 / 600 * 1e6, rel=0.01)


def test_a_shared_device_is_split_by_the_memory_that_engines_hold() -> None:
    def held(target: str, uuid: str, kind: str, size: float) -> Point:
        labels = {"gpu": uuid, "uuid": uuid, "engine": "vllm", "target": target, "kind": kind}
        return Point(Series(schema.GPU_MEMORY_ENGINE, labels), size, "test")

    energy = [Point(Series(schema.GPU_ENERGY, {"gpu": uuid, "uuid": uuid}), 700.0, "test") for uuid in ("x", "y")]
    found = economy.held_gpus(
        [
            held("a", "x", "weights", 20.0),
            held("a", "x", "other", 10.0),
            held("b", "x", "other", 10.0),
            *energy,
            held("b", "z", "other", 5.0),
        ]
    )
    assert found == {
        "a": economy.Gpus(1, {"x": (700.0, 0.75)}, 0.75),
        "b": economy.Gpus(2, {"x": (700.0, 0.25)}, 1.25),  # z tells no energy
    }
    costs = [
        value(run([(0.0, [], found[name]), (60.0, [], found[name])]), "llm_engine_cost_total") for name in ("a", "b")
    ]
    assert costs == [pytest.approx(0.75 * 3.6 / 60), pytest.approx(1.25 * 3.6 / 60)]
