"""The formulas of the risk that memory runs out, on what is remembered as literals: both sides of each bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom import schema
from llm_headroom.derive import oom
from llm_headroom.derive.oom import Device, Host, _Floor, _Window
from llm_headroom.derive.trend import Trend
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    from collections.abc import Sequence

NONE: dict[str, frozenset[str]] = {}
MIB = 2.0**20


# Devices -------------------------------------------------------------------------------------------------------------
def watched(*readings: tuple[float, float], device: Device | None = None) -> Device:
    found = device or Device()
    for at, used in readings:
        found = found.after(at, used, NONE, settled=True)
    return found


def test_a_window_opens_each_five_minutes_and_closes_after_half_an_hour() -> None:
    device = watched((0.0, 5.0), (299.0, 9.0), (300.0, 4.0), (1799.0, 6.0))
    assert device.open == (_Window(0.0, 5.0, 9.0), _Window(300.0, 4.0, 6.0), _Window(1799.0, 6.0, 6.0))
    assert device.rises == ()
    closed = watched((1800.0, 12.0), device=device)
    assert closed.rises == (7.0,)
    assert closed.open == (_Window(300.0, 4.0, 12.0), _Window(1799.0, 6.0, 12.0))
    assert closed.shown == [6.0, 7.0, 8.0]
    full = Device(open=(_Window(0.0, 1.0, 3.0),), rises=(9.0,) * 288)
    assert watched((1800.0, 1.0), device=full).rises == (*(9.0,) * 287, 2.0)


def test_the_lowest_reading_of_each_hour_is_remembered_for_six_of_them() -> None:
    device = watched((10.0, 5.0), (20.0, 3.0), (3599.0, 4.0), (3600.0, 8.0), (7200.0, 9.0))
    assert device.floors == (_Floor(0, 3.0), _Floor(1, 8.0), _Floor(2, 9.0))
    later = watched(*((3600.0 * hour, 7.0) for hour in range(3, 7)), device=device)
    assert [each.hour for each in later.floors] == [1, 2, 3, 4, 5, 6]


def test_a_change_of_who_is_there_begins_anew() -> None:
    device = watched((0.0, 5.0), (400.0, 6.0), device=Device(rises=(3.0,)))
    assert device.trend.readings == ((0.0, 5.0), (400.0, 6.0))
    holders = {"a": frozenset("m")}
    for found in (
        device.after(500.0, 7.0, holders, settled=True),
        device.after(500.0, 7.0, NONE, settled=False),
    ):
        assert (found.open, found.floors, found.trend, found.rises) == ((), (), Trend(), (3.0,))
    assert device.after(500.0, 7.0, holders, settled=True).holders == holders


@pytest.mark.parametrize(
    ("rises", "free", "chance"),
    [
        ((6.0,) * 12, 7.0, math.exp(-7.0 / 6.0)),  # few rises are exponential as a whole
        ((6.0,) * 12, 6.0, 2.02 / 3.0),  # twelve windows that overlap are two
        ((6.0,) * 12, 6.1, math.exp(-6.1 / 6.0)),
        ((6.0,) * 12, 60.0, 0.02 / 3.0),
        (tuple(map(float, range(1, 20))), 50.0, math.exp(-5.0)),
        (tuple(map(float, range(1, 21))), 21.0, 0.05 * math.exp(-0.5)),  # the tail begins at the greatest of twenty
        (tuple(map(float, range(1, 21))), 20.0, (1.0 / 6.0 + 0.02) / (20.0 / 6.0 + 1.0)),
        (tuple(map(float, range(1, 41))), 41.0, 0.05 * math.exp(-2.0 / 3.9)),
        ((*(1.0,) * 38, 10.0, 50.0), 30.0, (1.0 / 6.0 + 0.02) / (40.0 / 6.0 + 1.0)),
        ((*(1.0,) * 38, 10.0, 50.0), 51.0, 0.05 * math.exp(-41.0 / 20.0)),
        ((0.0,) * 30, 1.0, 0.02 / 6.0),
        ((0.0,) * 6, 0.0, 1.02 / 2.0),
    ],
)
def test_the_chance_of_a_rise_beyond_what_is_free(rises: tuple[float, ...], free: float, chance: float) -> None:
    assert Device(rises=rises).risk(free, 100.0) == pytest.approx(chance)


def test_nothing_is_known_before_anything_was_seen() -> None:
    assert Device().risk(1.0, 1.0) is None


@pytest.mark.parametrize(
    ("opened", "rises", "used", "free", "chance"),
    [
        # 15 above where the windows began: of six rises three went as far, and one by 10 more
        ([(10.0, 35.0)], (15.0, 20.0, 1.0, 1.0, 1.0), 25.0, 10.0, 2.0 * (1.0 / 6.0 + 0.02) / 2.0),
        ([(10.0, 35.0)], (15.0, 20.0, 1.0, 1.0, 1.0), 10.0, 25.0, (1.0 / 6.0 + 0.02) / 2.0),
        ([(10.0, 35.0)], (15.0, 20.0, 1.0, 1.0, 1.0), 9.0, 25.0, (1.0 / 6.0 + 0.02) / 2.0),
        ([(10.0, 12.0), (12.0, 14.0), (40.0, 41.0)], (), 16.0, 9.0, 1.0),  # none went as far
        ([(10.0, 50.0), (12.0, 50.0), (40.0, 50.0)], (), 12.0, 20.0, math.exp(-20.0 * 3.0 / 88.0)),
    ],
)
def test_a_rise_that_is_on_is_one_of_those_that_went_as_far(
    opened: Sequence[tuple[float, float]], rises: tuple[float, ...], used: float, free: float, chance: float
) -> None:
    device = Device(open=tuple(_Window(0.0, first, high) for first, high in opened), rises=rises)
    assert device.risk(free, used) == pytest.approx(chance)


def test_a_trend_that_goes_on_counts() -> None:
    ramp = Device(rises=(0.0,), trend=Trend((), slope=1.0, deviation=0.1))
    assert ramp.risk(1800.0, 100.0) == pytest.approx(0.5)
    assert Device(rises=(0.0,), trend=Trend()).risk(1800.0, 100.0) == pytest.approx(0.02 / (1.0 + 1.0 / 6.0))


def leak(
    lows: Sequence[float], *, free: float, used: float, rise: float = 0.0, hours: Sequence[int] = range(6)
) -> float:
    floors = tuple(_Floor(hour, low * MIB) for hour, low in zip(hours, lows, strict=True))
    found = Device(rises=(rise * MIB,) * 10, floors=floors).risk(free * MIB, used * MIB)
    assert found is not None
    return found


STAIRS = (1000.0, 1000.0, 1100.0, 1100.0, 1100.0, 1300.0)


@pytest.mark.parametrize(
    ("lows", "free", "used", "chance"),
    [
        (STAIRS, 1000.0, 1300.0, 0.05),  # the second greatest step is 100, the floor grows by 60 an hour
        (STAIRS, 1000.0, 1500.0, 0.5 * 100.0 / 1200.0),
        (STAIRS, 1000.0, 900.0, 0.5 * 100.0 / 600.0),
        (STAIRS, 1000.0, 200.0, 0.5 * 100.0 / 250.0),  # at least a quarter of what is free
        (STAIRS, 10.0, 1300.0, 0.95),
        ((1000.0, 1120.0, 1240.0, 1360.0, 1480.0, 1600.0), 1000.0, 1600.0, 0.06),
        ((1000.0, 1000.0, 1000.0, 1000.0, 1000.0, 1300.0), 1000.0, 1300.0, 0.0),  # one step alone
        ((1000.0, 1000.0, 1016.0, 1016.0, 1016.0, 1300.0), 1000.0, 1300.0, 0.5 * 60.0 / 1000.0),
        ((1000.0, 1000.0, 1015.9, 1015.9, 1015.9, 1300.0), 1000.0, 1300.0, 0.0),
        ((1000.0, 1100.0, 1000.0, 1100.0, 1000.0, 1000.0), 1000.0, 1000.0, 0.0),
        ((1000.0, 1100.0, 1000.0, 1100.0, 1000.0, 900.0), 1000.0, 900.0, 0.0),
    ],
)
def test_a_floor_that_rises_is_a_leak(lows: Sequence[float], free: float, used: float, chance: float) -> None:
    none = 0.02 / (10.0 / 6.0 + 1.0)
    assert leak(lows, free=free, used=used) == pytest.approx(max(chance, none))


def test_a_leak_is_spread_over_its_hours_and_leaves_room_for_a_usual_rise() -> None:
    assert leak(STAIRS, free=1000.0, used=1300.0, rise=200.0) == pytest.approx(0.5 * 100.0 / 800.0)
    long = leak((1000.0, 1120.0, 1240.0, 1360.0, 1480.0, 1600.0), free=1000.0, used=1600.0, hours=(0, 1, 2, 3, 4, 10))
    assert long == pytest.approx(0.06)
    assert leak(STAIRS[1:], free=10.0, used=1300.0, hours=range(5)) == pytest.approx(0.02 / (10.0 / 6.0 + 1.0))
    spread = Device(
        rises=(*(0.0,) * 8, 100.0 * MIB, 900.0 * MIB),
        floors=tuple(_Floor(hour, low * MIB) for hour, low in enumerate(STAIRS)),
    )
    usual = spread.risk(5000.0 * MIB, 1300.0 * MIB)
    assert usual == pytest.approx(max(0.5 * 100.0 / 4100.0, math.exp(-50.0)))


# Hosts ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("known", "kills", "pressure", "killed", "pressed"),
    [
        (Host(), 1.0, 9.0, None, 0.0),
        (Host(kills=1.0, pressure=9.0), 1.0, 9.0, None, 0.0),
        (Host(kills=1.0, pressure=9.0), 2.0, 14.0, 100.0, 0.05),
        (Host(kills=2.0, pressure=9.0, killed=50.0, pressed=0.3), 1.0, 4.0, 50.0, 0.0),
        (Host(kills=2.0, pressure=9.0, killed=50.0, pressed=0.3), None, None, 50.0, 0.3),
        (Host(at=100.0, kills=2.0, pressure=9.0, pressed=0.3), 2.0, 14.0, None, 0.3),
        (Host(at=60.0, pressure=9.0), None, 29.0, None, 0.5),
    ],
)
def test_kills_and_pressure_are_growth_since_the_last_reading(
    known: Host, kills: float | None, pressure: float | None, killed: float | None, pressed: float
) -> None:
    found = known.after(100.0, 5.0, kills, pressure)
    assert (found.at, found.kills, found.pressure, found.killed, found.pressed) == (
        100.0, kills, pressure, killed, pressed,
    )  # fmt: skip


@pytest.mark.parametrize(("used", "readings"), [(50.0, 2), (49.9, 1)])
def test_a_control_group_that_holds_less_than_half_is_another_one(used: float, readings: int) -> None:
    known = Host(trend=Trend(((0.0, 10.0), (50.0, 100.0)))).after(100.0, used, None, None)
    assert len(known.trend.readings) == readings + (readings > 1)


RAMP = Trend((), slope=1.0, deviation=0.1)


@pytest.mark.parametrize(
    ("known", "room", "risk"),
    [
        (Host(), None, None),
        (Host(), 5.0, None),
        (Host(trend=RAMP), 1800.0, 0.5),
        (Host(trend=RAMP), None, None),
        (Host(at=400.0, killed=101.0), None, 0.95),
        (Host(at=400.0, killed=100.0), None, None),
        (Host(pressed=0.1), None, None),
        (Host(pressed=0.11), None, 0.61),
        (Host(pressed=0.39), None, 0.89),
        (Host(pressed=0.5), None, 0.9),
        (Host(at=400.0, killed=400.0, pressed=0.5, trend=RAMP), 1800.0, 0.95),
        (Host(pressed=0.5, trend=RAMP), 1.0, 1.0),
    ],
)
def test_the_risk_of_a_host_is_the_worst_of_trend_kills_and_pressure(
    known: Host, room: float | None, risk: float | None
) -> None:
    assert known.risk(room) == (None if risk is None else pytest.approx(risk))


def test_the_parts_of_a_host_s_memory() -> None:
    def part(metric: Any, value: float, **labels: str) -> Point:  # noqa: ANN401 - a metric
        return Point(Series(metric, {"target": "t", **labels}), value, "")

    used = part(schema.HOST_MEMORY_USED, 60.0)
    known = Host(at=40.0, kills=1.0, pressure=0.0, trend=RAMP)
    pressure = [
        part(schema.HOST_MEMORY_PRESSURE, value, severity=name) for name, value in (("full", 18.0), ("some", 54.0))
    ]
    after, points = oom.host(known, [used, part(schema.HOST_MEMORY_LIMIT, 64.0), *pressure], 100.0)
    assert after is not None
    assert (after.pressed, after.kills, after.at) == (0.3, None, 100.0)
    assert [dict(each.series.labels) for each in points] == [{"target": "t", "memory": "host"}]
    assert [each.value for each in points] == [pytest.approx(0.8)]
    assert oom.host(known, pressure, 100.0) == (known, [])
    killed, points = oom.host(known, [used, part(schema.HOST_OOM_KILLS, 2.0)], 100.0)
    assert killed is not None
    assert (killed.killed, [each.value for each in points]) == (100.0, [0.95])
