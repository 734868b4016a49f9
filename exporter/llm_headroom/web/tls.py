"""TLS of the web server: an SSLContext out of the web configuration, and the check of a client's names.

A module of its own, imported only where TLS is configured.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import warnings
from typing import TYPE_CHECKING

from llm_headroom.net.files import content
from llm_headroom.web.config import ClientAuth

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from llm_headroom.web.config import Pem, TlsServer

_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}


def server_context(tls: TlsServer) -> ssl.SSLContext:
    """The context that does what the configuration says, with certificates read again.

    Raises:
        ConfigError: a certificate or key cannot be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, tls)
    _set_client_auth(context, tls)
    _set_versions_and_ciphers(context, tls)
    return context


def names_one_of(certificate: Mapping[str, object], allowed: Collection[str]) -> bool:
    """Whether a peer certificate (`SSLSocket.getpeercert()`) has a subject alternative name out of `allowed`.

    DNS names, IP addresses, URIs and e-mail addresses count, as in exporter-toolkit (web/tls_config.go).
    """
    names = certificate.get("subjectAltName", ())
    wanted = {_canonical(name) for name in allowed}
    return isinstance(names, tuple) and any(
        kind in {"DNS", "IP Address", "URI", "email"} and _canonical(name) in wanted for kind, name in names
    )


def _canonical(name: str) -> str:
    """One spelling for each IP address: OpenSSL writes IPv6 without the double colon."""
    try:
        return str(ipaddress.ip_address(name.strip()))
    except ValueError:
        return name


def _load_certificate(context: ssl.SSLContext, tls: TlsServer) -> None:
    cert, key = _read(tls.cert), _read(tls.key)
    if b"-----BEGIN CERTIFICATE-----" not in cert:
        raise tls.cert.place.error(f"{_source(tls.cert)} holds no certificate in PEM form")
    if b"PRIVATE KEY-----" not in key:
        raise tls.key.place.error(f"{_source(tls.key)} holds no private key in PEM form")
    if b"ENCRYPTED" in key:
        raise tls.key.place.error(f"{_source(tls.key)} is encrypted with a passphrase; give one that is not")
    try:
        with _as_file(tls.cert) as cert_file, _as_file(tls.key) as key_file:
            # The empty password keeps OpenSSL from asking for one on the terminal.
            context.load_cert_chain(cert_file, key_file, password="")
    except OSError as error:
        problem = (
            f"{_source(tls.key)} does not belong to the certificate"
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
            else f"certificate ({_source(tls.cert)}) and key ({_source(tls.key)}) are unusable: {_reason(error)}"
        )
        raise tls.key.place.error(problem) from error


def _set_client_auth(context: ssl.SSLContext, tls: TlsServer) -> None:
    if tls.client_auth not in {ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY}:
        return
    required = tls.client_auth is ClientAuth.REQUIRE_AND_VERIFY
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    # Go trusts every certificate of client_ca as it stands, an intermediate or self-signed one too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.client_ca is None:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
        return
    try:
        context.load_verify_locations(cadata=_read(tls.client_ca).decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        problem = f"{_source(tls.client_ca)} holds no usable certificate in PEM form"
        raise tls.client_ca.place.error(problem) from error


def _set_versions_and_ciphers(context: ssl.SSLContext, tls: TlsServer) -> None:
    if not tls.prefer_server_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    # Suites of TLS 1.3 alone leave nothing to speak TLS 1.2 with.
    minimum = "TLS13" if tls.ciphers == () else tls.min_version
    suites = ":".join(tls.ciphers or ())
    if minimum < "TLS12":
        # OpenSSL 3 speaks TLS 1.0 and 1.1 only at security level 0, since both sign with SHA-1.
        suites = f"{suites or 'DEFAULT'}:@SECLEVEL=0"
    try:
        if suites:
            context.set_ciphers(suites)
        with warnings.catch_warnings():
            # Python deprecates TLS 1.0 and 1.1; whoever writes them into the file has decided.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.maximum_version = _VERSIONS[tls.max_version]
            context.minimum_version = _VERSIONS[minimum]
        _set_curves(context, tls.curves)
    except (ssl.SSLError, ValueError) as error:
        raise tls.place.error(
            f"this OpenSSL ({ssl.OPENSSL_VERSION}) refuses the versions or ciphers: {error}"
        ) from error


def _set_curves(context: ssl.SSLContext, curves: tuple[str, ...]) -> None:
    if len(curves) == 1:
        context.set_ecdh_curve(curves[0])
    elif curves and hasattr(context, "set_groups"):  # from Python 3.15 on
        context.set_groups(":".join(curves))


def _read(pem: Pem) -> bytes:
    if pem.file is None:
        return pem.text.encode()
    try:
        return content(pem.file)
    except (OSError, ValueError) as error:
        # Without its name, since people write the key itself in the name's place.
        start = f"a relative path starts at {pem.place.file.absolute().parent}"
        why = getattr(error, "strerror", "no such file")
        raise pem.place.error(f"this file ({start}) cannot be read: {why}") from None


def _source(pem: Pem) -> str:
    return "the text" if pem.file is None else str(pem.file)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unknown").lower().replace("_", " ")
    return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"


@contextlib.contextmanager
def _as_file(pem: Pem) -> Iterator[str]:
    """A name under which OpenSSL can open it: text is in memory, so that a key never reaches a disk."""
    if pem.file is not None:
        yield str(pem.file)
        return
    descriptor = os.memfd_create("llm-headroom-pem")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(pem.text.encode())
        name = f"/proc/self/fd/{descriptor}"
        if not os.path.exists(name):  # noqa: PTH110 - no path of the user's
            raise pem.place.error("text can be used only where /proc is mounted; give files instead")
        yield name
    finally:
        os.close(descriptor)
