"""The part of the configuration that is about measuring proxies: the file's key `proxies`, and what flags ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from llm_headroom.config import settings_text
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.errors import ConfigError, near, shown
from llm_headroom.config.settings import ProxySettings, Target
from llm_headroom.config.yaml_nodes import Value, from_string

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_headroom.config.errors import Problems

OLLAMA: Final = "ollama=http://127.0.0.1:11434"
"""Where the flag for a proxy in front of Ollama takes it to be, if no target says so."""


class Door(NamedTuple):
    """A proxy as it is configured: `told` puts the place into a message, `behind` is the name of its target.

    `target` is that target, if the proxy brings its own, `upstream` the URL of requests, if it is not the target's.
    """

    told: Callable[[str], str]
    listen: str
    behind: str
    upstream: str | None = None
    target: Target | None = None


def _engine(value: Value[Any]) -> str:
    value.context.check_engine(value.string())
    return value.string()


KEYS: Final[Mapping[str, Callable[[Value[Any]], Any]]] = {
    "listen": from_string(settings_text.listen),
    "target": from_string(settings_text.word),
    "upstream": from_string(settings_text.url),
    "engine": _engine,
}


def door(value: Value[Any]) -> Door:
    """Reads an entry of `proxies`."""
    given, told = value.fields(KEYS, "listen"), value.place.told
    url, name = given.get("upstream", (None, ""))
    if "target" in given:
        if "engine" in given:
            raise ConfigError("the engine is that of the target; leave out one of both")
        return Door(told, given["listen"], given["target"], upstream=url)
    if url is None or "engine" not in given:
        raise ConfigError("expected the name of a target under target, or upstream and engine")
    target = Target(name=name, endpoint=Endpoint(url=url), engine=given["engine"])
    return Door(told, given["listen"], name, target=target)


def ollama(targets: Sequence[Target]) -> Target:
    """The target that is Ollama, or else the one at its usual address."""
    known = next((target for target in targets if target.engine == "ollama"), None)
    return known or settings_text.parse_target(OLLAMA)


def settled(
    doors: Sequence[Door], targets: Sequence[Target], problems: Problems
) -> tuple[tuple[ProxySettings, ...], tuple[Target, ...]]:
    """The proxies, and the targets with those that only a proxy names."""
    known = {target.name: target for target in targets}
    for told, _, behind, upstream, own in doors:
        target = known.get(behind, own)
        if target is None:
            problems.add(told(f"no target has the name {shown(behind)}{near(behind, known)}"))
        elif target.engine is None:
            problems.add(told(f"a proxy must know the engine; name that of {behind}, as in ollama=http://…"))
        elif urlsplit(url := upstream or target.endpoint.url).path:
            problems.add(told(f"a proxy passes paths as they come, so {url} must have none"))
        else:
            known[target.name] = target
    proxies = (ProxySettings(listen=each.listen, target=each.behind, upstream=each.upstream) for each in doors)
    return tuple(proxies), tuple(known.values())
