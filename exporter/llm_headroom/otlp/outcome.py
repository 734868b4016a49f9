"""The outcome of an export, for every protocol."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Drop(StrEnum):
    """Why data points were not taken: a closed set, since it is a label value."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    TLS = "tls"
    AUTH = "auth"
    UNAVAILABLE = "unavailable"
    """The collector asks to try again later (429, 503, UNAVAILABLE, RESOURCE_EXHAUSTED …)."""
    REFUSED = "refused"
    """The collector rejects the request."""
    PROTOCOL = "protocol"
    """What answers does not speak OTLP."""
    CREDENTIALS = "credentials"
    """A header's value cannot be read."""
    OTHER = "other"


class Outcome(NamedTuple):
    """`cause` is None if the export was accepted; `rejected` counts the data points that were not, even so.

    `message` is for the operator and holds no secrets. `pause`: seconds for which the collector wants to be left alone.
    """

    cause: Drop | None = None
    message: str = ""
    pause: float = 0.0
    rejected: int = 0
