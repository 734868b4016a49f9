"""Why there is no answer: a cause, and words that say what to do, for what sockets and OpenSSL raise."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

from llm_headroom.model import Cause

_NAME: Final = "set the target's TLS server_name to a name that is in it"
_WEAK: Final = "have it issued again with a key of 2048 bits or more, signed with SHA-256 or better"
_VERIFY_HINTS: Final = {
    9: "compare the clocks of both hosts",
    10: "renew it on the engine",
    62: _NAME,
    64: _NAME,
    66: _WEAK,
    67: _WEAK,
    68: _WEAK,
}
"""By OpenSSL's X509_V_ERR codes: not yet valid, expired, host name and IP address mismatch, weak keys and digest."""
_CLIENT: Final = (
    "a client certificate (TLS cert_file), or not accept the one that it was shown (expired? of another CA?)"
)
_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"})


class Refusal(Exception):  # noqa: N818 - no error to the outside: whoever asked makes one that names the URL
    """A failure whose message does not name the URL."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


def root(error: BaseException) -> BaseException:
    """What a library's error was first; httpcore's pool hides it by `raise … from None`."""
    while (before := error.__cause__ or (error.__context__ if error.__suppress_context__ else None)) is not None:
        error = before
    return error


def unconnected(error: BaseException, *, encrypted: bool) -> Refusal:
    """Why there is no connection."""
    if isinstance(error, ssl.SSLError):
        return broken(error)
    if isinstance(error, UnicodeError | socket.gaierror):
        return Refusal(Cause.UNREACHABLE, f"the host name cannot be resolved: {error}")
    if encrypted and isinstance(error, ConnectionError) and error.errno is None:
        hint = f"it may not speak TLS (http://), or none from 1.2 on; it may ask for {_CLIENT}"
        return Refusal(Cause.TLS, f"the server closed the connection during the TLS handshake; {hint}")
    # Of a name with several addresses asyncio gives all errors as one text. One refusal means that the host is there.
    if f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return Refusal(Cause.REFUSED, "the connection was refused; is the server running and is the port right?")
    return Refusal(Cause.UNREACHABLE, f"cannot connect: {error}")


def broken(error: BaseException) -> Refusal:
    """Why a connection that was there is no longer."""
    if not isinstance(error, ssl.SSLError):
        return Refusal(Cause.TRUNCATED, f"the connection broke: {error}")
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = _VERIFY_HINTS.get(error.verify_code, "set the target's TLS ca_file to the CA that signed it")
        text = f"the server's certificate is not accepted: {error.verify_message}; {hint}"
    elif reason in _NO_TLS:
        text = f"the server does not speak TLS on this port ({reason}); should the target's URL begin with http://?"
    elif "ALERT" in reason:
        text = f"the server refused the TLS session ({reason}); it may ask for {_CLIENT}"
    else:
        text = f"TLS failed: {reason}"
    return Refusal(Cause.TLS, text)


def unanswered(*, encrypted: bool) -> Refusal:
    """The server has taken the connection, and closed it without a word."""
    if not encrypted:
        hint = "does the server speak TLS (https://)?"
        return Refusal(Cause.TRUNCATED, f"the connection was closed before any answer; {hint}")
    # With TLS 1.3 a server judges the client's certificate after the client's side of the handshake is done,
    # and one on asyncio, such as uvicorn, then closes the connection without the alert that would say so.
    hint = f"the server may ask for {_CLIENT}"
    return Refusal(Cause.TLS, f"the connection was closed after the TLS handshake, before any answer; {hint}")
