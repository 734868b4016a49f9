"""How many clients the proxies let in at once, and who makes room when there are too many."""

from __future__ import annotations

import logging
from typing import Final, Protocol

log = logging.getLogger("llm_headroom")

_HEADS: Final = 4
"""One in so many connections may be in the middle of a head; more of them look like an attack."""


class Client(Protocol):
    """A client's connection."""

    def retire(self) -> None:
        """Leave: nothing is under way, and another client needs the place."""
        ...

    def head_too_late(self) -> None:
        """Leave: stop waiting for the head that has started to arrive."""
        ...

    def close(self) -> None:
        """Leave at once: the proxy ends."""
        ...


class Gate:
    """The clients of all proxies, `most` at once: each takes two descriptors, and the exporter's own ports need some.

    A new client replaces the one that has been idle for longest, then the one whose head has been arriving for
    longest; a request in progress is never cut.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[Client, None] = {}
        self._idle: dict[Client, None] = {}
        self._heads: dict[Client, None] = {}
        self._full = False

    def admits(self) -> bool:
        """Whether there is room for one more client, now or because another one makes room."""
        if len(self._known) < self._most:
            if len(self._known) < self._most // 2:
                self._full = False
            return True
        if not self._full:
            log.warning("a proxy's connections are at their limit", extra={"connections": self._most})
            self._full = True
        leaving = next(iter(self._idle or self._heads), None)
        if leaving is None:
            return False
        if leaving in self._idle:
            leaving.retire()
        else:
            leaving.head_too_late()
        self.gone(leaving)
        return True

    def enter(self, client: Client) -> None:
        """A client has connected."""
        self._known[client] = None

    def idle(self, client: Client) -> None:
        """A client has no request under way."""
        if client in self._known:
            self._idle[client] = None

    def busy(self, client: Client) -> None:
        """A client has sent something."""
        self._idle.pop(client, None)

    def head_begins(self, client: Client) -> None:
        """A part of a client's head has come."""
        self._heads[client] = None
        if len(self._heads) > max(1, self._most // _HEADS):
            next(iter(self._heads)).head_too_late()

    def head_came(self, client: Client) -> None:
        """A client's head is not waited for any longer."""
        self._heads.pop(client, None)

    def gone(self, client: Client) -> None:
        """A client has left."""
        self._known.pop(client, None)
        self._idle.pop(client, None)
        self._heads.pop(client, None)

    def close(self) -> None:
        """Cut what is under way."""
        for client in list(self._known):
            client.close()
