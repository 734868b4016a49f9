"""Connections as clients make them, whatever goes wrong with one of them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from llm_headroom.net.listen import bound_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_log = logging.getLogger(__name__)

_WAIT_SECONDS: Final = 1.0


class Accepting:
    """Accepts the connections to a listener until it is closed.

    Where none can be had, since no descriptors are left, that is logged once and tried again each second. Of the loops'
    own servers asyncio's logs it thousands of times, and uvloop's closes the connection and says nothing.
    """

    def __init__(self, listener: socket.socket, take: Callable[[socket.socket], None]) -> None:
        """`take` is called with each connection, which is its to close."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._take = take
        self._failing = False
        self._again: asyncio.TimerHandle | None = None
        self._begin()

    def close(self) -> None:
        """Accept no more; the listener stays open."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._listener)

    def _begin(self) -> None:
        self._loop.add_reader(self._listener, self._ready)

    def _ready(self) -> None:
        """Accept one connection: others have their turn before the next one."""
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if not self._failing:
                where = {"address": bound_address(self._listener), "error": error.strerror}
                _log.error("connections cannot be accepted", extra=where)
            self._failing = True
            self._loop.remove_reader(self._listener)
            self._again = self._loop.call_later(_WAIT_SECONDS, self._begin)
            return
        self._failing = False
        connection.setblocking(False)  # noqa: FBT003 - the method takes it by position alone
        self._take(connection)
