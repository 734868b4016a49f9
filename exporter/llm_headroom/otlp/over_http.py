"""OTLP over HTTP with binary protobuf.

Spec: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response
"""

from __future__ import annotations

import asyncio
import gzip
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from llm_headroom.config.endpoint import Endpoint
from llm_headroom.model import Cause
from llm_headroom.otlp.outcome import Drop, Outcome
from llm_headroom.render import otlp
from llm_headroom.scrape.http import Client, FetchError, Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.config.settings import OtlpSettings

_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_DENIED: Final = frozenset({401, 403})
_OK: Final = range(200, 300)
_LEVEL: Final = 1
_LARGEST_ANSWER: Final = 1 << 20
_DROPS: Final = {
    Cause.REFUSED: Drop.UNREACHABLE,
    Cause.UNREACHABLE: Drop.UNREACHABLE,
    Cause.TRUNCATED: Drop.UNREACHABLE,
    Cause.TIMEOUT: Drop.TIMEOUT,
    Cause.TLS: Drop.TLS,
}
"""By cause of a failed request; any other means that no collector answers there."""
_GRPC_PORT: Final = ":4317"


class HttpTransport:
    """Sends export requests to `/v1/metrics` of a collector, over a connection that is kept."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._client = Client(Endpoint(url=settings.url, tls=settings.tls, max_bytes=_LARGEST_ANSWER))
        self._path = settings.path
        self._gzip = settings.gzip
        self._hint = "; port 4317 is usually gRPC's (protocol: grpc)" if settings.url.endswith(_GRPC_PORT) else ""

    async def send(self, body: bytes, headers: Mapping[str, str], timeout: float) -> Outcome:  # noqa: ASYNC109
        """One attempt."""
        headers = {"Content-Type": "application/x-protobuf", **headers}
        if self._gzip:
            body = await asyncio.to_thread(gzip.compress, body, _LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        try:
            response = await self._client.get(
                self._path,
                timeout=timeout,
                accept="application/x-protobuf",
                method="POST",
                body=body,
                headers=headers,
            )
        except FetchError as failed:
            cause = _DROPS.get(failed.failure.cause, Drop.PROTOCOL)
            hint = "" if cause is Drop.UNREACHABLE else self._hint
            return Outcome(cause, failed.failure.message + hint, retry=cause in {Drop.UNREACHABLE, Drop.TIMEOUT})
        return _judged(response)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


def _judged(response: Response) -> Outcome:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status in _OK:
        if kind == "text/html":
            return Outcome(Drop.PROTOCOL, "a web page answered: the endpoint is no OTLP receiver")
        try:
            answer = otlp.answer(response.body if kind in {"application/x-protobuf", ""} else b"")
        except ValueError:
            answer = otlp.Answer(0, "")  # taken, but by something that has its own words for it
        return Outcome(None, answer.message, rejected=answer.rejected)
    told = otlp.status_message(response.body) if kind == "application/x-protobuf" else _line(response.body)
    message = f"HTTP status {response.status}" + (f": {told[:200]}" if told else "")
    if response.status in _RETRYABLE:
        return Outcome(Drop.UNAVAILABLE, message, retry=True, retry_after=retry_after(response.headers, time.time()))
    return Outcome(Drop.AUTH if response.status in _DENIED else Drop.REFUSED, message)


def _line(body: bytes) -> str:
    return " ".join(body[:400].decode(errors="replace").split())


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3): a number, or a date after the unix time `now`."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now, 0.0)
