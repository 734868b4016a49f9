"""The configuration: one YAML file, and above it what the command line and the environment say.

What may be written in the file is in the tables that end up in `SECTIONS`: a key's name and the function that reads it.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar

from llm_headroom import schema
from llm_headroom.config import otlp as config_otlp
from llm_headroom.config import proxies as config_proxies
from llm_headroom.config import settings_text, yaml_nodes
from llm_headroom.config.endpoint import Basic, Bearer, Endpoint, Secret, Tls
from llm_headroom.config.errors import ConfigError, Problems, near, shown
from llm_headroom.config.settings import (
    Config,
    Cost,
    EngineSettings,
    GpuSettings,
    Log,
    ModelMemory,
    Module,
    Objectives,
    OtlpSettings,
    ProbeSettings,
    ProxySettings,
    RuleSettings,
    Target,
)
from llm_headroom.config.settings_text import parse_target
from llm_headroom.config.yaml_nodes import (
    LARGEST_FILE,
    Value,
    from_number,
    from_scalar,
    from_string,
    list_of,
    mapping_of,
    some,
)
from llm_headroom.model import Kind, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

__all__ = [
    "ENGINE_METRICS",
    "LARGEST_FILE",
    "RESERVED_LABELS",
    "SECTIONS",
    "Config",
    "ConfigError",
    "Cost",
    "EngineSettings",
    "GpuSettings",
    "Log",
    "ModelMemory",
    "Module",
    "Objectives",
    "OtlpSettings",
    "ProbeSettings",
    "ProxySettings",
    "RuleSettings",
    "Target",
    "load",
    "parse_target",
]

T = TypeVar("T")

KV_CACHE_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Types of a KV cache's elements as llama.cpp names them."""

RESERVED_LABELS: Final = frozenset(
    {"le", "quantile"}.union(*(metric.labels for metric in schema.ALL if metric.subject is not Subject.PROCESS))
)
"""Labels that a target must not add to its series."""
ENGINE_METRICS: Final = frozenset(metric.name for metric in schema.ALL if metric.exposed_by_engines)
"""Names of metrics that a rule may give: what others give as well would be there twice."""


class _Names:
    """The names that the configuration must not give twice, or must not use without defining them."""

    def __init__(self, built_in: Collection[str]) -> None:
        self.built_in = frozenset(built_in)
        self.engines = set(built_in)
        self._claims: dict[str, str] = {}

    def checked(self, target: Target, where: str) -> Target:
        """Refuses a target that cannot be told from another one by its name or URL, or of an unknown engine."""
        self.check_engine(target.engine)
        if target.name == "nvml":
            raise ConfigError("the target name nvml is reserved for GPUs")
        claims = (f"URL {target.endpoint.url}", f"name {target.name!r}")
        for claim in claims:
            if claim in self._claims:
                raise ConfigError(f"the {claim} is already that of the target at {self._claims[claim]}")
        self._claims |= dict.fromkeys(claims, where)
        return target

    def check_engine(self, name: str | None) -> None:
        """Refuses an engine that is neither built in nor defined by the file."""
        if name is not None and name not in self.engines:
            raise ConfigError(f"unknown engine {shown(name)}{near(name, self.engines)}")


_Value: TypeAlias = Value[_Names]
_Read: TypeAlias = "yaml_nodes.Read[_Names]"


def _existing(path: Path, called: str = "") -> Path:
    try:
        path.stat()
    except OSError as error:
        raise ConfigError(f"{called or path}: {error.strerror}") from None
    if path.is_dir():
        raise ConfigError(f"{called or path}: is a directory")
    return path


def _file(value: _Value) -> Path:
    return _existing(value.directory.absolute() / settings_text.word(value.string()))


def _directory(value: _Value) -> Path:
    """A directory that may come and go, as that of a control group does."""
    path = Path(settings_text.word(value.string()))
    if not path.is_absolute():
        raise ConfigError("expected a path that begins with /")
    return path


def _secret_file(value: _Value) -> Secret:
    # Without its name in errors, since people write the secret itself in the name's place.
    called = f"the file that is named here (a relative path begins at {value.directory.absolute()})"
    return Secret(file=_existing(value.directory.absolute() / settings_text.word(value.string()), called))


def _secret_variable(value: _Value) -> Secret:
    name = value.string()
    # Without the name in errors, since people write the secret itself in its place.
    if not name.isprintable() or not os.environ.get(name):
        raise ConfigError("the environment variable that is named here is not set, or empty")
    return Secret(env=name)


