"""The command line: a module of this package for each command, loaded when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from llm_headroom import __version__

COMMANDS: Final = {
    "run": "Watch engines and GPUs and serve /metrics.",
    "check": "Collect everything once and report each signal.",
    "config": "Check the configuration without polling: `config check [FILE]`.",
    "top": "Show engines and GPUs in the terminal.",
    "proxy": "Measure the requests to one engine.",
    "health": "Tell whether an exporter answers.",
    "bundle": "Write alerts, dashboards and Kubernetes objects.",
    "demo": "Show llm-headroom without a GPU.",
    "simulate": "Serve one simulated engine.",
}
"""What `--help` says of each command. It stands here so that `--help` loads none of them."""


class _Commands(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, the most used first."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"llm_headroom.commands.{cmd_name}").command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="llm-headroom")
def main() -> None:
    """Metrics, headroom and alerts for vLLM, SGLang and Ollama in one schema."""
