"""When a certificate is valid: the only part of it that is read here, so no library for certificates is needed."""

from __future__ import annotations

import binascii
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_VERSION: Final = 0xA0
_LONG: Final = 0x80
"""From here on a length's first byte is the number of bytes of the length itself (ITU-T X.690, section 8.1.3)."""
_FORMS: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime and GeneralizedTime, as RFC 5280 (section 4.1.2.5) has them."""
_PIVOT: Final = 2050
"""UTCTime's years lie before this one; Python takes some of them to lie after."""


class Validity(NamedTuple):
    """From when to when a certificate is valid, in unix seconds."""

    begin: float
    end: float


def validity(pem: bytes) -> Validity | None:
    """Of the certificates in PEM the one that runs out first; None if there is none that can be read."""
    return min((each for text in _PEM.findall(pem) if (each := _read(text))), key=lambda each: each.end, default=None)


def _read(text: bytes) -> Validity | None:
    """RFC 5280, section 4.1: after an optional version come serial number, algorithm, issuer and validity."""
    try:
        (_, certificate), *_ = _elements(binascii.a2b_base64(text))
        (_, signed), *_ = _elements(certificate)
        fields = [content for tag, content in _elements(signed) if tag != _VERSION]
        begin, end = (_time(tag, content) for tag, content in _elements(fields[3]))
    except (ValueError, IndexError, KeyError):
        return None
    return Validity(begin, end)


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """DER's elements one after the other: tag and content."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= _LONG:
            size = length - _LONG
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    moment = datetime.strptime(content.decode("ascii"), _FORMS[tag]).replace(tzinfo=UTC)
    if tag == min(_FORMS) and moment.year >= _PIVOT:
        moment = moment.replace(year=moment.year - 100)
    return moment.timestamp()
