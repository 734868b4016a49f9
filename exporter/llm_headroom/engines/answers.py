"""What engines answer in JSON, as types: nothing else of a body gets in, whoever answers.

An engine's module declares the form of each document beside it: a structure with the few fields that are wanted. Types,
ranges, lengths and counts are checked while the body is read; what the form does not name (prompts, keys) is dropped.
Numbers have a range but no sign, since engines write -1 for "none"; a fact of a negative value is left out later.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from msgspec import DecodeError, Meta, Struct
from msgspec.json import Decoder

if TYPE_CHECKING:
    from llm_headroom.engines.rules import Document

MOST_BYTES: Final = 4 << 20
"""Bytes of JSON; an engine with a thousand models and adapters answers half a megabyte."""
MOST_VALUES: Final = 100_000
"""Commas in a body, which bound what its values take in memory before any length is checked."""
_LARGEST: Final = 1 << 53
_ESCAPES: Final = re.compile(
    rb"\\\\"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
"""An escaped backslash, a pair of surrogates, or (the group) a lone one."""

Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
"""A name, a path, a version."""
Whole: TypeAlias = Annotated[int, Meta(ge=-_LARGEST, le=_LARGEST)]
"""A number of tokens, requests or bytes; exact as a float."""
Replicas: TypeAlias = Annotated[int, Meta(ge=0, le=1024)]
"""A number of data-parallel replicas: each becomes series."""


class Versioned(Struct):
    """An answer that says a version."""

    version: Text | None = None


class NotUnderstood(ValueError):  # noqa: N818 - not an error of ours: what was answered
    """A body that is not of its document's form; the message names the field."""


def decode(document: Document, body: bytes) -> Any:  # noqa: ANN401 - of the document's form
    """What is retained of an answer. Lone surrogates, which UTF-8 cannot hold, become `?` (RFC 8259, section 8.2).

    Raises:
        NotUnderstood: the body is not of the document's form, or beyond every measure.
    """
    if len(body) > MOST_BYTES:
        raise NotUnderstood(f"{len(body)} bytes of JSON; {MOST_BYTES} are the most that are read")
    if (values := body.count(b",")) > MOST_VALUES:
        raise NotUnderstood(f"{values} values; {MOST_VALUES} are the most that are read")
    if b"\\ud" in body or b"\\uD" in body:
        body = _ESCAPES.sub(lambda found: b"?" if found[1] else found[0], body)
    try:
        return document.read(Decoder(document.form).decode(body))
    except UnicodeDecodeError:
        raise NotUnderstood("it is not UTF-8") from None
    except RecursionError:
        raise NotUnderstood("it is nested too deeply") from None
    except DecodeError as error:
        raise NotUnderstood(str(error)) from None
