"""Where a host is, as far as its name in a URL says so: no name server is asked."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

_IPV4: Final = 4


@lru_cache(maxsize=256)
def literal(host: str) -> Address | None:
    """The address that a host is written as, without brackets; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def on_loopback(host: str) -> bool:
    """Whether a host is written as this one's loopback, which nobody else reaches: `localhost`, or an address of it.

    This host's own name is not: it may stand for an address that others reach.
    """
    address = literal(host)
    return host == "localhost" if address is None else address.is_loopback


@lru_cache(maxsize=256)
def of_this_host(host: str) -> bool:
    """Whether a host is this one: `localhost`, its own name, or an address from which packets to it would leave.

    None is sent.
    """
    address = literal(host)
    if address is None:
        return host in ("localhost", own_name())
    if address.is_loopback:
        return True
    with socket.socket(socket.AF_INET if address.version == _IPV4 else socket.AF_INET6, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect((host, 9))
        except OSError:
            return False
        return literal(trial.getsockname()[0]) == address


def own_name() -> str:
    """This host's name, as URLs have it: in lower case."""
    return socket.gethostname().lower()


def addresses_of(host: str) -> tuple[Address, ...]:
    """The addresses of a host; of this host's own name that of loopback, which leads to it as well; none of others."""
    if host == "localhost":
        return (IPv4Address("127.0.0.1"), IPv6Address("::1"))
    if host and host == own_name():
        return (IPv4Address("127.0.0.1"),)
    address = literal(host)
    return () if address is None else (address,)
