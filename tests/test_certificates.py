"""When certificates run out that the exporter shows of itself."""

from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography import x509

from exporter_process import Exporter
from llm_headroom.net.certificate import validity
from scripted_server import EngineServer, reply, running

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITY = trustme.CA()
NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


def pem(end: dt.datetime, begin: dt.datetime = NOW - dt.timedelta(days=300)) -> bytes:
    """Certificate and key, valid for so long."""
    issued = AUTHORITY.issue_cert("localhost", "127.0.0.1", not_before=begin, not_after=end)
    return issued.private_key_and_cert_chain_pem.bytes()


def replaced(path: Path, content: bytes) -> None:
    """As Kubernetes replaces a file: never half there."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("year", [1951, 1999, 2000, 2026, 2049, 2050, 2120])
def test_validity_is_what_a_library_for_certificates_reads(year: int) -> None:
    made = pem(dt.datetime(year, 6, 30, 12, 34, 56, tzinfo=dt.UTC), dt.datetime(1950, 1, 2, tzinfo=dt.UTC))
    wanted = x509.load_pem_x509_certificate(made[made.index(b"-----BEGIN CERT") :])

    found = validity(made)

    assert found == (wanted.not_valid_before_utc.timestamp(), wanted.not_valid_after_utc.timestamp())


def test_of_several_certificates_the_first_to_run_out_counts() -> None:
    soon, late = NOW + dt.timedelta(days=1), NOW + dt.timedelta(days=90)

    found = validity(pem(late) + pem(soon))

    assert found is not None
    assert found.end == soon.timestamp()


@pytest.mark.parametrize("broken", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"])
def test_what_is_no_certificate_has_no_validity(broken: bytes) -> None:
    assert validity(broken) is None


def test_every_truncation_of_a_certificate_is_refused_or_read() -> None:
    made = pem(NOW)
    body = made[made.index(b"-----BEGIN CERT") :].splitlines()[1:-1]
    for lines in range(len(body)):
        cut = b"\n".join([b"-----BEGIN CERTIFICATE-----", *body[:lines], b"-----END CERTIFICATE-----"])
        assert validity(cut) in {None, validity(made)}


def test_the_exporter_says_when_its_certificates_run_out_and_sees_them_renewed(tmp_path: Path) -> None:
    served, shown = tmp_path / "served.pem", tmp_path / "client.pem"
    served.write_bytes(pem(NOW + dt.timedelta(days=400)))
    shown.write_bytes(pem(NOW + dt.timedelta(days=3)))
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: served.pem, key_file: served.pem}\n")
    (tmp_path / "headroom.yml").write_text(
        "targets: [{url: 'https://127.0.0.1:9', engine: vllm, tls: {cert_file: client.pem}}]\ngpu: false\n"
        "web_config: web.yml\n"
    )
    trusting = ssl.create_default_context()
    AUTHORITY.configure_trust(trusting)

    with Exporter("--config", str(tmp_path / "headroom.yml"), tls=trusting) as exporter:
        end = "llm_certificate_not_after_timestamp_seconds"
        exporter.until(lambda: exporter.value("llm_up") == 0)
        assert exporter.value(end, file=str(served)) == (NOW + dt.timedelta(days=400)).timestamp()
        assert exporter.value(end, file=str(shown)) == (NOW + dt.timedelta(days=3)).timestamp()
        assert f"The certificate in {shown} runs out in" in exporter.get("/")[2].decode()
        replaced(shown, pem(NOW + dt.timedelta(days=90)))
        exporter.until(lambda: exporter.value(end, file=str(shown)) == (NOW + dt.timedelta(days=90)).timestamp())
        replaced(shown, b"gone")
        exporter.until(lambda: exporter.value(end, file=str(shown)) is None)
        exporter.until(lambda: f"The certificate in {shown}" not in exporter.get("/")[2].decode())


def test_an_engine_is_judged_by_the_authorities_that_the_system_trusts(tmp_path: Path) -> None:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(served)
    AUTHORITY.cert_pem.write_to_path(tmp_path / "known.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    body = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n"
    with running(EngineServer({"/metrics": reply(body)}, tls=served)) as server:
        for trusted, up in (("known.pem", 1.0), ("other.pem", 0.0)):
            system = {"SSL_CERT_FILE": str(tmp_path / trusted), "SSL_CERT_DIR": str(tmp_path)}
            with Exporter("--target", f"vllm={server.url}", extra=system) as exporter:
                exporter.until(lambda: exporter.value("llm_up") is not None)
                assert exporter.value("llm_up") == up
