"""The configuration: what is accepted, what it means, and what the operator is told of what is not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_headroom import schema
from llm_headroom.config.endpoint import Auth, Basic, Bearer, Endpoint, Secret, Tls
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import load
from llm_headroom.config.objectives import Objectives, OwnObjectives
from llm_headroom.config.people import Links, Receiver
from llm_headroom.config.reader import shape
from llm_headroom.config.settings import (
    Config,
    Cost,
    EngineSettings,
    GpuSettings,
    Log,
    ModelMemory,
    Module,
    OtlpSettings,
    ProbeSettings,
    ProxySettings,
    RuleSettings,
    Target,
    parse_target,
)
from llm_headroom.config.yaml_nodes import LARGEST_FILE
from llm_headroom.model import Subject

ENGINES = ("vllm", "sglang", "sglang_router", "ollama", "llamacpp")
FIXTURES = Path(__file__).parent / "fixtures" / "config"
DOCS = Path(__file__).parent.parent / "docs"
EXAMPLE = DOCS / "config.example.yaml"
SCHEMA = json.loads((DOCS / "config.schema.json").read_text())
PASSWORD = "hunter2"


def read(directory: Path, text: str | bytes, **flags: Any) -> Config:  # noqa: ANN401 - whatever load takes
    path = directory / "headroom.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, engine_names=ENGINES, **flags)


def complaint(directory: Path, text: str | bytes, **flags: Any) -> str:  # noqa: ANN401 - whatever load takes
    with pytest.raises(ConfigError) as error:
        read(directory, text, **flags)
    return str(error.value).replace(f"{directory}/", "")


# What is refused -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.yml")), ids=lambda path: path.stem)
def test_a_wrong_file_is_refused_with_every_problem_line_and_key(path: Path) -> None:
    expected = re.findall(r"^# expect: (.*)$", path.read_text(), re.MULTILINE)
    with pytest.raises(ConfigError) as error:
        load(path, engine_names=ENGINES)
    message = str(error.value)
    assert message.replace(f"{FIXTURES}/", "").replace(str(FIXTURES), "DIRECTORY").split("\n") == expected
    assert PASSWORD not in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/absent\.yml: No such file or directory$"):
        load(tmp_path / "absent.yml", engine_names=ENGINES)


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, engine_names=ENGINES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"interval: 5s\n# \xff\n", "headroom.yml:2: is not UTF-8"),
        ("interval: 5s".encode("utf-16"), "headroom.yml:1: is not UTF-8"),
        (b"interval: 5s\n\n# \x01", "headroom.yml:3: is not valid YAML: special characters are not allowed"),
        (b"# " + b"x" * LARGEST_FILE, "headroom.yml: is larger than 1048576 bytes"),
        (b"[" * 3000, "headroom.yml: is nested too deeply"),
    ],
)
def test_data_that_are_no_yaml_text_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    assert complaint(tmp_path, data) == message


def test_aliases_cannot_make_a_small_file_large(tmp_path: Path) -> None:
    labels = ", ".join(f"a{number}: b" for number in range(1000))
    targets = "\n".join("  - *one" for _ in range(1000))
    text = f"targets:\n  - &one {{url: 'http://a', labels: {{{labels}}}}}\n{targets}"
    assert complaint(tmp_path, text).endswith("has more than 200,000 values, or its aliases expand to as many")


@pytest.mark.parametrize("text", ["", "otlp:", "otlp: {}"])
def test_nothing_is_pushed_unless_something_is_said(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).otlp is None


def test_no_more_than_twenty_problems_are_listed(tmp_path: Path) -> None:
    lines = complaint(tmp_path, "".join(f"unknown_{number}: 1\n" for number in range(25))).split("\n")
    assert len(lines) == 21
    assert lines[-1] == "… and 5 more"


@pytest.mark.parametrize(
    "label",
    sorted(
        {name for metric in schema.ALL if metric.subject is not Subject.PROCESS for name in metric.labels}
        | {"le", "quantile"}
    ),
)
def test_labels_of_the_schema_cannot_be_given_by_a_target(tmp_path: Path, label: str) -> None:
    text = f"targets: [{{url: 'http://a', labels: {{'{label}': x}}}}]"
    assert f"headroom.yml:1: targets[0].labels.{label}: the label is reserved" in complaint(tmp_path, text)


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_of_a_secret_must_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("HEADROOM_TEST", raising=False)
    if value is not None:
        monkeypatch.setenv("HEADROOM_TEST", value)
    text = "targets: [{url: 'http://a', auth: {bearer_token_env: HEADROOM_TEST}}]"
    assert complaint(tmp_path, text) == (
        "headroom.yml:1: targets[0].auth.bearer_token_env: this environment variable is not set or is empty"
    )


def test_a_value_in_an_alias_is_reported_where_it_is_used(tmp_path: Path) -> None:
    text = "interval: &wrong soon\ntimeout: *wrong\n"
    assert complaint(tmp_path, text).split("\n") == [
        "headroom.yml:1: interval: expected a duration such as 5s, got 'soon'",
        "headroom.yml:2: timeout: expected a duration such as 5s, got 'soon'",
    ]


# What is accepted ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "{}", "~", "\ufeff", "\ufefftimeout: 5s", "targets:\nlog:\nprobe:\n"]
)
def test_a_file_that_says_nothing_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Config() == load(None, engine_names=ENGINES)


def test_the_defaults_are_those_that_the_page_gives() -> None:
    assert Config() == Config(
        listen=(":9836",),
        interval=5.0,
        timeout=5.0,
        targets=(),
        discover=None,
        gpu=GpuSettings(enabled=None, processes=False, interval=None),
        probe=ProbeSettings(allow=(), modules={}),
        mappings={},
        engines={},
        label_limit=200,
        web_config=None,
        log=Log(level="info", format="logfmt"),
    )


def test_a_complete_file_means_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PASSWORD", "secret")
    monkeypatch.setenv("PROBE_TOKEN", "secret")
    monkeypatch.setenv("COLLECTOR_TOKEN", "secret")
    for name in ("tls/ca.pem", "tls/client.pem", "tls/client-key.pem", "secrets/token", "web.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    text = (FIXTURES.parent / "config_complete" / "headroom.yml").read_text()
    assert read(tmp_path, text) == Config(
        listen=(":9836",),
        interval=5.0,
        timeout=5.0,
        targets=(
            Target(
                name="llm-a",
                endpoint=Endpoint(
                    url="https://llm-a.internal:8000",
                    tls=Tls(
                        ca_file=tmp_path / "tls/ca.pem",
                        cert_file=tmp_path / "tls/client.pem",
                        key_file=tmp_path / "tls/client-key.pem",
                        server_name="llm-a",
                    ),
                    credentials=Bearer(Secret(file=tmp_path / "secrets/token")),
                    max_bytes=16 * 1024 * 1024,
                ),
                engine="vllm",
                interval=10.0,
                timeout=3.0,
                labels={"team": "search"},
                purpose="batch",
                requests_running_limit=256,
                kv_cache_type="f16",
                pid=4711,
                gpus=("0", "1"),
                cgroup=Path("/sys/fs/cgroup/system.slice/vllm.service"),
                model_memory=ModelMemory(weights=15 * 2**30, kv_bytes_per_token=131072),
                gpu_count=2,
                gpu_hour=1.2,
            ),
            Target(
                name="10.0.0.7:30000",
                endpoint=Endpoint(
                    url="http://10.0.0.7:30000", credentials=Basic("metrics", Secret(env="SGLANG_PASSWORD"))
                ),
            ),
            Target(name="10.0.0.8:11434", endpoint=Endpoint(url="http://10.0.0.8:11434"), engine="ollama"),
            Target(name="127.0.0.1:11434", endpoint=Endpoint(url="http://127.0.0.1:11434"), engine="ollama"),
        ),
        proxies=(
            ProxySettings(listen=":11435", target="127.0.0.1:11434"),
            ProxySettings(listen=":8001", target="llm-a"),
        ),
        discover=True,
        gpu=GpuSettings(enabled=True, processes=False, interval=5.0),
        probe=ProbeSettings(
            allow=("10.0.0.0/16:8000",),
            modules={
                "vllm": Module(
                    name="vllm",
                    engine="vllm",
                    timeout=3.0,
                    tls=Tls(ca_file=tmp_path / "tls/ca.pem"),
                    credentials=Bearer(Secret(env="PROBE_TOKEN")),
                    max_bytes=4_000_000,
                    gzip=True,
                )
            },
        ),
        mappings={"vllm": (RuleSettings(metric="llm_requests_running", names=("myfork:running",)),)},
        engines={
            "tgi": EngineSettings(
                name="tgi",
                path="/metrics",
                port=8080,
                prefixes=("tgi_",),
                model_label="model",
                replica_label="rank",
                rules=(
                    RuleSettings(metric="llm_requests_running", names=("tgi_batch_current_size",)),
                    RuleSettings(
                        metric="llm_requests_failed_total",
                        names=("tgi_request_failure",),
                        where={"err": "overloaded|validation"},
                        labels={"err": "reason"},
                        combine="sum",
                    ),
                    RuleSettings(
                        metric="llm_kv_cache_capacity_tokens", names=("tgi_kv_blocks",), times=("tgi_kv_block_size",)
                    ),
                ),
                ignored=("tgi_tokenize_*",),
            )
        },
        objectives=Objectives(ttft=2.5, inter_token_latency=0.2, request_duration=30.0, ratio=0.95),
        cost=Cost(gpu_hour=2.5, currency="USD"),
        label_limit=200,
        web_config=tmp_path / "web.yml",
        log=Log(level="info", format="logfmt"),
        otlp=OtlpSettings(
            endpoint="https://collector.internal:4318",
            protocol="http/protobuf",
            headers={"X-Scope-OrgID": "tenant-1"},
            headers_env={"X-Token": Secret(env="COLLECTOR_TOKEN")},
            headers_file={"Authorization": Secret(file=tmp_path / "secrets/token")},
            tls=Tls(ca_file=tmp_path / "tls/ca.pem"),
            compression="gzip",
            timeout=10.0,
            interval=15.0,
            resource={"deployment.environment.name": "production"},
        ),
    )


def test_targets_can_share_settings_by_merge_keys(tmp_path: Path) -> None:
    text = """
