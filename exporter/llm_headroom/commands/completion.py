"""`llm-headroom completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """The script of a shell, which asks the program itself for words: it fits every version.

    Raises:
        KeyError: the shell is not one of `SHELLS`.
    """
    if shell not in SHELLS:
        raise KeyError(shell)
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    made = kind(click.Command("llm-headroom"), {}, "llm-headroom", "_LLM_HEADROOM_COMPLETE")
    # Not `source()`, which starts a bash to ask for its version.
    return made.source_template % made.source_vars() + "\n"


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    bash: llm-headroom completion bash > ~/.local/share/bash-completion/completions/llm-headroom
    """
    click.echo(script(shell), nl=False)