def _literal_secret(value: _Value) -> NoReturn:
    raise ConfigError(f"a secret must not stand in this file: use {value.key}_file or {value.key}_env")


_TLS: Final[Mapping[str, _Read]] = {
    "ca_file": _file,
    "cert_file": _file,
    "key_file": _file,
    "server_name": from_string(settings_text.host),
    "insecure_skip_verify": Value.boolean,
}
_AUTH: Final[Mapping[str, _Read]] = {
    "bearer_token_file": _secret_file,
    "bearer_token_env": _secret_variable,
    "bearer_token": _literal_secret,
    "username": from_string(settings_text.user),
    "password_file": _secret_file,
    "password_env": _secret_variable,
    "password": _literal_secret,
}
_AUTH_KEYS: Final = tuple(sorted(key for key, read in _AUTH.items() if read is not _literal_secret))


def _tls(value: _Value) -> Tls:
    tls = Tls(**value.fields(_TLS))
    if tls.key_file and not tls.cert_file:
        raise ConfigError("key_file needs cert_file beside it")
    return tls


def _auth(value: _Value) -> Bearer | Basic:
    given = value.fields(_AUTH, instead=_AUTH_KEYS)
    match sorted(given):
        case ["bearer_token_env" | "bearer_token_file" as key]:
            return Bearer(given[key])
        case ["password_env" | "password_file" as key, "username"]:
            return Basic(given["username"], given[key])
    raise ConfigError(
        "expected either one of bearer_token_file and bearer_token_env, "
        "or username with one of password_file and password_env"
    )


def _engine(value: _Value) -> str:
    value.context.check_engine(value.string())
    return value.string()


def _target_label(value: _Value) -> str:
    settings_text.label(value.key)
    if value.key in RESERVED_LABELS or value.key.startswith("__"):
        raise ConfigError("the label is reserved for the metrics' own use; choose another name")
    return settings_text.word(value.string())


_CONNECTION: Final[Mapping[str, _Read]] = {
    "engine": _engine,
    "timeout": from_number(settings_text.timeout),
    "tls": _tls,
    "auth": _auth,
    "max_bytes": from_number(settings_text.size),
    "gzip": Value.boolean,
}
_MODEL_MEMORY: Final[Mapping[str, _Read]] = {
    "weights": from_scalar(settings_text.memory),
    "kv_bytes_per_token": from_number(settings_text.memory),
}
_TARGET: Final[Mapping[str, _Read]] = {
    "url": from_string(settings_text.url),
    "name": from_string(settings_text.word),
    **_CONNECTION,
    "interval": from_number(settings_text.interval),
    "labels": mapping_of(_target_label),
    "requests_running_limit": from_number(settings_text.integer(1, 10**9)),
    "kv_cache_type": from_string(settings_text.choice(*KV_CACHE_TYPES)),
    "pid": from_number(settings_text.integer(1, 2**22)),
    "gpus": some(list_of(from_scalar(settings_text.gpu))),
    "cgroup": _directory,
    "model_memory": lambda value: ModelMemory(**value.fields(_MODEL_MEMORY)),
    "gpu_count": from_number(settings_text.integer(1, 10_000)),
    "gpu_hour": from_number(settings_text.price),
}


def _connection(given: dict[str, Any]) -> dict[str, Any]:
    return {"credentials" if key == "auth" else key: value for key, value in given.items()}


def _target(value: _Value) -> Target:
    if value.kind == "string":
        return value.context.checked(settings_text.parse_target(value.string()), str(value.place))
    given = _connection(value.fields(_TARGET, "url"))
    url, name = given.pop("url")
    if "tls" in given and not url.startswith("https:"):
        raise ConfigError("tls is given, but the URL is not https")
    there = {key: given.pop(key) for key in ("tls", "credentials", "max_bytes", "gzip") if key in given}
    target = Target(**{"name": name, **given}, endpoint=Endpoint(url=url, **there))
    return value.context.checked(target, str(value.place))


def _rule_label(value: _Value) -> str:
    settings_text.label(value.key)
    if value.string() in {"engine", "target"}:
        raise ConfigError("the labels engine and target are given by the exporter")
    return value.string()


def _selector(value: _Value) -> str:
    settings_text.label(value.key)
    try:
        re.compile(value.string())
    except (re.error, OverflowError) as error:
        raise ConfigError(f"expected a regular expression: {error}") from None
    return value.string()


