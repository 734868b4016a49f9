"""Where a host is, as far as its name in a URL says so: no name server is asked."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address


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


def addresses_of(host: str) -> tuple[Address, ...]:
    """The addresses of a host; of this host's own name that of loopback, which leads to it as well; none of others."""
    if host == "localhost":
        return (IPv4Address("127.0.0.1"), IPv6Address("::1"))
    if host and host == socket.gethostname():
        return (IPv4Address("127.0.0.1"),)
    address = literal(host)
    return () if address is None else (address,)
