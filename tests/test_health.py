"""`llm-headroom health`: what containers ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import bcrypt
import pytest
import trustme

from engine_server import EngineServer, Reply, garbage, hang
from exporter_process import Exporter, ran
from free_port import free_port
from llm_headroom.commands import health

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from engine_server import Behaviour

WITHOUT = ("--no-gpu", "--no-discover")


def ask(*arguments: str, **variables: str) -> tuple[int, str]:
    """Exit status and what it complained of."""
    done = ran("health", *arguments, extra=variables)
    assert not done.stdout
    return done.returncode, done.stderr


def test_a_running_exporter_is_well_and_an_ended_one_is_not() -> None:
    with free_port() as port:
        listen = f"127.0.0.1:{port}"
        with Exporter("--listen", listen, *WITHOUT):
            assert ask(LLM_HEADROOM_LISTEN=listen) == (0, "")
            assert ask("--url", f"http://{listen}") == (0, "")
        status, message = ask("--url", f"http://{listen}")
    assert status == 1
    assert "refused" in message


def written(directory: Path, more: str) -> str:
    """A web configuration with a certificate for somebody else, which the exporter also takes from clients."""
    authority = trustme.CA()
    certificate = authority.issue_cert("elsewhere.example")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    (directory / "web.yml").write_text(f"tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n{more}")
    return str(directory / "web.yml")


def test_certificate_and_password_of_the_exporter_do_not_matter(tmp_path: Path) -> None:
    password = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    web = written(tmp_path, f"basic_auth_users: {{someone: '{password}'}}\n")
    with Exporter(*WITHOUT, "--web-config", web) as exporter:
        assert ask("--url", exporter.url.replace("http:", "https:")) == (0, "")


def test_an_exporter_that_insists_on_a_certificate_gets_one(tmp_path: Path) -> None:
    web = written(tmp_path, "  client_ca_file: ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n")
    with Exporter(*WITHOUT, "--web-config", web) as exporter:
        url = exporter.url.replace("http:", "https:")
        assert ask("--url", url)[0] == 1
        own = ("--cert-file", str(tmp_path / "cert.pem"), "--key-file", str(tmp_path / "key.pem"))
        assert ask("--url", url, *own) == (0, "")
        assert ask("--url", url, *own[2:])[0] == 2


def test_an_exporter_that_hangs_or_fails_is_not_well() -> None:
    with EngineServer({"/-/healthy": hang}) as server:
        expected = f"llm-headroom: {server.url}/-/healthy: no response within 0.2 s\n"
        assert ask("--url", server.url, "--timeout", "0.2") == (1, expected)
    with EngineServer({"/-/healthy": Reply(b"no", 503)}) as server:
        assert ask("--url", server.url) == (1, "llm-headroom: /-/healthy returned 503\n")


def hang_up(_server: EngineServer, _connection: socket.socket) -> None:
    """Close without a word."""


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (Reply(b"llm-headroom is healthy"), None),
        (Reply(b"", 401), None),
        (Reply(b"", 429), None),
        (Reply(b"", 204), "/-/healthy returned 204"),
        (Reply(b"", 302), "/-/healthy returned 302"),
        (Reply(b"", 404), "/-/healthy returned 404"),
        (garbage, "the response is not valid HTTP/1.1: illegal request line"),
        (garbage, "; does it speak TLS (https://)?"),
        (hang_up, "/under/-/healthy: the response is not valid HTTP/1.1: Server disconnected"),
    ],
)
def test_what_an_exporter_answers(reply: Reply | Behaviour, problem: str | None) -> None:
    with EngineServer({"/under/-/healthy": reply}) as server:
        found = health.problem(f"{server.url}/under", 60.0)
    assert (found is None) is (problem is None)
    assert (problem or "") in (found or "")


def test_what_speaks_no_tls_is_not_asked_whether_it_does(tmp_path: Path) -> None:
    with EngineServer({"*": Reply(b"")}) as server:
        found = health.problem(server.url.replace("http:", "https:"), 60.0)
        assert found is not None
        assert "does it speak TLS" not in found
        missing = health.problem(server.url.replace("http:", "https:"), 60.0, cert_file=tmp_path / "none.crt")
    assert missing is not None
    assert "cannot read file" in missing


def test_what_is_no_url_is_a_usage_error() -> None:
    assert ask("--url", "nonsense")[0] == 2


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (None, "http://127.0.0.1:9836"),
        (":9999", "http://127.0.0.1:9999"),
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("[::]:1234", "http://127.0.0.1:1234"),
        ("[::1]:1234,:80", "http://[::1]:1234"),
        ("10.1.2.3:80, :81", "http://10.1.2.3:80"),
    ],
)
def test_the_exporter_is_found_by_its_own_setting(listen: str | None, url: str) -> None:
    assert health.url(listen) == url
