"""What a reader of the page has chosen to see, as its address says, short keys for that, and how a text is written."""

from __future__ import annotations

import html
from functools import lru_cache
from hashlib import blake2s
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.view.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_headroom.view.values import EngineCard, GpuCard

_MOST_OPENED: Final = 50
"""Cards of a table that may be open at once."""


class Look(NamedTuple):
    """The keys of cards that are open in a table, and whether history is the last day's or the last minutes'."""

    opened: frozenset[str] = frozenset()
    day: bool = False

    def address(self, *, toggled: str = "", day: bool | None = None) -> str:
        """The query of the page with a card opened or closed, or the other history."""
        opened = self.opened ^ {toggled} if toggled else self.opened
        parts = [f"open={','.join(sorted(opened))}"] if opened else []
        if self.day if day is None else day:
            parts.append("range=24h")
        return "?" + "&amp;".join(parts)


def look(query: Mapping[str, str]) -> Look:
    """What an address asks for: `open` has keys with commas between them, `range` may be `24h`."""
    keys = [key for key in query.get("open", "").split(",") if key]
    return Look(frozenset(keys[:_MOST_OPENED]), query.get("range") == "24h")


def escape(said: str) -> str:
    """A text in HTML: neither markup nor anything that turns the direction of what stands beside it."""
    return html.escape(plain(said))


def key(card: EngineCard | GpuCard) -> str:
    """A short name of a card that holds in addresses and as an id: a letter, then hexadecimal digits."""
    return _key(card.id)


@lru_cache(maxsize=4096)
def _key(identity: str) -> str:
    return identity[0] + blake2s(identity.encode(errors="replace"), digest_size=5).hexdigest()
