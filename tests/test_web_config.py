"""The web configuration file: what it accepts, and how it says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from llm_headroom.config.errors import ConfigError
from llm_headroom.web.config import ClientAuth, RateLimit, WebConfig, parse
from llm_headroom.web.tls import server_context

HASH = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG"
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def directory(tmp_path: Path, authority: trustme.CA) -> Path:
    """A directory with server.crt, server.key, ca.crt and another.key."""
    server = authority.issue_cert("localhost")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.crt")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    authority.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "another.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    return tmp_path


def written(directory: Path, text: str) -> Path:
    file = directory / "web.yml"
    file.write_text(text)
    return file


def load(path: Path) -> WebConfig:
    """Reads a file and the certificates that it names, as the server does."""
    config = parse(path)
    if config.tls is not None:
        server_context(config.tls)
    return config


@pytest.mark.parametrize(
    "text", ["# nothing yet\n", "tls_server_config:\nhttp_server_config:\nbasic_auth_users:\nrate_limit:\n"]
)
def test_an_empty_file_and_sections_without_a_value_configure_nothing(tmp_path: Path, text: str) -> None:
    config = load(written(tmp_path, text))
    assert (config.tls, config.headers, dict(config.users), config.rate_limit) == (None, (), {}, None)


def test_every_entry_of_the_format_is_read(directory: Path) -> None:
    text = f"""\
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  client_allowed_sans:
    - prometheus.example
    - 10.0.0.7
  min_version: TLS12
  max_version: TLS13
  cipher_suites:
    - TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    - TLS_AES_128_GCM_SHA256
  prefer_server_cipher_suites: false
  curve_preferences: [X25519]
http_server_config:
  http2: false
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Frame-Options: deny
    X-XSS-Protection: 0
    Content-Security-Policy: ""
basic_auth_users:
  alice: {HASH}
  7: {HASH}
rate_limit:
  interval: 1m0.5s
  burst: 20
