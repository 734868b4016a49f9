"""Unknown `LLM_HEADROOM_*` environment variables: likely mistakes, such as `LLM_HEADROOM_TARGET`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llm_headroom.config.errors import near

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX: Final = "LLM_HEADROOM_"
KNOWN: Final = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("CONFIG", "TARGETS", "LISTEN", "INTERVAL", "WEB_CONFIG", "OTLP_ENDPOINT", "OLLAMA_PROXY"),
        *("LOG_LEVEL", "LOG_FORMAT", "GPU", "DISCOVER", "URL"),
    )
)
"""Variables that options read; listed here, since running one command does not import the options of all."""
# https://kubernetes.io/docs/concepts/containers/container-environment/: Services as Docker links, after their names,
# here of a Service llm-headroom or llm-headroom-…
_SERVICE_LINK: Final = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


def unknown(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of unknown variables, each with a suggestion."""
    for name, value in sorted(environment.items()):
        link = _SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and "://" in value)
        if name.startswith(PREFIX) and name not in KNOWN and not link:
            yield name, f"unknown variable{near(name, KNOWN)}"
