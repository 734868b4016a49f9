"""The values that the status page, its stream and `top` show. All are immutable, and plain enough to become JSON.

Times are unix seconds, durations seconds, rates per second, ratios in [0, 1]; what is None is not known.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec

from llm_headroom.model import ENGINE_STATES, GPU_STATES, Level

ORDER: Final = {Level.BAD: 0, Level.WARN: 1, Level.UNKNOWN: 2, Level.GOOD: 3}
"""Of levels, the worst first."""
_STATES: Final = {str(state): index for states in (GPU_STATES, ENGINE_STATES) for index, state in enumerate(states)}


@dataclass(frozen=True, slots=True)
class Condition:
    """The judgement of a model or a GPU: `name` is its state, `reason` in words, `since` when in unix time."""

    name: str
    level: Level
    reason: str = ""
    since: float | None = None


def urgency(state: Condition) -> tuple[int, int]:
    """Where a state stands among others, the worst first: by level, then as the model orders its states."""
    return ORDER[state.level], _STATES.get(state.name, len(_STATES))


@dataclass(frozen=True, slots=True)
class Quantile:
    """What a histogram can say of a quantile: it lies in (`low`, `high`], the bucket's bounds in seconds.

    `estimate` is the linear interpolation inside the bucket, as Prometheus' histogram_quantile makes it. In the last
    bucket, which has no upper bound, `high` and `estimate` are None.
    """

    rank: float
    low: float
    high: float | None
    estimate: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """A latency over the last `window` seconds: `count` observations, and no quantiles if there were none."""

    metric: str
    window: float
    count: float
    quantiles: tuple[Quantile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """The KV cache of all replicas, in tokens; `worst` is the usage of the fullest replica where there are several."""

    capacity: float | None = None
    used: float | None = None
    evictable: float | None = None
    free: float | None = None
    usage: float | None = None
    worst: float | None = None
    peak: float | None = None
    headroom_tokens: float | None = None
    headroom_ratio: float | None = None
    headroom_requests: float | None = None
    exhaustion_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A history line: one value for each of the card's `ages`, None where there was none."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Risk:
    """A probability of trouble to come, by the name of its metric."""

    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Load:
    """How many times its traffic an engine takes within the `objective`, and the resource that binds then.

    `sustainable` is the same in requests per second; `suspect`: not to be believed at present.
    """

    objective: str
    headroom: float
    binding: str
    sustainable: float | None
    suspect: bool


@dataclass(frozen=True, slots=True)
class Slow:
    """The share of first tokens slower than the objective in a sliding window, such as `5m`."""

    window: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective by its name: of `count` requests (tokens) since the exporter began, `attained` were within it.

    `threshold` is in seconds, `wanted` the share that the objective wants; both are None where unknown.
    """

    name: str
    threshold: float | None
    wanted: float | None
    attained: float
    count: float


