"""What `/probe` may reach: networks, hosts, and all names under a suffix, each at one port or at any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Final

from llm_headroom.config.errors import ConfigError
from llm_headroom.net import addresses

if TYPE_CHECKING:
    from llm_headroom.net.addresses import Address

LAST_PORT: Final = 65535
_RULE: Final = re.compile(r"(?:\[(?P<inside>[^\[\]]+)\]|(?P<host>[^:\[\]\s@]+))(?::(?P<port>[0-9]{1,5}|\*))?")
_NAME: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_EXPECTED: Final = (
    "expected a network such as 10.0.0.0/16:8000 or [fd00::/8]:8000, a host such as llm-a:8000, or a suffix such as "
    "*.svc.cluster.local:8000"
)


@dataclass(frozen=True, slots=True)
class Reach:
    """One rule. Of `network`, `host` and `suffix` one is given; `port` None is any."""

    network: IPv4Network | IPv6Network | None = None
    host: str = ""
    suffix: str = ""
    port: int | None = None

    def names(self, host: str) -> bool:
        """Whether it admits a name, whatever address that has."""
        host = host.lower().rstrip(".")
        return bool(self.host and host == self.host) or bool(self.suffix and host.endswith(self.suffix))

    def holds(self, address: Address) -> bool:
        """Whether it admits an address."""
        return self.network is not None and address.version == self.network.version and address in self.network


@cache
def reach(text: str) -> Reach:
    """Read a rule.

    Raises:
        ConfigError: it is none. A glob in any other place than as the first label could match somebody else's name
            (`10.0.*` matches `10.0.attacker.example`).
    """
    match = _RULE.fullmatch(text)
    if match is None or ((match["port"] or "*") != "*" and int(match["port"]) > LAST_PORT):
        raise ConfigError(_EXPECTED)  # without the text: people write passwords in odd places
    port = None if match["port"] in (None, "*") else int(match["port"])
    host = (match["inside"] or match["host"]).lower()
    try:
        return Reach(network=ip_network(host), port=port)
    except ValueError as error:
        if match["inside"] or "/" in host:
            raise ConfigError(f"{_EXPECTED}: {error}") from None
    name = host.removeprefix("*.")
    if not _NAME.fullmatch(name) or not name.rpartition(".")[2][0].isalpha():  # else it could match an address
        raise ConfigError(_EXPECTED)
    return Reach(suffix=f".{name}", port=port) if host.startswith("*.") else Reach(host=name, port=port)


def literal(host: str) -> Address | None:
    """The address that a host is written as, None for a name; IPv4 within IPv6 is IPv4."""
    address = addresses.literal(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
