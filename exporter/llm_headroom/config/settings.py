"""The settings: each key with its type, bounds, default and meaning, once.

The reader of files, the JSON Schema, the tables and the example of the documents are made from these structures. Equal
values ask for the same behaviour; none can be changed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Final, TypeAlias
from urllib.parse import urlsplit

from msgspec import Meta

from llm_headroom import schema
from llm_headroom.config.endpoint import (
    Credentials,
    Endpoint,
    Secret,
    SecretFile,
    SecretVariable,
    Tls,
    TlsSettings,
)
from llm_headroom.config.errors import ConfigError, Place, near, shown
from llm_headroom.config.kinds import (
    Address,
    AddressGlob,
    Combine,
    Compression,
    Currency,
    Directory,
    Engine,
    File,
    Form,
    Gpu,
    GpuCount,
    Interval,
    KvCacheType,
    Label,
    LabelLimit,
    Limit,
    LogFormat,
    LogLevel,
    Memory,
    Metric,
    MetricGlob,
    NewEngine,
    OtlpProtocol,
    Port,
    Price,
    ProcessId,
    Regex,
    Scale,
    Share,
    Size,
    Threshold,
    Timeout,
    Url,
    UrlPath,
    Word,
    parsed,
    url,
)
from llm_headroom.config.people import Links, Receiver
from llm_headroom.model import NOTHING, Kind, Subject

RESERVED_LABELS: Final = frozenset(
    {"le", "quantile"}.union(*(metric.labels for metric in schema.ALL if metric.subject is not Subject.PROCESS))
)
"""Labels that a target must not add to its series."""
ENGINE_METRICS: Final = frozenset(metric.name for metric in schema.ALL if metric.exposed_by_engines)
"""Names of metrics that a rule may give: what others give as well would be there twice."""


def _target_label(text: str) -> str:
    if parsed(Label, text) in RESERVED_LABELS or text.startswith("__"):
        raise ConfigError("the label is reserved for the metrics' own use; choose another name")
    return text


def _our_label(text: str) -> str:
    if text in {"engine", "target"}:
        raise ConfigError("the labels engine and target are given by the exporter")
    return text


def _canonical(text: str) -> str:
    if text not in ENGINE_METRICS:
        raise ConfigError(
            f"{shown(text)} is no metric of the schema that an engine can give{near(text, ENGINE_METRICS)}"
        )
    return text


def parse_target(text: str) -> "Target":
    """Reads `URL` or `ENGINE=URL`, as in `vllm=http://127.0.0.1:8000`; without a scheme it is http.

    Raises ConfigError. Whether the engine exists is for `llm_headroom.config.load.load` to say.
    """
    engine, equals, address = text.partition("=")
    if not equals or re.search(r"[:/?#\[@]", engine):
        engine, address = "", text
    elif not engine:
        raise ConfigError("expected an engine before the =, as in vllm=http://127.0.0.1:8000")
    return Target(endpoint=Endpoint(url=url(address.strip())), engine=engine.strip() or None)


TargetLabel: TypeAlias = Annotated[Label, Form(name="label name", parse=_target_label)]
OurLabel: TypeAlias = Annotated[str, Form(name="text", parse=_our_label)]
EngineMetric: TypeAlias = Annotated[str, Form(name="name", parse=_canonical)]
Some: Final = Meta(min_length=1)
"""Of a list that must not be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What the operator knows of a model's memory and the engine does not expose; None for unknown."""

    weights: Memory | None = None
    """The weights of one replica, on all of its GPUs together. Default: unknown. Example: `15GiB`."""
    kv_bytes_per_token: Memory | None = None
    """The KV cache of one token, all layers and GPUs together: 2 × layers × KV heads × head size × bytes of an element.
    Default: unknown. Example: `131072`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One engine to poll; the name is that of its label `target`, and by default the host and port of its URL."""

    endpoint: Annotated[Endpoint, Form(inline=True)]
    name: Word = ""
    """Value of the label `target`; two targets must differ in it. `nvml` is reserved. Default: `host:port` and prefix
    of the URL. Example: `llm-a`."""
    engine: Engine | None = None
    """`vllm`, `sglang`, `sglang_router`, `ollama`, `llamacpp`, or a name under `engines`. Default: found out. Example:
    `vllm`."""
    interval: Interval | None = None
    """Time between two polls. Default: that of the top level. Example: `10s`."""
    timeout: Timeout | None = None
    """How long one poll may take. Default: that of the top level. Example: `3s`."""
    labels: Mapping[TargetLabel, Word] = field(default_factory=lambda: NOTHING, hash=False)
    """Further labels on every series of this target. Names that the metrics themselves use (`engine`, `model`,
    `reason`, …) and names that begin with `__` are refused. Example: `{team: search}`."""
    requests_running_limit: Limit | None = None
    """The most requests that the engine runs at once. vLLM does not expose its `max_num_seqs` on `/metrics`, Ollama not
    its `OLLAMA_NUM_PARALLEL`; give it here. Default: what the engine says. Example: `256`."""
    kv_cache_type: KvCacheType | None = None
    """Ollama's `OLLAMA_KV_CACHE_TYPE`, where its runners are not visible; see [Ollama](ollama.md). Default: that of the
    runner's command line. Example: `f16`."""
    pid: ProcessId | None = None
    """The engine's process, if it cannot be found by its port; see [GPUs and host memory](gpu.md). Default: found out.
    Example: `4711`."""
    gpus: Annotated[tuple[Gpu, ...], Some] = ()
    """The GPUs that are this engine's, if its processes cannot be matched: indexes as NVML counts them, `0:1` for a MIG
    instance, or uuids. Default: found out. Example: `[0, 1]`."""
    cgroup: Directory | None = None
    """The directory of the engine's memory control group, version 1 or 2. Default: found out. Example:
    `/sys/fs/cgroup/system.slice/vllm.service`."""
    model_memory: ModelMemory = field(default_factory=ModelMemory)
    """What the model takes on GPUs; see [Model memory](#model-memory). Default: what the engine says."""
    gpu_count: GpuCount | None = None
    """How many GPUs the engine has, where they cannot be seen from here; for [cost](#cost). Default: found out.
    Example: `2`."""
    gpu_hour: Price | None = None
    """The price of one of its GPUs for an hour. Default: that of `cost`. Example: `1.2`."""

    def __post_init__(self) -> None:
        if not self.name:
            parts = urlsplit(self.endpoint.url)
            usual = "" if parts.netloc.rpartition("]")[2].count(":") else ":443" if parts.scheme == "https" else ":80"
            object.__setattr__(self, "name", f"{parts.netloc}{usual}{parts.path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """A measuring proxy in front of a target; one that was read has its target's name, and no engine.

    `upstream` None: the target's own URL. A router's metrics have another port.
    """

    listen: Address
    """Where clients find the engine from now on: `:PORT`, `HOST:PORT` or `[IPV6]:PORT`. Example: `":8001"`."""
    target: Word = ""
    """The target that stands behind; its `engine` must be given. Example: `llm-a`."""
    upstream: Url | None = None
    """Where requests go: scheme, host and port, without a path. Needed beside `target` where an API and its metrics
    have two ports, as a router's do. Default: the target's."""
    engine: Engine | None = None
    """As under [Targets](#targets). Default: that of the target."""

    def __post_init__(self) -> None:
        if self.target and self.engine:
            raise ConfigError("the engine is that of the target; leave out one of both")
        if not self.target and not (self.upstream and self.engine):
            raise ConfigError("expected the name of a target under target, or upstream and engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """How a metric of the schema is found among an engine's own."""

    metric: EngineMetric
    """The metric of llm-headroom that gets the value; one that describes an engine. Example:
    `llm_requests_failed_total`."""
    names: Annotated[tuple[Metric, ...], Some]
    """What the engine calls it, newest name first, in the spelling of the engine's first prefix. The first one that is
    present is used. Example: `[tgi_request_failure]`."""
    where: Mapping[Label, Regex] = field(default_factory=lambda: NOTHING, hash=False)
    """Label → a regular expression that its whole value must match. Example: `{err: "overloaded|validation"}`."""
    labels: Mapping[Label, OurLabel] = field(default_factory=lambda: NOTHING, hash=False)
    """The engine's label → the metric's own label. `engine` and `target` are given by the exporter. Example: `{err:
    reason}`."""
    times: Annotated[tuple[Metric, ...], Some] = ()
    """Names, newest first, of a second signal that the first one is multiplied with, where the engine's labels are the
    same. Example: `[kv_cache_tokens_per_block]`."""
    scale: Scale = 1.0
    """What the value is multiplied with to come into the metric's unit."""
    combine: Combine = "sum"
    """How several series of the engine that fall on one of ours are combined."""

    def __post_init__(self) -> None:
        metric = schema.BY_NAME[self.metric]
        if self.times and metric.kind is Kind.HISTOGRAM:
            raise ConfigError(f"{self.metric} is a histogram, which `times` cannot multiply")
        declared = metric.labels
        for label in self.labels.values():
            if label not in declared:
                raise ConfigError(f"{self.metric} has no label {shown(label)}{near(label, declared)}")
        if len(set(self.labels.values())) < len(self.labels):
            raise ConfigError("two labels must not become the same one")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """An engine that is not built in."""

    name: Annotated[str, Form(from_key=True)]
    path: UrlPath = "/metrics"
    """Where the engine serves its metrics in the Prometheus text format."""
    port: Port | None = None
    """The engine's usual port. Example: `8080`."""
    prefixes: tuple[Metric, ...] = ()
    """How the names of its metrics begin, by which it is recognised. Example: `[tgi_]`."""
    model_label: Label | None = None
    """The label that names the model. Example: `model`."""
    replica_label: Label | None = None
    """The label that numbers data-parallel replicas. Example: `rank`."""
    rules: Annotated[tuple[RuleSettings, ...], Some]
    """As under [Mappings](#mappings)."""
    ignored: tuple[MetricGlob, ...] = ()
    """Names of metrics that are left out on purpose, and not reported as unmapped. Example: `["tgi_tokenize_*"]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """How `/probe?module=NAME` speaks to a target; `timeout` in seconds, None: that of the configuration."""

    name: Annotated[str, Form(from_key=True)]
    engine: Engine | None = None
    """As in a target. Default: found out. Example: `vllm`."""
    timeout: Timeout | None = None
    """As in a target. Default: that of the top level. Example: `3s`."""
    tls: TlsSettings = field(default_factory=Tls)
    """TLS towards the engine; see [TLS](#tls). Default: the system's certificates."""
    credentials: Credentials = None
    """Credentials for the engine; see [Authentication](#authentication)."""
    max_bytes: Size = Endpoint(url="").max_bytes
    """As in a target."""
    gzip: bool = False
    """As in a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """Which targets `/probe` may reach; without any, `/probe` is off."""

    allow: tuple[AddressGlob, ...] = ()
    """Which targets may be probed: globs that the target's `host:port` must match. Default: none: `/probe` is off.
    Example: `["10.0.*:8000"]`."""
    modules: Mapping[Word, Module] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By name: how to speak to a target; see [Modules](#modules). Example: `default`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """Whether GPUs are read (None: if NVML is there), and every how many seconds."""

    enabled: bool | None = None
    """Whether to read GPUs through NVML. With `true` it is an error, visible in the metrics, if NVML is not there.
    Default: if NVML is there. Example: `true`."""
    processes: bool = False
    """A series for the memory of each process on a GPU."""
    pcie: bool = False
    """PCIe throughput. NVML measures it for 20 ms in each direction, so each reading takes 40 ms longer for each
    GPU."""
    interval: Interval | None = None
    """Time between two readings. Default: that of the top level. Example: `5s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is logged, and how."""

    level: LogLevel = "info"
    """The least severe events that are logged."""
    format: LogFormat = "logfmt"
    """How they are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Service levels: thresholds in seconds of three latencies, and the share of requests wanted within each."""

    ttft: Threshold = 2.5
    """Time to first token."""
    inter_token_latency: Threshold = 0.2
    """Between two tokens."""
    request_duration: Threshold = 30.0
    """Whole requests."""
    ratio: Share = 0.95
    """Share wanted within each threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of one GPU for an hour, None for unknown, and its currency."""

    gpu_hour: Price | None = None
    """The price of one GPU for an hour; a target's own `gpu_hour` goes before it. Default: no price. Example: `2.5`."""
    currency: Currency = "USD"
    """Value of the label `currency`."""


_SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})


def _header_name(text: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):  # RFC 9110, section 5.6.2
        raise ConfigError("expected the name of an HTTP header")
    return text


def _public_header(text: str) -> str:
    if _header_name(text).lower() in _SECRET_HEADERS:
        raise ConfigError("a secret must not stand in this file: put it under headers_file or headers_env")
    return text


def _header_value(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ConfigError("expected a header's value: printable ASCII characters")
    return text


def _collector(text: str) -> str:
    found = url(text.rstrip("/").removesuffix("/v1/metrics"))
    return found if "://" in text else found.removeprefix("http://")


Header: TypeAlias = Annotated[str, Form(name="header", parse=_header_name)]
PublicHeader: TypeAlias = Annotated[str, Form(name="header", parse=_public_header)]
HeaderValue: TypeAlias = Annotated[str, Form(name="text", parse=_header_value)]
Collector: TypeAlias = Annotated[str, Form(name="URL", parse=_collector)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    """How metrics are pushed over OTLP; what is None is as OpenTelemetry's variables say. `place`: where it stands."""

    place: Place | None = field(default=None, compare=False)
    enabled: bool = True
    """`false`: push nothing, whatever else says so."""
    endpoint: Collector | None = None
    """The collector. Over HTTP `/v1/metrics` is added unless it ends so. Without a scheme it is `http://`, over gRPC
    encrypted unless `OTEL_EXPORTER_OTLP_INSECURE` is `true`. Default: `OTEL_EXPORTER_OTLP_ENDPOINT`. Example:
    `https://collector.internal:4318`."""
    protocol: OtlpProtocol | None = None
    """How to speak to it. Default: `http/protobuf`. Example: `http/protobuf`."""
    headers: Mapping[PublicHeader, HeaderValue] = field(default_factory=lambda: NOTHING, hash=False)
    """Sent with each export. Secrets (`Authorization` and the like) are refused here. Example:
    `{X-Scope-OrgID: tenant-1}`."""
    headers_env: Mapping[Header, SecretVariable] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By header: the environment variable that holds its value. Example: `{X-Token: COLLECTOR_TOKEN}`."""
    headers_file: Mapping[Header, SecretFile] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By header: the file that holds its value, read at each export. Example: `{Authorization: secrets/token}`."""
    tls: TlsSettings = field(default_factory=Tls)
    """TLS towards the collector, only with `https://`; see [TLS](#tls). gRPC cannot do `insecure_skip_verify`. Default:
    the system's certificates."""
    compression: Compression | None = None
    """Compression of what is sent. Default: `gzip`. Example: `gzip`."""
    timeout: Timeout | None = None
    """How long one export may take with its retries. Default: `10s`. Example: `10s`."""
    interval: Interval | None = None
    """Time between two exports. Default: `15s`. Example: `15s`."""
    resource: Mapping[Word, Word] = field(default_factory=lambda: NOTHING, hash=False)
    """Further resource attributes; they win over those that are found out. Example:
    `{deployment.environment.name: production}`."""
    semantic_conventions: bool = False
    """Whether to send OpenTelemetry's own names besides ours; see [OTLP](otlp.md)."""

    @property
    def secrets(self) -> Mapping[str, Secret]:
        """Headers whose values lie elsewhere."""
        return {**self.headers_env, **self.headers_file}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. Durations are seconds.

    `discover` None: look for engines on this host if no target is configured. `otlp` None: nothing is pushed.
    """

    # First, since whatever else names an engine is checked against these.
    engines: Mapping[NewEngine, EngineSettings] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By name: engines that are not built in; see [Engines](#engines). Example: `tgi`."""
    listen: Annotated[tuple[Address, ...], Some] = (":9836",)
    """Where to serve `/metrics` and the status page: `:PORT`, `HOST:PORT` or `[IPV6]:PORT`."""
    interval: Interval = 5.0
    """Time between two polls of a target."""
    timeout: Timeout = 5.0
    """How long one poll of a target may take."""
    targets: tuple[Annotated[Target, Form(short=("a string", lambda value: parse_target(value.string())))], ...] = ()
    """The engines to poll; see [Targets](#targets)."""
    proxies: tuple[ProxySettings, ...] = ()
    """Measuring proxies in front of engines; see [Proxies](#proxies)."""
    discover: bool | None = None
    """Whether to look for engines on the usual ports of this host. Default: only if no target is configured. Example:
    `true`."""
    gpu: Annotated[GpuSettings, Form(short=("true or false", lambda value: GpuSettings(enabled=value.boolean())))] = (
        field(default_factory=GpuSettings)
    )
    """Whether to read GPUs; see [GPU](#gpu). Default: if NVML is there."""
    host: bool = True
    """Whether to read the processes and host memory of engines that run on this host; see [GPUs and host
    memory](gpu.md)."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """What `/probe` may reach; see [Probe](#probe). Default: off."""
    mappings: Mapping[Engine, Annotated[tuple[RuleSettings, ...], Some]] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    """By engine: further rules; see [Mappings](#mappings). Example: `vllm`."""
    objectives: Objectives = field(default_factory=Objectives)
    """Service levels; see [Objectives](#objectives)."""
    cost: Cost = field(default_factory=Cost)
    """What GPUs cost; see [Cost](#cost). Default: no prices."""
    links: Links = field(default_factory=Links)
    """Where the status page leads to; see [Links](#links). Default: nowhere."""
    label_limit: LabelLimit = 200
    """The most different values of one label that a target may have; further ones are reported as `other`."""
    web_config: File | None = None
    """TLS and authentication of the exporter's own server; see [its page](web-configuration.md). Example: `web.yml`."""
    log: Log = field(default_factory=Log)
    """What is logged, and how; see [Log](#log)."""
    notify: tuple[Receiver, ...] = ()
    """Where changes of states are sent; see [Notifications](#notifications)."""
    otlp: OtlpSettings | None = None
    """Pushing to an OpenTelemetry collector; see [OTLP](#otlp). Default: off."""