@dataclass(frozen=True, slots=True)
class Missing:
    """Canonical metrics that the source does not expose for one and the same reason."""

    reason: str
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a memory in bytes by its name."""

    name: str
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a card comes from and how its last collection went; `taken` is when that began."""

    target: str
    engine: str
    title: str
    version: str
    up: bool
    taken: float
    duration: float
    last_success: float | None = None
    cause: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """What a router exposes in place of an engine's values."""

    active: float | None = None
    waiting: float | None = None
    workers: float | None = None
    healthy: float | None = None
    request_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One model of one target; a target that is down, or has no model, has one card without a model.

    `lines` share `ages`, seconds before `source.taken`, oldest first. `offload` is the share of the model's memory on
    GPUs, `expires` the unix time at which an idle model is unloaded. `saturation` is the share of what fits
    of the resource `saturation_by`, which is the scarcest. `notes` are facts beside the state.
    """

    id: str
    source: Source
    state: Condition
    notes: tuple[str, ...] = ()
    model: str = ""
    replicas: int = 0
    load: tuple[Load, ...] = ()
    running: float | None = None
    waiting: float | None = None
    limit: float | None = None
    saturation: float | None = None
    saturation_by: str = ""
    prompt_rate: float | None = None
    generation_rate: float | None = None
    latencies: tuple[Latency, ...] = ()
    kv: KvCache | None = None
    loaded: bool | None = None
    memory: tuple[Share, ...] = ()
    offload: float | None = None
    expires: float | None = None
    router: Router | None = None
    slow: tuple[Slow, ...] = ()
    objectives: tuple[Objective, ...] = ()
    risks: tuple[Risk, ...] = ()
    ages: tuple[float, ...] = ()
    lines: tuple[Line, ...] = ()
    missing: tuple[Missing, ...] = ()

    @property
    def level(self) -> Level:
        """How bad its state is."""
        return self.state.level

    @property
    def queued(self) -> float | None:
        """Requests that wait, at the engine or at the router; None if not known."""
        return self.waiting if self.router is None else self.router.waiting

    @property
    def thresholds(self) -> dict[str, float | None]:
        """The thresholds of the objectives in seconds, by their names; None where unknown."""
        return {each.name: each.threshold for each in self.objectives}

    @property
    def least_load(self) -> Load | None:
        """The load beside the objective that it leaves first, which is what a row of a table has room for."""
        return min(self.load, key=lambda load: load.headroom, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCard:
    """One GPU or MIG instance; GPUs that cannot be read have one card without a uuid. Memory in bytes.

    `engines` is what each target's engine holds, `parts` what all of them hold it for; `unattributed` is used memory
    that no engine is known to hold.
    """

    id: str
    source: Source
    state: Condition
    notes: tuple[str, ...] = ()
    gpu: str = ""
    uuid: str = ""
    name: str = ""
    profile: str = ""
    total: float | None = None
    used: float | None = None
    free: float | None = None
    reserved: float | None = None
    engines: tuple[Share, ...] = ()
    parts: tuple[Share, ...] = ()
    unattributed: float | None = None
    utilization: float | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: float | None = None
    throttles: tuple[str, ...] = ()
    risks: tuple[Risk, ...] = ()
    ages: tuple[float, ...] = ()
    lines: tuple[Line, ...] = ()
    missing: tuple[Missing, ...] = ()

    @property
    def full_name(self) -> str:
        """What it is called, with its MIG profile if it is an instance."""
        return " ".join(part for part in (self.name, self.profile) if part)

    @property
    def taken(self) -> float | None:
        """The share of its memory that cannot be allocated any more; None if not known."""
        return None if not self.total or self.free is None else 1 - self.free / self.total

    @property
    def level(self) -> Level:
        """How bad its state is."""
        return self.state.level


def standing(card: EngineCard | GpuCard) -> tuple[float, ...]:
    """Where a card stands among many: the worst first, and of engines that are well those that take least more.

    In coarse steps, so that rows do not change places with every estimate; last where it is not known.
    """
    level, place = urgency(card.state)
    if isinstance(card, GpuCard) or card.level is not Level.GOOD:
        return level, place
    load = card.least_load
    return level, math.inf if load is None else round(2.0 * math.log2(load.headroom)), place


@dataclass(frozen=True, slots=True)
class Absent:
    """Something that was looked for on this host and not found."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class View:
    """Everything that is shown. `sources` and `up` count the sources that have been collected at least once.

    `notices` are troubles of the exporter itself, in words.
    """

    version: str
    time: float
    sources: int
    up: int
    engines: tuple[EngineCard, ...]
    gpus: tuple[GpuCard, ...]
    absent: tuple[Absent, ...]
    notices: tuple[str, ...] = ()


def as_json(view: View) -> dict[str, Any]:
    """The view as plain values, under the names of its fields."""
    return asdict(view)


def from_json(data: object) -> View:
    """The view out of what `as_json` made of it; fields that only a newer or an older version knows do no harm.

    Raises:
        ValueError: it is no view.
    """
    try:
        return msgspec.convert(data, View)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a view of llm-headroom: {error}") from error
