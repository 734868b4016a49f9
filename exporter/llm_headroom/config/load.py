"""The configuration: one YAML file, overridden by the command line and the environment."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from llm_headroom.config import otlp as config_otlp
from llm_headroom.config import reader
from llm_headroom.config.endpoint import Endpoint, Tls
from llm_headroom.config.errors import ConfigError, Problems, near, shown
from llm_headroom.config.identity import placed
from llm_headroom.config.kinds import Address, ExistingFile, Interval, LogFormat, LogLevel, parsed
from llm_headroom.config.settings import Config, GpuSettings, Log, ProxySettings, Target, parse_target

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from llm_headroom.config.errors import Place

T = TypeVar("T")

OLLAMA: Final = "ollama=http://127.0.0.1:11434"
"""Ollama's address for `--ollama-proxy`, if no target is Ollama."""


class _Door(NamedTuple):
    """A proxy as it is configured; `line_for` puts its place into a message, `target` is the one that it brings."""

    line_for: Callable[[str], str]
    settings: ProxySettings
    target: Target | None


class _Names:
    """The names that must be unique, or must be defined, in the configuration."""

    def __init__(self, built_in: Collection[str]) -> None:
        self.built_in = frozenset(built_in)
        self.engines = set(built_in)
        self.doors: list[_Door] = []
        self._claims: dict[str, str] = {}

    def check(self, role: str, name: str) -> None:
        """Refuses an unknown engine, or a new one that is built in."""
        if role == "new engine":
            if name in self.built_in:
                raise ConfigError(f"{name} is built in; give it extra rules under mappings.{name}")
            self.engines.add(name)
        elif name not in self.engines:
            raise ConfigError(f"unknown engine {shown(name)}", hint=partial(self._near_engine, name))

    def _near_engine(self, name: str) -> str:
        hint = near(name, self.engines)
        return hint if "did you mean" in hint else f"{hint}; any other engine is described under `engines`"

    def accept(self, value: Any, place: Place) -> None:  # noqa: ANN401 - any structure of the file
        """Takes notice of proxies, and of targets."""
        if isinstance(value, Target):
            self.claim(value, str(place))
        elif isinstance(value, ProxySettings):
            own = None
            if value.upstream and value.engine:
                own = Target(endpoint=Endpoint(url=value.upstream), engine=value.engine)
                value = ProxySettings(listen=value.listen, target=own.name)
            self.doors.append(_Door(place.line_for, value, own))

    def claim(self, target: Target, where: str) -> Target:
        """Refuses a target that cannot be distinguished from another by its name or URL, or of an unknown engine."""
        endpoint = target.endpoint
        if target.engine is not None:
            self.check("engine", target.engine)
        if endpoint.tls != Tls() and not endpoint.url.startswith("https:"):
            raise ConfigError("tls is set, but the URL is not https")
        if target.name == "nvml":
            raise ConfigError("the target name nvml is reserved for GPUs")
        claims = (f"URL {endpoint.url}", f"name {placed(target.name, os.environ)!r}")
        for claim in claims:
            if claim in self._claims:
                raise ConfigError(f"duplicate {claim}; first defined at {self._claims[claim]}")
        self._claims |= dict.fromkeys(claims, where)
        return target


def _flag(name: str, parse: Callable[[str], T], text: str, problems: Problems) -> T | None:
    try:
        return parse(text)
    except ConfigError as error:
        variable = {"target": "targets"}.get(name, name).upper().replace("-", "_")
        problems.add(f"--{name}/LLM_HEADROOM_{variable}: {error}")
        return None


