"""Requests that come back to the proxy that sent them on, as through two proxies that are each other's engine."""

from __future__ import annotations

import errno
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from llm_headroom.proxy.framing import RequestHead

MOST_WAITING: Final = 1000
"""Requests at once of which none has had a byte of an answer, before one is marked: few engines ever have as many, and
a circle has them within seconds."""
LEADS_BACK: Final = "it leads back to a proxy of llm-headroom; give the target the engine's own address"
_END: Final = b"\r\n"


class CircleError(OSError):
    """A request has come back; `target` is its own."""

    def __init__(self, target: str) -> None:
        super().__init__(errno.ELOOP, LEADS_BACK)
        self.target = target


class Circle:
    """Tells by a `Via` (RFC 9110, section 7.6.3) whether a request was here before.

    A request that goes round is never answered, and waits here once for each round. So none is marked unless `most`
    wait already: all others go on as they came.
    """

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = max(1, most)
        self._name = f"llm-headroom-{secrets.token_hex(8)}"
        self._waiting: set[Hashable] = set()

    def sent(self, head: RequestHead, raw: bytes, client: Hashable, look: Callable[[], None]) -> bytes:
        """The head of a client's request as it is to be sent; `look` takes note of the answers that have come.

        Raises:
            CircleError: it was sent from here before.
        """
        if self._name in head.headers.get("via", ""):
            raise CircleError(head.target)
        if len(self._waiting) >= self._most:
            look()
        if len(self._waiting) >= self._most:
            raw = b"%bVia: 1.1 %b\r\n%b" % (raw.removesuffix(_END), self._name.encode(), _END)
        self._waiting.add(client)
        return raw

    def answered(self, client: Hashable) -> None:
        """The client has got a part of an answer, or waits for none any more."""
        self._waiting.discard(client)