targets:
  - &a {url: "http://a", timeout: 3s, labels: {team: x}}
  - &b {<<: *a, url: "http://b", interval: 7s}
  - {<<: [{timeout: 1s}, *b], url: "http://c"}
"""
    a, b, c = read(tmp_path, text).targets
    assert (a.timeout, b.timeout, c.timeout) == (3.0, 3.0, 1.0)
    assert (a.interval, b.interval, c.interval) == (None, 7.0, 7.0)
    assert [target.endpoint.url for target in (a, b, c)] == ["http://a", "http://b", "http://c"]
    assert a.labels == b.labels == c.labels == {"team": "x"}


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("100ms", 0.1),
        ("700ms", 0.7),
        ("5", 5.0),
        ("0.25", 0.25),
        ("2.5s", 2.5),
        ("1m", 60.0),
        ("'5'", 5.0),
        ("1h", 3600),
    ],
)
def test_durations(tmp_path: Path, written: str, seconds: float) -> None:
    assert read(tmp_path, f"interval: {written}").interval == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [("1KiB", 1024), ("10MB", 10**7), ("16MiB", 2**24), ("4096", 4096), ("2048B", 2048), ("0.5GB", 5 * 10**8)],
)
def test_sizes(tmp_path: Path, written: str, size: int) -> None:
    [target] = read(tmp_path, f"targets: [{{url: 'http://a', max_bytes: {written}}}]").targets
    assert target.endpoint.max_bytes == size
    assert isinstance(target.endpoint.max_bytes, int)


@pytest.mark.parametrize(("written", "scale"), [("1", 1.0), ("0.001", 0.001), ("1e-3", 0.001), ("1.5e-9", 1.5e-9)])
def test_scales(tmp_path: Path, written: str, scale: float) -> None:
    text = f"mappings: {{vllm: [{{metric: llm_requests_running, names: [a], scale: {written}}}]}}"
    assert read(tmp_path, text).mappings["vllm"][0].scale == scale


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("true", GpuSettings(enabled=True)),
        ("off", GpuSettings(enabled=False)),
        ("{processes: yes}", GpuSettings(processes=True)),
        ("{pcie: true}", GpuSettings(pcie=True)),
        ("{interval: 250ms}", GpuSettings(interval=0.25)),
        ("", GpuSettings()),
    ],
)
def test_gpu_is_a_switch_or_a_mapping(tmp_path: Path, written: str, expected: GpuSettings) -> None:
    assert read(tmp_path, f"gpu: {written}").gpu == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("[0]", ("0",)),
        ("[0, 1, 10]", ("0", "1", "10")),
        ("[0:1, '1:2']", ("0:1", "1:2")),
        ("[GPU-1f0f6a3c-7c3b-4d52, MIG-6f1d2a33]", ("GPU-1f0f6a3c-7c3b-4d52", "MIG-6f1d2a33")),
    ],
)
def test_gpus_of_a_target(tmp_path: Path, written: str, expected: tuple[str, ...]) -> None:
    (target,) = read(tmp_path, f"targets: [{{url: 'http://h:1', gpus: {written}}}]").targets
    assert target.gpus == expected


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("gpus: 0", "list"),
        ("gpus: []", "gpus"),
        ("gpus: [-1]", "GPU's index"),
        ("gpus: [all]", "GPU's index"),
        ("pid: 0", "whole number"),
        ("pid: me", "number"),
        ("cgroup: system.slice/vllm.service", "starting with /"),
        ("model_memory: {weights: much}", "15GiB"),
        ("model_memory: {layers: 32}", "layers"),
        ("gpu_count: 0", "gpu_count"),
        ("gpu_hour: -1", "a price such as 2.5"),
    ],
)
def test_where_an_engine_runs_is_checked(tmp_path: Path, written: str, word: str) -> None:
    assert word in complaint(tmp_path, f"targets: [{{url: 'http://h:1', {written}}}]")


@pytest.mark.parametrize(
    "address", [":0", ":9836", "127.0.0.1:80", "[::1]:9836", "[fe80::1%eth0]:1", "localhost:65535"]
)
def test_addresses_to_listen_at(tmp_path: Path, address: str) -> None:
    assert read(tmp_path, f"listen: ['{address}']").listen == (address,)
    assert load(None, listen=[address], engine_names=ENGINES).listen == (address,)


def test_an_engine_of_the_file_can_be_used_wherever_an_engine_is_named(tmp_path: Path) -> None:
    text = """
