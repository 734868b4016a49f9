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
    Gzip,
    MaxBytes,
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
    Threshold,
    Timeout,
    Url,
    UrlPath,
    Word,
    about,
    parsed,
    url,
)
from llm_headroom.config.yaml_nodes import Value
from llm_headroom.model import NOTHING

RESERVED_LABELS: Final = frozenset({"le", "quantile"}.union(*(metric.labels for metric in schema.ALL)))
"""Labels that a target must not add to its series."""
ENGINE_METRICS: Final = frozenset(
    metric.name
    for metric in schema.ALL
    if "target" in metric.labels
    and metric not in schema.COLLECTION
    and not metric.name.startswith(("llm_gpu_memory_", "llm_host_"))
)
"""Names that a rule may give values to: neither what NVML or /proc alone tell, nor how the collection went."""


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


def _short_target(value: Value) -> "Target | None":
    return parse_target(value.string()) if value.kind == "a string" else None


def _short_gpu(value: Value) -> "GpuSettings | None":
    return GpuSettings(enabled=value.boolean()) if value.kind == "true or false" else None


TargetLabel: TypeAlias = Annotated[Label, Form(name="label name", parse=_target_label)]
OurLabel: TypeAlias = Annotated[str, Form(name="text", parse=_our_label)]
EngineMetric: TypeAlias = Annotated[str, Form(name="name", parse=_canonical)]
Some: Final = Meta(min_length=1)
"""Of a list that must not be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What the operator knows of a model's memory and the engine does not expose; None for unknown."""

    weights: Annotated[
        Memory | None, about("the weights of one replica, on all of its GPUs together", "unknown")
    ] = None
    kv_bytes_per_token: Annotated[
        Memory | None,
        about(
            "the KV cache of one token, all layers and GPUs together: 2 × layers × KV heads × head size × bytes of an "
            "element",
            "unknown",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One engine to poll; the name is that of its label `target`, and by default the host and port of its URL."""

    endpoint: Annotated[Endpoint, Form(inline=True)]
    name: Annotated[
        Word,
        about(
            "value of the label `target`; two targets must differ in it. `nvml` is reserved",
            "`host:port` and prefix of the URL",
        ),
    ] = ""
    engine: Annotated[
        Engine | None,
        about("`vllm`, `sglang`, `sglang_router`, `ollama`, `llamacpp`, or a name under `engines`", "found out"),
    ] = None
    interval: Annotated[Interval | None, about("time between two polls", "that of the top level")] = None
    timeout: Annotated[Timeout | None, about("how long one poll may take", "that of the top level")] = None
    labels: Annotated[
        Mapping[TargetLabel, Word],
        about(
            "further labels on every series of this target. Names that the metrics themselves use (`engine`, `model`, "
            "`reason`, …) and names that begin with `__` are refused"
        ),
    ] = field(default_factory=lambda: NOTHING, hash=False)
    requests_running_limit: Annotated[
        Limit | None,
        about(
            "the most requests that the engine runs at once. vLLM does not expose its `max_num_seqs` on `/metrics`, "
            "Ollama not its `OLLAMA_NUM_PARALLEL`; give it here",
            "what the engine says",
        ),
    ] = None
    kv_cache_type: Annotated[
        KvCacheType | None,
        about(
            "Ollama's `OLLAMA_KV_CACHE_TYPE`, where its runners are not visible; see [Ollama](ollama.md)",
            "that of the runner's command line",
        ),
    ] = None
    pid: Annotated[
        ProcessId | None,
        about(
            "the engine's process, if it cannot be found by its port; see [GPUs and host memory](gpu.md)", "found out"
        ),
    ] = None
    gpus: Annotated[
        tuple[Gpu, ...],
        Some,
        about(
            "the GPUs that are this engine's, if its processes cannot be matched: indexes as NVML counts them, `0:1` "
            "for a MIG instance, or uuids",
            "found out",
        ),
    ] = ()
    cgroup: Annotated[
        Directory | None,
        about("the directory of the engine's memory control group, version 1 or 2", "found out"),
    ] = None
    model_memory: Annotated[
        ModelMemory, about("what the model takes on GPUs; see [Model memory](#model-memory)", "what the engine says")
    ] = field(default_factory=ModelMemory)
    gpu_count: Annotated[
        GpuCount | None,
        about("how many GPUs the engine has, where they cannot be seen from here; for [cost](#cost)", "found out"),
    ] = None
    gpu_hour: Annotated[Price | None, about("the price of one of its GPUs for an hour", "that of `cost`")] = None

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

    listen: Annotated[
        Address, about("where clients find the engine from now on: `:PORT`, `HOST:PORT` or `[IPV6]:PORT`")
    ]
    target: Annotated[Word, about("the target that stands behind; its `engine` must be given")] = ""
    upstream: Annotated[
        Url | None,
        about(
            "where requests go: scheme, host and port, without a path. Needed beside `target` where an API and its "
            "metrics have two ports, as a router's do",
            "the target's",
        ),
    ] = None
    engine: Annotated[Engine | None, about("as under [Targets](#targets)", "that of the target")] = None

    def __post_init__(self) -> None:
        if self.target and self.engine:
            raise ConfigError("the engine is that of the target; leave out one of both")
        if not self.target and not (self.upstream and self.engine):
            raise ConfigError("expected the name of a target under target, or upstream and engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """How a metric of the schema is found among an engine's own."""

    metric: Annotated[
        EngineMetric, about("the metric of llm-headroom that gets the value; one that describes an engine")
    ]
    names: Annotated[
        tuple[Metric, ...],
        Some,
        about(
            "what the engine calls it, newest name first, in the spelling of the engine's first prefix. The first one "
            "that is present is used"
        ),
    ]
    where: Annotated[
        Mapping[Label, Regex], about("label → a regular expression that its whole value must match")
    ] = field(default_factory=lambda: NOTHING, hash=False)
    labels: Annotated[
        Mapping[Label, OurLabel],
        about("the engine's label → the metric's own label. `engine` and `target` are given by the exporter"),
    ] = field(default_factory=lambda: NOTHING, hash=False)
    scale: Annotated[Scale, about("what the value is multiplied with to come into the metric's unit")] = 1.0
    combine: Annotated[
        Combine, about("how several series of the engine that fall on one of ours are combined")
    ] = "sum"

    def __post_init__(self) -> None:
        declared = schema.BY_NAME[self.metric].labels
        for label in self.labels.values():
            if label not in declared:
                raise ConfigError(f"{self.metric} has no label {shown(label)}{near(label, declared)}")
        if len(set(self.labels.values())) < len(self.labels):
            raise ConfigError("two labels must not become the same one")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """An engine that is not built in."""

    name: Annotated[str, Form(from_key=True)]
    path: Annotated[UrlPath, about("where the engine serves its metrics in the Prometheus text format")] = "/metrics"
    port: Annotated[Port | None, about("the engine's usual port")] = None
    prefixes: Annotated[
        tuple[Metric, ...], about("how the names of its metrics begin, by which it is recognised")
    ] = ()
    model_label: Annotated[Label | None, about("the label that names the model")] = None
    replica_label: Annotated[Label | None, about("the label that numbers data-parallel replicas")] = None
    rules: Annotated[tuple[RuleSettings, ...], Some, about("as under [Mappings](#mappings)")]
    ignored: Annotated[
        tuple[MetricGlob, ...],
        about("names of metrics that are left out on purpose, and not reported as unmapped"),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """How `/probe?module=NAME` speaks to a target; `timeout` in seconds, None: that of the configuration."""

    name: Annotated[str, Form(from_key=True)]
    engine: Annotated[Engine | None, about("as in a target", "found out")] = None
    timeout: Annotated[Timeout | None, about("as in a target", "that of the top level")] = None
    tls: Annotated[TlsSettings, about("see [TLS](#tls)", "the system's certificates")] = field(default_factory=Tls)
    credentials: Credentials = None
    max_bytes: Annotated[MaxBytes, about("as in a target")] = Endpoint(url="").max_bytes
    gzip: Annotated[Gzip, about("as in a target")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """Which targets `/probe` may reach; without any, `/probe` is off."""

    allow: Annotated[
        tuple[AddressGlob, ...],
        about(
            "which targets may be probed: globs that the target's `host:port` must match", "none: `/probe` is off"
        ),
    ] = ()
    modules: Annotated[Mapping[Word, Module], about("by name: how to speak to a target; see [Modules](#modules)")] = (
        field(default_factory=lambda: MappingProxyType({}), hash=False)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """Whether GPUs are read (None: if NVML is there), and every how many seconds."""

    enabled: Annotated[
        bool | None,
        about(
            "whether to read GPUs through NVML. With `true` it is an error, visible in the metrics, if NVML is not "
            "there",
            "if NVML is there",
        ),
    ] = None
    processes: Annotated[bool, about("a series for the memory of each process on a GPU")] = False
    pcie: Annotated[
        bool,
        about(
            "PCIe throughput. NVML measures it for 20 ms in each direction, so each reading takes 40 ms longer for "
            "each GPU"
        ),
    ] = False
    interval: Annotated[Interval | None, about("time between two readings", "that of the top level")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What is logged, and how."""

    level: Annotated[LogLevel, about("the least that is logged")] = "info"
    format: Annotated[LogFormat, about("how")] = "logfmt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """Service levels: thresholds in seconds of three latencies, and the share of requests wanted within each."""

    ttft: Annotated[Threshold, about("time to first token")] = 2.5
    inter_token_latency: Annotated[Threshold, about("between two tokens")] = 0.2
    request_duration: Annotated[Threshold, about("whole requests")] = 30.0
    ratio: Annotated[Share, about("share wanted within each threshold")] = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The price of one GPU for an hour, None for unknown, and its currency."""

    gpu_hour: Annotated[
        Price | None, about("the price of one GPU for an hour; a target's own `gpu_hour` goes before it", "no price")
    ] = None
    currency: Annotated[Currency, about("value of the label `currency`")] = "USD"


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
    return url(text.rstrip("/").removesuffix("/v1/metrics"))


Header: TypeAlias = Annotated[str, Form(name="header", parse=_header_name)]
PublicHeader: TypeAlias = Annotated[str, Form(name="header", parse=_public_header)]
HeaderValue: TypeAlias = Annotated[str, Form(name="text", parse=_header_value)]
Collector: TypeAlias = Annotated[str, Form(name="URL", parse=_collector)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSection:
    """The section `otlp` as it is written, and where; None where it leaves the word to OpenTelemetry's variables."""

    place: Place | None = None
    enabled: Annotated[bool, about("`false`: push nothing, whatever else says so")] = True
    endpoint: Annotated[
        Collector | None,
        about("the collector. Over HTTP `/v1/metrics` is added unless it ends so", "`OTEL_EXPORTER_OTLP_ENDPOINT`"),
    ] = None
    protocol: Annotated[
        OtlpProtocol | None, about("`grpc` needs `pip install 'llm-headroom[otlp-grpc]'`", "`http/protobuf`")
    ] = None
    headers: Annotated[
        Mapping[PublicHeader, HeaderValue],
        about("sent with each export. Secrets (`Authorization` and the like) are refused here"),
    ] = field(default_factory=lambda: NOTHING, hash=False)
    headers_env: Annotated[
        Mapping[Header, SecretVariable], about("by header: the environment variable that holds its value")
    ] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    headers_file: Annotated[
        Mapping[Header, SecretFile], about("by header: the file that holds its value, read at each export")
    ] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    tls: Annotated[
        TlsSettings | None,
        about(
            "see [TLS](#tls); only with `https://`. gRPC cannot do `insecure_skip_verify`", "the system's certificates"
        ),
    ] = None
    compression: Annotated[Compression | None, about("of what is sent", "`gzip`")] = None
    timeout: Annotated[Timeout | None, about("of one attempt", "`10s`")] = None
    interval: Annotated[Interval | None, about("time between two exports", "`15s`")] = None
    resource: Annotated[Mapping[Word, Word], about("resource attributes besides those that are found out")] = field(
        default_factory=lambda: NOTHING, hash=False
    )
    semantic_conventions: Annotated[
        bool | None, about("OpenTelemetry's own names besides ours; see [OTLP](otlp.md)", "`false`")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. Durations are seconds.

    `discover` None: look for engines on this host if no target is configured. `otlp` None: nothing is pushed.
    """

    # First, since whatever else names an engine is checked against these.
    engines: Annotated[
        Mapping[NewEngine, EngineSettings],
        about("by name: engines that are not built in; see [Engines](#engines)"),
    ] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    listen: Annotated[
        tuple[Address, ...],
        Some,
        about("where to serve `/metrics` and the status page: `:PORT`, `HOST:PORT` or `[IPV6]:PORT`"),
    ] = (":9836",)
    interval: Annotated[Interval, about("time between two polls of a target")] = 5.0
    timeout: Annotated[Timeout, about("how long one poll of a target may take")] = 5.0
    targets: Annotated[
        tuple[Annotated[Target, Form(short=_short_target)], ...],
        about("the engines to poll; see [Targets](#targets)"),
    ] = ()
    proxies: Annotated[
        tuple[ProxySettings, ...], about("measuring proxies in front of engines; see [Proxies](#proxies)")
    ] = ()
    discover: Annotated[
        bool | None,
        about("whether to look for engines on the usual ports of this host", "only if no target is configured"),
    ] = None
    gpu: Annotated[
        GpuSettings, Form(short=_short_gpu), about("whether to read GPUs; see [GPU](#gpu)", "if NVML is there")
    ] = field(default_factory=GpuSettings)
    host: Annotated[
        bool,
        about(
            "whether to read the processes and host memory of engines that run on this host; see [GPUs and host "
            "memory](gpu.md)"
        ),
    ] = True
    probe: Annotated[ProbeSettings, about("what `/probe` may reach; see [Probe](#probe)", "off")] = field(
        default_factory=ProbeSettings
    )
    mappings: Annotated[
        Mapping[Engine, Annotated[tuple[RuleSettings, ...], Some]],
        about("by engine: further rules; see [Mappings](#mappings)"),
    ] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    objectives: Annotated[Objectives, about("service levels; see [Objectives](#objectives)")] = field(
        default_factory=Objectives
    )
    cost: Annotated[Cost, about("what GPUs cost; see [Cost](#cost)", "no prices")] = field(default_factory=Cost)
    label_limit: Annotated[
        LabelLimit,
        about(
            "the most different values of one label that a target may have; further ones are reported as `other`"
        ),
    ] = 200
    web_config: Annotated[
        File | None,
        about("TLS and authentication of the exporter's own server; see [its page](web-configuration.md)"),
    ] = None
    log: Annotated[Log, about("see [Log](#log)")] = field(default_factory=Log)
    otlp: Annotated[
        OtlpSettings | None,
        Form(section=OtlpSection),
        about("pushing to an OpenTelemetry collector; see [OTLP](#otlp)", "off"),
    ] = None
