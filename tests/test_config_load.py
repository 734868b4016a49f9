"""What the configuration becomes of a file and flags together, and which of them contradict one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llm_headroom.config.errors import ConfigError
from llm_headroom.config.load import load
from llm_headroom.config.settings import GpuSettings, Log, ProxySettings

if TYPE_CHECKING:
    from pathlib import Path

    from llm_headroom.config.settings import Config

ENGINES = ("vllm", "ollama")


def loaded(directory: Path, text: str = "", **flags: Any) -> Config:  # noqa: ANN401 - whatever load takes
    file = directory / "headroom.yml"
    file.write_text(text)
    return load(file, engine_names=ENGINES, **flags)


@pytest.mark.parametrize(
    ("text", "flags", "problem"),
    [
        ("targets: [{url: 'http://a', tls: {server_name: b}}]", {},
         "headroom.yml:1: targets[0]: tls is set, but the URL is not https"),
        ("targets: [{url: 'https://a', tls: {server_name: b}}]", {}, None),
        ("targets: [{url: 'http://a', tls: {}}]", {}, None),
        ("targets: [{url: 'http://a', name: nvml}]", {},
         "headroom.yml:1: targets[0]: the target name nvml is reserved for GPUs"),
        ("targets: [{url: 'http://a', name: x}, {url: 'http://b', name: x}]", {},
         "headroom.yml:1: targets[1]: duplicate name 'x'; first defined at headroom.yml:1"),
        ("targets: [{url: 'http://a', name: x}, {url: 'http://a', name: y}]", {},
         "headroom.yml:1: targets[1]: duplicate URL http://a; first defined at headroom.yml:1"),
        ("targets: [{url: 'http://a', engine: vlm}]", {},
         "headroom.yml:1: targets[0].engine: unknown engine 'vlm'; did you mean vllm?"),
        ("engines: {vllm: {rules: [{metric: llm_requests_running, names: [a]}]}}", {},
         "headroom.yml:1: engines.vllm: vllm is built in; give it extra rules under mappings.vllm"),
        ("proxies: [{listen: ':1', target: b}]", {"targets": ["vllm=http://a"]},
         "headroom.yml:1: proxies[0]: no target has the name 'b'; known: a:80"),
        ("proxies: [{listen: ':1', target: 'a:80'}]", {"targets": ["http://a"]},
         "headroom.yml:1: proxies[0]: the engine of a:80 is needed for a proxy; write it as in ollama=http://…"),
        ("proxies: [{listen: ':1', target: 'a:80/x'}]", {"targets": ["vllm=http://a/x"]},
         "headroom.yml:1: proxies[0]: the URL of a proxied engine must have no path: http://a/x"),
        ("proxies: [{listen: ':1', target: 'a:80/x', upstream: 'http://b'}]", {"targets": ["vllm=http://a/x"]}, None),
        ("proxies: [{listen: ':1', target: 'a:80', upstream: 'http://b/y'}]", {"targets": ["vllm=http://a"]},
         "headroom.yml:1: proxies[0]: the URL of a proxied engine must have no path: http://b/y"),
        ("interval: soon\nproxies: [{listen: ':1', target: b}]", {},
         "headroom.yml:1: interval: expected a duration such as 5s, got 'soon'"),
        ("on: 1", {}, "headroom.yml:1: expected strings as keys, got true or false: put it in quotes"),
        ("gpu: {7: true}", {}, "headroom.yml:1: gpu: expected strings as keys, got a number: put it in quotes"),
        ("", {"proxy": [":1"], "targets": ["http://a"]},
         "--listen: the engine of a:80 is needed for a proxy; write it as in ollama=http://…"),
    ],
)  # fmt: skip
def test_what_contradicts_itself(tmp_path: Path, text: str, flags: dict[str, Any], problem: str | None) -> None:
    found = None
    try:
        loaded(tmp_path, text, **flags)
    except ConfigError as error:
        found = str(error).replace(f"{tmp_path}/", "")
    assert found == problem


@pytest.mark.parametrize(
    ("text", "flags", "discover"),
    [
        ("", {}, None),
        ("discover: true", {}, True),
        ("discover: true", {"discover": False}, False),
        ("", {"discover": True}, True),
        ("", {"targets": ["http://a"]}, None),
        ("targets: [http://a]", {"ollama_proxy": [":1"]}, None),
        ("", {"ollama_proxy": [":1"]}, True),
        ("discover: false", {"ollama_proxy": [":1"]}, False),
        ("", {"ollama_proxy": [":1"], "discover": False}, False),
    ],
)
def test_whether_engines_are_looked_for(
    tmp_path: Path, text: str, flags: dict[str, Any], *, discover: bool | None
) -> None:
    assert loaded(tmp_path, text, **flags).discover is discover


def test_flags_in_front_of_what_the_file_says(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, "gpu: {processes: true}\nlog: {level: error}\ninterval: 7s\nlisten: [':1']", gpu=True,
        log_format="json", listen=[":2, :3", ""], targets=["vllm=http://a", "b"], proxy=[":4"], ollama_proxy=[":5,:6"],
    )  # fmt: skip
    assert found.gpu == GpuSettings(enabled=True, processes=True)
    assert (found.log, found.interval, found.listen) == (Log(level="error", format="json"), 7.0, (":2", ":3"))
    assert [each.name for each in found.targets] == ["a:80", "b:80", "127.0.0.1:11434"]
    assert found.proxies == (
        ProxySettings(listen=":5", target="127.0.0.1:11434"), ProxySettings(listen=":6", target="127.0.0.1:11434"),
        ProxySettings(listen=":4", target="a:80"),
    )  # fmt: skip
    assert (
        loaded(tmp_path, "gpu: true").gpu == loaded(tmp_path, "gpu: false", gpu=True).gpu == GpuSettings(enabled=True)
    )
    alone = load(None, proxy=[":1"], engine_names=ENGINES)
    assert [(each.listen, each.target) for each in alone.proxies] == [(":1", "127.0.0.1:11434")]


def test_a_target_on_loopback_has_the_name_of_its_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAME", "p")
    found = loaded(tmp_path, targets=["vllm=http://127.0.0.1:8000"], proxy=[":1"])
    assert ([each.name for each in found.targets], found.proxies[0].target) == (["p:8000"], "p:8000")