def _canonical(text: str) -> str:
    if text not in ENGINE_METRICS:
        raise ConfigError(
            f"{shown(text)} is no metric of the schema that an engine can give{near(text, ENGINE_METRICS)}"
        )
    return text


_RULE: Final[Mapping[str, _Read]] = {
    "metric": from_string(_canonical),
    "names": some(list_of(from_string(settings_text.metric))),
    "where": mapping_of(_selector),
    "labels": mapping_of(_rule_label),
    "times": some(list_of(from_string(settings_text.metric))),
    "scale": from_number(settings_text.scale),
    "combine": from_string(settings_text.choice("sum", "max", "first")),
}


def _rule(value: _Value) -> RuleSettings:
    rule = RuleSettings(**value.fields(_RULE, "metric", "names"))
    metric = schema.BY_NAME[rule.metric]
    if rule.times and metric.kind is Kind.HISTOGRAM:
        raise ConfigError(f"{rule.metric} is a histogram, which `times` cannot multiply")
    declared = metric.labels
    for label in rule.labels.values():
        if label not in declared:
            raise ConfigError(f"{rule.metric} has no label {shown(label)}{near(label, declared)}")
    if len(set(rule.labels.values())) < len(rule.labels):
        raise ConfigError("two labels must not become the same one")
    return rule


_ENGINE: Final[Mapping[str, _Read]] = {
    "path": from_string(settings_text.url_path),
    "port": from_number(settings_text.integer(1, settings_text.LAST_PORT)),
    "prefixes": list_of(from_string(settings_text.metric)),
    "model_label": from_string(settings_text.label),
    "replica_label": from_string(settings_text.label),
    "rules": some(list_of(_rule)),
    "ignored": list_of(from_string(settings_text.metric_glob)),
}


def _engine_settings(value: _Value) -> EngineSettings:
    settings_text.engine_name(value.key)
    if value.key in value.context.built_in:
        raise ConfigError(f"{value.key} is built in; give it extra rules under mappings.{value.key}")
    return EngineSettings(name=value.key, **value.fields(_ENGINE, "rules"))


def _engines(value: _Value) -> tuple[EngineSettings, ...]:
    value.context.engines |= value.entries().keys()
    return tuple(mapping_of(_engine_settings)(value).values())


def _mapping(value: _Value) -> tuple[RuleSettings, ...]:
    value.context.check_engine(value.key)
    return some(list_of(_rule))(value)


def _module(value: _Value) -> Module:
    return Module(name=settings_text.word(value.key), **_connection(value.fields(_CONNECTION)))


_PROBE: Final[Mapping[str, _Read]] = {
    "allow": list_of(from_string(settings_text.address_glob)),
    "modules": mapping_of(_module),
}
_GPU: Final[Mapping[str, _Read]] = {
    "enabled": Value.boolean,
    "processes": Value.boolean,
    "pcie": Value.boolean,
    "interval": from_number(settings_text.interval),
}
_OBJECTIVES: Final[Mapping[str, _Read]] = {
    "ttft": from_number(settings_text.threshold),
    "inter_token_latency": from_number(settings_text.threshold),
    "request_duration": from_number(settings_text.threshold),
    "ratio": from_number(settings_text.share),
}
_COST: Final[Mapping[str, _Read]] = {
    "gpu_hour": from_number(settings_text.price),
    "currency": from_string(settings_text.currency),
}
_LOG: Final[Mapping[str, _Read]] = {
    "level": from_string(settings_text.log_level),
    "format": from_string(settings_text.log_format),
}

_OTLP: Final = config_otlp.table(_tls, _secret_variable, _secret_file)


def _gpu(value: _Value) -> GpuSettings:
    if value.kind == "boolean":
        return GpuSettings(enabled=value.boolean())
    return GpuSettings(**value.fields(_GPU))


