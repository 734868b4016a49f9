"""Connections to a host by name: the first of its addresses that answers."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

from aiohappyeyeballs import start_connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohappyeyeballs import AddrInfoType

_NEXT_SECONDS: Final = 0.25
"""Until another address of a name is tried beside one that does not answer (RFC 8305, section 5)."""


async def dialled(host: str, port: int) -> socket.socket:
    """A connected socket.

    Raises:
        OSError: the name has no address, or none of them answers.
        UnicodeError: it is no name.
    """
    return await start_connection(await _found(host, port), happy_eyeballs_delay=_NEXT_SECONDS)


async def _found(host: str, port: int) -> Sequence[AddrInfoType]:
    """The addresses of a host, which an address itself needs no thread for."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
