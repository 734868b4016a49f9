"""The Authorization header of requests to one endpoint."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Final

from llm_headroom.config.endpoint import VISIBLE, Basic, Bearer
from llm_headroom.model import Cause
from llm_headroom.net.files import content, stamp
from llm_headroom.scrape.refusals import Refusal

if TYPE_CHECKING:
    from llm_headroom.net.files import Stamp


HINT: Final = (
    "credentials are missing or wrong (the target's `auth`: `bearer_token_file`, or `username` and `password_file`)"
)
"""What to do where an engine asks for credentials."""


class Authorization:
    """Credentials whose secret is read again whenever its file changes."""

    def __init__(self, credentials: Bearer | Basic) -> None:
        self._credentials = credentials
        self._secret = credentials.token if isinstance(credentials, Bearer) else credentials.password
        self._read: tuple[Stamp | None, str] | None = None

    def header(self) -> str:
        """The header's value now.

        Raises:
            Refusal: the secret cannot be read or used; the message names its place and shows nothing of it.
        """
        file = self._secret.file
        if file is None:
            name = self._secret.env or ""
            return self._value(os.environ.get(name, ""), f"environment variable {name}")
        now = stamp(file)
        if self._read is None or self._read[0] != now:
            try:
                self._read = now, self._value(content(file).decode(), f"file {file}")
            except OSError as error:
                raise Refusal(Cause.CREDENTIALS, f"cannot read file {file}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise Refusal(Cause.CREDENTIALS, f"file {file} is not text in UTF-8") from None
        return self._read[1]

    def _value(self, text: str, place: str) -> str:
        secret = text.rstrip("\r\n")
        if not secret:
            raise Refusal(Cause.CREDENTIALS, f"{place} is empty or not set")
        if "\r" in secret or "\n" in secret:
            raise Refusal(Cause.CREDENTIALS, f"{place} holds more than one line")
        if isinstance(self._credentials, Basic):
            pair = f"{self._credentials.username}:{secret}".encode(errors="surrogateescape")
            return f"Basic {base64.b64encode(pair).decode()}"
        if not VISIBLE.fullmatch(secret):
            raise Refusal(Cause.CREDENTIALS, f"{place} holds blanks or other characters that a token cannot have")
        return f"Bearer {secret}"
