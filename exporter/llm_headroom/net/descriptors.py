"""How the descriptors that this process may have are shared out, so that the proxies' clients cannot use up all."""

from __future__ import annotations

import resource
from typing import Final, NamedTuple

MOST_OWN: Final = 256
"""Connections to the exporter's own ports."""
MOST_PROXIED: Final = 16 * 1024
"""Clients of the proxies: each may hold some 200 KB of bytes on their way."""
_REST: Final = 64
"""Files, listeners, GPUs, name lookups."""
_USUAL: Final = 1024
"""Descriptors of a process that may not ask how many it has."""
_WANTED: Final = 2 * MOST_PROXIED + 4096


class Shares(NamedTuple):
    """Connections to the exporter's own ports, and clients of the proxies (two descriptors each)."""

    own: int
    proxied: int


def shares(descriptors: int, targets: int) -> Shares:
    """At most a half is for the exporter itself: its ports, a connection to each target, and the rest of what it does.

    A few thousand descriptors are more than enough; where there are very few (64), both get what they can work with.
    """
    reserve = min(MOST_OWN + targets + _REST, descriptors // 2)
    return Shares(
        own=min(MOST_OWN, max(4, reserve // 2)), proxied=max(2, min(MOST_PROXIED, (descriptors - reserve) // 2))
    )


def usable(most: int) -> int:
    """How many descriptors are of use where a process may have `most`, which is -1 where nothing limits it."""
    return _WANTED if most == resource.RLIM_INFINITY else min(_WANTED, most)


def available() -> int:
    """How many descriptors this process has: its limit is raised as far as that is of use, and allowed."""
    soft = _USUAL
    try:  # a filter of system calls may refuse both
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = usable(hard)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return usable(soft)
    return wanted
