"""From text to values, wherever the text stands: in a file, after a flag, in a request.

Each function raises a ConfigError that says what was expected, not where: its caller knows the place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.errors import ConfigError, shown
from llm_headroom.config.settings import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LAST_PORT: Final = 65535


def word(text: str) -> str:
    """A text that can be told apart by looking at it."""
    if not text or not text.isprintable() or text != text.strip():
        raise ConfigError("expected a text of printable characters without blanks at its ends")
    return text


def _shaped(pattern: str, meaning: str, *, show: bool = True) -> Callable[[str], str]:
    """Takes texts that match the pattern whole; `show` False where people may have written a password."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ConfigError(f"expected {meaning}" + (f", got {shown(text)}" if show else ""))
        return text

    return parse


def choice(*words: str) -> Callable[[str], str]:
    """Takes these words alone."""

    def parse(text: str) -> str:
        if text not in words:
            raise ConfigError(f"expected one of {', '.join(words)}, got {shown(text)}")
        return text

    return parse


def _quantity(
    meaning: str, units: Mapping[str, float], lowest: str, highest: str, digits: str = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
) -> Callable[[str], float]:
    """Reads numbers with a unit between two bounds, themselves written like the numbers that it reads."""

    def value(text: str) -> float:
        match = re.fullmatch(rf"({digits})({'|'.join(units)})", text)
        if match is None:
            raise ConfigError(f"expected {meaning}, got {shown(text)}")
        return round(float(match[1]) * units[match[2]], 6)

    def parse(text: str) -> float:
        if not value(lowest) <= value(text) <= value(highest):
            raise ConfigError(f"expected {meaning} from {lowest} to {highest}, got {shown(text)}")
        return value(text)

    return parse


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    """Reads whole numbers between two bounds."""
    parse = _quantity("a whole number", {"": 1}, str(lowest), str(highest), r"[0-9]{1,15}")
    return lambda text: int(parse(text))


def scale(text: str) -> float:
    """A factor from 1e-12 to 1e12."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1e-12 <= number <= 1e12:  # noqa: PLR2004 - also false for NaN
        raise ConfigError(f"expected a number from 1e-12 to 1e12, got {shown(text)}")
    return number


def memory(text: str) -> int:
    """Bytes of a device's or a model's memory, such as `15GiB`."""
    return int(_memory(text))


def size(text: str) -> int:
    """Bytes of a size such as `16MiB`."""
    return int(_bytes(text))


_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_bytes: Final = _quantity("a size such as 16MiB", _BYTES, "1KiB", "1GiB")
_memory: Final = _quantity("a size such as 15GiB", _BYTES, "1B", "100000GiB")

interval: Final = _quantity("a duration such as 5s", _SECONDS, "100ms", "1h")
"""Seconds between two polls."""
threshold: Final = _quantity("a duration such as 2.5s", _SECONDS, "1ms", "1h")
share: Final = _quantity("a number such as 0.95", {"": 1.0}, "0.5", "0.99999")
price: Final = _quantity("a price such as 2.5", {"": 1.0}, "0", "1000000")
timeout: Final = _quantity("a duration such as 5s", _SECONDS, "100ms", "60s")
"""Seconds that one poll may take."""
log_level: Final = choice("debug", "info", "warning", "error")
log_format: Final = choice("logfmt", "json")
currency: Final = _shaped(r"[A-Z]{3}", "a currency's code of three letters, such as USD")
host: Final = _shaped(r"[A-Za-z0-9_.:-]+", "a host name")
user: Final = _shaped(r"[^:\x00-\x1f\x7f]+", "a user name without a colon", show=False)
label: Final = _shaped(r"[a-zA-Z_][a-zA-Z0-9_]*", "a Prometheus label name")
metric: Final = _shaped(r"[a-zA-Z_:][a-zA-Z0-9_:]*", "a Prometheus metric name")
metric_glob: Final = _shaped(r"[a-zA-Z0-9_:*?\[\]!-]+", "a glob of metric names")
engine_name: Final = _shaped(r"[a-z][a-z0-9_]*", "an engine's name of small letters, digits and _")
gpu: Final = _shaped(
    r"[0-9]{1,4}(:[0-9]{1,4})?|(GPU|MIG)-[A-Za-z0-9/-]+", "a GPU's index, `0:1` for a MIG instance, or uuid"
)
"""A GPU as NVML numbers or names it."""
url_path: Final = _shaped(r"/[!-\"$-~]*", "a path that begins with /")
address_glob: Final = _shaped(r"[^\s/@]+", "a glob of host:port, with neither scheme nor path", show=False)

_LISTEN: Final = r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_.-]*):([0-9]{1,5})"


def listen(text: str) -> str:
    """An address to serve on: `:PORT`, `HOST:PORT` or `[IPV6]:PORT`."""
    match = re.fullmatch(_LISTEN, text)
    if match is None or int(match[1]) > LAST_PORT:
        raise ConfigError(f"expected an address such as :9836, 127.0.0.1:9836 or [::1]:9836, got {shown(text)}")
    return text


def url(text: str) -> tuple[str, str]:
    """The URL in its one spelling (no default port, no slash at its end), and host:port/prefix as a name for it."""
    if "@" in text:  # first, since what follows repeats the URL in errors
        raise ConfigError("the URL must not hold a user or password; give them under the key auth")
    if "?" in text or "#" in text:
        raise ConfigError("the URL must have neither a query nor a fragment")
    scheme, colon, rest = text.partition("://")
    scheme, rest = (scheme.lower(), rest) if colon else ("http", text)
    if scheme not in {"http", "https"}:
        raise ConfigError(f"expected a URL with http:// or https://, got {shown(text)}")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?(/[!-~]*)?", rest, re.ASCII)
    if match is None or (match[1].startswith("[") and not _is_ipv6(match[1][1:-1])):
        raise ConfigError(f"expected a URL such as http://127.0.0.1:8000 or http://[::1]:8000, got {shown(text)}")
    name, usual = match[1].lower(), 443 if scheme == "https" else 80
    port = int(match[2] or usual)
    if not 1 <= port <= LAST_PORT:
        raise ConfigError(f"expected a port from 1 to {LAST_PORT}, got {shown(text)}")
    prefix = (match[3] or "").rstrip("/").removesuffix("/metrics").rstrip("/")
    return f"{scheme}://{name}{'' if port == usual else f':{port}'}{prefix}", f"{name}:{port}{prefix}"


def _is_ipv6(text: str) -> bool:
    from ipaddress import IPv6Address  # noqa: PLC0415 - few addresses need it

    try:
        return bool(IPv6Address(text))
    except ValueError:
        return False


def parse_target(text: str) -> Target:
    """Reads `URL` or `ENGINE=URL`, as in `vllm=http://127.0.0.1:8000`; without a scheme it is http.

    Raises ConfigError. Whether the engine exists is for `llm_headroom.config.load.load` to say.
    """
    engine, equals, address = text.partition("=")
    if not equals or re.search(r"[:/?#\[@]", engine):
        engine, address = "", text
    elif not engine:
        raise ConfigError("expected an engine before the =, as in vllm=http://127.0.0.1:8000")
    address, name = url(address.strip())
    return Target(name=name, endpoint=Endpoint(url=address), engine=engine.strip() or None)
