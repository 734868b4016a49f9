"""What tokens cost in money and energy: an engine's GPUs, their price and their joules, over what it generated.

Ratios of decayed sums over the same time, so that idle time is paid for, as in reality.
"""

from __future__ import annotations

from dataclasses import field, replace
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive.estimates import Mean
from llm_headroom.derive.observation import growth
from llm_headroom.frozen import frozen, frozen_named
from llm_headroom.model import numbers, point

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llm_headroom.model import Point, Series

WINDOW_SECONDS: Final = 300.0
LONGEST_GAP: Final = 120.0
"""Seconds between two polls beyond which nobody knows whether the engine was there."""
_LEAST_TOKENS: Final = 1.0


@frozen
class Gpus:
    """An engine's devices: how many, and the energy counter of each in joules with the engine's share of the device.

    `paid` is the sum of its shares, which the engine pays for; None if it pays for all of them. One that is known to
    hold none has a count of 0, so that its time without a device is neither paid for later nor nobody's knowledge.
    """

    count: int
    energy: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    paid: float | None = None

    @property
    def price_count(self) -> float:
        """How many devices the engine pays for."""
        return float(self.count) if self.paid is None else self.paid


@frozen
class Price:
    """What one GPU costs for an hour."""

    gpu_hour: float
    currency: str


@frozen_named
class Ledger:
    """What is remembered of one target: sums since the first poll, and the last readings.

    `energy` is in joules, None before a counter was seen; `cost` is in the price's currency. The means are of cost and
    energy per generated token.
    """

    at: float
    tokens: Mapping[Series, float]
    counters: Mapping[str, tuple[float, float]]
    cost: float = 0.0
    energy: float | None = None
    cost_per_token: Mean = field(default_factory=lambda: Mean(WINDOW_SECONDS))
    energy_per_token: Mean = field(default_factory=lambda: Mean(WINDOW_SECONDS))


def held_gpus(points: Sequence[Point]) -> dict[str, Gpus]:
    """The devices of each target, from a collection of the GPUs.

    A device that several engines hold memory of is split by how much each holds.
    """
    held: dict[str, dict[str, float]] = {}
    for series, value in numbers(points, schema.GPU_MEMORY_ENGINE):
        devices = held.setdefault(series.label("target"), {})
        devices[series.label("uuid")] = devices.get(series.label("uuid"), 0.0) + value
    energy = {series.label("uuid"): value for series, value in numbers(points, schema.GPU_ENERGY)}
    totals: dict[str, float] = {}
    for devices in held.values():
        for uuid, size in devices.items():
            totals[uuid] = totals.get(uuid, 0.0) + size
    return {
        target: Gpus(
            len(devices),
            {
                uuid: (energy[uuid], size / totals[uuid])
                for uuid, size in devices.items()
                if uuid in energy and totals[uuid]
            },
            sum(size / totals[uuid] if totals[uuid] else 1.0 for uuid, size in devices.items()),
        )
        for target, devices in held.items()
    }


def advance(known: Ledger | None, points: Sequence[Point], gpus: Gpus | None, price: Price | None, at: float) -> Ledger:
    """The ledger after a successful poll of the engine; `at` is monotonic, in seconds.

    Counters go on over restarts of the engine and of the driver. A device that joins counts from then on.
    """
    tokens = dict(numbers(points, schema.GENERATION_TOKENS))
    counters = {} if gpus is None else dict(gpus.energy)
    if known is None or at <= known.at:
        return Ledger(at=at, tokens=tokens, counters=counters) if known is None else known
    elapsed = at - known.at
    if elapsed > LONGEST_GAP:
        return replace(known, at=at, tokens=tokens, counters=counters)
    generated = sum(growth(known.tokens.get(series), value) for series, value in tokens.items())
    cost = 0.0 if price is None or gpus is None else price.gpu_hour * gpus.price_count * elapsed / 3600.0
    shared = [
        growth(known.counters[uuid][0], joules) * share
        for uuid, (joules, share) in counters.items()
        if uuid in known.counters
    ]
    energy = sum(shared) if shared else None
    return replace(
        known,
        at=at,
        tokens=tokens,
        counters=counters,
        cost=known.cost + cost,
        energy=known.energy if energy is None else (known.energy or 0.0) + energy,
        cost_per_token=known.cost_per_token
        if price is None or gpus is None or not gpus.count
        else known.cost_per_token.add(cost, generated, elapsed),
        energy_per_token=known.energy_per_token
        if energy is None
        else known.energy_per_token.add(energy, generated, elapsed),
    )


def points(known: Ledger, gpus: Gpus | None, price: Price | None, labels: Mapping[str, str]) -> Iterator[Point]:
    """The points of a ledger; nothing that there is no price, no counter or no token for."""
    if gpus is not None:
        yield point(schema.ENGINE_GPUS, float(gpus.count), "attribution or configuration", labels)
    if price is not None and gpus is not None:
        money = {**labels, "currency": price.currency}
        yield point(schema.ENGINE_COST, known.cost, "price of GPU-hours", money)
        if known.cost_per_token.below >= _LEAST_TOKENS:
            each = known.cost_per_token.above / known.cost_per_token.below
            yield point(schema.COST_PER_MILLION_TOKENS, each * 1e6, "price / generated tokens", money)
    if known.energy is not None:
        yield point(schema.ENGINE_ENERGY, known.energy, "llm_gpu_energy_joules_total", labels)
        if known.energy_per_token.below >= _LEAST_TOKENS:
            each = known.energy_per_token.above / known.energy_per_token.below
            yield point(schema.ENERGY_PER_TOKEN, each, "energy / generated tokens", labels)
