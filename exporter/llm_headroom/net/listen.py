"""Listen addresses as Prometheus' exporters write them, and the sockets bound to them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable


class ListenError(Exception):
    """A listen address is malformed or cannot be bound; the message names it."""


_ADDRESS: Final = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})")
BACKLOG: Final = 256
"""Connections that the kernel holds until they are accepted."""
_NO_SUCH_FAMILY: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


async def bind_all(addresses: Iterable[str]) -> list[socket.socket]:
    """Listens on each of the addresses, one at least.

    Raises:
        ListenError: there is no address, or one cannot be listened on; none stays bound.
    """
    listeners: list[socket.socket] = []
    with contextlib.ExitStack() as on_failure:
        for address in addresses:
            for listener in await bind(address):
                on_failure.callback(listener.close)
                listeners.append(listener)
        if not listeners:
            raise ListenError("there is no address to listen on")
        on_failure.pop_all()
    return listeners


async def bind(address: str) -> list[socket.socket]:
    """Listens on `:PORT` (every address), `HOST:PORT` or `[IPV6]:PORT`; a name has a socket for each of its addresses.

    Raises:
        ListenError: the address is malformed, unknown, in use, or not to be had.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:  # noqa: PLR2004 - the largest port there is
        raise ListenError(f"{address!r} is not a valid listen address: :PORT, HOST:PORT or [IPV6]:PORT")
    host, port = match["bracketed"] or match["host"], int(match["port"])
    try:
        if not host:
            return [_every_address(port)]
        return await _each_address(host, port)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: the host name is unknown ({error.strerror})") from error
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "")
        in_use = "the address is in use; see who listens there: ss -ltnp"
        text = in_use if error.errno == errno.EADDRINUSE else f"{error.strerror} ({reason})"
        raise ListenError(f"cannot listen on {address}: {text}") from error


def bound_address(listener: socket.socket) -> str:
    """`host:port` of a bound socket, an IPv6 host in brackets."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def visited(address: str) -> str:
    """A bound address as one on this host visits it: every address is `localhost` then."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if ip_address(host.strip("[]")).is_unspecified else address


def _every_address(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        try:
            return _listen(socket.AF_INET6, ("::", port))
        except OSError as error:
            if error.errno not in _NO_SUCH_FAMILY:
                raise
    return _listen(socket.AF_INET, ("0.0.0.0", port))


async def _each_address(host: str, port: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    with contextlib.ExitStack() as on_failure:
        for family, _, _, _, where in dict.fromkeys(found):
            try:
                listener = _listen(family, where)
            except OSError as error:
                # `localhost` names ::1 also on hosts without IPv6.
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                absent = error
                continue
            on_failure.callback(listener.close)
            listeners.append(listener)
        if absent is not None and not listeners:
            raise absent
        on_failure.pop_all()
    return listeners


def _listen(family: int, where: tuple[object, ...]) -> socket.socket:
    listener = hold(family, where)
    try:
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def hold(family: int, where: tuple[object, ...]) -> socket.socket:
    """A socket bound to an address without listening: connections are refused, and nobody else gets the port.

    `::` is every address of IPv4, too, where the system has such sockets.

    Raises:
        OSError: it cannot be bound.
    """
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A restart must not wait for the connections of the process before it.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            both = where[0] == "::" and socket.has_dualstack_ipv6()
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        held.bind(where)
        held.setblocking(False)  # noqa: FBT003 - the method takes it by position alone
    except BaseException:
        held.close()
        raise
    return held