targets: [{url: "http://a", engine: tgi}]
probe: {modules: {m: {engine: tgi}}}
mappings: {tgi: [{metric: llm_requests_waiting, names: [tgi_queue_size]}]}
engines: {tgi: {rules: [{metric: llm_requests_running, names: [tgi_batch_current_size]}]}}
"""
    config = read(tmp_path, text, targets=["tgi=b"])
    assert [target.engine for target in config.targets] == ["tgi", "tgi"]
    assert config.probe.modules["m"] == Module(name="m", engine="tgi")
    assert list(config.mappings) == ["tgi"]


def test_a_module_may_be_without_settings_and_have_any_name(tmp_path: Path) -> None:
    assert read(tmp_path, "probe: {modules: {a b.c: }}").probe.modules == {"a b.c": Module(name="a b.c")}


def test_files_are_relative_to_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "web.yml").touch()
    (tmp_path / "etc" / "headroom.yml").write_text("web_config: web.yml")
    monkeypatch.chdir(tmp_path)
    assert load(Path("etc/headroom.yml"), engine_names=ENGINES).web_config == tmp_path / "etc" / "web.yml"


def test_the_file_of_a_secret_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")  # opening it would block
    [target] = read(tmp_path, "targets: [{url: 'http://a', auth: {bearer_token_file: token}}]").targets
    assert target.endpoint.credentials == Bearer(Secret(file=tmp_path / "token"))


def test_yaml_is_not_loaded_without_a_file() -> None:
    program = (
        "import sys, llm_headroom.config.load as c; c.load(None, engine_names=[]); sys.exit('yaml' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Targets -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "engine", "url", "name"),
    [
        ("vllm=http://127.0.0.1:8000", "vllm", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000", None, "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("127.0.0.1:8000", None, "http://127.0.0.1:8000", "127.0.0.1:8000"),
        (" vllm = HTTP://LLM-A:8000/ ", "vllm", "http://llm-a:8000", "llm-a:8000"),
        ("llm", None, "http://llm", "llm:80"),
        ("http://llm:80", None, "http://llm", "llm:80"),
        ("https://llm", None, "https://llm", "llm:443"),
        ("https://llm:443/metrics", None, "https://llm", "llm:443"),
        ("http://llm:443", None, "http://llm:443", "llm:443"),
        ("http://llm/metrics", None, "http://llm", "llm:80"),
        ("http://llm/a/metrics//", None, "http://llm/a", "llm:80/a"),
        ("http://llm/a/B/", None, "http://llm/a/B", "llm:80/a/B"),
        ("http://llm/mymetrics", None, "http://llm/mymetrics", "llm:80/mymetrics"),
        ("http://[::1]:8000", None, "http://[::1]:8000", "[::1]:8000"),
        ("ollama=[2001:DB8::1]", "ollama", "http://[2001:db8::1]", "[2001:db8::1]:80"),
        ("http://llm/a=b", None, "http://llm/a=b", "llm:80/a=b"),
        ("llm:8000/a=b", None, "http://llm:8000/a=b", "llm:8000/a=b"),
        ("sglang=llm:8000/a=b", "sglang", "http://llm:8000/a=b", "llm:8000/a=b"),
        ("what-ever=http://llm", "what-ever", "http://llm", "llm:80"),
    ],
)
def test_targets_as_a_text(tmp_path: Path, text: str, engine: str | None, url: str, name: str) -> None:
    assert parse_target(text) == Target(name=name, endpoint=Endpoint(url=url), engine=engine)
    if engine is None:
        [target] = read(tmp_path, yaml.safe_dump({"targets": [{"url": text}]})).targets
        assert target == parse_target(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://llm?a=b", "neither a query nor a fragment"),
        ("llm?engine=http://x", "neither a query nor a fragment"),
        ("vllm=llm#a=b", "neither a query nor a fragment"),
        ("", "expected a URL such as"),
        ("vllm=", "expected a URL such as"),
        ("http://a b", "expected a URL such as"),
        ("http://llm:", "expected a URL such as"),
        ("http://::1", "expected a URL such as"),
        ("vllm=http//llm:8000", "expected a URL such as"),
        ("http://llm/\nx", "expected a URL such as"),
        ("http://llm:8000:8000", "expected a URL such as"),
        ("http://bücher", "expected a URL such as"),
        ("unix:///run/llm.sock", "expected a URL with http:// or https://"),
    ],
)
def test_texts_that_are_no_target(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_target(text)


@given(st.text(max_size=40) | st.text("htps:/[]@.=?#%0189abz", max_size=40))
def test_a_url_that_is_accepted_is_in_its_one_spelling(text: str) -> None:
    try:
        target = parse_target(text)
    except ConfigError:
        return
    assert parse_target(target.endpoint.url) == replace(target, engine=None)
    assert not set("@?# ") & set(target.endpoint.url)


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=12).filter(
        lambda text: text not in "the URL must not contain a user or password; give them under the key auth"
    )
)
def test_a_password_in_a_url_is_never_repeated(password: str) -> None:
    for text in (f"http://user:{password}@llm:8000", f"vllm=https://{password}@llm", f"{password}@llm:8000"):
        with pytest.raises(ConfigError) as error:
            parse_target(text)
        assert password not in str(error.value)


# Flags and the environment -------------------------------------------------------------------------------------------
def test_flags_win_over_the_file(tmp_path: Path) -> None:
    web = tmp_path / "flag.yml"
    web.touch()
    (tmp_path / "web.yml").touch()
    text = """
