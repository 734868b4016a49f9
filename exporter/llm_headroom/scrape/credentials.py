"""Secrets from where they are configured to be, and the Authorization header of requests to one endpoint."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Final

from llm_headroom.config.endpoint import VISIBLE, Basic, Bearer
from llm_headroom.model import Cause
from llm_headroom.net.files import content
from llm_headroom.scrape.refusals import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from llm_headroom.config.endpoint import Secret


HINT: Final = (
    "credentials are missing or wrong (the target's `auth`: `bearer_token_file`, or `username` and `password_file`)"
)
"""What to do where an engine asks for credentials."""


def secret_text(secret: Secret) -> str:
    """What a file or a variable holds now; empty if the variable is not set.

    Raises:
        Refusal: the file cannot be read, or is not text; the message names it and shows nothing of it.
    """
    if secret.file is None:
        return os.environ.get(secret.env or "", "")
    try:
        return content(secret.file).decode()
    except OSError as error:
        raise Refusal(Cause.CREDENTIALS, f"cannot read file {secret.file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refusal(Cause.CREDENTIALS, f"file {secret.file} is not text in UTF-8") from None


def secret_files(credentials: Bearer | Basic) -> tuple[Path, ...]:
    """The file of its secret, if it is in one."""
    secret = _secret(credentials)
    return () if secret.file is None else (secret.file,)


def authorization(credentials: Bearer | Basic) -> str:
    """The header's value, its secret read now.

    Raises:
        Refusal: the secret cannot be read or used; the message names its place and shows nothing of it.
    """
    given = _secret(credentials)
    place = f"environment variable {given.env}" if given.file is None else f"file {given.file}"
    secret = secret_text(given).rstrip("\r\n")
    if not secret:
        raise Refusal(Cause.CREDENTIALS, f"{place} is empty or not set")
    if "\r" in secret or "\n" in secret:
        raise Refusal(Cause.CREDENTIALS, f"{place} holds more than one line")
    if isinstance(credentials, Basic):
        pair = f"{credentials.username}:{secret}".encode(errors="surrogateescape")
        return f"Basic {base64.b64encode(pair).decode()}"
    if not VISIBLE.fullmatch(secret):
        raise Refusal(Cause.CREDENTIALS, f"{place} holds blanks or other characters that a token cannot have")
    return f"Bearer {secret}"


def _secret(credentials: Bearer | Basic) -> Secret:
    return credentials.token if isinstance(credentials, Bearer) else credentials.password
