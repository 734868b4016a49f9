"""The HTTP client: one connection to one engine, kept alive between polls.

HTTP/1.1 as in RFC 9110 and RFC 9112. Proxies named in the environment (`HTTP_PROXY` and the like) are deliberately
not used: an exporter runs beside its engines, and a proxy would hide which of them does not answer.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import os
import socket
import ssl  # asyncio has loaded it already
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urljoin

import h11

from llm_headroom import __version__
from llm_headroom.config.endpoint import VISIBLE, Basic, Bearer, check, parse_target, parse_url, without_query
from llm_headroom.model import NOTHING, Cause, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llm_headroom.config.endpoint import Endpoint, Tls

_READ_BYTES: Final = 256 * 1024
"""As much as asyncio's transports take from a socket at once: an engine's whole body in one piece."""
_MAX_REDIRECTS: Final = 3
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PERMANENT: Final = frozenset({301, 308})
_AS_GET: Final = frozenset({301, 302, 303})
"""After these a request with a body goes on as a GET without one (RFC 9110, section 15.4)."""
_HAPPY_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305, section 5: the recommended connection attempt delay
_EVENTS_PER_TURN: Final = 256
"""A body in one-byte chunks is this many events long before other tasks, and the deadline, get their turn."""
_VERIFY_HINTS: Final = {
    10: "renew it on the engine",
    62: "set the target's TLS server_name to a name that is in it",
    64: "set the target's TLS server_name to a name that is in it",
}
"""By OpenSSL's X509_V_ERR codes: expired, host name mismatch, IP address mismatch."""
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"})


@dataclass(frozen=True, slots=True)
class Response:
    """A final answer: header names are in lower case, `body` is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class FetchError(Exception):
    """There was no answer; `failure` says why, in words that name the URL and hold no secrets."""

    failure: Failure

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Refusal(Exception):  # noqa: N818 - no error to the outside: Client turns it into a FetchError that names the URL
    """A failure whose message does not yet name the URL."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


class _Died(_Refusal):
    """The connection ended before any byte of an answer: where it was an idle one, the request is sent once more."""


_Stamp: TypeAlias = tuple[int, int, int]
"""Time, inode and size of a file: one of them changes when it is rewritten or, as by Kubernetes, replaced."""


class _Reader(asyncio.StreamReader):
    """A stream that knows what has come without having been asked for."""

    unread = 0

    def feed_data(self, data: Any) -> None:  # noqa: ANN401 - as the class above has it
        """Called by the event loop."""
        self.unread += len(data)
        super().feed_data(data)

    async def take(self) -> bytes:
        """The next piece, empty at the end."""
        piece = await self.read(_READ_BYTES)
        self.unread -= len(piece)
        return piece


class _Link:
    """An open connection."""

    __slots__ = ("http", "reader", "writer")

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.http = h11.Connection(h11.CLIENT)

    @property
    def idle(self) -> bool:
        """False if the server has closed the connection or said something unasked, such as a 408 while it was idle."""
        return not (self.reader.unread or self.reader.at_eof() or self.writer.is_closing())


class _Body:
    """Collects a body, decompressed as it comes: no more than the cap is ever held, whatever it would expand to."""

    __slots__ = ("_cap", "_coding", "_inflate", "_room", "_sink")

    def __init__(self, cap: int, coding: str) -> None:
        if coding not in {"", "identity", "gzip", "x-gzip", "deflate"}:
            raise _Refusal(Cause.PROTOCOL, f"the body's Content-Encoding {coding[:40]!r} is not one we asked for")
        self._cap = cap
        self._room = cap
        self._coding = "" if coding == "identity" else coding
        self._inflate: Any = None  # zlib has no public name for the type of a decompressor
        self._sink = io.BytesIO()  # its getvalue() hands out the bytes without a copy

    def add(self, data: bytes | bytearray) -> None:
        if self._coding:
            data = self._decompress(data)
        self._room -= len(data)
        if self._room < 0:
            raise _too_large(self._cap)
        self._sink.write(data)

    def _decompress(self, data: bytes | bytearray) -> bytes:
        import zlib  # noqa: PLC0415 - most engines answer uncompressed

        if self._inflate is None:
            # RFC 9110, section 8.4.1.2: deflate means the zlib format, but some servers leave its header out.
            wrapped = data[0] & 0x0F == zlib.DEFLATED
            self._inflate = zlib.decompressobj(31 if self._coding != "deflate" else 15 if wrapped else -15)
        try:
            inflated: bytes = self._inflate.decompress(data, self._room + 1)
        except zlib.error as error:
            raise _Refusal(Cause.PROTOCOL, f"the body is no valid {self._coding}: {error}") from None
        if self._inflate.unused_data:
            raise _Refusal(Cause.PROTOCOL, f"data follow the end of the {self._coding} body")
        return inflated

    def finish(self) -> bytes:
        if self._inflate is not None and not self._inflate.eof:
            raise _Refusal(Cause.PROTOCOL, f"the {self._coding} body stops before its end")
        return self._sink.getvalue()


