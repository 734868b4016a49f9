"""The SDK's exporter over HTTP, and the session below it, which sees what the exporter neither reports nor bounds.

The exporter takes redirects and web pages for success, drops what a collector says about rejected points, and asks
again at once where `Retry-After` is 0 or a date in the past.

Spec: https://opentelemetry.io/docs/specs/otlp/#otlphttp-response
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final

import requests
import urllib3
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from requests.adapters import HTTPAdapter

from llm_headroom.otlp.outcome import Drop, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from opentelemetry.sdk.metrics.export import MetricExporter

    from llm_headroom.config.endpoint import Tls
    from llm_headroom.otlp.options import Options

_RETRYABLE: Final = frozenset({429, 502, 503, 504})
_DENIED: Final = frozenset({401, 403})
_OK: Final = range(200, 300)
_REDIRECT: Final = range(300, 400)
_LARGEST_ANSWER: Final = 65_536
_SOONEST: Final = 1.0
"""Seconds below which a collector's `Retry-After` does not count; the exporter then backs off by itself."""
_PROTOBUF: Final = "application/x-protobuf"


class Session(requests.Session):
    """`last` is the outcome of the newest request, but for one that was cut short after others had failed."""

    def __init__(self, tls: Tls) -> None:
        super().__init__()
        self.last = Outcome()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # they would be kept without end
        self.auth = _as_it_is  # else what `~/.netrc` has of the host would take the place of what is configured
        self._tls = tls
        if tls.insecure_skip_verify:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # asked for in so many words
        if tls.server_name:
            self.mount("https://", _Named(tls.server_name))

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - requests' own
        """One request; a body is read up to a limit, since the exporter reads none."""
        try:
            # For each request, since requests prefers REQUESTS_CA_BUNDLE to the session's own.
            verify = False if self._tls.insecure_skip_verify else self.verify
            response = super().request(*args, **{**kwargs, "stream": True, "verify": verify})
            self.last = judged(response, next(response.iter_content(_LARGEST_ANSWER), b""))
        except OSError as error:
            why = failed(error)
            # The last of several attempts has only what the others left of the time.
            if why.cause is not Drop.TIMEOUT or self.last.cause is None:
                self.last = why
            raise
        if self.last.cause is Drop.PROTOCOL:
            raise requests.RequestException(self.last.message)
        if self.last.pause < _SOONEST:
            response.headers.pop("Retry-After", None)
        return response


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _Named(HTTPAdapter):
    """Expects a certificate with another name than the URL's host."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - requests' own
        """As requests has it, with the name."""
        super().init_poolmanager(*args, **kwargs, server_hostname=self._name, assert_hostname=self._name)


def opened(options: Options, headers: Mapping[str, str]) -> tuple[MetricExporter, Callable[[object], Outcome]]:
    """An exporter, and the outcome of its newest export."""
    tls = options.settings.tls
    session = Session(tls)
    made = OTLPMetricExporter(
        endpoint=options.endpoint,
        headers=headers,
        timeout=options.timeout,
        compression=Compression.Gzip if options.gzip else Compression.NoCompression,
        session=session,
        certificate_file=_text(tls.ca_file),
        client_key_file=_text(tls.key_file),
        client_certificate_file=_text(tls.cert_file),
    )
    return made, lambda _: session.last


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def judged(response: requests.Response, body: bytes) -> Outcome:
    """The outcome by the response and the beginning of its body."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    status = response.status_code
    if status in _REDIRECT or (status in _OK and kind == "text/html"):
        said = f"HTTP status {status} {kind}".rstrip()
        return Outcome(Drop.PROTOCOL, f"{said}: the endpoint is not an OTLP receiver")
    if status in _OK:
        answer = ExportMetricsServiceResponse()
        with suppress(DecodeError):  # taken, but by something that has its own words for it
            answer.ParseFromString(body if kind in {_PROTOBUF, ""} else b"")
        partial = answer.partial_success
        return Outcome(message=partial.error_message[:200], rejected=max(partial.rejected_data_points, 0))
    message = f"HTTP status {status}: {_message(kind, body)[:200]}".rstrip(": ")
    if status in _RETRYABLE:
        return Outcome(Drop.UNAVAILABLE, message, retry_after(response.headers.get("Retry-After", ""), time.time()))
    return Outcome(Drop.AUTH if status in _DENIED else Drop.REFUSED, message)


def _message(kind: str, body: bytes) -> str:
    if kind != _PROTOBUF:
        return " ".join(body[:400].decode(errors="replace").split())
    with suppress(DecodeError):
        return str(Status.FromString(body).message)
    return ""


def failed(error: OSError) -> Outcome:
    """The outcome of a request that had no response."""
    inner = error.args[0] if error.args else error
    text = re.sub(r"^.*object at 0x\w+>: ", "", str(getattr(inner, "reason", inner)))
    if isinstance(error, requests.exceptions.SSLError) or not isinstance(error, requests.RequestException):
        return Outcome(Drop.TLS, text)  # the latter: a certificate's file is missing
    if isinstance(error, requests.Timeout):
        return Outcome(Drop.TIMEOUT, text)
    if not isinstance(error, requests.ConnectionError):
        return Outcome(Drop.OTHER, text)
    answer = inner.args[-1] if isinstance(inner, urllib3.exceptions.ProtocolError) else None
    if isinstance(answer, HTTPException) and not isinstance(answer, ConnectionError):
        return Outcome(Drop.PROTOCOL, "the response is not HTTP; port 4317 is usually gRPC (protocol: grpc)")
    return Outcome(Drop.UNREACHABLE, text)


def retry_after(text: str, now: float) -> float:
    """Seconds from the unix time `now` of a Retry-After header (RFC 9110, section 10.2.3): a number, or a date."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return max((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now, 0.0)