_ROOT: Final[Mapping[str, _Read]] = {
    "engines": _engines,  # first: the others are checked against the names that it defines
    "listen": some(list_of(from_string(settings_text.listen))),
    "interval": from_number(settings_text.interval),
    "timeout": from_number(settings_text.timeout),
    "targets": list_of(_target),
    "proxies": list_of(config_proxies.door),
    "discover": Value.boolean,
    "gpu": _gpu,
    "host": Value.boolean,
    "probe": lambda value: ProbeSettings(**value.fields(_PROBE)),
    "mappings": mapping_of(_mapping),
    "objectives": lambda value: Objectives(**value.fields(_OBJECTIVES)),
    "cost": lambda value: Cost(**value.fields(_COST)),
    "label_limit": from_number(settings_text.integer(1, 100_000)),
    "web_config": _file,
    "log": lambda value: Log(**value.fields(_LOG)),
    "otlp": lambda value: {**value.fields(_OTLP), "place": value.place},
}

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(table)
    for name, table in {
        "": _ROOT,
        "targets": _TARGET,
        "tls": _TLS,
        "auth": _AUTH,
        "model_memory": _MODEL_MEMORY,
        "proxies": config_proxies.KEYS,
        "gpu": _GPU,
        "probe": _PROBE,
        "probe.modules": _CONNECTION,
        "mappings": _RULE,
        "engines": _ENGINE,
        "objectives": _OBJECTIVES,
        "cost": _COST,
        "log": _LOG,
        "otlp": _OTLP,
    }.items()
}
"""The keys of each section, for whoever has to speak of all of them."""


def load(  # noqa: PLR0913 - one argument for each flag
    path: Path | None,
    *,
    targets: Sequence[str] = (),
    listen: Sequence[str] = (),
    interval: str | None = None,
    web_config: Path | None = None,
    log_level: str | None = None,
    log_format: str | None = None,
    gpu: bool | None = None,
    discover: bool | None = None,
    otlp_endpoint: str | None = None,
    ollama_proxy: Sequence[str] = (),
    proxy: Sequence[str] = (),
    engine_names: Collection[str],
) -> Config:
    """Reads the configuration file, and puts above it what the flags or their environment variables say.

    Flags win over the file, but targets and proxies from flags are added to those of the file. `targets`, `listen`,
    `ollama_proxy` and `proxy` (in front of the first target) may hold several values in one text, with commas between
    them. Relative paths in the file begin at its directory. `engine_names` are the engines that are built in. Raises
    ConfigError with all problems that were found.
    """
    variable = {"target": "targets"}
    problems, names = Problems(), _Names(engine_names)
    values = yaml_nodes.read(path, _ROOT, names, problems) if path else {}

    def flag(name: str, parse: Callable[[str], T], text: str) -> T | None:
        try:
            return parse(text)
        except ConfigError as error:
            option = f"--{name}/LLM_HEADROOM_{variable.get(name, name).upper().replace('-', '_')}"
            problems.add(f"{option}: {error}")
            return None

    def flags(name: str, parse: Callable[[str], T], texts: Sequence[str]) -> tuple[T | None, ...]:
        words = [word.strip() for text in texts for word in text.split(",")]
        return tuple(flag(name, parse, word) for word in words if word)

    added = flags("target", lambda text: names.checked(parse_target(text), "--target"), targets)
    parsed = {
        "listen": flags("listen", settings_text.listen, listen),
        "interval": flag("interval", settings_text.interval, interval) if interval else None,
        "web_config": flag("web-config", lambda text: _existing(Path(text)), str(web_config)) if web_config else None,
    }
    level = flag("log-level", settings_text.log_level, log_level) if log_level else None
    form = flag("log-format", settings_text.log_format, log_format) if log_format else None
    otlp = config_otlp.settled(values.get("otlp", {}), otlp_endpoint, os.environ, problems)
    targets_given = (*values.get("targets", ()), *(target for target in added if target is not None))
    doors = [*values.get("proxies", ())]
    for option, addresses in (("ollama-proxy", ollama_proxy), ("listen", proxy)):
        found = flags(option, settings_text.listen, addresses)
        first = option == "listen" and targets_given
        behind = targets_given[0] if first else config_proxies.ollama(targets_given)
        doors += [
            config_proxies.Door(f"--{option}: {{}}".format, address, behind.name, target=behind)
            for address in found
            if address
        ]
    proxies, all_targets = config_proxies.settled(doors, targets_given, problems)
    problems.check()
    values |= {key: value for key, value in parsed.items() if value}
    values |= {"proxies": proxies, "targets": all_targets}
    log, gpus = values.get("log", Log()), values.get("gpu", GpuSettings())
    values["log"] = Log(level=level or log.level, format=form or log.format)
    values["gpu"] = replace(gpus, enabled=gpus.enabled if gpu is None else gpu)
    values["otlp"] = otlp
    values["discover"] = values.get("discover") if discover is None else discover
    if values["discover"] is None and all_targets and not targets_given:
        values["discover"] = True  # a proxy's engine alone is no reason to look for no other
    return Config(**values)
