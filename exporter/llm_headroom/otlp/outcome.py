"""What became of an attempt to export, whatever the protocol."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Drop(StrEnum):
    """Why data points were not taken: a closed set, since it is a label value."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    TLS = "tls"
    AUTH = "auth"
    UNAVAILABLE = "unavailable"
    """The collector asks to try again later (429, 503, UNAVAILABLE, RESOURCE_EXHAUSTED …)."""
    REFUSED = "refused"
    """The collector does not want the request as it is."""
    PROTOCOL = "protocol"
    """What answers does not speak OTLP."""
    REJECTED = "rejected"
    """Some data points of an export that was accepted otherwise."""
    CREDENTIALS = "credentials"
    """A header's value cannot be read."""


class Outcome(NamedTuple):
    """`cause` is None if the export was accepted; `rejected` counts the data points that were not, even so.

    `message` is for the operator and holds no secrets. `retry`: the same request may be sent again, after `retry_after`
    seconds if the collector told.
    """

    cause: Drop | None
    message: str = ""
    retry: bool = False
    retry_after: float | None = None
    rejected: int = 0


class Transport(Protocol):
    """A way to a collector."""

    async def send(self, body: bytes, headers: Mapping[str, str], timeout: float) -> Outcome:  # noqa: ASYNC109
        """One attempt within some seconds; never raises for what the collector or the network do."""
        ...

    async def close(self) -> None:
        """End what is under way and let go of the connection; a later `send` opens a new one."""
        ...
