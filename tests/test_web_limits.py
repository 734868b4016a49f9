"""Limits of the web server, each from both sides: requests at once, the rate, passwords, and what TLS agrees on."""

from __future__ import annotations

import asyncio
import base64
import ssl
import warnings
from typing import TYPE_CHECKING, Any

import bcrypt
import pytest
import trustme

from bounded import run
from llm_headroom.config.errors import ConfigError
from llm_headroom.net.http_connection import Limits
from llm_headroom.net.http_messages import Request, Response
from llm_headroom.web.access import Access, TokenBucket
from llm_headroom.web.config import RateLimit, WebConfig, parse
from llm_headroom.web.packing import accepts_gzip
from llm_headroom.web.server import serve
from llm_headroom.web.tls import names_one_of, server_context
from llm_headroom.web.users import Proved, TooManyChecksError, Users

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from llm_headroom.net.http_server import HttpServer

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"


@pytest.mark.parametrize(
    ("encodings", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP ; q=0.5", True),
        ("*", True),
        ("br, gzip", True),
        ("gzip;q=0", False),
        ("gzip; q = 0.000, *", False),
        ("gzip;Q=0.0", False),
        ("br;q=0, gzip;q=0.001", True),
        ("br", False),
        ("xgzip", False),
    ],
)
def test_gzip_is_for_those_who_say_so(encodings: str, *, accepted: bool) -> None:
    assert accepts_gzip(Request("GET", "/", {}, {"accept-encoding": encodings})) is accepted


