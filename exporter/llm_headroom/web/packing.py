"""Answers as gzip, for clients that say that they understand it."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from llm_headroom.net.http_messages import Request, Response

WORTH_PACKING: Final = 1024
"""Bytes from which on an answer is compressed."""
PACKED: Final = ("Content-Encoding", "gzip")
"""The header of what is compressed."""
_GZIP: Final = 16 + zlib.MAX_WBITS
_MEMORY: Final = 7
"""Of zlib: 192 KiB for each stream."""


def accepts_gzip(request: Request) -> bool:
    """Whether the Accept-Encoding header allows gzip."""
    for part in request.headers.get("accept-encoding", "").split(","):
        coding, _, parameters = part.partition(";")
        if coding.strip().lower() in ("gzip", "*"):
            return parameters.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def packed(response: Response, request: Request) -> Response:
    """An answer that is compressed for a client that understands it, if it is worth it."""
    vary = (*response.headers, ("Vary", "Accept-Encoding"))
    if len(response.body) < WORTH_PACKING or not accepts_gzip(request):
        return replace(response, headers=vary)
    return replace(response, body=gzip([response.body]), headers=(*vary, PACKED))


def gzip(parts: Iterable[bytes]) -> bytes:
    """The parts one after the other, compressed quickly rather than well."""
    packer = zlib.compressobj(level=1, wbits=_GZIP)
    return b"".join([*map(packer.compress, parts), packer.flush()])


async def gzip_stream(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Events as gzip that a client can read as far as each of them; what came before makes the next ones short."""
    packer = zlib.compressobj(level=1, wbits=_GZIP, memLevel=_MEMORY)
    async for event in events:
        yield packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()
