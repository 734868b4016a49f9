"""The settings: each key with its type, bounds, default and meaning, once.

The reader of files, the JSON Schema, and the tables and the example in the documentation are generated from these
structures. Equal values mean equal behaviour; all are immutable.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
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
    Combine,
    Compression,
    Currency,
    Detail,
    Directory,
    Engine,
    File,
    Form,
    Gpu,
    GpuCount,
    Host,
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
    Purpose,
    Reachable,
    Regex,
    Scale,
    Size,
    Timeout,
    Url,
    UrlPath,
    Word,
    parsed,
    url,
)
from llm_headroom.config.objectives import Objectives, OwnObjectives
from llm_headroom.config.people import Links, Receiver
from llm_headroom.model import NOTHING, Kind, Subject

RESERVED_LABELS: Final = frozenset(
    {"le", "quantile"}.union(*(metric.labels for metric in schema.ALL if metric.subject is not Subject.PROCESS))
)
"""Labels that a target must not add to its series."""
ENGINE_METRICS: Final = frozenset(metric.name for metric in schema.ALL if metric.exposed_by_engines)
"""Names of metrics that a rule may provide; a metric that the exporter provides itself would be there twice."""


def _target_label(text: str) -> str:
    if parsed(Label, text) in RESERVED_LABELS or text.startswith("__"):
        raise ConfigError("the label is reserved for the metrics' own use; choose another name")
    return text


def _our_label(text: str) -> str:
    if text in {"engine", "target"}:
        raise ConfigError("the labels engine and target are set by the exporter")
    return text


def _canonical(text: str) -> str:
    if text not in ENGINE_METRICS:
        hint = partial(near, text, ENGINE_METRICS)
        raise ConfigError(f"{shown(text)} is not a metric that an engine can provide", hint=hint)
    return text


def parse_target(text: str) -> "Target":
    """Reads `URL` or `ENGINE=URL`, as in `vllm=http://127.0.0.1:8000`; without a scheme it is http.

    Raises ConfigError. Whether the engine exists is for `llm_headroom.config.load.load` to say.
    """
    engine, equals, address = text.partition("=")
    if not equals or re.search(r"[:/?#\[@]", engine):
        engine, address = "", text
    elif not engine:
        raise ConfigError("expected an engine before the =, for example vllm=http://127.0.0.1:8000")
    return Target(endpoint=Endpoint(url=url(address.strip())), engine=engine.strip().lower() or None)


TargetLabel: TypeAlias = Annotated[Label, Form(name="label name", parse=_target_label)]
OurLabel: TypeAlias = Annotated[str, Form(name="text", parse=_our_label)]
EngineMetric: TypeAlias = Annotated[str, Form(name="name", parse=_canonical)]
Some: Final = Meta(min_length=1)
"""For lists that must not be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """A model's memory, given by the operator where the engine does not expose it; None if unknown."""

    weights: Memory | None = None
    """Weights of one replica, on all of its GPUs together. Default: unknown. Example: `15GiB`."""
    kv_bytes_per_token: Memory | None = None
    """KV cache of one token, all layers and GPUs together: 2 × layers × KV heads × head size × bytes of an element.
    Default: unknown. Example: `131072`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One engine to poll; `name` is the value of its label `target`, by default the host and port of its URL."""

    endpoint: Annotated[Endpoint, Form(inline=True)]
    name: Word = ""
    """Value of the label `target`; it must be unique. `nvml` is reserved. Default: `host:port` and prefix
    of the URL. Example: `llm-a`."""
    engine: Engine | None = None
    """BUILT_IN, or a name under `engines`. Default: detected. Example: `vllm`."""
    model: Word = ""
    """Name of the model on every series, in place of the engine's own name, if that is useless (`undefined`, a path).
    For engines that serve one model. Default: the engine's own name. Example: `llama-3-8b`."""
    interval: Interval | None = None
    """Time between two polls. Default: the top-level value. Example: `10s`."""
    timeout: Timeout | None = None
    """Timeout of one poll. Default: the top-level value. Example: `3s`."""
    labels: Mapping[TargetLabel, Word] = field(default_factory=lambda: NOTHING, hash=False)
    """Extra labels on every series of this target. Names that the metrics themselves use (`engine`, `model`,
    `reason`, …) and names that start with `__` are not allowed. Example: `{team: search}`."""
    purpose: Purpose = "interactive"
    """Whether people wait for its answers: `interactive` or `batch`. Late first tokens are no fault of a target for
    batches, so neither its state nor an alert judges them. Example: `batch`."""
    objectives: OwnObjectives = field(default_factory=OwnObjectives)
    """Latency objectives of this target; see [Objectives of a target](#objectives-of-a-target). Default: the top-level
    ones."""
    requests_running_limit: Limit | None = None
    """Maximum number of requests that the engine runs at once; of several replicas (data parallel ranks) each of them.
    vLLM does not expose its `max_num_seqs` on `/metrics`, nor Ollama its `OLLAMA_NUM_PARALLEL`; set it here. Default:
    the engine's own value, if exposed. Example: `256`."""
    kv_cache_type: KvCacheType | None = None
    """Ollama's `OLLAMA_KV_CACHE_TYPE`, if its runners are not visible; see [Ollama](ollama.md). Default: from the
    runner's command line. Example: `f16`."""
    pid: ProcessId | None = None
    """The engine's process, if it cannot be found by its port; see [GPUs and host memory](gpu.md). Default: detected.
    Example: `4711`."""
    gpus: Annotated[tuple[Gpu, ...], Some] = ()
    """The GPUs of this engine, if its processes cannot be matched: NVML indexes, `0:1` for a MIG
    instance, or uuids. Default: detected. Example: `[0, 1]`."""
    cgroup: Directory | None = None
    """The directory of the engine's memory control group, version 1 or 2. Default: detected. Example:
    `/sys/fs/cgroup/system.slice/vllm.service`."""
    model_memory: ModelMemory = field(default_factory=ModelMemory)
    """Memory of the model on GPUs; see [Model memory](#model-memory). Default: the engine's own values, if exposed."""
    gpu_count: GpuCount | None = None
    """Number of GPUs of the engine, if they are not visible from here; for [cost](#cost). Default: detected.
    Example: `2`."""
    gpu_hour: Price | None = None
    """Price of one of its GPUs per hour. Default: the one under `cost`. Example: `1.2`."""

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
    """Address that clients use instead of the engine's: `HOST:PORT` or `[IPV6]:PORT`; `:PORT` is this host's loopback
    alone, `0.0.0.0:PORT` every address. Example: `"0.0.0.0:8001"`."""
    target: Word = ""
    """The target behind the proxy; its `engine` must be set. Example: `llm-a`."""
    upstream: Url | None = None
    """Where requests go: scheme, host and port, without a path. Needed beside `target` where an API and its metrics
    have two ports, as a router's do. Default: the target's."""
    engine: Engine | None = None
    """As under [Targets](#targets). Default: the target's."""
    hosts: tuple[Host, ...] = ()
    """Names by which clients call the proxy, besides this host's own and its addresses. An engine on loopback gets its
    own Host for these; any other name reaches it as it came, so that it can refuse pages that a browser was lured to.
    Example: `[llm.example.org]`."""

    def __post_init__(self) -> None:
        if self.target and self.engine:
            raise ConfigError("give either target or engine, not both")
        if not self.target and not (self.upstream and self.engine):
            raise ConfigError("expected the name of a target under target, or upstream and engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """How a metric of the schema is found among an engine's own."""

    metric: EngineMetric
    """The metric of llm-headroom that gets the value; it must be one that engines expose. Example:
    `llm_requests_failed_total`."""
    names: Annotated[tuple[Metric, ...], Some]
    """The engine's own names for it, newest first, spelled with the engine's first prefix. The first one present is
    used. Example: `[tgi_request_failure]`."""
    where: Mapping[Label, Regex] = field(default_factory=lambda: NOTHING, hash=False)
    """Label → a regular expression that its whole value must match. Example: `{err: "overloaded|validation"}`."""
    labels: Mapping[Label, OurLabel] = field(default_factory=lambda: NOTHING, hash=False)
    """The engine's label → the metric's own label. `engine` and `target` are set by the exporter. Example: `{err:
    reason}`."""
    times: Annotated[tuple[Metric, ...], Some] = ()
    """Names, newest first, of a second signal to multiply the first one by, where the engine's labels are the
    same. Example: `[kv_cache_tokens_per_block]`."""
    scale: Scale = 1.0
    """Factor that converts the value to the metric's unit."""
    combine: Combine = "sum"
    """How several series of the engine that map to one of ours are combined. Of ratios `sum` takes the largest;
    histograms always add up."""

    def __post_init__(self) -> None:
        metric = schema.BY_NAME[self.metric]
        if self.combine != "sum" and metric.kind is Kind.HISTOGRAM:
            why = f"{self.metric} is a histogram, whose series always add up"
            raise ConfigError(f"{why}: leave out `combine`, and choose one of them by `where`")
        if self.times and metric.kind is Kind.HISTOGRAM:
            raise ConfigError(f"{self.metric} is a histogram, which `times` cannot multiply")
        declared = metric.labels
        for label in self.labels.values():
            if label not in declared:
                raise ConfigError(f"{self.metric} has no label {shown(label)}", hint=partial(near, label, declared))
        if len(set(self.labels.values())) < len(self.labels):
            raise ConfigError("two labels must not be mapped to the same one")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """An engine that is not built in."""

    name: Annotated[str, Form(from_key=True)]
    path: UrlPath = "/metrics"
    """Where the engine serves its metrics in the Prometheus text format."""
    port: Port | None = None
    """The engine's default port. Example: `8080`."""
    prefixes: tuple[Metric, ...] = ()
    """Prefixes of its metric names, by which it is recognised. Example: `[tgi_]`."""
    model_label: Label | None = None
    """The label that names the model. Without it the values of all models add up to one. Example: `model`."""
    replica_label: Label | None = None
    """The label that numbers data-parallel replicas. Without it their values add up. Example: `rank`."""
    rules: Annotated[tuple[RuleSettings, ...], Some]
    """As under [Mappings](#mappings)."""
    ignored: tuple[MetricGlob, ...] = ()
    """Names of metrics to ignore on purpose; they are not reported as unknown. Those of Python's runtime (`python_*`,
    `process_*`, `*_created`) are ignored without it. Example: `["tgi_tokenize_*"]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """How `/probe?module=NAME` connects to a target; `timeout` in seconds, None: that of the configuration."""

    name: Annotated[str, Form(from_key=True)]
    engine: Engine | None = None
    """As in a target. Default: detected. Example: `vllm`."""
    timeout: Timeout | None = None
    """As in a target. Default: the top-level value. Example: `3s`."""
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

    allow: tuple[Reachable, ...] = ()
    """Which targets may be probed: networks (`10.0.0.0/16:8000`, `[fd00::/8]:8000`), hosts (`llm-a:8000`), or the names
    under a suffix (`*.svc.cluster.local:8000`). Without a port, or with `:*`, it is any port. A name that only a
    network admits must have an address within it; it is looked up once, and that address is asked. Default: none:
    `/probe` is off. Example: `["10.0.0.0/16:8000"]`."""
    modules: Mapping[Word, Module] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By name: how to connect to a target; see [Modules](#modules). Example: `default`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """Whether GPUs are monitored (None: if NVML is available), and the interval in seconds."""

    enabled: bool | None = None
    """Whether to monitor GPUs through NVML. With `true` a missing NVML is an error, visible in the metrics.
    Default: if NVML is available. Example: `true`."""
    processes: bool = False
    """Whether to export a series for the memory of each process on a GPU."""
    pcie: bool = False
    """Whether to export PCIe throughput. NVML measures it for 20 ms per direction, so each reading takes 40 ms longer
    per GPU."""
    interval: Interval | None = None
    """Time between two readings. Default: the top-level value. Example: `5s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Level and format of the log."""

    level: LogLevel = "info"
    """Lowest level that is logged."""
    format: LogFormat = "logfmt"
    """Format of log lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Price of one GPU per hour, None if unknown, and its currency."""

    gpu_hour: Price | None = None
    """Price of one GPU per hour; a target's own `gpu_hour` takes precedence. Default: no price. Example: `2.5`."""
    currency: Currency = "USD"
    """Value of the label `currency`."""


_SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})


def _header_name(text: str) -> str:
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):  # RFC 9110, section 5.6.2
        raise ConfigError("expected the name of an HTTP header")
    return text


def _public_header(text: str) -> str:
    if _header_name(text).lower() in _SECRET_HEADERS:
        raise ConfigError("secrets are not allowed in this file: use headers_file or headers_env")
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
    """How metrics are pushed over OTLP; None: from OpenTelemetry's variables. `place`: position in the file."""

    place: Place | None = field(default=None, compare=False)
    enabled: bool = True
    """`false` turns the push off, whatever other settings say."""
    endpoint: Collector | None = None
    """The collector. Over HTTP `/v1/metrics` is appended if missing. Without a scheme it is `http://`, over gRPC
    encrypted unless `OTEL_EXPORTER_OTLP_INSECURE` is `true`. Default: `OTEL_EXPORTER_OTLP_ENDPOINT`. Example:
    `https://collector.internal:4318`."""
    protocol: OtlpProtocol | None = None
    """OTLP protocol. Default: `http/protobuf`. Example: `http/protobuf`."""
    headers: Mapping[PublicHeader, HeaderValue] = field(default_factory=lambda: NOTHING, hash=False)
    """HTTP headers of each export. Secrets (such as `Authorization`) are not allowed here. Example:
    `{X-Scope-OrgID: tenant-1}`."""
    headers_env: Mapping[Header, SecretVariable] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By header: the environment variable that holds its value. Example: `{X-Token: COLLECTOR_TOKEN}`."""
    headers_file: Mapping[Header, SecretFile] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By header: the file that holds its whole value, read at each export. Example: `{X-Api-Key: secrets/token}`."""
    credentials: Credentials = None
    """Credentials for the collector; see [Authentication](#authentication)."""
    tls: TlsSettings = field(default_factory=Tls)
    """TLS towards the collector, with `https://`; see [TLS](#tls). gRPC has no `insecure_skip_verify`. Default: the
    system's certificates."""
    compression: Compression | None = None
    """Compression of exports. Default: `gzip`. Example: `gzip`."""
    timeout: Timeout | None = None
    """Timeout of one export, including retries. Default: `10s`. Example: `10s`."""
    interval: Interval | None = None
    """Time between two exports. Default: `15s`. Example: `15s`."""
    resource: Mapping[Word, Word] = field(default_factory=lambda: NOTHING, hash=False)
    """Extra resource attributes; they override detected ones. Example:
    `{deployment.environment.name: production}`."""
    semantic_conventions: bool = False
    """Whether to also send metrics under OpenTelemetry's own names; see [OTLP](otlp.md)."""

    @property
    def secrets(self) -> Mapping[str, Secret]:
        """Headers whose values are in files or variables."""
        return {**self.headers_env, **self.headers_file}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. Durations are seconds.

    `discover` None: look for engines on this host if no target is configured. `otlp` None: nothing is pushed.
    """

    # First, since other keys that name an engine are checked against these.
    engines: Mapping[NewEngine, EngineSettings] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """By name: engines that are not built in; see [Engines](#engines). Example: `tgi`."""
    listen: Annotated[tuple[Address, ...], Some] = (":9836",)
    """Addresses of `/metrics` and the status page: `:PORT`, `HOST:PORT` or `[IPV6]:PORT`."""
    interval: Interval = 5.0
    """Time between two polls of a target."""
    timeout: Timeout = 5.0
    """Timeout of one poll of a target."""
    targets: tuple[Annotated[Target, Form(short=("a string", lambda value: parse_target(value.string())))], ...] = ()
    """The engines to poll; see [Targets](#targets)."""
    proxies: tuple[ProxySettings, ...] = ()
    """Measuring proxies in front of engines; see [Proxies](#proxies)."""
    discover: bool | None = None
    """Whether to detect engines on the default ports of this host. Default: only if no target is configured. Example:
    `true`."""
    gpu: Annotated[GpuSettings, Form(short=("true or false", lambda value: GpuSettings(enabled=value.boolean())))] = (
        field(default_factory=GpuSettings)
    )
    """Whether to monitor GPUs; see [GPU](#gpu). Default: if NVML is available."""
    host: bool = True
    """Whether to monitor processes and host memory of engines that run on this host; see [GPUs and host
    memory](gpu.md)."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """What `/probe` may reach; see [Probe](#probe). Default: off."""
    mappings: Mapping[Engine, Annotated[tuple[RuleSettings, ...], Some]] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    """By engine: extra rules; see [Mappings](#mappings). Example: `vllm`."""
    objectives: Objectives = field(default_factory=Objectives)
    """Latency objectives; see [Objectives](#objectives)."""
    cost: Cost = field(default_factory=Cost)
    """Prices of GPUs; see [Cost](#cost). Default: no prices."""
    links: Links = field(default_factory=Links)
    """Where the status page leads to; see [Links](#links). Default: nowhere."""
    detail: Detail = "full"
    """How much to export: `full` is everything; `essential` is what the shipped rules and the dashboards' first screens
    read, with fewer buckets (see [fleets](fleet.md#series)). Page, `top` and JSON always have everything."""
    label_limit: LabelLimit = 200
    """Maximum number of different values of one label per target; further ones are exported as `other`."""
    web_config: File | None = None
    """TLS and authentication of the exporter's own server; see [its page](web-configuration.md). Example: `web.yml`."""
    log: Log = field(default_factory=Log)
    """Level and format of the log; see [Log](#log)."""
    notify: tuple[Receiver, ...] = ()
    """Where changes of states are sent; see [Notifications](#notifications)."""
    otlp: OtlpSettings | None = None
    """Push to an OpenTelemetry collector; see [OTLP](#otlp). Default: off."""