# Requests at once ----------------------------------------------------------------------------------------------------
class Held:
    """A handler whose requests go on until they are let go."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.begun = asyncio.Semaphore(0)

    async def handle(self, request: Request) -> Response:
        """Wait, but for a request that says `now`."""
        self.begun.release()
        if "now" not in request.query:
            await self.release.wait()
        return Response(b"done")


async def status(server: HttpServer, target: str) -> tuple[int, bytes]:
    host, _, port = server.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {target} HTTP/1.0\r\n\r\n".encode())
    raw = await reader.read()
    writer.close()
    return int(raw.split()[1]), raw.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("held", "most", "expected"),
    [
        (["/"] * 1, 2, {"/": 200, "/other": 200, "/probe": 200, "/-/healthy": 200}),
        (["/"] * 2, 2, {"/": 503, "/other": 503, "/probe": 200, "/-/healthy": 200, "/-/ready": 200}),
        (["/probe"] * 2, 2, {"/": 200, "/probe": 200}),
        (["/probe"] * 3, 2, {"/": 200, "/probe": 503, "/-/healthy": 200}),
        (["/-/ready"] * 4, 2, {"/": 200, "/probe": 200, "/-/ready": 200}),
        (["/"] * 5, 0, {"/": 200, "/probe": 200}),
    ],
)
def test_pages_and_probes_have_limits_of_their_own_and_health_has_none(
    held: list[str], most: int, expected: Mapping[str, int]
) -> None:
    async def test() -> None:
        handler = Held()
        limits = Limits(connections=7)  # of which three may be probes
        server = await serve(handler.handle, ["127.0.0.1:0"], max_requests=most, limits=limits)
        waiting = [asyncio.create_task(status(server, target)) for target in held]
        for _ in held:
            await handler.begun.acquire()
        assert {target: (await status(server, f"{target}?now=1"))[0] for target in expected} == expected
        handler.release.set()
        assert [each for each, _ in await asyncio.gather(*waiting)] == [200] * len(held)
        assert {target: (await status(server, f"{target}?now=1"))[0] for target in expected} == dict.fromkeys(
            expected, 200
        )
        await server.close()

    run(test())


def test_a_rate_limit_is_for_all_but_who_asks_for_health(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "web.yml").write_text("rate_limit: {interval: 1h, burst: 2}\n")
        server = await serve(Held().handle, ["127.0.0.1:0"], web_config=tmp_path / "web.yml")
        asked = ("/-/healthy", "/-/ready", "/-/healthy", "/", "/", "/", "/probe", "/-/ready")
        assert [(await status(server, f"{each}?now=1"))[0] for each in asked] == [200] * 5 + [429] * 2 + [200]
        await server.close()

    run(test())


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0.0, 0.0, 0.0], [True, True, False]),
        ([0.0, 0.0, 9.99, 10.0, 10.0], [True, True, False, True, False]),
        ([0.0, 0.0, 5.0, 5.0, 10.0, 15.0], [True, True, False, False, True, False]),
        ([0.0, 1e6, 1e6, 1e6], [True, True, True, False]),
        ([7.0, 7.0, 27.0, 27.0, 27.0], [True, True, True, True, False]),
    ],
)
def test_a_token_comes_every_ten_seconds_and_two_may_be_saved(times: list[float], expected: list[bool]) -> None:
    bucket = TokenBucket(RateLimit(10.0, 2))
    assert [bucket.take(now) for now in times] == expected


# Passwords -----------------------------------------------------------------------------------------------------------
def basic(password: str, user: str = "alice") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def users(proved: Proved | None = None) -> Users:
    """Alice, whose password is `right`, of a hash that takes its time."""
    return Users({"alice": bcrypt.hashpw(b"right", bcrypt.gensalt(8)).decode()}, proved or Proved())


def test_what_was_proved_is_remembered_of_the_latest_256() -> None:
    proved = Proved()
    digests = [proved.digest("alice", HASH, b"%d" % number) for number in range(257)]
    for each in digests[:256]:
        proved.add(each)
    assert all(each in proved for each in digests[:256])
    proved.add(digests[256])
    assert [each in proved for each in (digests[0], digests[1], digests[256])] == [False, True, True]


def test_each_user_hash_and_password_has_a_digest_of_its_own_in_each_process() -> None:
    proved = Proved()
    known = [("alice", HASH, b"x"), ("alic", HASH, b"ex"), ("alice", HASH[::-1], b"x"), ("alice", HASH, b"y")]
    assert len({proved.digest(*each) for each in known} | {Proved().digest(*known[0])}) == 5
    assert proved.digest(*known[0]) == proved.digest(*known[0])
    assert proved.digest("a" + HASH, HASH, b"x") != proved.digest("a", HASH + HASH, b"x")


@pytest.mark.parametrize("more", [0, 1, 2])
def test_so_many_passwords_wait_and_of_more_the_oldest_is_refused(more: int) -> None:
    async def test() -> None:
        admitting = users()
        tasks = [asyncio.create_task(admitting.admit(basic(f"wrong {number}"))) for number in range(1 + 64 + more)]
        await asyncio.sleep(0)  # all have come
        await asyncio.sleep(0)  # and whoever is refused has heard of it
        refused = [number for number, each in enumerate(tasks) if each.done()]
        assert refused == list(range(1, 1 + more))
        assert all(isinstance(tasks[number].exception(), TooManyChecksError) for number in refused)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(test())


def test_who_leaves_while_waiting_is_passed_over_and_the_newest_is_first() -> None:
    async def test() -> None:
        admitting, order = users(), list[str]()

        async def admitted(password: str) -> None:
            assert await admitting.admit(basic(password)) is (password == "right")
            order.append(password)

        first, second, third, fourth = (
            asyncio.create_task(admitted(password)) for password in ("wrong 1", "right", "wrong 2", "wrong 3")
        )
        await asyncio.sleep(0)
        third.cancel()
        await asyncio.gather(first, second, fourth)
        assert third.cancelled()
        assert order == ["wrong 1", "wrong 3", "right"]
        assert await admitting.admit(basic("right"))
        assert not await admitting.admit(basic("right", "bob"))

    run(test())


def test_who_leaves_just_as_the_turn_comes_gives_it_to_the_next() -> None:
    async def test() -> None:
        leaving: list[asyncio.Task[bool]] = []

        class Watched(Proved):
            """Has somebody leave once the password before theirs is found among those proved: their turn is next."""

            proved = False

            def add(self, digest: bytes) -> None:
                super().add(digest)
                self.proved = True

            def __contains__(self, digest: bytes) -> bool:
                if self.proved:
                    asyncio.get_running_loop().call_soon(leaving[0].cancel)
                return super().__contains__(digest)

        admitting = users(Watched())
        first, last, left, newest = (
            asyncio.create_task(admitting.admit(basic(password)))
            for password in ("right", "wrong 1", "wrong 2", "right")
        )
        leaving.append(left)
        assert await first
        assert await newest
        assert not await last
        assert left.cancelled()

    run(test())


@pytest.mark.parametrize(
    ("authorization", "admitted"),
    [
        (basic("right"), True),
        (basic("right").replace("Basic", "BASIC"), True),
        (basic("right").replace("Basic", "Bearer"), False),
        (basic("right") + "  ", True),
        (basic("right") + "!", False),
        ("Basic " + base64.b64encode(b"alice").decode(), False),
        ("Basic " + base64.b64encode(b"\xff:right").decode(), False),
        (basic("right", "bob"), False),
        ("", False),
    ],
)
def test_credentials_are_a_user_a_colon_and_a_password(authorization: str, *, admitted: bool) -> None:
    async def test() -> None:
        assert await users().admit(authorization) is admitted

    run(test())


# TLS -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def configured(tmp_path: Path, authority: trustme.CA) -> Callable[[str], WebConfig]:
    """The web configuration with these further lines of `tls_server_config`."""
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "server.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")

    def read(lines: str) -> WebConfig:
        text = f"tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n{lines}"
        (tmp_path / "web.yml").write_text(text)
        return parse(tmp_path / "web.yml")

    return read


def context_of(config: WebConfig) -> ssl.SSLContext:
    assert config.tls is not None
    return server_context(config.tls)


def agreed(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """What both agree on, in memory.

    Raises:
        ssl.SSLError: they do not.
    """
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(back, there, server_hostname="localhost")
    other = server.wrap_bio(there, back, server_side=True)
    todo = [one, other]
    while todo:
        for each in list(todo):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
            todo.remove(each)
    return one


def client(authority: trustme.CA, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if version is not None:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = context.maximum_version = version
    return context


V1_0, V1_1, V1_2, V1_3 = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.mark.parametrize(
    ("lines", "spoken"),
    [
        ("", {V1_2, V1_3}),
        ("  min_version:\n  max_version:\n", {V1_2, V1_3}),
        ("  min_version: TLS10\n", {V1_0, V1_1, V1_2, V1_3}),
        ("  min_version: TLS11\n", {V1_1, V1_2, V1_3}),
        ("  min_version: TLS11\n  max_version: TLS11\n", {V1_1}),
        ("  min_version: TLS12\n  max_version: TLS12\n", {V1_2}),
        ("  min_version: TLS13\n", {V1_3}),
        ("  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", {V1_3}),
        ("  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n", {V1_2, V1_3}),
        ("  min_version: TLS11\n  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA]\n", {V1_1, V1_2, V1_3}),
    ],
)
def test_versions_are_those_between_the_limits(
    configured: Callable[[str], WebConfig], authority: trustme.CA, lines: str, spoken: set[ssl.TLSVersion]
) -> None:
    server = context_of(configured(lines))
    for version in (V1_0, V1_1, V1_2, V1_3):
        if version in spoken:
            assert agreed(server, client(authority, version)).selected_alpn_protocol() == "http/1.1"
        else:
            with pytest.raises(ssl.SSLError):
                agreed(server, client(authority, version))


def test_no_connection_is_negotiated_anew_and_the_server_s_order_of_suites_counts(
    configured: Callable[[str], WebConfig],
) -> None:
    for line, own in (("", True), ("  prefer_server_cipher_suites: false\n", False)):
        options = context_of(configured(line)).options
        assert options & ssl.OP_NO_RENEGOTIATION
        assert bool(options & ssl.OP_CIPHER_SERVER_PREFERENCE) is own


@pytest.mark.parametrize(
    ("curves", "spoken"),
    [
        ("[]", {"prime256v1", "secp384r1"}),
        ("[CurveP256]", {"prime256v1"}),
        ("[CurveP384]", {"secp384r1"}),
        ("[CurveP256, CurveP384]", {"prime256v1", "secp384r1"}),
    ],
)
def test_a_single_curve_is_the_only_one(
    configured: Callable[[str], WebConfig], authority: trustme.CA, curves: str, spoken: set[str]
) -> None:
    server = context_of(configured(f"  curve_preferences: {curves}\n"))
    for curve in ("prime256v1", "secp384r1"):
        asking = client(authority)
        asking.set_ecdh_curve(curve)
        if curve in spoken:
            agreed(server, asking)
        else:
            with pytest.raises(ssl.SSLError):
                agreed(server, asking)


@pytest.mark.parametrize(
    ("policy", "mode", "authorities"),
    [
        ("''", ssl.CERT_NONE, 0),
        ("NoClientCert", ssl.CERT_NONE, 0),
        ("RequestClientCert", ssl.CERT_NONE, 0),
        ("VerifyClientCertIfGiven", ssl.CERT_OPTIONAL, 1),
        ("RequireAndVerifyClientCert", ssl.CERT_REQUIRED, 1),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_clients_are_verified_against_the_given_authority_or_the_system_s(  # noqa: PLR0913, PLR0917 - a row and fixtures
    configured: Callable[[str], WebConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    policy: str,
    mode: ssl.VerifyMode,
    authorities: int,
    own: bool,  # noqa: FBT001 - a cell of the table
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / ("none" if own else "ca.crt")))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    given = "  client_ca_file: ca.crt\n" if own and authorities else ""
    context = context_of(configured(f"  client_auth_type: {policy}\n{given}"))
    assert context.verify_mode is mode
    assert context.cert_store_stats()["x509_ca"] == authorities
    assert bool(context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN) == bool(authorities)


@pytest.mark.parametrize(
    ("names", "allowed", "admitted"),
    [
        ((("DNS", "a"),), ["a"], True),
        ((("DNS", "b"), ("DNS", "a")), ["c", "a"], True),
        ((("email", "a@b"),), ["a@b"], True),
        ((("IP Address", "2001:DB8:0:0:0:0:0:7"),), [" 2001:db8::7 "], True),
        ((("IP Address", "10.0.0.7"),), ["10.0.0.8"], False),
        ((("DirName", "a"),), ["a"], False),
        ((("Registered ID", "a"),), ["a"], False),
        ("DNS", ["D"], False),
        ((), ["a"], False),
    ],
)
def test_a_certificate_has_the_names_of_its_kinds(names: object, allowed: list[str], *, admitted: bool) -> None:
    assert names_one_of({"subjectAltName": names}, allowed) is admitted


@pytest.mark.parametrize(
    ("lines", "certificate", "admitted"),
    [
        ("  client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [a]\n", ["a"], True),
        ("  client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [a]\n", ["b"], False),
        ("  client_auth_type: VerifyClientCertIfGiven\n  client_allowed_sans: [a]\n", ["b"], False),
        ("  client_auth_type: VerifyClientCertIfGiven\n  client_allowed_sans: [a]\n", None, True),
        ("  client_auth_type: RequireAndVerifyClientCert\n", ["b"], True),
    ],
)
def test_only_a_certificate_that_was_shown_is_asked_for_its_names(
    configured: Callable[[str], WebConfig], lines: str, certificate: list[str] | None, *, admitted: bool
) -> None:
    shown: dict[str, Any] = {"subjectAltName": tuple(("DNS", name) for name in certificate or ())}
    access = Access(configured(lines), Proved())
    assert access.admits_certificate(None if certificate is None else shown) is admitted
    assert Access(WebConfig(), Proved()).admits_certificate(shown)


# The file ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("  cert: x\n", "tls_server_config.cert: excludes cert_file: give one of the two"),
        (
            "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.crt\n  client_ca: x\n",
            "tls_server_config.client_ca: excludes client_ca_file: give one of the two",
        ),
        ("  client_ca: x\n", "tls_server_config.client_ca: needs a client_auth_type"),
        ("  client_auth_type: RequireClientCert\n", "RequireClientCert is not supported"),
        (
            "  client_auth_type: RequestClientCert\n  client_allowed_sans: [a]\n",
            "client_allowed_sans: needs a client_auth_type that verifies certificates",
        ),
        ("  min_version: TLS13\n  max_version: TLS12\n", "max_version: TLS12 is below min_version, TLS13"),
    ],
)
def test_entries_that_contradict_each_other_are_an_error(
    configured: Callable[[str], WebConfig], lines: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem.replace(".", r"\.")):
        configured(lines)


def test_files_are_watched_where_they_are_given(configured: Callable[[str], WebConfig]) -> None:
    def names(lines: str) -> list[str]:
        return [each.name for each in configured(lines).pem_files]

    assert names("") == ["server.crt", "server.key"]
    mutual = "  client_auth_type: VerifyClientCertIfGiven\n"
    assert names(mutual + "  client_ca_file: ca.crt\n") == ["server.crt", "server.key", "ca.crt"]
    assert names(mutual + "  client_ca: x\n") == ["server.crt", "server.key"]
    assert WebConfig().pem_files == ()
