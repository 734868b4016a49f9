"""Sends messages to receivers: in order, a bounded number of times, and never in the way of a poll."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Point, Series
from llm_headroom.net.echoes import hidden, of_url
from llm_headroom.net.lean_httpx import httpx
from llm_headroom.net.made_of import beside
from llm_headroom.net.tls import client_context
from llm_headroom.notify.incidents import Incidents, judgements, step
from llm_headroom.notify.messages import request, title
from llm_headroom.scrape.credentials import authorization, secret_text
from llm_headroom.scrape.refusals import Refusal, root
from llm_headroom.view.text import plain

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llm_headroom.config.people import Receiver
    from llm_headroom.model import Snapshot
    from llm_headroom.notify.incidents import Judgement, Message

log = logging.getLogger("llm_headroom")

PAUSES: Final = (1.0, 5.0, 15.0, 60.0, 120.0)
"""Seconds before each further try; after the last one a message is given up."""
TIMEOUT: Final = 10.0
READING: Final = 10.0
"""Seconds for which a receiver's files are waited for."""
MOST_WAITING: Final = 100
"""Messages that wait for a receiver; further ones are dropped."""
REST: Final = 20.0
"""Times that a look at all sources took until the next one: many sources publish far more often than anybody needs."""
_LARGEST_ANSWER: Final = 300
_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Result(StrEnum):
    """The outcome of a message: a closed set, since it is a label value."""

    SENT = "sent"
    FAILED = "failed"
    """Given up: after its tries, or at once where another one would not help."""
    DROPPED = "dropped"
    """Not even tried, since too many waited."""


