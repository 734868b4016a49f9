"""Kinds of values at both ends of what is accepted, and how numbers, errors and rules are written."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from msgspec import Meta

from llm_headroom.config import kinds, reader
from llm_headroom.config.endpoint import Basic, Bearer, Endpoint, Origin, Secret, Tls, check, parse_target, parse_url
from llm_headroom.config.errors import (
    MOST_PROBLEMS,
    MOST_VALUES,
    ConfigError,
    OversizeError,
    Place,
    Problems,
    near,
    shown,
)
from llm_headroom.config.identity import VARIABLES, attributes, placed, pod
from llm_headroom.config.kinds import kind_of, parsed, url, written
from llm_headroom.config.load import load
from llm_headroom.config.otlp import settled
from llm_headroom.config.people import Receiver
from llm_headroom.config.reach import Reach, literal, reach
from llm_headroom.config.settings import (
    Config,
    EngineSettings,
    Module,
    OtlpSettings,
    ProbeSettings,
    ProxySettings,
    RuleSettings,
    Target,
)
from llm_headroom.config.yaml_nodes import Document, root

if TYPE_CHECKING:
    from collections.abc import Sequence


# Kinds ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "lowest", "below", "highest", "above"),
    [
        ("Interval", "100ms", "99ms", "1h", "3601s"),
        ("Timeout", "0.1", "0.09", "1m", "61s"),
        ("Threshold", "1ms", "0.9ms", "60m", "3601"),
        ("Share", "0.5", "0.49", "0.99999", "0.999991"),
        ("Price", "0", None, "1000000", "1000001"),
        ("Scale", "1e-12", "9e-13", "1e12", "1.1e12"),
        ("Size", "1KiB", "1023", "1GiB", "1073741825"),
        ("Memory", "1", "0", "100000GiB", "107374182400001"),
        ("Port", "1", "0", "65535", "65536"),
        ("Limit", "1", "0", "1000000000", "1000000001"),
        ("LabelLimit", "1", "0", "100000", "100001"),
        ("ProcessId", "1", "0", "4194304", "4194305"),
        ("GpuCount", "1", "0", "10000", "10001"),
    ],
)
def test_a_number_is_accepted_from_its_lowest_to_its_highest(
    kind: str, lowest: str, below: str | None, highest: str, above: str
) -> None:
    hint = getattr(kinds, kind)
    least, most = kind_of(hint).meta.ge, kind_of(hint).meta.le
    assert (parsed(hint, lowest), parsed(hint, highest)) == (least, most)
    for text in (below, above):
        if text is not None:
            with pytest.raises(ConfigError, match=r" from .* to .*, got '"):
                parsed(hint, text)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("Interval", "1500ms", 1.5), ("Interval", "2m", 120.0), ("Interval", "0.5h", 1800.0), ("Interval", "7s", 7.0),
        ("Size", "3KB", 3000), ("Size", "3KiB", 3072), ("Size", "2MB", 2_000_000), ("Size", "2MiB", 2 * 2**20),
        ("Size", "1GB", 10**9), ("Size", "1.5KiB", 1536), ("Size", "1025B", 1025), ("Size", "1025", 1025),
        ("Interval", "0.1234567", 0.123457),  # to a millionth
        ("Limit", "100000000", 100_000_000), ("Price", "2.000001", 2.000001),
    ],
)  # fmt: skip
def test_a_number_and_its_unit(kind: str, text: str, value: float) -> None:
    found = parsed(getattr(kinds, kind), text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("Limit", "1.0", "expected a whole number, got '1.0'"),
        ("Limit", "1234567890123456", "expected a whole number, got '1234567890123456'"),
        ("Limit", "123456789012345", "expected a whole number from 1 to 1000000000, got '123456789012345'"),
        ("Interval", "1.1234567890123456", "expected a duration such as 5s, got '1.1234567890123456'"),
        ("Interval", "5S", "expected a duration such as 5s, got '5S'"),
        ("Scale", "x", "expected a number from 1e-12 to 1e12, got 'x'"),
        ("LogLevel", "all", "expected one of debug, info, warning, error, got 'all'"),
        ("Word", " x", "expected printable text without leading or trailing spaces"),
        ("Host", "a b", "expected a host name, got 'a b'"),
        ("Host", "ab\n", r"expected a host name, got 'ab\n'"),
        ("Regex", "(", "expected a regular expression: missing ), unterminated subpattern at position 0"),
        ("Directory", "a/b", "expected a path starting with /"),
        ("Address", "1.2.3.4:65536",
         "expected an address such as :9836, 127.0.0.1:9836 or [::1]:9836, got '1.2.3.4:65536'"),
    ],
)  # fmt: skip
def test_what_is_no_value_of_a_kind(kind: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(getattr(kinds, kind), text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("number", "units", "text"),
    [
        (0.2, "_SECONDS", "200ms"), (60.0, "_SECONDS", "60s"), (0.05, "_SECONDS", "50ms"), (61.0, "_SECONDS", "61s"),
        (3600.0, "_SECONDS", "1h"), (5.0, "_SECONDS", "5s"), (16 * 2**20, "_BYTES", "16MiB"), (2**30, "_BYTES", "1GiB"),
        (1000, "_BYTES", "1KB"), (1023, "_BYTES", "1023B"),
        (0.95, None, "0.95"), (0.99999, None, "0.99999"), (1e9, None, "1000000000"), (1e10, None, "1e10"),
        (1e12, None, "1e12"), (1e-12, None, "1e-12"), (123_456_789_012.0, None, "1.23457e11"),
    ],
)  # fmt: skip
def test_a_number_is_written_as_people_do(number: float, units: str | None, text: str) -> None:
    assert written(number, getattr(kinds, units) if units else None) == text


def test_an_outer_annotation_overrides_an_inner_one() -> None:
    inner = kind_of(kinds.Port | None)
    assert (inner.base, inner.meta.ge, inner.form.name) == (int, 1, "number")
    outer = kind_of(Annotated[kinds.Port, Meta(ge=5), kinds.Form(name="other")])
    assert (outer.base, outer.meta.ge, outer.meta.le, outer.form.name) == (int, 5, 65535, "other")
    assert kind_of(int).bounds is None
    assert kind_of(kinds.Timeout).bounds == ("100ms", "60s")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://a:1", "http://a:1"),
        ("http://a:65535", "http://a:65535"),
        ("https://a:80", "https://a:80"),
        ("https://a:443", "https://a"),
        ("a:80/v1/", "http://a"),
        ("a/v1/metrics/", "http://a"),
        ("a//", "http://a"),
        ("a/v1/x", "http://a/v1/x"),
        ("[::1]:9", "http://[::1]:9"),
    ],
)
def test_a_url_has_one_spelling(text: str, found: str) -> None:
    assert url(text) == found


@pytest.mark.parametrize("text", ["http://a:0", "http://a:65536"])
def test_a_port_of_a_url_is_one(text: str) -> None:
    with pytest.raises(ConfigError, match=f"^expected a port from 1 to 65535, got '{text}'$"):
        url(text)


@pytest.mark.parametrize(
    "text",
    ["8000", "http://1234", "http://[zz]", "http://[1::2::3]", "http://[]", "[:1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:7:8:]"],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^expected a URL such as"):
        url(text)


# Files ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("begin", "again", "end"),
    [
        ("[&a [" + "1, " * 199 + "]", ", *a", "]"),
        ("{0: &a {" + "".join(f"{n}: 1, " for n in range(199)) + "}", ", {}: *a", "}"),
    ],
    ids=["list", "mapping"],
)
def test_a_file_expands_to_so_many_values_and_no_more(tmp_path: Path, begin: str, again: str, end: str) -> None:
    document = Document(Problems(), lambda _role, _name: None, lambda _value, _place: None)
    path = tmp_path / "headroom.yml"
    most = begin + "".join(again.format(number) for number in range(1, MOST_VALUES // 200))
    path.write_text(most + end)
    assert root(path, document) is not None
    path.write_text(most + ", 1" * (begin[0] == "[") + ", x: 1" * (begin[0] == "{") + end)
    with pytest.raises(OversizeError):
        root(path, document)


def test_a_list_that_contains_itself_has_an_end(tmp_path: Path) -> None:
    path = tmp_path / "headroom.yml"
    path.write_text("targets: &all [*all, *all]\n")
    with pytest.raises(ConfigError, match=r"targets\[0\]: expected a mapping, got a list"):
        load(path, engine_names=())


@pytest.mark.parametrize(
    ("text", "known", "suggestion"),
    [
        ("interva", ("interval", "timeout"), "; did you mean interval?"),
        ("x", ("b", "a"), "; known: a, b"),
        ("z", "abcdefghijklmno", "; known: a, b, c, d, e, f, g, h, i, j, k, l, m, n, o"),
        ("z", "abcdefghijklmnop", ""),
        ("nam", ("name", "named", "names", "namer"), "; did you mean name or names or namer?"),
    ],
)  # fmt: skip
def test_a_suggestion_or_the_known_words_if_they_are_few(text: str, known: Sequence[str], suggestion: str) -> None:
    assert near(text, known) == suggestion


def test_problems_are_listed_by_line_and_at_most_twenty() -> None:
    problems = Problems()
    problems.check()
    problems.add("last")
    problems.add("second", 2)
    problems.add("first", 1)
    with pytest.raises(ConfigError) as error:
        problems.check()
    assert (str(error.value), error.value.problems) == ("first\nsecond\nlast", ("first", "second", "last"))
    for number in range(MOST_PROBLEMS - 3):
        problems.add("more", 10 + number)
    with pytest.raises(ConfigError) as error:
        problems.check()
    assert (str(error.value).count("\n"), len(error.value.problems)) == (19, 20)
    assert str(error.value).endswith("last")
    problems.add("one too many")
    with pytest.raises(ConfigError) as error:
        problems.check()
    assert str(error.value).endswith("last\n… and 1 more")
    assert len(error.value.problems) == 21
    assert ConfigError("text", "key").problems == ("text",)


def test_texts_and_places_in_messages() -> None:
    assert shown("x" * 60) == repr("x" * 60)
    assert shown("x" * 61) == repr("x" * 60 + "…")
    place = Place(Path("a.yml"), 7)
    assert (str(place), place.line_for("wrong")) == ("a.yml:7", "a.yml:7: wrong")
    assert str(Place(Path("a.yml"), 7, "b.c").error("wrong")) == "a.yml:7: b.c: wrong"


def test_values_with_mappings_can_be_hashed() -> None:
    mapping = {"a": "b"}
    rule = RuleSettings(metric="llm_requests_running", names=("a",), where=mapping, labels={})
    values: list[Any] = [
        Target(endpoint=Endpoint(url="http://a"), labels=mapping),
        rule,
        ProbeSettings(modules={"m": Module(name="m")}),
        OtlpSettings(
            endpoint="http://a", headers=mapping, resource=mapping, headers_env={"x": Secret(env="X")},
            headers_file={"y": Secret(env="Y")},
        ),
        Config(mappings={"vllm": (rule,)}, engines={"tgi": EngineSettings(name="tgi", rules=(rule,))}),
    ]  # fmt: skip
    assert len(set(values)) == len(values)
    assert OtlpSettings(place=Place(Path("a"), 1)) == OtlpSettings()
    assert list(values[3].secrets) == ["x", "y"]


def test_keys_know_whether_they_must_be_there() -> None:
    keys = reader.shape(Target).keys
    assert [name for name, each in keys.items() if each.required] == ["url"]
    assert (keys["url"].inside, keys["name"].inside) == ("endpoint", "")
    assert "address" not in keys
    assert reader.shape(Module).name == "name"
    assert (reader.shape(OtlpSettings).place, "place" in reader.shape(OtlpSettings).keys) == ("place", False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"target": "a", "engine": "vllm"}, "give either target or engine, not both"),
        ({}, "expected the name of a target under target, or upstream and engine"),
        ({"upstream": "http://a"}, "expected the name of a target under target, or upstream and engine"),
        ({"engine": "vllm"}, "expected the name of a target under target, or upstream and engine"),
        ({"target": "a"}, None),
        ({"target": "a", "upstream": "http://a"}, None),
        ({"engine": "vllm", "upstream": "http://a"}, None),
    ],
)
def test_what_a_proxy_stands_before(given: dict[str, str], expected: str | None) -> None:
    found = None
    try:
        ProxySettings(listen=":1", **given)  # type: ignore[arg-type]
    except ConfigError as error:
        found = str(error)
    assert found == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expected one of url, url_file and url_env"),
        ({"url": "http://a", "url_env": Secret(env="X")}, "expected one of url, url_file and url_env"),
        ({"url_file": Secret(env="X"), "url_env": Secret(env="X")}, "expected one of url, url_file and url_env"),
        ({"url": "http://a"}, None),
        ({"url_env": Secret(env="X")}, None),
        ({"url": "http://a", "kind": "ntfy"},
         "expected the topic at the end of ntfy's url, as in https://ntfy.sh/my-llm"),
        ({"url": "http://a/b", "kind": "ntfy"}, None),
        ({"url_env": Secret(env="X"), "kind": "ntfy"}, None),
    ],
)  # fmt: skip
def test_where_messages_go(given: dict[str, Any], expected: str | None) -> None:
    found = None
    try:
        Receiver(**given)
    except ConfigError as error:
        found = str(error)
    assert found == expected


# Endpoints -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "origin", "host", "path"),
    [
        ("http://a", Origin("http", "a", 80), "a", ""),
        ("https://A.:8443/x?y=z", Origin("https", "a", 8443), "a.", "/x?y=z"),
        ("http://[2001:DB8::0:1]:80/x", Origin("http", "2001:db8::1", 80), "2001:db8::0:1", "/x"),
        ("http://[fe80::1%25eth0]", Origin("http", "fe80::1", 80), "fe80::1%eth0", ""),
    ],
)
def test_the_parts_of_a_url(text: str, origin: Origin, host: str, path: str) -> None:
    assert parse_url(text) == (origin, host, path)


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        (Origin("http", "a", 80), "http://a"),
        (Origin("https", "a", 80), "https://a:80"),
        (Origin("https", "::1", 443), "https://[::1]"),
        (Origin("http", "::1", 443), "http://[::1]:443"),
    ],
)
def test_an_origin_has_no_default_port(origin: Origin, text: str) -> None:
    assert str(origin) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://u:p@a", "a target's URL must not contain a user or password; set the target's credentials instead"),
        ("http://a b", "'http://a b' is not a URL: it holds characters other than visible ASCII ones"),
        ("http://a:x", "'http://a:x' is not a URL: its host or port is malformed"),
        ("http://[1::2::3]", "'http://[1::2::3]' is not a URL: its host or port is malformed"),
        ("ftp://a", "'ftp://a' is not a URL of the form http(s)://host[:port][/prefix]"),
        ("http://", "'http://' is not a URL of the form http(s)://host[:port][/prefix]"),
        ("http://a:0", "'http://a:0' is not a URL of the form http(s)://host[:port][/prefix]"),
        ("http://a?k=1", "'http://a': a target's URL must not contain a query or a fragment"),
        ("http://a#f", "'http://a#f': a target's URL must not contain a query or a fragment"),
        ("x" * 201, f"'{'x' * 200}' is not a URL of the form http(s)://host[:port][/prefix]"),
    ],
)
def test_what_is_no_url_of_a_target(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - its text is compared
        parse_target(text)
    assert str(error.value) == message
    assert parse_url("http://a?x=u@b")[0] == Origin("http", "a", 80), "an @ in a query is no user"


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (Endpoint(url="http://a"), None),
        (Endpoint(url="http://a", tls=Tls(key_file=Path("k"))), "http://a: a TLS key file needs a certificate file"),
        (Endpoint(url="http://a", tls=Tls(key_file=Path("k"), cert_file=Path("c"))), None),
        (Endpoint(url="http://a", tls=Tls(cert_file=Path("c"))), None),
        (Endpoint(url="http://a", credentials=Bearer(Secret(env="X"))), None),
        (Endpoint(url="http://a", credentials=Bearer(Secret(file=Path("f")))), None),
        (Endpoint(url="http://a", credentials=Bearer(Secret())),
         "http://a: a secret needs either a file or an environment variable"),
        (Endpoint(url="http://a", credentials=Basic("u", Secret(file=Path("f"), env="X"))),
         "http://a: a secret needs either a file or an environment variable"),
        (Endpoint(url="http://a", credentials=Basic("u", Secret(env="X"))), None),
        (Endpoint(url="http://a", credentials=Basic("u:v", Secret(env="X"))),
         "http://a: a user name must not contain colons or control characters"),
        (Endpoint(url="http://a", credentials=Basic("u\n", Secret(env="X"))),
         "http://a: a user name must not contain colons or control characters"),
    ],
)  # fmt: skip
def test_certificate_key_and_credentials_go_together(endpoint: Endpoint, message: str | None) -> None:
    found = None
    try:
        check(endpoint)
    except ValueError as error:
        found = str(error)
    assert found == message


def test_the_port_of_an_endpoint() -> None:
    assert [Endpoint(url=each).port for each in ("http://a", "https://a", "http://a:9/x")] == [80, 443, 9]


# What may be reached -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("10.0.0.0/16:8000", Reach(network=ip_network("10.0.0.0/16"), port=8000)),
        ("10.0.0.1", Reach(network=ip_network("10.0.0.1/32"))),
        ("[fd00::/8]:*", Reach(network=ip_network("fd00::/8"))),
        ("LLM-a:65535", Reach(host="llm-a", port=65535)),
        ("*.svc.local:0", Reach(suffix=".svc.local", port=0)),
    ],
)
def test_a_rule_of_what_may_be_reached(text: str, rule: Reach) -> None:
    assert reach(text) == rule


@pytest.mark.parametrize(
    "text", ["", "a:65536", "10.0.0.1/16", "10.0.*", "*", "a.*.b", "[llm-a]", "a.7", "a_.b-:x", "*.*.a", "a..b"]
)
def test_what_is_no_such_rule(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^expected a network such as"):
        reach(text)


def test_what_a_rule_admits() -> None:
    host, suffix, network = reach("llm-a"), reach("*.svc"), reach("10.0.0.0/8")
    assert [host.names(each) for each in ("LLM-A.", "llm-b", "", "x.llm-a")] == [True, False, False, False]
    assert [suffix.names(each) for each in ("a.svc", "A.B.SVC.", "svc", "asvc", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert not network.names("10.0.0.1")
    assert [network.holds(ip_address(each)) for each in ("10.9.9.9", "11.0.0.0", "::1")] == [True, False, False]
    assert not host.holds(ip_address("10.0.0.1"))
    assert literal("fe80::1%eth0") == ip_address("fe80::1")
    assert (literal("::ffff:10.0.0.1"), literal("10.0.0.1"), literal("a")) == (
        ip_address("10.0.0.1"), ip_address("10.0.0.1"), None,
    )  # fmt: skip


# Pods ----------------------------------------------------------------------------------------------------------------
def test_a_pod_by_its_variables() -> None:
    assert attributes({}) == {}
    assert attributes({"POD_NAME": "p", "K8S_POD_NAME": "q", "NODE_NAME": "", "POD_NAMESPACE": "n"}) == {
        "k8s.pod.name": "q", "k8s.namespace.name": "n",
    }  # fmt: skip
    alone = {name: attributes({name: "x"}) for names in VARIABLES.values() for name in names}
    assert {name: list(found) for name, found in alone.items()} == {
        "K8S_POD_NAME": ["k8s.pod.name"], "POD_NAME": ["k8s.pod.name"],
        "OTEL_RESOURCE_ATTRIBUTES_POD_NAME": ["k8s.pod.name"],
        "K8S_POD_UID": ["k8s.pod.uid"], "POD_UID": ["k8s.pod.uid"], "OTEL_RESOURCE_ATTRIBUTES_POD_UID": ["k8s.pod.uid"],
        "K8S_POD_IP": ["k8s.pod.ip"], "POD_IP": ["k8s.pod.ip"],
        "K8S_NAMESPACE_NAME": ["k8s.namespace.name"], "K8S_NAMESPACE": ["k8s.namespace.name"],
        "POD_NAMESPACE": ["k8s.namespace.name"],
        "K8S_NODE_NAME": ["k8s.node.name"], "NODE_NAME": ["k8s.node.name"],
        "OTEL_RESOURCE_ATTRIBUTES_NODE_NAME": ["k8s.node.name"],
        "K8S_CONTAINER_NAME": ["k8s.container.name"], "K8S_CLUSTER_NAME": ["k8s.cluster.name"],
    }  # fmt: skip
    assert pod({"POD_NAME": "p", "POD_NAMESPACE": "n"}) == "p.n"
    assert pod({"POD_NAME": "p"}) == "p"
    assert pod({"POD_NAMESPACE": "n"}) == pod({}) == ""


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("127.0.0.1:8000", "p:8000"),
        ("localhost:8000/a", "p:8000/a"),
        ("[::1]:8000", "p:8000"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.0.0.1:8000", "10.0.0.1:8000"),
        ("a-127.0.0.1:8000", "a-127.0.0.1:8000"),
    ],
)
def test_a_loopback_target_has_the_name_of_its_pod(target: str, name: str) -> None:
    assert placed(target, {"POD_NAME": "p"}) == name
    assert placed(target, {}) == target


# OTLP ----------------------------------------------------------------------------------------------------------------
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("file", "flag", "environment", "on", "problem"),
    [
        (None, None, {}, False, None),
        (None, None, {ENDPOINT: "http://c"}, True, None),
        (None, None, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, True, None),
        (None, None, {ENDPOINT: " "}, False, None),
        (None, None, {ENDPOINT: "http://c", "OTEL_METRICS_EXPORTER": "none"}, False, None),
        (None, None, {ENDPOINT: "http://c", "OTEL_METRICS_EXPORTER": "console, otlp"}, True, None),
        (None, None, {ENDPOINT: "http://c", "OTEL_SDK_DISABLED": " TRUE"}, False, None),
        (None, "http://c", {}, True, None),
        (None, "http://c", {"OTEL_SDK_DISABLED": "true"}, False, None),
        (None, "x y", {}, False, "--otlp-endpoint/LLM_HEADROOM_OTLP_ENDPOINT: expected a URL such as"),
        (OtlpSettings(enabled=False), "http://c", {}, False, None),
        (OtlpSettings(endpoint="http://c"), None, {"OTEL_METRICS_EXPORTER": "none"}, True, None),
        (OtlpSettings(interval=7.0), None, {}, False, "otlp: missing endpoint (or --otlp-endpoint, or OTEL_"),
        (OtlpSettings(interval=7.0, place=Place(Path("a"), 3)), None, {}, False, "a:3: otlp: missing endpoint (or"),
        (OtlpSettings(endpoint="http://c", tls=Tls(server_name="c")), None, {}, True,
         "otlp.tls: is set, but the endpoint is not https"),
        (OtlpSettings(endpoint="https://c", tls=Tls(server_name="c")), None, {}, True, None),
        (OtlpSettings(endpoint="c", protocol="grpc", tls=Tls(server_name="c")), None, {}, True, None),
        (OtlpSettings(endpoint="c", tls=Tls(server_name="c")), None, {}, True, "otlp.tls: is set, but the endpoint"),
        (OtlpSettings(endpoint="http://c", protocol="grpc", tls=Tls(server_name="c")), None, {}, True,
         "otlp.tls: is set, but the endpoint is not https"),
        (OtlpSettings(endpoint="https://c", protocol="grpc", tls=Tls(insecure_skip_verify=True)), None, {}, True,
         "otlp.tls.insecure_skip_verify: not supported with gRPC; use ca_file instead"),
        (OtlpSettings(endpoint="https://c", tls=Tls(insecure_skip_verify=True)), None, {}, True, None),
        (OtlpSettings(endpoint="https://c/x", protocol="grpc"), None, {}, True,
         "otlp.endpoint: with gRPC it must not have a path, as https://c/x has"),
        (OtlpSettings(endpoint="https://c/x"), None, {}, True, None),
    ],
)  # fmt: skip
def test_whether_and_how_metrics_are_pushed(
    file: OtlpSettings | None, flag: str | None, environment: dict[str, str], problem: str | None, *, on: bool
) -> None:
    problems = Problems()
    assert (settled(file, flag, environment, problems) is not None) is on
    found = ""
    try:
        problems.check()
    except ConfigError as error:
        found = str(error)
    assert found.startswith(problem or "")
    assert bool(found) is (problem is not None)
