"""Cards of GPUs: one for each device and MIG instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Level, numbers
from llm_headroom.view.history import key_of
from llm_headroom.view.signals import UNJUDGED, Said, ages, gauge_line
from llm_headroom.view.values import Condition, GpuCard, Share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.model import Point, Snapshot
    from llm_headroom.view.history import History, Reading
    from llm_headroom.view.values import Missing, Source

HARMLESS_THROTTLES: Final = frozenset(("idle", "application_clocks"))
"""Reasons that hold clocks down without any trouble (see `schema.GPU_THROTTLE`)."""


def cards(
    snapshot: Snapshot, source: Source, history: History, missing: tuple[Missing, ...], states: Mapping[str, Condition]
) -> tuple[GpuCard, ...]:
    """The cards of this host's GPUs, with their states by uuid; one with the error if they cannot be read."""
    if not source.up:
        down = states.get("") or Condition("down", Level.BAD, source.error)
        return (GpuCard(id=f"gpu/{source.target}", source=source, state=down),)
    devices: dict[str, list[Point]] = {}
    for point in snapshot.points:
        if point.series.label("uuid"):
            devices.setdefault(key_of(point), []).append(point)
    return tuple(
        _card(uuid, points, source, history.readings(source.target, uuid), missing, states.get(uuid))
        for uuid, points in devices.items()
    )


def _card(  # noqa: PLR0913, PLR0917 - what a card is made of
    uuid: str,
    points: Sequence[Point],
    source: Source,
    readings: Sequence[Reading],
    missing: tuple[Missing, ...],
    state: Condition | None,
) -> GpuCard:
    said = Said(points)
    info = next((point.series for point in points if point.series.metric is schema.GPU_INFO), None)
    total, risks = said.get(schema.GPU_MEMORY_TOTAL), said.risks()
    throttles = tuple(
        reason
        for reason, active in said.by(schema.GPU_THROTTLE, "reason").items()
        if active and reason not in HARMLESS_THROTTLES
    )
    temperatures = said.by(schema.GPU_TEMPERATURE, "sensor")
    return GpuCard(
        id=f"gpu/{uuid}",
        source=source,
        state=state or UNJUDGED,
        notes=_notes(said, throttles),
        gpu=points[0].series.label("gpu"),
        uuid=uuid,
        name="" if info is None else info.label("name"),
        profile="" if info is None else info.label("mig_profile"),
        total=total,
        used=said.get(schema.GPU_MEMORY_USED),
        free=said.get(schema.GPU_MEMORY_FREE),
        reserved=said.get(schema.GPU_MEMORY_RESERVED),
        engines=_held(points, "target"),
        parts=_held(points, "kind"),
        unattributed=said.get(schema.GPU_MEMORY_UNATTRIBUTED),
        utilization=said.get(schema.GPU_UTILIZATION),
        power=said.get(schema.GPU_POWER),
        power_limit=said.get(schema.GPU_POWER_LIMIT),
        temperature=temperatures.get("gpu"),
        throttles=throttles,
        risks=risks,
        ages=ages(readings),
        lines=(
            *gauge_line("utilization", readings, schema.GPU_UTILIZATION),
            *gauge_line("memory_used", readings, schema.GPU_MEMORY_USED),
            *gauge_line("power", readings, schema.GPU_POWER),
        ),
        missing=missing,
    )


def _held(points: Sequence[Point], label: str) -> tuple[Share, ...]:
    """The memory that engines hold by the value of a label."""
    sums: dict[str, float] = {}
    for series, value in numbers(points, schema.GPU_MEMORY_ENGINE):
        sums[series.label(label)] = sums.get(series.label(label), 0.0) + value
    return tuple(Share(name, size) for name, size in sums.items())


def _notes(said: Said, throttles: Sequence[str]) -> tuple[str, ...]:
    found = [f"clocks throttled: {', '.join(throttles).replace('_', ' ')}"] if throttles else []
    if said.get(schema.GPU_MEMORY_OVERCOMMITTED):
        found.append("GPU memory overcommitted")
    if said.get(schema.GPU_ROW_REMAP_FAILURE):
        found.append("a memory row could not be remapped")
    if said.get(schema.GPU_ROW_REMAP_PENDING):
        found.append("needs a reset: a memory row is to be remapped")
    return tuple(found)