"""
    config = load(written(directory, text))
    assert config.tls is not None
    assert config.tls.cert.file == directory / "server.crt"
    assert config.tls.client_auth is ClientAuth.REQUIRE_AND_VERIFY
    assert config.tls.client_allowed_sans == ("prometheus.example", "10.0.0.7")
    assert config.tls.ciphers == ("ECDHE-RSA-AES128-GCM-SHA256",)
    assert config.tls.curves == ("X25519",)
    assert not config.tls.prefer_server_ciphers
    assert config.headers == (
        ("Strict-Transport-Security", "max-age=31536000"),
        ("X-Frame-Options", "deny"),
        ("X-XSS-Protection", "0"),
    )
    assert config.users == {"alice": HASH, "7": HASH}
    assert config.rate_limit == RateLimit(60.5, 20)
    assert config.notes == ("http_server_config.http2 has no effect: this server speaks HTTP/1.1",)
    assert config.pem_files == (directory / "server.crt", directory / "server.key", directory / "ca.crt")


def test_certificates_may_stand_in_the_file_itself(directory: Path) -> None:
    def block(name: str) -> str:
        return "".join(f"    {line}\n" for line in (directory / name).read_text().splitlines())

    text = (
        f"tls_server_config:\n  cert: |\n{block('server.crt')}  key: |\n{block('server.key')}"
        f"  client_ca: |\n{block('ca.crt')}  client_auth_type: VerifyClientCertIfGiven\n"
    )
    config = load(written(directory, text))
    assert config.tls is not None
    assert config.pem_files == ()


def test_neither_a_key_nor_a_hash_shows_in_a_printed_configuration(directory: Path) -> None:
    key = (directory / "server.key").read_text()
    text = f"tls_server_config:\n  cert_file: server.crt\n  key: {key!r}\nbasic_auth_users:\n  alice: {HASH}\n"
    config = parse(written(directory, text.replace("'", '"')))
    assert config.tls is not None
    assert config.tls.key.text == key
    assert "PRIVATE" not in repr(config)
    assert HASH not in repr(config)


def test_suites_of_tls_1_3_alone_leave_no_older_version(directory: Path) -> None:
    text = TLS + "  cipher_suites: [TLS_AES_128_GCM_SHA256]\n"
    config = load(written(directory, text))
    assert config.tls is not None
    assert config.tls.ciphers == ()


def test_every_suite_of_go_has_the_name_that_openssl_has_for_it(directory: Path) -> None:
    def chosen(suite: str) -> tuple[str, ...] | None:
        tls = load(written(directory, f"{TLS}  cipher_suites: [{suite}]\n")).tls
        return None if tls is None else tls.ciphers

    with pytest.raises(ConfigError) as error:
        chosen("none")
    suites = str(error.value).partition("expected one of ")[2].partition(", got")[0].split(", ")
    newest = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
    assert len(suites) == 13
    for suite in suites:
        name = suite.removeprefix("TLS_").replace("_WITH", "").replace("AES_", "AES").replace("_CBC", "")
        name = name.replace("POLY1305_SHA256", "POLY1305").replace("_", "-")
        assert chosen(suite) == (() if suite in newest else (name,))


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (TLS + "  client_auth_type: RequestClientCert\n", "client_auth_type: RequestClientCert keeps nobody out"),
        (TLS + "  curve_preferences: [X25519, CurveP256]\n", "curve_preferences: more than one curve"),
        ("http_server_config:\n  http2: true\n", "http2 has no effect"),
    ],
)
def test_entries_without_effect_are_noted(directory: Path, text: str, note: str) -> None:
    notes = load(written(directory, text)).notes
    assert len(notes) == 1
    assert note in notes[0]


@pytest.mark.parametrize(
    ("interval", "seconds"), [("500ms", 0.5), ("2h", 7200.0), ("1m30s", 90.0), (".5s", 0.5), ("250us", 0.00025)]
)
def test_durations_are_those_of_go(tmp_path: Path, interval: str, seconds: float) -> None:
    limit = load(written(tmp_path, f"rate_limit: {{interval: {interval}, burst: 1}}")).rate_limit
    assert limit is not None
    assert limit.interval == pytest.approx(seconds)


def test_an_interval_of_zero_is_no_rate_limit(tmp_path: Path) -> None:
    assert load(written(tmp_path, "rate_limit:\n  interval: 0\n  burst: 0\n")).rate_limit is None


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("tls_config: {}\n", 1, "tls_config: unknown key"),
        ("- 1\n", 1, "expected a mapping, got a list"),
        (TLS + "  cert_flie: x\n", 4, "tls_server_config.cert_flie: unknown key"),
        (TLS + "  key_file: other\n", 4, "tls_server_config: duplicate key key_file; first defined on line 3"),
        ("tls_server_config: [1]\n", 1, "tls_server_config: expected a mapping, got a list"),
        ("tls_server_config:\n  cert_file: [a]\n", 2, "tls_server_config.cert_file: expected a string, got a list"),
        (
            "tls_server_config:\n  cert_file: 12\n",
            2,
            "tls_server_config.cert_file: expected a string, got a number: put it",
        ),
        ("\ntls_server_config:\n  min_version: TLS13\n", 2, "tls_server_config: cert_file (or cert) is missing"),
        ("tls_server_config:\n  cert_file: server.crt\n", 1, "tls_server_config: key_file (or key) is missing"),
        (TLS + "  key: abc\n", 4, "tls_server_config.key: excludes key_file"),
        (TLS + "  client_auth_type: Require\n", 4, "client_auth_type: expected one of NoClientCert, RequestClientCert"),
        (TLS + "  client_auth_type: RequireAnyClientCert\n", 4, "RequireAnyClientCert is not supported"),
        (TLS + "  client_ca_file: ca.crt\n", 4, "tls_server_config.client_ca_file: needs a client_auth_type"),
        (TLS + "  client_allowed_sans:\n    - a\n", 4, "client_allowed_sans: needs a client_auth_type that verifies"),
        (
            TLS + "  client_allowed_sans: a\n",
            4,
            "client_allowed_sans: expected a list, got a string: put it in brackets",
        ),
        (TLS + "  min_version: TLS14\n", 4, "expected one of TLS10, TLS11, TLS12, TLS13, got 'TLS14'"),
        (TLS + "  min_version: 1.2\n", 4, "min_version: expected a string, got a number"),
        (TLS + "  max_version: TLS11\n", 4, "max_version: TLS11 is below min_version, TLS12"),
        (TLS + "  cipher_suites:\n    - TLS_NULL\n", 5, "cipher_suites[0]: expected one of TLS_ECDHE"),
        (TLS + "  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]\n", 5, "suites of TLS 1.3 alone"),
        (TLS + "  curve_preferences: [P256]\n", 4, "curve_preferences[0]: expected one of CurveP256"),
        (TLS + "  prefer_server_cipher_suites: 1\n", 4, "expected true or false, got a number"),
        ("http_server_config:\n  http2: maybe\n", 2, "http_server_config.http2: expected true or false"),
        ("http_server_config:\n  http3: true\n", 2, "http_server_config.http3: unknown key"),
        ("http_server_config:\n  headers:\n    Server: x\n", 3, "headers.Server: this header cannot be set"),
        (
            "http_server_config:\n  headers:\n    X-Frame-Options: allow\n",
            3,
            "expected one of deny, sameorigin, got 'allow'",
        ),
        ("http_server_config:\n  headers:\n    X-XSS-Protection: [0]\n", 3, "expected a string, got a list"),
        (
            'http_server_config:\n  headers:\n    Content-Security-Policy: "a\\r\\nSet-Cookie: b"\n',
            3,
            "headers.Content-Security-Policy: a header's value must be one line",
        ),
        ("basic_auth_users:\n  alice: secret\n", 2, "basic_auth_users.alice: must be the bcrypt hash"),
        ("basic_auth_users:\n  alice:\n", 2, "basic_auth_users.alice: must be the bcrypt hash"),
        (f"basic_auth_users:\n  'a:b': {HASH}\n", 2, "basic_auth_users.'a:b': a user name cannot contain a colon"),
        (
            f"basic_auth_users:\n  a: {HASH}\n  a: {HASH}\n",
            3,
            "basic_auth_users: duplicate key a; first defined on line 2",
        ),
        ("rate_limit:\n  interval: 5\n  burst: 1\n", 2, "rate_limit.interval: must be a duration with a unit"),
        ("rate_limit:\n  interval: 1s\n  burst: -1\n", 3, "rate_limit.burst: must be a count"),
        ("rate_limit:\n  interval: 1s\n  burst: 0\n", 3, "rate_limit.burst: burst must be at least 1"),
        ("rate_limit:\n  per: 1s\n", 2, "rate_limit.per: unknown key"),
        ("a: b: c\n", 1, "is not valid YAML"),
        ("a: *unknown\n", 1, "is not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "is not valid YAML"),
        ("a: 1\nb: \x07\n", 2, "is not valid YAML"),
    ],
)
def test_an_error_names_file_line_and_key(directory: Path, text: str, line: int, problem: str) -> None:
    file = written(directory, text)
    with pytest.raises(ConfigError) as raised:
        load(file)
    assert str(raised.value).startswith(f"{file}:{line}: ")
    assert problem in str(raised.value)


def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"web\.yml: is nested too deeply"):
        load(written(tmp_path, "[" * 5000))


def test_an_error_does_not_quote_what_may_be_secret(tmp_path: Path) -> None:
    for text in ("basic_auth_users:\n  alice: hunter2\n", "basic_auth_users:\n  alice: hunter2: x\n"):
        with pytest.raises(ConfigError) as raised:
            load(written(tmp_path, text))
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            TLS.replace("server.crt", "absent.crt"),
            "2: tls_server_config.cert_file: this file (a relative path starts at {0}) cannot be read",
        ),
        (
            TLS.replace("server.key", "absent.key"),
            "3: tls_server_config.key_file: this file (a relative path starts at {0}) cannot be read",
        ),
        (TLS.replace("server.key", "another.key"), "3: tls_server_config.key_file: {0}/another.key does not belong"),
        (
            TLS.replace("server.crt", "server.key"),
            "2: tls_server_config.cert_file: {0}/server.key holds no certificate",
        ),
        (TLS.replace("server.key", "server.crt"), "3: tls_server_config.key_file: {0}/server.crt holds no private key"),
        (TLS.replace("server.key", "torn.key"), "3: tls_server_config.key_file: certificate ({0}/server.crt) and key"),
        (TLS.replace("server.key", "locked.key"), "3: tls_server_config.key_file: {0}/locked.key is encrypted"),
        (
            TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: server.key\n",
            "5: tls_server_config.client_ca_file: {0}/server.key holds no usable certificate",
        ),
    ],
)
def test_unusable_certificates_are_found_before_serving(directory: Path, text: str, problem: str) -> None:
    key = (directory / "server.key").read_text()
    (directory / "torn.key").write_text(key[: len(key) // 2])
    (directory / "locked.key").write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    file = written(directory, text)
    with pytest.raises(ConfigError) as raised:
        load(file)
    assert str(raised.value).startswith(f"{file}:" + problem.format(directory))


def test_the_example_of_the_documentation_is_accepted(tmp_path: Path) -> None:
    document = Path(__file__).parent.parent / "docs" / "web-configuration.md"
    example = document.read_text().split("```yaml\n")[1].partition("```")[0]
    config = parse(written(tmp_path, example))
    assert config.tls is not None
    assert list(config.users) == ["prometheus"]
    assert config.rate_limit == RateLimit(0.1, 20)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yml: No such file"):
        load(tmp_path / "absent.yml")


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_bytes(b"# fine\n\xff\n")
    with pytest.raises(ConfigError, match=r"web\.yml:2: is not UTF-8"):
        load(tmp_path / "web.yml")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1ns", 1e-9),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("1ms", 1e-3),
        ("1s", 1.0),
        ("1m", 60.0),
        ("1h", 3600.0),
        ("1.s", 1.0),
        ("1h1m1.5s", 3661.5),
        ("0s", None),
        ("''", None),
        ("0", None),
    ],
)
def test_an_interval_is_a_sum_of_units(tmp_path: Path, written: str, seconds: float | None) -> None:
    (tmp_path / "web.yml").write_text(f"rate_limit: {{interval: {written}, burst: 999999999}}\n")
    limit = parse(tmp_path / "web.yml").rate_limit
    assert (None if limit is None else limit.interval) == pytest.approx(seconds)
    assert limit is None or limit.burst == 999_999_999


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rate_limit: {interval: 1sx, burst: 1}", "must be a duration"),
        ("rate_limit: {interval: 1s, burst: 1000000000}", "must be a count"),
        ("rate_limit: {interval: 1s}", "burst must be at least 1"),
        (f"basic_auth_users: {{a: {HASH}x}}", "must be the bcrypt hash"),
        (f"basic_auth_users: {{a: {HASH[:-1]}}}", "must be the bcrypt hash"),
        (f"basic_auth_users: {{a: {HASH.replace('$10$', '$03$')}}}", "must be the bcrypt hash"),
        (f"basic_auth_users: {{a: {HASH.replace('$10$', '$32$')}}}", "must be the bcrypt hash"),
        (f"basic_auth_users: {{a: {HASH.replace('2y', '2x')}}}", "must be the bcrypt hash"),
        ("http_server_config: {headers: {X-Content-Type-Options: sniff}}", "expected one of nosniff, got 'sniff'"),
        ('http_server_config: {headers: {X-XSS-Protection: "ä"}}', "must be one line of printable ASCII"),
    ],
)
def test_what_is_beyond_a_limit_is_an_error(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "web.yml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=problem):
        parse(tmp_path / "web.yml")


@pytest.mark.parametrize("cost", ["04", "10", "29", "31"])
@pytest.mark.parametrize("kind", ["2a", "2b", "2y"])
def test_a_bcrypt_hash_is_of_every_kind_and_cost(tmp_path: Path, kind: str, cost: str) -> None:
    hashed = HASH.replace("2y$10", f"{kind}${cost}")
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{a: {hashed}}}\n")
    assert parse(tmp_path / "web.yml").users == {"a": hashed}


@pytest.mark.parametrize(
    ("header", "written", "expected"),
    [
        ("X-Frame-Options", "sameorigin", "sameorigin"),
        ("X-Content-Type-Options", "nosniff", "nosniff"),
        ("X-XSS-Protection", "' 1; mode=block '", "1; mode=block"),
        ("Content-Security-Policy", '"a\\tb"', "a\tb"),
        ("X-Frame-Options", "' '", None),
    ],
)
def test_a_header_has_its_text_without_blanks_around_it(
    tmp_path: Path, header: str, written: str, expected: str | None
) -> None:
    (tmp_path / "web.yml").write_text(f"http_server_config: {{headers: {{{header}: {written}}}}}\n")
    config = parse(tmp_path / "web.yml")
    assert config.headers == (() if expected is None else ((header, expected),))
    assert config.notes == ()
