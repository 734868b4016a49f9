"""A secret that is written where the path of its file belongs: no message repeats it."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Final, get_args

import click
import pytest
import trustme

from exporter_process import Exporter, ran
from llm_headroom.commands.cli import main
from llm_headroom.config.errors import ConfigError
from llm_headroom.config.kinds import kind_of
from llm_headroom.config.load import load
from llm_headroom.config.reader import shape
from llm_headroom.config.settings import Config
from llm_headroom.web import config as web_config
from llm_headroom.web.tls import server_context

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY: Final = trustme.CA().private_key_pem.bytes().decode()
MARK: Final = KEY.splitlines()[1][8:24]
"""A part that no message may hold."""
FORMS: Final = {
    "as it is": KEY,
    "on one line": " ".join(KEY.split("\n")).strip(),
    "without its frame": KEY.splitlines()[1],
    "with a zero": KEY.splitlines()[1] + "\0",
}


def text(value: str) -> str:
    """A text in YAML."""
    return json.dumps(value)


ENGINE: Final = "targets: [{{{{url: 'https://a', {}}}}}]"
SETTINGS: Final = {
    "ca_file": ENGINE.format("tls: {{ca_file: {0}}}"),
    "cert_file": ENGINE.format("tls: {{cert_file: {0}}}"),
    "key_file": ENGINE.format("tls: {{cert_file: there, key_file: {0}}}"),
    "bearer_token_file": ENGINE.format("auth: {{bearer_token_file: {0}}}"),
    "password_file": ENGINE.format("auth: {{username: a, password_file: {0}}}"),
    "url_file": "notify: [{{url_file: {0}}}]",
    "headers_file": "otlp: {{endpoint: 'http://a', headers_file: {{X-Key: {0}}}}}",
    "web_config": "web_config: {0}",
}
"""How each setting that names a file is written."""


def files(section: type) -> Iterator[str]:
    """The settings that name files, of a section and those within it."""
    for key, (_, kind, _, _) in shape(section).keys.items():
        for inner in (kind, *map(kind_of, get_args(kind.base))):
            if inner.form.name == "file":
                yield key
            elif is_dataclass(within := inner.form.section or inner.base):
                yield from files(within)


def test_every_setting_that_names_a_file_is_tried() -> None:
    assert set(files(Config)) == SETTINGS.keys()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_s_error_does_not_repeat_it(tmp_path: Path, setting: str, form: str) -> None:
    (tmp_path / "there").touch()
    file = tmp_path / "headroom.yml"
    file.write_text(SETTINGS[setting].format(text(FORMS[form])))
    with pytest.raises(ConfigError) as raised:
        load(file, engine_names=())
    assert setting in str(raised.value)
    if setting in {"ca_file", "web_config"} and form == "without its frame":
        return  # a name like any other, and what belongs there is no secret
    assert MARK not in str(raised.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", ["cert_file", "key_file", "client_ca_file"])
def test_nor_does_one_of_the_web_server_s_file(tmp_path: Path, setting: str, form: str) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("localhost")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "there")
    given = {"cert_file": "there", "key_file": "there", "client_auth_type": "RequireAndVerifyClientCert"}
    file = tmp_path / "web.yml"
    file.write_text(json.dumps({"tls_server_config": given | {setting: FORMS[form]}}))
    read = web_config.parse(file)
    assert read.tls is not None
    with pytest.raises(ConfigError) as raised:
        server_context(read.tls)
    assert str(raised.value).startswith(f"{file}:1: tls_server_config.{setting}: this file")
    assert MARK not in str(raised.value)
    assert raised.value.__cause__ is None


def options() -> Iterator[tuple[str, str, str | None]]:
    """Commands with their options that name files of a configuration, and the variables for these."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        for each in command.params:
            if (
                isinstance(each.type, click.Path)
                and isinstance(each, click.Option)
                and each.name not in {"output", "scenario"}
            ):
                yield name, each.opts[0], each.envvar if isinstance(each.envvar, str) else None


MORE: Final = {
    "proxy": ("--listen", ":1", "--upstream", "vllm=http://a"),
    "top": ("--once", "--url", "https://127.0.0.1:1"),
    "health": ("--url", "https://127.0.0.1:1"),
    "--config": (),
    "--key-file": ("--url", "https://127.0.0.1:1", "--cert-file", __file__),
}
"""What else is needed to have a file looked at, by command or option."""


@pytest.mark.parametrize(("command", "option", "variable"), list(options()))
def test_nor_does_one_of_a_flag_or_a_variable(command: str, option: str, variable: str | None) -> None:
    given = FORMS["on one line"]
    ways: list[tuple[list[str], dict[str, str]]] = [([option, given], {})]
    if variable:
        ways.append(([], {variable: given}))
    for arguments, variables in ways:
        done = ran(command, *MORE.get(option, MORE.get(command, ())), *arguments, extra=variables)
        assert done.returncode != 0
        assert "this file" in done.stderr or "its name is not shown" in done.stderr
        assert MARK not in done.stdout + done.stderr


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nor_does_a_failed_push(tmp_path: Path, protocol: str) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem"),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": KEY,
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": KEY,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1000",
    }
    with Exporter("--no-gpu", "--no-discover", extra=variables) as exporter:
        exporter.logged("otlp export failed")
        assert MARK not in json.dumps(exporter.log)