class Client:
    """Speaks to one endpoint, one request at a time.

    Raises:
        ValueError: the endpoint is not one that can be asked; the message holds no credentials.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._origin, self._host, self._prefix = parse_target(endpoint.url)
        check(endpoint)
        self._link: _Link | None = None
        self._tls: tuple[tuple[_Stamp | None, ...], ssl.SSLContext] | None = None
        self._authorization: tuple[_Stamp, str] | None = None
        self._moved: dict[str, str] = {}
        self._busy = False
        self._doing = ""

    async def get(  # noqa: PLR0913 - a request's parts
        self,
        path: str,
        *,
        timeout: float,  # noqa: ASYNC109 - a deadline for the whole call is this method's promise
        accept: str = "text/plain;version=0.0.4,*/*;q=0.1",
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] = NOTHING,
    ) -> Response:
        """The answer to a request for `path` below the endpoint's prefix, whatever its status.

        Redirects are followed within the same origin. `timeout` in seconds covers everything from the name's
        resolution to the body's last byte; after it, as after a cancellation, the connection is gone, so that a late
        answer is never taken for that of the next request. A request may reach the engine twice where a kept
        connection dies under it, so ask only what changes nothing. A `body` is JSON
        unless `headers`, which are sent besides the usual ones, say otherwise.

        Raises:
            FetchError: there is no complete answer.
            RuntimeError: another request of this client is under way.
            ValueError: `path` is not an absolute path in visible ASCII characters.
        """
        if not path.startswith("/") or not VISIBLE.fullmatch(path):
            raise ValueError(f"{path!r} is not a path: it must begin with '/' and be percent-encoded")
        if self._busy:
            raise RuntimeError(f"a request to {self._origin} is already under way")
        self._busy = True
        self._doing = "preparing the request"
        answered = False
        try:
            async with asyncio.timeout(timeout):
                response = await self._follow(method, path, accept, body, headers)
            answered = True
        except TimeoutError:
            raise self._error(path, Cause.TIMEOUT, f"no answer within {timeout:g} s ({self._doing})") from None
        except _Refusal as refusal:
            raise self._error(path, refusal.cause, str(refusal)) from None
        else:
            return response
        finally:
            self._busy = False
            if not answered:
                self._drop()

    async def close(self) -> None:
        """Closes the connection; a later `get` would open a new one."""
        link = self._link
        self._drop()
        if link is not None:
            with suppress(OSError):
                await link.writer.wait_closed()

    def _error(self, path: str, cause: Cause, reason: str) -> FetchError:
        # A query is left out: filters make it long, and it may hold an API key.
        return FetchError(Failure(cause, f"{self._origin}{self._prefix}{path.partition('?')[0]}: {reason}"))

    def _drop(self) -> None:
        if self._link is not None:
            self._link.writer.transport.abort()
            self._link = None

    async def _follow(
        self, method: str, path: str, accept: str, body: bytes | None, extra: Mapping[str, str]
    ) -> Response:
        # Where a path has moved to is remembered only as long as asking there succeeds.
        moved = self._moved.pop(path, None)
        target = moved or self._prefix + path
        lasting = method == "GET"
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._exchange(method, target, accept, body, extra)
            location = response.headers.get("location")
            if response.status not in _REDIRECTS or location is None:
                if moved is not None and response.status < 400:  # noqa: PLR2004 - errors begin there, RFC 9110, 15.5
                    self._moved[path] = moved
                return response
            previous, target = target, self._redirected(target, location)
            # Starlette adds a missing slash with status 307 (encode/starlette, starlette/routing.py), but for good.
            slash_added = target.partition("?")[0] == previous.partition("?")[0] + "/"
            lasting = lasting and (response.status in _PERMANENT or slash_added)
            if lasting:
                moved = target
            if response.status in _AS_GET and method != "HEAD":
                method, body = "GET", None
        raise _Refusal(Cause.REDIRECT, f"more than {_MAX_REDIRECTS} redirects, the last one to {without_query(target)}")

    def _redirected(self, target: str, location: str) -> str:
        """The path and query to ask next."""
        try:
            origin, _, moved = parse_url(urljoin(f"{self._origin}{target}", location))
        except ValueError as error:
            raise _Refusal(Cause.REDIRECT, f"redirects to an address that cannot be followed: {error}") from None
        if origin != self._origin:
            hint = "set the target's URL to the address that answers (a login page means missing credentials)"
            raise _Refusal(Cause.REDIRECT, f"redirects to another origin, {without_query(f'{origin}{moved}')}; {hint}")
        return moved or "/"

    async def _exchange(
        self, method: str, target: str, accept: str, body: bytes | None, extra: Mapping[str, str]
    ) -> Response:
        headers = [
            ("Host", self._origin.authority),
            ("User-Agent", f"llm-headroom/{__version__}"),
            ("Accept", accept),
            ("Accept-Encoding", "gzip" if self._endpoint.gzip else "identity"),
        ]
        if self._endpoint.credentials is not None:
            headers.append(("Authorization", self._authorize(self._endpoint.credentials)))
        if body is not None:
            headers += {"Content-Type": "application/json", **extra, "Content-Length": str(len(body))}.items()
        request = h11.Request(method=method, target=target, headers=headers)
        link, reused = await self._connect()
        try:
            return await self._converse(link, request, body)
        except _Died:
            if not reused:
                raise
        self._drop()
        link, _ = await self._connect()
        return await self._converse(link, request, body)

    def _authorize(self, credentials: Bearer | Basic) -> str:
        secret = credentials.token if isinstance(credentials, Bearer) else credentials.password
        if secret.file is None:
            place = f"environment variable {secret.env}"
            return _authorization(credentials, os.environ.get(secret.env or "", ""), place)
        try:
            stamp = _stamp(secret.file)
            if self._authorization is None or self._authorization[0] != stamp:
                text = secret.file.read_text(encoding="utf-8")
                self._authorization = (stamp, _authorization(credentials, text, f"file {secret.file}"))
        except OSError as error:
            raise _Refusal(Cause.CREDENTIALS, f"cannot read file {secret.file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise _Refusal(Cause.CREDENTIALS, f"file {secret.file} is not text in UTF-8") from None
        return self._authorization[1]

    async def _connect(self) -> tuple[_Link, bool]:
        """A connection, and whether it has served before."""
        context = self._context() if self._origin.scheme == "https" else None
        if self._link is not None:
            if self._link.idle:
                return self._link, True
            self._drop()
        self._doing = "connecting"
        loop = asyncio.get_running_loop()
        reader = _Reader(limit=_READ_BYTES, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        options: dict[str, Any] = {"happy_eyeballs_delay": _HAPPY_EYEBALLS_SECONDS}
        if context is not None:
            options |= {"ssl": context, "server_hostname": self._endpoint.tls.server_name or self._origin.host}
        try:
            transport, _ = await loop.create_connection(lambda: protocol, self._host, self._origin.port, **options)
        except (OSError, UnicodeError) as error:
            raise _unconnected(error, encrypted=context is not None) from None
        self._link = _Link(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        return self._link, False

    def _context(self) -> ssl.SSLContext:
        tls = self._endpoint.tls
        stamps: list[_Stamp | None] = []
        for path in (tls.ca_file, tls.cert_file, tls.key_file):
            try:
                stamps.append(None if path is None else _stamp(path))
            except OSError as error:
                raise _Refusal(Cause.TLS, f"cannot read file {path}: {error.strerror}") from None
        if self._tls is None or self._tls[0] != tuple(stamps):
            self._drop()  # it was vouched for by the old certificates
            self._tls = (tuple(stamps), tls_context(tls))
        return self._tls[1]

    async def _converse(self, link: _Link, request: h11.Request, body: bytes | None) -> Response:
        self._doing = "waiting for the answer"
        sent = link.http.send(request) or b""
        if body is not None:
            sent += link.http.send(h11.Data(data=body)) or b""
        link.http.send(h11.EndOfMessage())
        link.writer.write(sent)
        response = await self._receive(link, sized=request.method != b"HEAD")
        if link.http.our_state is h11.DONE and link.http.their_state is h11.DONE and not link.http.trailing_data[0]:
            link.http.start_next_cycle()
        else:
            self._drop()
        return response

    async def _receive(self, link: _Link, *, sized: bool) -> Response:
        cap = self._endpoint.max_bytes
        status, headers, body = 0, dict[str, str](), _Body(cap, "")
        events = 0
        begun = ended = False
        while True:
            try:
                event = link.http.next_event()
            except h11.RemoteProtocolError as error:
                if ended:
                    raise _Refusal(Cause.TRUNCATED, f"the connection was closed too early: {error}") from None
                raise _Refusal(Cause.PROTOCOL, f"the answer is not valid HTTP/1.1: {error}") from None
            if event is h11.NEED_DATA:
                piece = await _read(link.reader, begun=begun, encrypted=self._origin.scheme == "https")
                begun, ended = True, not piece
                link.http.receive_data(piece)
            elif isinstance(event, h11.Data):
                body.add(event.data)
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, _headers(event)
                if sized and int(headers.get("content-length", "0")) > cap:
                    raise _too_large(cap)
                body = _Body(cap, headers.get("content-encoding", "").strip().lower())
                self._doing = "reading the body"
            elif isinstance(event, h11.EndOfMessage):
                return Response(status, headers, body.finish())
            events += 1
            if not events % _EVENTS_PER_TURN:
                await asyncio.sleep(0)


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size


def _authorization(credentials: Bearer | Basic, text: str, place: str) -> str:
    secret = text.rstrip("\r\n")
    if not secret:
        raise _Refusal(Cause.CREDENTIALS, f"{place} is empty or not set")
    if "\r" in secret or "\n" in secret:
        raise _Refusal(Cause.CREDENTIALS, f"{place} holds more than one line")
    if isinstance(credentials, Basic):
        pair = f"{credentials.username}:{secret}".encode(errors="surrogateescape")
        return f"Basic {base64.b64encode(pair).decode()}"
    if not VISIBLE.fullmatch(secret):
        raise _Refusal(Cause.CREDENTIALS, f"{place} holds blanks or other characters that a token cannot have")
    return f"Bearer {secret}"


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What a client needs for TLS; raises FetchError if its files cannot be used."""
    file = tls.ca_file
    try:
        if tls.insecure_skip_verify:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context = ssl.create_default_context(cafile=file)
        file = tls.cert_file
        if file is not None:
            # An empty password makes an encrypted key an error, where OpenSSL would ask for one on the terminal.
            context.load_cert_chain(file, tls.key_file, password="")
    except (OSError, ValueError) as error:
        what = "its key does not fit or is encrypted, or it holds" if file is tls.cert_file else "it holds"
        raise _Refusal(Cause.TLS, f"cannot use file {file}: {what} no certificate in PEM ({error})") from None
    return context