def _flags(name: str, parse: Callable[[str], T], texts: Iterable[str], problems: Problems) -> tuple[T, ...]:
    words = [word.strip() for text in texts for word in text.split(",")]
    found = [_flag(name, parse, word, problems) for word in words if word]
    return tuple(each for each in found if each is not None)


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
    """Reads the configuration file, overridden by flags or their environment variables.

    Flags win over the file, but targets and proxies from flags are added to those of the file. `targets`, `listen`,
    `ollama_proxy` and `proxy` (in front of the first target) may hold several values in one text, with commas between
    them. Relative paths in the file begin at its directory. `engine_names` are the engines that are built in. Raises
    ConfigError with all problems that were found.
    """
    problems, names = Problems(), _Names(engine_names)
    values = reader.read(path, Config, problems, check=names.check, accept=names.accept) if path else {}
    if len(problems):
        names.doors.clear()  # of a file that cannot be used no target is known
    added = _flags("target", lambda text: names.claim(parse_target(text), "--target"), targets, problems)
    flags = {
        "interval": (Interval, interval),
        "web-config": (ExistingFile, web_config),
        "log-level": (LogLevel, log_level),
        "log-format": (LogFormat, log_format),
    }
    given = {
        name: _flag(name, partial(parsed, kind), str(text), problems) for name, (kind, text) in flags.items() if text
    }
    addresses = _flags("listen", partial(parsed, Address), listen, problems)
    own = (*values.get("targets", ()), *added)
    names.doors += _flagged_doors("ollama-proxy", ollama_proxy, _ollama(own), problems)
    names.doors += _flagged_doors("listen", proxy, own[0] if own else _ollama(own), problems)
    values["otlp"] = config_otlp.settled(values.get("otlp"), otlp_endpoint, os.environ, problems)
    values["targets"] = tuple(
        replace(target, name=placed(target.name, os.environ)) for target in _behind(names.doors, own, problems)
    )
    values["proxies"] = tuple(
        replace(door.settings, target=placed(door.settings.target, os.environ)) for door in names.doors
    )
    problems.check()
    if addresses:
        given["listen"] = addresses
    if discover is not None:
        given["discover"] = discover
    elif values["targets"] and not own:
        values.setdefault("discover", True)  # a proxy's engine alone is no reason to look for no other
    return Config(**_overridden(values, given, gpu=gpu))


def _overridden(values: Mapping[str, Any], given: Mapping[str, Any], *, gpu: bool | None) -> dict[str, Any]:
    """The settings of the file by name, with those that flags gave in their place."""
    logged = {key: given[f"log-{key}"] for key in ("level", "format") if f"log-{key}" in given}
    plain = {key.replace("-", "_"): value for key, value in given.items() if not key.startswith("log-")}
    parts: dict[str, Any] = {"log": replace(values.get("log", Log()), **logged)}
    if gpu is not None:
        parts["gpu"] = replace(values.get("gpu", GpuSettings()), enabled=gpu)
    return {**values, **plain, **parts}


def _flagged_doors(option: str, fronts: Iterable[str], behind: Target, problems: Problems) -> list[_Door]:
    """The proxies that an option asks for at so many addresses, in front of one target."""
    return [
        _Door(f"--{option}: {{}}".format, ProxySettings(listen=address, target=behind.name), behind)
        for address in _flags(option, partial(parsed, Address), fronts, problems)
    ]


def _ollama(targets: Sequence[Target]) -> Target:
    """The target that is Ollama, or else the one at its default address."""
    return next((target for target in targets if target.engine == "ollama"), None) or parse_target(OLLAMA)


def _behind(doors: Sequence[_Door], targets: Sequence[Target], problems: Problems) -> tuple[Target, ...]:
    """The targets, including those named only by a proxy."""
    known = {target.name: target for target in targets}
    for line_for, settings, own in doors:
        target = known.get(settings.target, own)
        if target is None:
            unknown = line_for(f"no target has the name {shown(settings.target)}")
            problems.add(unknown, hint=partial(near, settings.target, known))
        elif target.engine is None:
            problems.add(line_for(f"the engine of {target.name} is needed for a proxy; write it as in ollama=http://…"))
        elif urlsplit(url := settings.upstream or target.endpoint.url).path:
            problems.add(line_for(f"the URL of a proxied engine must have no path: {url}"))
        else:
            known[target.name] = target
    return tuple(known.values())