listen: [":1", ":2"]
interval: 1s
discover: true
gpu: {enabled: true, processes: true}
web_config: web.yml
log: {level: error, format: json}
"""
    config = read(
        tmp_path,
        text,
        listen=[":3,127.0.0.1:4"],
        interval="2s",
        web_config=web,
        log_level="debug",
        log_format="logfmt",
        gpu=False,
        discover=False,
    )
    assert config == Config(
        listen=(":3", "127.0.0.1:4"),
        interval=2.0,
        discover=False,
        gpu=GpuSettings(enabled=False, processes=True),
        web_config=web,
        log=Log(level="debug", format="logfmt"),
    )


def test_a_flag_leaves_alone_what_it_does_not_speak_of(tmp_path: Path) -> None:
    config = read(tmp_path, "log: {level: error, format: json}\ngpu: false", log_format="logfmt")
    assert config.log == Log(level="error", format="logfmt")
    assert config.gpu == GpuSettings(enabled=False)


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    config = load(
        None, targets=["", " , "], listen=[""], interval="", log_level="", log_format="", engine_names=ENGINES
    )
    assert config == Config()


def test_targets_of_flags_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    config = read(tmp_path, "targets: ['http://a']", targets=["vllm=http://b, c:8000", "http://d"])
    assert [target.name for target in config.targets] == ["a:80", "b:80", "c:8000", "d:80"]
    assert [target.engine for target in config.targets] == [None, "vllm", None, None]


def test_a_target_cannot_be_both_in_the_file_and_in_a_flag(tmp_path: Path) -> None:
    assert complaint(tmp_path, "targets:\n  - http://a", targets=["vllm=a:80"]) == (
        "--target/LLM_HEADROOM_TARGETS: duplicate URL http://a; first defined at headroom.yml:2"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"targets": ["vlm=a"]}, "--target/LLM_HEADROOM_TARGETS: unknown engine 'vlm'; did you mean vllm?"),
        ({"listen": ["9836"]}, "--listen/LLM_HEADROOM_LISTEN: expected an address such as"),
        ({"interval": "soon"}, "--interval/LLM_HEADROOM_INTERVAL: expected a duration such as 5s, got 'soon'"),
        ({"interval": "2h"}, "--interval/LLM_HEADROOM_INTERVAL: expected a duration such as 5s from 100ms to 1h"),
        ({"log_level": "all"}, "--log-level/LLM_HEADROOM_LOG_LEVEL: expected one of debug, info, warning, error"),
        ({"log_format": "xml"}, "--log-format/LLM_HEADROOM_LOG_FORMAT: expected one of logfmt, json, got 'xml'"),
        (
            {"web_config": Path("/absent/web.yml")},
            "--web-config/LLM_HEADROOM_WEB_CONFIG: /absent/web.yml: No such file or directory",
        ),
    ],
)
def test_a_wrong_flag_is_named_with_its_variable(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        load(None, engine_names=ENGINES, **flags)


def test_problems_of_the_file_and_of_flags_are_told_together(tmp_path: Path) -> None:
    assert complaint(tmp_path, "interval: soon", log_level="all", targets=["x=a"]).count("\n") == 2


# Values --------------------------------------------------------------------------------------------------------------
FULL = """
targets: [{url: "http://a", labels: {team: x, tier: y}}]
probe: {modules: {m: {}}}
mappings: {vllm: [{metric: llm_requests_running, names: [a], where: {b: c}}]}
"""


def test_the_same_file_gives_an_equal_configuration_and_hash(tmp_path: Path) -> None:
    first, second = read(tmp_path, FULL), read(tmp_path, FULL.replace("team: x, tier: y", "tier: y, team: x"))
    assert first == second
    assert len({first, second}) == 1
    assert len({*first.targets, *second.targets}) == 1


@pytest.mark.parametrize("change", [("team: x", "team: z"), ("m: {}", "m: {gzip: true}"), ("b: c", "b: d")])
def test_a_changed_file_gives_another_configuration(tmp_path: Path, change: tuple[str, str]) -> None:
    assert read(tmp_path, FULL) != read(tmp_path, FULL.replace(*change))


def test_mappings_of_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    for mapping in (config.targets[0].labels, config.probe.modules, config.mappings, config.mappings["vllm"][0].where):
        assert isinstance(mapping, MappingProxyType)


# Whatever is written -------------------------------------------------------------------------------------------------
SECTIONS = {
    name: tuple(shape(section).keys)
    for name, section in {
        "": Config,
        "targets": Target,
        "tls": Tls,
        "auth": Auth,
        "model_memory": ModelMemory,
        "proxies": ProxySettings,
        "gpu": GpuSettings,
        "probe": ProbeSettings,
        "probe.modules": Module,
        "mappings": RuleSettings,
        "engines": EngineSettings,
        "objectives": Objectives,
        "targets.objectives": OwnObjectives,
        "cost": Cost,
        "log": Log,
        "otlp": OtlpSettings,
        "links": Links,
        "notify": Receiver,
    }.items()
}
KEYS = sorted({key for keys in SECTIONS.values() for key in keys} | {"<<", "vllm", "x y"})
SCALARS = st.sampled_from(
    [None, True, 0, -1, 1.5, "", "5s", "16MiB", "vllm", "http://a", ":1", "/", "llm_up", "(", "\x00"]
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(SECTIONS[""]), NESTED, max_size=4))
def test_any_values_give_a_configuration_or_the_reason_why_not(content: dict[str, Any]) -> None:
    with TemporaryDirectory() as directory:
        try:
            config = read(Path(directory), yaml.safe_dump(content))
        except ConfigError as error:
            assert all(line.startswith(directory) for line in str(error).split("\n")[:20])  # noqa: PT017 - one of two ends
        else:
            assert config == read(Path(directory), yaml.safe_dump(content))
            jsonschema.validate(yaml.safe_load(yaml.safe_dump(content)), SCHEMA)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text("&*!<>{}[]:,-?'\"|\\%#@a \n", max_size=30).map(str.encode))
def test_any_bytes_give_a_configuration_or_the_reason_why_not(data: bytes) -> None:
    with TemporaryDirectory() as directory:
        try:
            config = read(Path(directory), data)
        except ConfigError as error:
            assert str(error).startswith(directory)  # noqa: PT017 - one of two ends
        else:
            assert config == Config()


# Documents -----------------------------------------------------------------------------------------------------------
def keys_in(node: yaml.Node | None) -> set[str]:
    if isinstance(node, yaml.MappingNode):
        return {key.value for key, _ in node.value}.union(*(keys_in(value) for _, value in node.value))
    return set().union(*map(keys_in, node.value)) if isinstance(node, yaml.SequenceNode) else set()


def example(directory: Path) -> str:
    """The documents' example; the files that it names lie in the directory."""
    for name in ("tls/ca.pem", "tls/client.pem", "tls/client-key.pem", "secrets/token", "web.yml"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch()
    return EXAMPLE.read_text()


def test_the_example_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLECTOR_TOKEN", "secret")
    config = read(tmp_path, example(tmp_path))
    assert [target.name for target in config.targets] == ["llm-a"]
    assert config.proxies == (ProxySettings(listen="0.0.0.0:8001", target="llm-a", hosts=("llm.example.org",)),)
    assert config.objectives == Objectives(request_duration=30.0)  # the example has every key


def test_the_example_has_every_key_that_is_not_refused() -> None:
    text = EXAMPLE.read_text()
    excluded = set(re.findall(r"^ *# (\w+):$", text, re.MULTILINE))
    assert excluded == {
        "bearer_token_env",
        "username",
        "password_file",
        "password_env",
        "upstream",
        "engine",
        "url_file",
        "url_env",
    }
    keys = {key for keys in SECTIONS.values() for key in keys} - {"bearer_token", "password"}
    assert keys - keys_in(yaml.compose(text)) == excluded - {"engine"}


def test_examples_fit_the_schema_for_editors() -> None:
    for path in (EXAMPLE, FIXTURES.parent / "config_complete" / "headroom.yml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), SCHEMA)
    for content in (
        {},
        {"targets": None, "interval": 0.5, "gpu": True},
        {"targets": ["vllm=http://a"], "timeout": "5"},
    ):
        jsonschema.validate(content, SCHEMA)


@pytest.mark.parametrize(
    "content",
    [
        {"intervall": "5s"},
        {"interval": "soon"},
        {"targets": [{"name": "a"}]},
        {"targets": [{"url": "http://a", "auth": {"bearer_token": "x"}}]},
        {"targets": [{"url": "http://a", "requests_running_limit": 0}]},
        {"log": {"level": "all"}},
        {"listen": []},
        {"engines": {"Tgi": {"rules": []}}},
    ],
)
def test_the_schema_for_editors_refuses_what_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    assert complaint(tmp_path, yaml.safe_dump(content))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


def test_every_key_says_what_it_means_and_which_engines_are_built_in() -> None:
    for section in SCHEMA["definitions"].values():
        assert all(len(key["description"]) > 10 for key in section["properties"].values())
    said = SCHEMA["definitions"]["Target"]["properties"]["engine"]["description"]
    assert set(re.findall(r"`(\w+)`", said)) - {"engines"} == set(ENGINES)


# Proxies -------------------------------------------------------------------------------------------------------------
def test_a_proxys_upstream_is_a_target_and_engines_are_still_looked_for(tmp_path: Path) -> None:
    config = read(tmp_path, 'proxies: [{listen: ":11435", upstream: "http://127.0.0.1:11434", engine: ollama}]')
    ollama = Target(name="127.0.0.1:11434", endpoint=Endpoint(url="http://127.0.0.1:11434"), engine="ollama")

    assert config.proxies == (ProxySettings(listen=":11435", target="127.0.0.1:11434"),)
    assert config.targets == (ollama,)
    assert config.discover is True


def test_a_proxy_may_stand_before_a_target_whose_metrics_have_another_port(tmp_path: Path) -> None:
    text = """
targets: [{url: "http://a:29000", name: router, engine: sglang_router}]
proxies: [{listen: ":1", target: router, upstream: "http://a:30000"}]
"""
    config = read(tmp_path, text)

    assert config.proxies == (ProxySettings(listen=":1", target="router", upstream="http://a:30000"),)
    assert [target.name for target in config.targets] == ["router"]
    assert config.discover is None


@pytest.mark.parametrize(
    ("targets", "behind"), [([], "127.0.0.1:11434"), (["vllm=http://a:1", "ollama=http://b:2"], "b:2")]
)
def test_the_flag_for_ollama_takes_its_target_or_its_usual_address(targets: list[str], behind: str) -> None:
    config = load(None, ollama_proxy=(":1,127.0.0.1:2",), targets=targets, engine_names=ENGINES)

    assert [(each.listen, each.target) for each in config.proxies] == [(":1", behind), ("127.0.0.1:2", behind)]
    assert behind in {target.name for target in config.targets}


def test_the_flags_of_proxies_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^--ollama-proxy/LLM_HEADROOM_OLLAMA_PROXY: expected an address such as"):
        load(None, ollama_proxy=("x",), engine_names=ENGINES)
    with pytest.raises(ConfigError, match=r"^--listen: the engine of a:1 is needed for a proxy; write it as in"):
        load(None, proxy=(":1",), targets=("http://a:1",), engine_names=ENGINES)
