"""The man page, from the commands' own help. Format: man(7), the macros of the package `an`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import click

from llm_headroom import __version__
from llm_headroom.commands.cli import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARIABLES: Final = {
    "POD_NAME, POD_NAMESPACE, NODE_NAME": "In a pod, by the Downward API: targets on loopback are named after the pod.",
    "OTEL_EXPORTER_OTLP_…": "OpenTelemetry's own variables, as its specification has them.",
}


def page() -> str:
    """The text of llm-headroom(1)."""
    lines = [
        f'.TH LLM-HEADROOM 1 "" "llm-headroom {__version__}" "User Commands"',
        ".SH NAME",
        r"llm-headroom \- metrics, headroom and alerts for LLM inference engines in one schema",
        ".SH SYNOPSIS",
        r".B llm-headroom",
        r".I COMMAND",
        r"[\fIOPTIONS\fR]",
        ".SH DESCRIPTION",
        _plain(main.help or ""),
        "Without configuration it detects engines on their default ports on this host, and NVIDIA GPUs.",
        ".SH COMMANDS",
    ]
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None  # noqa: S101 - the table names what there is
        lines += _command(command, click.Context(command), f"llm-headroom {name}")
    lines.append(".SH ENVIRONMENT")
    for name, meaning in (_read() | _VARIABLES).items():
        lines += [".TP", rf".B {_plain(name)}", _plain(meaning)]
    lines += [
        *(".SH FILES", ".TP", ".I /etc/llm-headroom/environment", "Variables of the service, as for systemd."),
        *(".TP", ".I /etc/llm-headroom/config.yml"),
        "The configuration, where LLM_HEADROOM_CONFIG of that file names it.",
        *(".SH EXIT STATUS", "0 success, 1 a source failed or is not well, 2 wrong usage or configuration."),
        *(".SH SIGNALS", "SIGHUP reads the configuration again; SIGTERM ends the program within five seconds."),
        *(".SH SEE ALSO", ".BR prometheus (1),", ".BR systemctl (1)"),
    ]
    return "\n".join(lines) + "\n"


def _command(command: click.Command, context: click.Context, title: str) -> Iterator[str]:
    yield rf".SS {_plain(title)}"
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        yield from (_plain(" ".join(paragraph.split())), ".PP")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", rf".B {_plain(record[0])}", _plain(record[1]))
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _command(inner, click.Context(inner), f"{title} {name}")


def _read() -> dict[str, str]:
    """Every variable that an option reads, with the option."""
    context = click.Context(main)
    options: dict[str, str] = {}
    for name in COMMANDS:
        command = main.get_command(context, name)
        for option in command.params if command else ():
            if isinstance(option, click.Option) and isinstance(option.envvar, str):
                options.setdefault(option.envvar, f"As {option.opts[0]}.")
    return options


def _plain(text: str) -> str:
    """Text in which nothing is an escape of roff's."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return re.sub(r"[^\x00-\x7f]", lambda found: rf"\[u{ord(found[0]):04X}]", escaped)
