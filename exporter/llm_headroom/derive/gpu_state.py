"""The state of each GPU, with a reason in words that contains its numbers."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.derive.settled import Finding, Settled, settle
from llm_headroom.derive.words import span
from llm_headroom.frozen import frozen
from llm_headroom.model import GPU_STATES, State, numbers, point
from llm_headroom.thresholds import DEFAULT, FATAL_XIDS, HARD_THROTTLES, XID_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llm_headroom.model import Judged, Metric, Point, Snapshot

RISE: Final[Mapping[State, float]] = {State.LOST: 9.0, State.UNKNOWN: 9.0, State.THROTTLED: 60.0, State.FULL: 60.0}
CLEAR: Final[Mapping[State, float]] = {State.THROTTLED: 60.0, State.FULL: 60.0}
"""As of engines: seconds until a finding is the state, and after its last sign until it ends."""
_ACTIONS: Final = {1: "reset the GPU", 2: "reboot the node", 3: "end peer-to-peer work", 4: "drain and reset"}
_ANY: Final = frozenset({schema.GPU_INFO, schema.GPU_MEMORY_TOTAL, schema.GPU_UTILIZATION, schema.GPU_TEMPERATURE})
"""A GPU that gives any of these can be read."""
_READ: Final[Mapping[Metric, str]] = {
    **dict.fromkeys(_ANY, ""),
    schema.GPU_MEMORY_HEADROOM: "",
    schema.GPU_THROTTLE: "reason",
    schema.GPU_XID_LAST: "xid",
    schema.GPU_RECOVERY_ACTION: "",
    schema.GPU_ROW_REMAP_FAILURE: "",
}
"""Metrics that decide the state, and the label that distinguishes several values of one metric."""


class Gpu(NamedTuple):
    """Which GPU: its index and its uuid."""

    gpu: str
    uuid: str


_NAMELESS: Final = Gpu("", "")


@frozen
class Memory:
    """What is remembered: the state of every GPU that was ever seen."""

    gpus: Mapping[Gpu, Settled] = field(default_factory=dict)


def judge(
    memory: Memory | None, snapshot: Snapshot, at: float, retained: Sequence[Point] = (), set_by: float = 0.0
) -> tuple[Memory, tuple[Judged, ...]]:
    """The memory after a reading, and the state of each GPU; `at` is a monotonic time in seconds.

    `retained`: errors so far, known while no GPU can be read. A GPU that NVML lists and that was never read has a
    state without an index. `set_by`: what the clock of points is ahead of the snapshot's.
    """
    now = snapshot.taken + set_by
    known = {} if memory is None else memory.gpus
    points = snapshot.points if snapshot.health.up else retained
    values = _values(points)
    present = {gpu for gpu, own in values.items() if own.keys() & _ANY}
    found = {gpu: _findings(own, now) for gpu, own in values.items() if gpu in present}
    why = snapshot.health.error.message if snapshot.health.error else "it can no longer be read"
    for gpu in known.keys() - present:
        errors = _errors(values.get(gpu, {}), now)
        state = State.LOST if snapshot.health.up else State.UNKNOWN
        found[gpu] = [*errors, Finding(state, why)]
    found |= _unseen(snapshot, {*known, *present} - {_NAMELESS})
    settled = {
        gpu: settle(known.get(gpu), own, at, snapshot.taken, GPU_STATES, RISE, CLEAR) for gpu, own in found.items()
    }
    return Memory(settled), tuple(each.judged(gpu=gpu.gpu, uuid=gpu.uuid) for gpu, each in settled.items())


def state_points(judged: Iterable[Judged]) -> Iterator[Point]:
    """A state set for each GPU: a series for each state, 1 for the one that holds."""
    for each in judged:
        labels = {"gpu": each.gpu, "uuid": each.uuid}
        for state in GPU_STATES:
            value = float(state is each.state)
            yield point(schema.GPU_STATE, value, "state of the last reading", labels, state=state)


def _unseen(snapshot: Snapshot, seen: Iterable[Gpu]) -> dict[Gpu, list[Finding]]:
    """GPUs that NVML lists and that have never been read."""
    listed = next((value for _, value in numbers(snapshot.points, schema.GPUS)), None)
    if not snapshot.health.up:
        error = snapshot.health.error
        return {} if {*seen} or error is None else {_NAMELESS: [Finding(State.UNKNOWN, error.message)]}
    boards = {each for each in seen if ":" not in each.gpu}
    if listed is None or listed <= len(boards):
        return {}
    return {_NAMELESS: [Finding(State.LOST, f"{listed - len(boards):.0f} of {listed:.0f} GPUs cannot be read")]}


def _values(points: Iterable[Point]) -> dict[Gpu, dict[Metric, dict[str, float]]]:
    """Values by GPU and metric, then by the label that distinguishes several of one metric."""
    found: dict[Gpu, dict[Metric, dict[str, float]]] = {}
    for series, value, _ in points:
        if isinstance(value, float) and series.metric in _READ:
            gpu = Gpu(series.label("gpu"), series.label("uuid"))
            by = found.setdefault(gpu, {}).setdefault(series.metric, {})
            by[series.label(_READ[series.metric])] = value
    return found


def _errors(values: Mapping[Metric, Mapping[str, float]], now: float) -> Iterator[Finding]:
    for xid, came in values.get(schema.GPU_XID_LAST, {}).items():
        if xid.isdecimal() and int(xid) in FATAL_XIDS and now - came < XID_SECONDS:
            yield Finding(State.ERROR, f"fatal error Xid {xid}, {span(now - came)} ago")
    if action := _one(values, schema.GPU_RECOVERY_ACTION):
        wanted = _ACTIONS.get(int(action), f"action {action:.0f}")
        yield Finding(State.ERROR, f"its driver requests a recovery: {wanted}")
    if _one(values, schema.GPU_ROW_REMAP_FAILURE):
        yield Finding(State.ERROR, "a row of its memory could not be remapped")


def _findings(values: Mapping[Metric, Mapping[str, float]], now: float) -> list[Finding]:
    found = [*_errors(values, now)]
    reasons = [reason for reason, on in values.get(schema.GPU_THROTTLE, {}).items() if on and reason in HARD_THROTTLES]
    if reasons:
        found.append(Finding(State.THROTTLED, f"it is throttled: {', '.join(sorted(reasons))}"))
    free, total = _one(values, schema.GPU_MEMORY_HEADROOM), _one(values, schema.GPU_MEMORY_TOTAL)
    if free is not None and free < max(
        DEFAULT.gpu_headroom_critical_bytes, DEFAULT.gpu_headroom_critical * (total or 0.0)
    ):
        found.append(Finding(State.FULL, f"{free / 2**20:.0f} MiB can still be allocated"))
    return [*found, Finding(State.OK, "no problem found")]


def _one(values: Mapping[Metric, Mapping[str, float]], metric: Metric) -> float | None:
    return next(iter(values.get(metric, {}).values()), None)
