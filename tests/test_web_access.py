"""TLS, client certificates, users, rate limit and headers of the web server, with real certificates and hashes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import logging
import ssl
import threading
import warnings
from pathlib import PosixPath
from typing import TYPE_CHECKING, ClassVar

import bcrypt
import pytest
import trustme

from bounded import run
from llm_headroom.config.errors import ConfigError
from llm_headroom.net.http_messages import Request, Response
from llm_headroom.web import access
from llm_headroom.web.server import serve
from llm_headroom.web.tls import names_one_of
from llm_headroom.web.users import Proved, Users

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from llm_headroom.net.http_server import HttpServer

TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


async def page(_: Request) -> Response:
    return Response(b"page", headers=(("Content-Security-Policy", "default-src 'self'"),))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a look at the files may take longer than a request waits for it."""
    monkeypatch.setattr(access, "PATIENCE", 60.0)


@contextlib.asynccontextmanager
async def serving(web_config: Path) -> AsyncIterator[HttpServer]:
    server = await serve(page, ["127.0.0.1:0"], web_config=web_config)
    try:
        yield server
    finally:
        await server.close()


def client_of(server: HttpServer, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    port = int(server.addresses[0].rpartition(":")[2])
    if context is None:
        return http.client.HTTPConnection("localhost", port, timeout=60)
    return http.client.HTTPSConnection("localhost", port, timeout=60, context=context)


def exchange(client: http.client.HTTPConnection, credentials: str = "") -> tuple[int, Mapping[str, str], bytes]:
    """One request on a connection that stays open: status, headers, body. `credentials` are `user:password`."""
    headers = {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()} if credentials else {}
    client.request("GET", "/", headers=headers)
    response = client.getresponse()
    return response.status, dict(response.getheaders()), response.read()


async def ask(
    server: HttpServer, *, context: ssl.SSLContext | None = None, credentials: str = ""
) -> tuple[int, Mapping[str, str], bytes]:
    def blocking() -> tuple[int, Mapping[str, str], bytes]:
        with contextlib.closing(client_of(server, context)) as client:
            return exchange(client, credentials)

    return await asyncio.to_thread(blocking)


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def written(directory: Path, text: str) -> Path:
    """A web configuration; one in its place is replaced, since what is as long and as old as that is no news."""
    file, new = directory / "web.yml", directory / "web.new"
    new.write_text(text)
    return new.replace(file)


def install(authority: trustme.CA, directory: Path) -> None:
    """Writes server.crt and server.key."""
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(directory / "server.key")
    certificate.cert_chain_pems[0].write_to_path(directory / "server.crt")


def trusting(authority: trustme.CA, certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def directory(tmp_path: Path, authority: trustme.CA) -> Path:
    """A directory with server.crt, server.key and ca.crt."""
    install(authority, tmp_path)
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    return tmp_path


# TLS -----------------------------------------------------------------------------------------------------------------


def test_pages_come_over_tls_and_not_in_the_clear(
    directory: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "llm_headroom")

    async def test() -> None:
        async with serving(written(directory, TLS)) as server:
            assert (await ask(server, context=trusting(authority)))[2] == b"page"
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                await ask(server)
            assert (await ask(server, context=trusting(authority)))[0] == 200

    run(test())
    assert [each.getMessage() for each in caplog.records] == ["TLS handshake failed"]


def test_certificate_and_key_may_stand_in_the_file(directory: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        lines = ["tls_server_config:"]
        for name, file in (("cert", "server.crt"), ("key", "server.key")):
            lines += [f"  {name}: |", *(f"    {line}" for line in (directory / file).read_text().splitlines())]
        config = written(directory, "\n".join(lines))
        (directory / "server.crt").unlink()
        (directory / "server.key").unlink()
        async with serving(config) as server:
            assert (await ask(server, context=trusting(authority)))[2] == b"page"

    run(test())


def test_a_certificate_is_rotated_without_a_restart(
    directory: Path, authority: trustme.CA, other_authority: trustme.CA
) -> None:
    async def test() -> None:
        async with serving(written(directory, TLS)) as server:
            with contextlib.closing(client_of(server, trusting(authority))) as kept:
                assert (await asyncio.to_thread(exchange, kept))[0] == 200
                install(other_authority, directory)
                assert (await ask(server, context=trusting(other_authority)))[0] == 200
                with pytest.raises(ssl.SSLCertVerificationError):
                    await ask(server, context=trusting(authority))
                assert (await asyncio.to_thread(exchange, kept))[0] == 200

    run(test())


def test_a_half_finished_rotation_keeps_the_former_certificate(
    directory: Path, authority: trustme.CA, other_authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(written(directory, TLS)) as server:
            certificate = other_authority.issue_cert("localhost")
            certificate.cert_chain_pems[0].write_to_path(directory / "server.crt")
            for _ in range(3):
                assert (await ask(server, context=trusting(authority)))[0] == 200
            certificate.private_key_pem.write_to_path(directory / "server.key")
            assert (await ask(server, context=trusting(other_authority)))[0] == 200

    run(test())
    errors = [vars(record)["error"] for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "server.key does not belong to the certificate" in errors[0]


def test_tls_is_turned_on_and_off_while_serving(directory: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        async with serving(written(directory, "# plain\n")) as server:
            assert (await ask(server))[0] == 200
            written(directory, TLS)
            assert (await ask(server, context=trusting(authority)))[0] == 200
            written(directory, "# plain again\n")
            assert (await ask(server))[0] == 200

    run(test())


def negotiated(server: HttpServer, context: ssl.SSLContext) -> tuple[str | None, str]:
    """The TLS version and the cipher suite of one connection."""
    with contextlib.closing(client_of(server, context)) as client:
        client.connect()
        assert isinstance(client.sock, ssl.SSLSocket)
        cipher = client.sock.cipher()
        assert cipher is not None
        return client.sock.version(), cipher[0]


def test_versions_outside_the_range_are_refused(directory: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        older = trusting(authority)
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        async with serving(written(directory, TLS)) as server:
            assert (await asyncio.to_thread(negotiated, server, older))[0] == "TLSv1.2"
            assert (await asyncio.to_thread(negotiated, server, trusting(authority)))[0] == "TLSv1.3"
            for limit in ("min_version: TLS13", "cipher_suites: [TLS_AES_128_GCM_SHA256]"):
                written(directory, f"{TLS}  {limit}\n")
                with pytest.raises(ssl.SSLError):
                    await asyncio.to_thread(negotiated, server, older)
                assert (await asyncio.to_thread(negotiated, server, trusting(authority)))[0] == "TLSv1.3"
            written(directory, TLS + "  max_version: TLS12\n")
            assert (await asyncio.to_thread(negotiated, server, trusting(authority)))[0] == "TLSv1.2"

    run(test())


def test_tls_1_0_is_spoken_only_where_the_file_asks_for_it(directory: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        ancient = trusting(authority)
        ancient.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            ancient.minimum_version = ancient.maximum_version = ssl.TLSVersion.TLSv1
        async with serving(written(directory, TLS)) as server:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(negotiated, server, ancient)
            written(directory, TLS + "  min_version: TLS10\n")
            assert (await asyncio.to_thread(negotiated, server, ancient))[0] == "TLSv1"

    run(test())


def test_the_cipher_suite_is_one_of_those_listed_in_their_order(directory: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        first, second = "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"
        client = trusting(authority)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(f"{second}:{first}")
        suites = "[TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]"
        async with serving(written(directory, f"{TLS}  cipher_suites: {suites}\n")) as server:
            assert (await asyncio.to_thread(negotiated, server, client))[1] == first
            written(directory, f"{TLS}  cipher_suites: {suites}\n  prefer_server_cipher_suites: false\n")
            assert (await asyncio.to_thread(negotiated, server, client))[1] == second
            client.set_ciphers("ECDHE-ECDSA-CHACHA20-POLY1305")
            with pytest.raises(ssl.SSLError):
                await asyncio.to_thread(negotiated, server, client)

    run(test())


# Client certificates -------------------------------------------------------------------------------------------------

MUTUAL = TLS + "  client_ca_file: ca.crt\n  client_auth_type: "


async def is_admitted(server: HttpServer, context: ssl.SSLContext) -> bool:
    """With TLS 1.3 a client learns only while it reads that its certificate was refused."""
    try:
        return (await ask(server, context=context))[0] == 200
    except (ssl.SSLError, ConnectionError, http.client.BadStatusLine):
        return False


@pytest.mark.parametrize(
    ("policy", "none", "known", "foreign"),
    [
        ("RequireAndVerifyClientCert", False, True, False),
        ("VerifyClientCertIfGiven", True, True, False),
        ("RequestClientCert", True, True, True),
    ],
)
def test_a_client_is_admitted_by_its_certificate(  # noqa: PLR0913, PLR0917 - a row of the table and three fixtures
    directory: Path,
    authority: trustme.CA,
    other_authority: trustme.CA,
    policy: str,
    none: bool,  # noqa: FBT001 - a cell of the table
    known: bool,  # noqa: FBT001 - the same
    foreign: bool,  # noqa: FBT001 - the same
) -> None:
    async def test() -> None:
        async with serving(written(directory, MUTUAL + policy)) as server:
            assert await is_admitted(server, trusting(authority)) is none
            assert await is_admitted(server, trusting(authority, authority.issue_cert("prometheus"))) is known
            assert await is_admitted(server, trusting(authority, other_authority.issue_cert("prometheus"))) is foreign

    run(test())


@pytest.mark.parametrize(
    ("identity", "allowed"),
    [
        ("prometheus.example", True),
        ("10.0.0.7", True),
        ("2001:db8::7", True),
        ("ops@example.org", True),
        ("other.example", False),
        ("10.0.0.8", False),
        ("sub.prometheus.example", False),
    ],
)
def test_a_client_needs_one_of_the_allowed_names(
    directory: Path,
    authority: trustme.CA,
    identity: str,
    allowed: bool,  # noqa: FBT001 - a cell of the table
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        names = "[prometheus.example, 10.0.0.7, '2001:db8::7', ops@example.org]"
        config = written(directory, f"{MUTUAL}RequireAndVerifyClientCert\n  client_allowed_sans: {names}\n")
        async with serving(config) as server:
            assert await is_admitted(server, trusting(authority, authority.issue_cert(identity))) is allowed

    run(test())
    refused = [vars(each)["error"] for each in caplog.records if each.getMessage() == "client refused"]
    assert refused == ([] if allowed else ["its certificate has no name out of client_allowed_sans"])


def test_a_uri_is_a_name_too_and_a_common_name_is_none() -> None:
    certificate = {"subject": ((("commonName", "cn"),),), "subjectAltName": (("URI", "spiffe://a/b"), ("DNS", "d"))}
    assert names_one_of(certificate, ["spiffe://a/b"])
    assert not names_one_of(certificate, ["cn", "spiffe://a", "spiffe://a/b/c"])
    assert not names_one_of({}, ["cn"])


def test_a_name_taken_from_the_list_is_refused_at_the_next_connection(directory: Path, authority: trustme.CA) -> None:
    async def test() -> None:
        rule = MUTUAL + "RequireAndVerifyClientCert\n  client_allowed_sans: "
        client = trusting(authority, authority.issue_cert("prometheus"))
        async with serving(written(directory, rule + "[prometheus]")) as server:
            assert await is_admitted(server, client)
            written(directory, rule + "[grafana]")
            assert not await is_admitted(server, client)

    run(test())


# Users ---------------------------------------------------------------------------------------------------------------


def test_only_a_user_with_the_right_password_is_admitted(tmp_path: Path) -> None:
    async def test() -> None:
        users = f"basic_auth_users:\n  alice: {hashed('open: sesame ü')}\n  bob: {hashed('hunter2')}\n"
        async with serving(written(tmp_path, users)) as server:
            status, headers, body = await ask(server)
            assert (status, headers["WWW-Authenticate"].split()[0]) == (401, "Basic")
            assert b"page" not in body
            for _ in range(2):  # the second time from what was remembered
                for admitted in ("alice:open: sesame ü", "bob:hunter2"):
                    assert (await ask(server, credentials=admitted))[0] == 200
                for refused in ("alice:hunter2", "bob:", "alice", ":hunter2", "carol:hunter2", "bob:hunter2 "):
                    assert (await ask(server, credentials=refused))[0] == 401

    run(test())


def test_malformed_credentials_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(written(tmp_path, f"basic_auth_users:\n  alice: {hashed('x')}\n")) as server:

            def blocking() -> None:
                with contextlib.closing(client_of(server)) as client:
                    for value in ("Basic", "Basic !!", "Bearer YWxpY2U6eA==", "Basic //86eA==", "Basic YWxpY2U="):
                        client.request("GET", "/", headers={"Authorization": value})
                        response = client.getresponse()
                        response.read()
                        assert response.status == 401
                    client.request("GET", "/", headers={"Authorization": "basic YWxpY2U6eA=="})
                    assert client.getresponse().status == 200

            await asyncio.to_thread(blocking)

    run(test())


def test_a_password_longer_than_bcrypt_reads_is_the_one_that_was_hashed(tmp_path: Path) -> None:
    async def test() -> None:
        users = f"basic_auth_users:\n  alice: {hashed('p' * 72)}\n"
        async with serving(written(tmp_path, users)) as server:
            assert (await ask(server, credentials="alice:" + "p" * 100))[0] == 200
            assert (await ask(server, credentials="alice:" + "p" * 71))[0] == 401

    run(test())


def test_a_changed_password_counts_from_the_next_request_even_on_an_open_connection(tmp_path: Path) -> None:
    async def test() -> None:
        users = "basic_auth_users:\n  alice: "
        async with serving(written(tmp_path, users + hashed("old"))) as server:
            with contextlib.closing(client_of(server)) as client:
                assert (await asyncio.to_thread(exchange, client, "alice:old"))[0] == 200
                written(tmp_path, users + hashed("new"))
                assert (await asyncio.to_thread(exchange, client, "alice:old"))[0] == 401
                assert (await asyncio.to_thread(exchange, client, "alice:new"))[0] == 200

    run(test())


def guess(number: int) -> bytes:
    credentials = base64.b64encode(b"alice:wrong-%d" % number)
    return b"GET / HTTP/1.0\r\nAuthorization: Basic " + credentials + b"\r\n\r\n"


def test_many_guesses_at_once_neither_pile_up_nor_keep_the_right_password_out(tmp_path: Path) -> None:
    async def test() -> None:
        slow = bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()
        async with serving(written(tmp_path, f"basic_auth_users:\n  alice: {slow}\n")) as server:
            port = int(server.addresses[0].rpartition(":")[2])
            guesses = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
            for number, (_, writer) in enumerate(guesses):
                writer.write(guess(number))
            # the oldest of too many that wait is turned away as soon as the last has come
            assert b" 503 " in (await asyncio.gather(*(reader.readline() for reader, _ in guesses[1:20])))[0]
            with contextlib.closing(client_of(server)) as new:
                assert (await asyncio.to_thread(exchange, new, "alice:right"))[0] == 200
            for _, writer in guesses:
                writer.close()

    run(test())


def test_who_was_admitted_before_is_admitted_after_a_reload_during_a_flood_of_guesses(tmp_path: Path) -> None:
    async def test() -> None:
        slow = bcrypt.hashpw(b"right", bcrypt.gensalt(9)).decode()
        text = f"basic_auth_users:\n  alice: {slow}\n"
        async with serving(written(tmp_path, text)) as server:
            with contextlib.closing(client_of(server)) as known:
                assert (await asyncio.to_thread(exchange, known, "alice:right"))[0] == 200
                port = int(server.addresses[0].rpartition(":")[2])
                guesses = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
                written(tmp_path, text + "# another comment\n")
                for number, (_, writer) in enumerate(guesses):
                    writer.write(guess(number))
                assert (await asyncio.to_thread(exchange, known, "alice:right"))[0] == 200
                answers = [await reader.read() for reader, _ in guesses]
                for _, writer in guesses:
                    writer.close()
        assert {answer.split()[1] for answer in answers} == {b"401"}

    run(test())


def test_who_was_right_before_waits_for_no_check() -> None:
    async def test() -> None:
        users = Users({"alice": bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()}, Proved())
        right, wrong = ("Basic " + base64.b64encode(b"alice:" + word).decode() for word in (b"right", b"wrong"))
        assert await users.admit(right)
        guess = asyncio.create_task(users.admit(wrong))
        await asyncio.sleep(0)  # it is being checked
        assert await users.admit(right)
        assert not guess.done()
        assert not await guess

    run(test())


def test_one_check_is_enough_for_all_who_come_with_the_same_password() -> None:
    async def test() -> None:
        users = Users({"alice": bcrypt.hashpw(b"right", bcrypt.gensalt(10)).decode()}, Proved())
        right = "Basic " + base64.b64encode(b"alice:right").decode()
        first, *others = [asyncio.create_task(users.admit(right)) for _ in range(5)]
        assert await first
        for _ in range(2 * len(others)):
            await asyncio.sleep(0)  # each lets the next one pass
        assert [other.done() for other in others] == [True] * 4
        assert all(await asyncio.gather(*others))

    run(test())


# Rate limit, headers, and the file -----------------------------------------------------------------------------------


def test_requests_beyond_the_burst_get_429(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(written(tmp_path, "rate_limit: {interval: 1h, burst: 3}\n")) as server:
            assert [(await ask(server))[0] for _ in range(5)] == [200, 200, 200, 429, 429]

    run(test())


def test_the_bucket_fills_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(written(tmp_path, "rate_limit: {interval: 1us, burst: 1}\n")) as server:
            assert [(await ask(server))[0] for _ in range(3)] == [200, 200, 200]

    run(test())


def test_configured_headers_go_with_every_response_and_win_over_the_pages(tmp_path: Path) -> None:
    async def test() -> None:
        headers = (
            "http_server_config:\n  headers:\n    X-Content-Type-Options: nosniff\n    X-Frame-Options: deny\n"
            "    Content-Security-Policy: default-src 'none'\n"
        )
        async with serving(written(tmp_path, headers + f"basic_auth_users:\n  alice: {hashed('x')}\n")) as server:
            for password, expected in (("x", 200), ("y", 401)):
                token = base64.b64encode(f"alice:{password}".encode()).decode()

                def blocking(token: str = token) -> tuple[int, http.client.HTTPMessage]:
                    with contextlib.closing(client_of(server)) as client:
                        client.request("GET", "/", headers={"Authorization": f"Basic {token}"})
                        response = client.getresponse()
                        return response.status, response.headers

                status, got = await asyncio.to_thread(blocking)
                assert status == expected
                assert got.get_all("X-Content-Type-Options") == ["nosniff"]
                assert got.get_all("X-Frame-Options") == ["deny"]
                assert got.get_all("Content-Security-Policy") == ["default-src 'none'"]

    run(test())


def test_an_unusable_file_keeps_the_server_from_starting(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(ConfigError, match=r"web\.yml:1: basic_auth: unknown key"):
            await serve(page, ["127.0.0.1:0"], web_config=written(tmp_path, "basic_auth: {}\n"))

    run(test())


@pytest.mark.parametrize("broken", ["basic_auth_users: [\n", "typo: 1\n", TLS, None])
def test_a_broken_edit_keeps_the_last_good_configuration_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        file = written(tmp_path, f"basic_auth_users:\n  alice: {hashed('x')}\n")
        async with serving(file) as server:
            assert (await ask(server, credentials="alice:x"))[0] == 200
            if broken is None:
                file.unlink()
            else:
                written(tmp_path, broken)
            for _ in range(3):
                assert (await ask(server, credentials="alice:x"))[0] == 200
                assert (await ask(server))[0] == 401
            written(tmp_path, "# open\n")
            assert (await ask(server))[0] == 200

    run(test())
    said = [each.getMessage() for each in caplog.records if each.getMessage().startswith("web configuration")]
    assert said == ["web configuration not reloaded", "web configuration reloaded"]
    errors = [vars(record)["error"] for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "web.yml" in errors[0]


def test_a_link_turned_to_another_file_is_noticed(tmp_path: Path) -> None:
    """As Kubernetes updates a mounted ConfigMap: by a symbolic link to a directory."""

    async def test() -> None:
        for version in ("one", "two"):
            (tmp_path / version).mkdir()
            written(tmp_path / version, f"basic_auth_users:\n  alice: {hashed(version)}\n")
        link = tmp_path / "data"
        link.symlink_to("one")
        async with serving(link / "web.yml") as server:
            assert (await ask(server, credentials="alice:one"))[0] == 200
            (tmp_path / "next").symlink_to("two")
            (tmp_path / "next").rename(link)
            assert (await ask(server, credentials="alice:two"))[0] == 200
            assert (await ask(server, credentials="alice:one"))[0] == 401

    run(test())


class Hanging(PosixPath):
    """A file on a disk that may hang: whoever opens it, or looks at it, waits until it does no longer."""

    answers: ClassVar = threading.Event()

    def __fspath__(self) -> str:
        self.answers.wait(60)
        return super().__fspath__()


def test_a_disk_that_hangs_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "PATIENCE", 0.1)

    async def test() -> None:
        Hanging.answers.set()
        file = written(tmp_path, f"basic_auth_users:\n  alice: {hashed('x')}\n")
        async with serving(Hanging(file)) as server:
            Hanging.answers.clear()
            for _ in range(3):
                assert (await ask(server, credentials="alice:x"))[0] == 200
                assert (await ask(server))[0] == 401
            written(tmp_path, "# open\n")
            assert (await ask(server))[0] == 401
            Hanging.answers.set()
            while (await ask(server))[0] != 200:
                pass

    run(test())
    said = [each.getMessage() for each in caplog.records if each.getMessage().startswith("web configuration")]
    assert len(said) == 1


def test_a_client_that_leaves_while_a_disk_hangs_is_let_go(tmp_path: Path) -> None:
    async def test() -> None:
        Hanging.answers.set()
        async with serving(Hanging(written(tmp_path, "# open\n"))) as server:
            Hanging.answers.clear()
            host, _, port = server.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            await server.close()
            assert await reader.read() == b""
            writer.close()
            Hanging.answers.set()

    run(test())