def _unconnected(error: OSError | UnicodeError, *, encrypted: bool) -> _Refusal:
    if isinstance(error, ssl.SSLError):
        return _Refusal(Cause.TLS, _tls_reason(error))
    if isinstance(error, UnicodeError | socket.gaierror):
        return _Refusal(Cause.UNREACHABLE, f"the host name cannot be resolved: {error}")
    if encrypted and isinstance(error, ConnectionError) and error.errno is None:
        hint = "it may not speak TLS (http://), or ask for a client certificate (TLS cert_file)"
        return _Refusal(Cause.TLS, f"the server closed the connection during the TLS handshake; {hint}")
    # Of a name with several addresses asyncio gives all errors as one text. One refusal means that the host is there.
    if f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return _Refusal(Cause.REFUSED, "the connection was refused; is the server running and is the port right?")
    return _Refusal(Cause.UNREACHABLE, f"cannot connect: {error}")


def _tls_reason(error: ssl.SSLError) -> str:
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = _VERIFY_HINTS.get(error.verify_code, "set the target's TLS ca_file to the CA that signed it")
        return f"the server's certificate is not accepted: {error.verify_message}; {hint}"
    if reason in _NO_TLS:
        return f"the server does not speak TLS on this port ({reason}); should the target's URL begin with http://?"
    if "ALERT" in reason:
        return f"the server refused the TLS session ({reason}); does it ask for a client certificate (TLS cert_file)?"
    return f"TLS failed: {reason}"


