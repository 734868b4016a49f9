"""Ports on which nobody listens."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm_headroom.net.listen import hold

if TYPE_CHECKING:
    from collections.abc import Iterator


def has_ipv6() -> bool:
    """Whether this host has `::1`: containers often have sockets of IPv6, and no address."""
    try:
        hold(socket.AF_INET6, ("::1", 0)).close()
    except OSError:
        return False
    return True


@contextmanager
def free_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that refuses connections until somebody listens who was told of it: nobody else is given it meanwhile.

    A port that was merely free a moment ago goes to any of the processes beside this one. To listen on this one takes
    SO_REUSEADDR, which servers set.
    """
    with hold(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, 0)) as held:
        port: int = held.getsockname()[1]
        yield port
