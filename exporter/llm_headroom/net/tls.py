"""TLS of connections that we open."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final, Protocol

from llm_headroom.net.files import content, named

_MOST_BYTES: Final = 16 * 1024 * 1024
"""Of a file of certificates: some have all that anybody trusts."""


_SYSTEM: Final = ssl.get_default_verify_paths()  # here, as it looks at them


class TlsFileError(OSError):
    """A file of certificates or keys cannot be used; the message names it."""


class ClientTls(Protocol):
    """What a client is configured with.

    Without `ca_file` the system's authorities are trusted; `cert_file` and `key_file` (by default the same file) are
    what the client shows of itself.
    """

    @property
    def ca_file(self) -> Path | None: ...  # noqa: D102 - described above, as the others are
    @property
    def cert_file(self) -> Path | None: ...  # noqa: D102
    @property
    def key_file(self) -> Path | None: ...  # noqa: D102
    @property
    def insecure_skip_verify(self) -> bool: ...  # noqa: D102


def client_files(tls: ClientTls) -> tuple[Path, ...]:
    """What its context is made of; the system's authorities, where these are trusted."""
    given = tuple(dict.fromkeys(file for file in (tls.ca_file, tls.cert_file, tls.key_file) if file is not None))
    if tls.ca_file is not None or tls.insecure_skip_verify:
        return given
    file = os.environ.get(_SYSTEM.openssl_cafile_env, _SYSTEM.openssl_cafile)
    folder = os.environ.get(_SYSTEM.openssl_capath_env, _SYSTEM.openssl_capath)
    return *given, Path(file), Path(folder)


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """The context for it, its files read now.

    Raises:
        TlsFileError: a file cannot be read, or holds something else.
    """
    for file in (tls.ca_file, tls.cert_file, tls.key_file):
        if file is None:
            continue
        try:
            content(file, _MOST_BYTES)  # OpenSSL's own error would not name it, and a FIFO would hold up all
        except OSError as error:
            raise TlsFileError(f"cannot read file {named(file, '(its name is not shown)')}: {error.strerror}") from None
    file, holds = tls.ca_file, "it holds"
    try:
        if tls.insecure_skip_verify:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context = ssl.create_default_context(cafile=tls.ca_file)
        file, holds = tls.cert_file, "its key does not fit or is encrypted, or it holds"
        if tls.cert_file is not None:
            # An empty password makes an encrypted key an error, where OpenSSL would ask for one on the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except (OSError, ValueError) as error:
        raise TlsFileError(f"cannot use file {file}: {holds} no certificate in PEM ({error})") from None
    return context
