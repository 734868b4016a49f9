"""What a peer says, without the secrets of ours that it repeats."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHORTEST: Final = 4
"""Characters of a secret that tell something of it."""
_WORD: Final = 9
"""Characters of a part of a path that may be a secret by itself."""


def hidden(said: str, secrets: Iterable[str]) -> str:
    """A text in which each secret is `…`, as it is or escaped for HTML or a URL.

    So is the beginning of one at the text's end, where it was cut.
    """
    forms = {form for each in secrets if len(each) >= _SHORTEST for form in (each, escape(each), quote(each))}
    for form in sorted(forms, key=len, reverse=True):
        said = said.replace(form, "…")
        cut = next((size for size in range(len(form) - 1, _SHORTEST - 1, -1) if said.endswith(form[:size])), 0)
        said = f"{said[:-cut]}…" if cut else said
    return said


def of_url(url: str) -> list[str]:
    """What is secret where a URL is: what follows its host, and each part of that which is no mere word."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return [url]
    query = [parts.query, *(field.partition("=")[2] for field in parts.query.split("&"))]
    found = [f"{parts.path}?{parts.query}", parts.path, *parts.path.split("/"), *query]
    return [each for each in found if len(each) >= _WORD]
