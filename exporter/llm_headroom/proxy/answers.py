"""The answers on one connection, told to the requests that they belong to, however their bytes are cut."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llm_headroom.proxy import framing

if TYPE_CHECKING:
    from collections import deque

    from llm_headroom.proxy.exchange import Exchange

log = logging.getLogger("llm_headroom")


class Answers:
    """Looks at the bytes that an engine sends. `requests` are those that are not answered yet; it removes others.

    `switched` says whether the ends have gone over to another protocol (RFC 9110, section 15.2.2). What cannot be
    understood ends the looking, not the relaying.
    """

    def __init__(self, requests: deque[Exchange]) -> None:
        self.switched = False
        self._requests = requests
        self._head = framing.HeadReader()
        self._body: framing.Body | None = None
        self._blind = False

    @property
    def until_close(self) -> bool:
        """Whether an answer is under way that only the connection's end ends."""
        return isinstance(self._body, framing.UntilClose)

    def feed(self, data: bytes, now: float) -> None:
        """The next bytes, and when they came in seconds of the requests' clock."""
        if self._blind:
            return
        try:
            self._look(data, now)
        except framing.FramingError as error:
            log.warning("answers are relayed unmeasured", extra={"reason": str(error)})
            self._blind = True

    def end(self, now: float) -> None:
        """The engine sends nothing more."""
        if self.until_close:
            self._finish(now)

    def _look(self, data: bytes, now: float) -> None:
        start = 0
        while start < len(data) or self._body is not None:
            if not self._requests:
                self._blind = True  # it says what nobody has asked for
                return
            exchange = self._requests[0]
            if self._body is None:
                start, raw = self._head.take(data, start)
                if raw is None:
                    return
                head = framing.response_head(raw)
                if head.status == framing.SWITCHING:
                    self._blind = self.switched = True
                    self._requests.clear()
                    return
                if head.status >= framing.FIRST_FINAL:
                    exchange.answers(head, now)
                    self._body = framing.response_body(head, exchange.method)
                continue
            payload: list[bytes] = []
            start, done = self._body.take(data, start, payload)
            for piece in payload:
                exchange.tells(piece, now)
            if not done:
                return
            self._finish(now)

    def _finish(self, now: float) -> None:
        self._body = None
        if self._requests:
            self._requests.popleft().ended(now)