class Notifier:
    """The receivers of a configuration.

    `snapshots` gives the latest of each source, `labels` the operator's by target, `pauses` the seconds before tries,
    `unix` the host's clock: what messages are dated by, but no duration is measured with, since it may be set.
    """

    def __init__(
        self,
        snapshots: Callable[[], Sequence[Snapshot]],
        labels: Callable[[], Mapping[str, Mapping[str, str]]],
        pauses: Sequence[float] = PAUSES,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._snapshots, self._labels, self._pauses, self._unix = snapshots, labels, pauses, unix
        self._doors: dict[Receiver, _Door] = {}
        self._free = -math.inf
        self._later: asyncio.TimerHandle | None = None
        self._counts: Counter[tuple[str, Result]] = Counter()

    def apply(self, receivers: Sequence[Receiver]) -> None:
        """Take over receivers; those that stay go on with their incidents."""
        for receiver in self._doors.keys() - set(receivers):
            self._doors.pop(receiver).close()
        for receiver in receivers:
            if receiver not in self._doors:
                self._doors[receiver] = _Door(receiver, self._pauses, self._counts)

    def changed(self) -> None:
        """A source was judged again; what follows is seen at once, or a little later where there are many sources."""
        if not self._doors or self._later is not None:
            return
        wait = self._free - time.monotonic()
        if wait > 0.0:
            self._later = asyncio.get_running_loop().call_later(wait, self._look)
        else:
            self._look()

    def _look(self) -> None:
        self._later = None
        now = time.monotonic()
        judged = judgements(self._snapshots(), self._labels())
        for door in self._doors.values():
            door.look(judged, now, self._unix() - now)
        end = time.monotonic()
        self._free = end + REST * (end - now)

    def problems(self) -> Iterable[str]:
        """What is wrong with receivers, in words."""
        return [f"Messages to {door.name} fail: {door.problem}" for door in self._doors.values() if door.problem]

    def points(self) -> Iterable[Point]:
        """Messages so far by receiver and result; those of a receiver that is configured begin at 0."""
        names = {name for name, _ in self._counts} | {door.name for door in self._doors.values()}
        for name in sorted(names):
            for result in Result:
                labels = {"receiver": name, "result": result.value}
                yield Point(Series(schema.NOTIFICATIONS, labels), float(self._counts[name, result]), "")

    async def close(self) -> None:
        """End, without what has not been sent."""
        doors = [*self._doors.values()]
        self._doors.clear()
        if self._later is not None:
            self._later.cancel()
        for door in doors:
            door.close()
        await asyncio.gather(*(door.task for door in doors), return_exceptions=True)


class _Door:
    """One receiver: its incidents, and the messages that wait for it."""

    def __init__(self, receiver: Receiver, pauses: Sequence[float], counts: Counter[tuple[str, Result]]) -> None:
        self.name = receiver.name or receiver.kind
        self.problem = ""
        self._receiver, self._pauses, self._counts = receiver, pauses, counts
        self._incidents = Incidents()
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(MOST_WAITING)
        self.task = asyncio.get_running_loop().create_task(self._work(), name=f"notify {self.name}")

    def look(self, judged: Sequence[Judgement], now: float, offset: float) -> None:
        """Take judgements over, and queue what follows of them; with the offset `now` is unix time."""
        receiver = self._receiver
        self._incidents, messages = step(self._incidents, judged, now, least=receiver.least, after=receiver.after)
        for message in messages:
            try:
                self._waiting.put_nowait(message.dated(offset))
            except asyncio.QueueFull:
                said = {"receiver": self.name, "message_title": title(message)}
                self._counts[self.name, Result.DROPPED] += 1
                log.error("notification dropped", extra=said)  # noqa: TRY400 - no defect of ours

    def close(self) -> None:
        """End at once."""
        self.task.cancel()

    async def _work(self) -> None:
        while True:
            message = await self._waiting.get()
            fields = {"receiver": self.name, "message_title": title(message)}
            for tries, pause in enumerate((*self._pauses, None), 1):
                failure = await self._post(message)
                if failure is None:
                    self.problem = ""
                    self._counts[self.name, Result.SENT] += 1
                    log.info("notification sent", extra=fields)
                    break
                self.problem, again = failure
                said = {**fields, "tries": tries, "error": self.problem}
                if pause is None or not again:
                    self._counts[self.name, Result.FAILED] += 1
                    log.error("notification given up", extra=said)
                    break
                log.warning("notification failed", extra=said)
                await asyncio.sleep(pause)

    async def _post(self, message: Message) -> tuple[str, bool] | None:
        """What went wrong, if anything did, and whether it is worth another try; no words of it hold a secret."""
        receiver = self._receiver
        try:
            async with asyncio.timeout(READING):
                given, headers, context = await beside(_read, receiver)
        except TimeoutError:
            return f"its files were not read within {READING:g} s: does their disk hang?", True
        except (Refusal, OSError) as error:
            return str(error), True
        try:
            url, body = request(receiver, given, message)
            async with (
                asyncio.timeout(TIMEOUT),
                # Through the host's proxy variables, which engines are not: receivers are often outside.
                httpx.AsyncClient(verify=context, timeout=TIMEOUT) as client,
                client.stream("POST", url, json=body, headers=headers) as answer,
            ):
                if answer.is_success:
                    return None
                said = await anext(answer.aiter_bytes(_LARGEST_ANSWER), b"")
                words = plain(" ".join(said.decode(errors="replace").split()))
                words = hidden(words, [*of_url(given), *(header.partition(" ")[2] for header in headers.values())])
                return f"status {answer.status_code}: {words}".rstrip(": "), answer.status_code in _AGAIN
        except TimeoutError:
            return f"no answer within {TIMEOUT:g} s", True
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            return "its URL is not one of http:// or https://", False
        except httpx.HTTPError as error:
            first = root(error)
            return str(getattr(first, "strerror", None) or str(first) or type(error).__name__), True


def _read(receiver: Receiver) -> tuple[str, dict[str, str], ssl.SSLContext]:
    """The receiver's URL, headers and TLS, whose files are read now.

    Raises:
        Refusal, OSError: one cannot be.
    """
    secret = receiver.url_file or receiver.url_env
    url = receiver.url if secret is None else secret_text(secret).strip()
    headers = {} if receiver.credentials is None else {"Authorization": authorization(receiver.credentials)}
    return url, headers, client_context(receiver.tls)
