"""Connections as clients make them, whatever goes wrong with one of them."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Final

from llm_headroom.net.listen import bound_address

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

_log = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 1.0


async def accepted(listener: socket.socket) -> AsyncIterator[socket.socket]:
    """A socket for each connection, without end.

    Where none can be had, since no descriptors are left, that is logged once and tried again each second.
    """
    loop = asyncio.get_running_loop()
    failing = False
    while True:
        try:
            connection, _ = await loop.sock_accept(listener)
        except OSError as error:
            if error.errno == errno.ECONNABORTED:
                continue
            if not failing:
                where = {"address": bound_address(listener), "error": error.strerror}
                _log.error("connections cannot be accepted", extra=where)
            failing = True
            await asyncio.sleep(_WAIT_SECONDS)
            continue
        failing = False
        yield connection
        # sock_accept does not yield while connections are queued, and others must have their turn.
        await asyncio.sleep(0)