async def _read(reader: _Reader, *, begun: bool, encrypted: bool) -> bytes:
    """The next piece of an answer, empty at its end if it has begun."""
    failed = _Refusal if begun else _Died
    try:
        piece = await reader.take()
    except ssl.SSLError as error:
        raise failed(Cause.TLS, _tls_reason(error)) from None
    except OSError as error:
        raise failed(Cause.TRUNCATED, f"the connection broke: {error}") from None
    if begun:
        return piece
    if not piece:
        if encrypted:
            # With TLS 1.3 a server judges the client's certificate after the client's side of the handshake is done,
            # and one on asyncio, such as uvicorn, then closes the connection without the alert that would say so.
            hint = "the server may ask for a client certificate (TLS cert_file)"
            raise _Died(Cause.TLS, f"the connection was closed after the TLS handshake, before any answer; {hint}")
        raise _Died(
            Cause.TRUNCATED, "the connection was closed before any answer; does the server speak TLS (https://)?"
        )
    if piece.startswith(b"\x15\x03"):  # a TLS alert: RFC 8446, section 5.1
        raise _Refusal(Cause.TLS, "the server speaks TLS on this port; the target's URL should begin with https://")
    if not piece.startswith(b"HTTP/"[: len(piece)]):
        raise _Refusal(Cause.PROTOCOL, f"the answer is not HTTP/1.1; it begins with {piece[:20]!r}")
    return piece


def _headers(response: h11.Response) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _too_large(cap: int) -> _Refusal:
    return _Refusal(Cause.TOO_LARGE, f"the body is larger than the limit of {cap} bytes (max_bytes)")
