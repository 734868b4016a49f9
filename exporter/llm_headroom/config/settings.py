"""The values that a configuration consists of. Equal ones ask for the same behaviour; none can be changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from llm_headroom.config.endpoint import Basic, Bearer, Endpoint, Secret, Tls
from llm_headroom.model import NOTHING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What the operator knows of a model's memory and the engine does not tell; None for unknown.

    `weights` are bytes of one replica on all of its GPUs together. `kv_bytes_per_token` are bytes of KV cache for one
    token, all layers and GPUs together: 2 (key and value) * layers * KV heads * head size * bytes of an element.
    """

    weights: int | None = None
    kv_bytes_per_token: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One engine to poll.

    `name` is the value of the label `target`. `engine` None: find out which one it is. `interval` and `timeout` are
    seconds, None: those of the configuration. `labels` are extra labels on its series. `requests_running_limit` is the
    operator's word for what some engines do not tell (vLLM's max_num_seqs, OLLAMA_NUM_PARALLEL), `kv_cache_type` that
    for OLLAMA_KV_CACHE_TYPE. `pid`, `gpus` (NVML indexes, MIG ones as
    "0:1", or uuids) and `cgroup` (the directory of its memory control group) say where the engine runs, if that cannot
    be found out. `gpu_count` is how many GPUs it has where they cannot be seen, `gpu_hour` the price of one for an
    hour, None: that of the configuration.
    """

    name: str
    endpoint: Endpoint
    engine: str | None = None
    interval: float | None = None
    timeout: float | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    requests_running_limit: int | None = None
    kv_cache_type: str | None = None
    pid: int | None = None
    gpus: tuple[str, ...] = ()
    cgroup: Path | None = None
    model_memory: ModelMemory = field(default_factory=ModelMemory)
    gpu_count: int | None = None
    gpu_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """A measuring proxy in front of the target of that name: it listens on `listen` (`HOST:PORT`).

    `upstream` is the URL that requests go to, None: the target's own. A router's metrics have another port.
    """

    listen: str
    target: str
    upstream: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """How a metric of the schema is found among an engine's own.

    `names` are upstream names, newest first. `where` are regular expressions which whole label values must match.
    `labels` maps upstream labels to ours. `times` are names, newest first, of a second signal that the first one is
    multiplied with, where the upstream labels are the same.
    `combine` (sum, max, first) says what becomes of several upstream series that
    fall on one of ours.
    """

    metric: str
    names: tuple[str, ...]
    where: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    times: tuple[str, ...] = ()
    scale: float = 1.0
    combine: str = "sum"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """An engine that is not built in. `prefixes` are how its metrics begin, `ignored` are globs of upstream names."""

    name: str
    path: str = "/metrics"
    port: int | None = None
    prefixes: tuple[str, ...] = ()
    model_label: str | None = None
    replica_label: str | None = None
    rules: tuple[RuleSettings, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """How `/probe?module=NAME` speaks to a target; `timeout` in seconds, None: that of the configuration."""

    name: str
    engine: str | None = None
    timeout: float | None = None
    tls: Tls = field(default_factory=Tls)
    credentials: Bearer | Basic | None = None
    max_bytes: int = Endpoint(url="").max_bytes
    gzip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """Which targets `/probe` may reach: globs of their host:port. None means that `/probe` is off."""

    allow: tuple[str, ...] = ()
    modules: Mapping[str, Module] = field(default_factory=lambda: MappingProxyType({}), hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """Whether GPUs are read (None: if NVML is there), and every how many seconds.

    `processes`: a series for each process. `pcie`: PCIe throughput, which takes 40 ms for each GPU and reading.
    """

    enabled: bool | None = None
    processes: bool = False
    pcie: bool = False
    interval: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is logged, and how."""

    level: str = "info"
    format: str = "logfmt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Service levels: thresholds in seconds of three latencies, and the share of requests wanted within each."""

    ttft: float = 2.5
    inter_token_latency: float = 0.2
    request_duration: float = 30.0
    ratio: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of one GPU for an hour, None for unknown, and its currency."""

    gpu_hour: float | None = None
    currency: str = "USD"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    """How metrics are pushed over OTLP.

    `url` is the collector's, without `path`, which HTTP asks for. `secrets` are headers whose values lie elsewhere.
    `timeout` is that of one attempt, `interval` the time between two exports, in seconds. `resource` are attributes
    that the operator gave. `semantic_conventions`: OpenTelemetry's own names besides ours.
    """

    url: str
    path: str = "/v1/metrics"
    protocol: str = "http/protobuf"
    headers: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    secrets: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    tls: Tls = field(default_factory=Tls)
    gzip: bool = True
    timeout: float = 10.0
    interval: float = 15.0
    resource: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    semantic_conventions: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. Equal configurations ask for the same behaviour; durations are seconds.

    `discover` None: look for engines on this host if no target is configured. `mappings` are extra rules by engine.
    `label_limit` is how many different values of one label a target may have. `host`: whether the memory and processes
    of engines on this host are read. `otlp` None: nothing is pushed.
    """

    listen: tuple[str, ...] = (":9836",)
    interval: float = 5.0
    timeout: float = 5.0
    targets: tuple[Target, ...] = ()
    proxies: tuple[ProxySettings, ...] = ()
    discover: bool | None = None
    gpu: GpuSettings = field(default_factory=GpuSettings)
    host: bool = True
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    mappings: Mapping[str, tuple[RuleSettings, ...]] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    engines: tuple[EngineSettings, ...] = ()
    objectives: Objectives = field(default_factory=Objectives)
    cost: Cost = field(default_factory=Cost)
    label_limit: int = 200
    web_config: Path | None = None
    log: Log = field(default_factory=Log)
    otlp: OtlpSettings | None = None
