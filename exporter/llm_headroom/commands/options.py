"""Options that several commands share, and how settings are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from llm_headroom.config.load import load
from llm_headroom.engines.built_in import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_headroom.config.settings import Config

P = ParamSpec("P")
R = TypeVar("R")


class _Targets(click.ParamType[str]):
    """A target; the environment variable holds several, separated by commas."""

    name = "[ENGINE=]URL"

    def split_envvar_value(self, rv: str) -> list[str]:
        """The targets of a comma-separated list."""
        return [part.strip() for part in rv.split(",") if part.strip()]


def collecting(command: Callable[P, R]) -> Callable[P, R]:
    """Options of commands that collect."""
    for option in (
        click.option(
            "--discover/--no-discover",
            default=None,
            envvar="LLM_HEADROOM_DISCOVER",
            help="Detect engines on the default ports of this host.  [default: if no target is given]",
        ),
        click.option(
            "--gpu/--no-gpu",
            default=None,
            envvar="LLM_HEADROOM_GPU",
            help="Monitor GPUs.  [default: if NVML is available]",
        ),
        click.option(
            "--log-format",
            envvar="LLM_HEADROOM_LOG_FORMAT",
            metavar="logfmt|json",
            help="Log format.  [default: logfmt]",
        ),
        click.option(
            "--log-level",
            envvar="LLM_HEADROOM_LOG_LEVEL",
            metavar="LEVEL",
            help="Log level: debug, info, warning or error.  [default: info]",
        ),
        click.option(
            "--config",
            "path",
            type=click.Path(path_type=Path),
            envvar="LLM_HEADROOM_CONFIG",
            metavar="FILE",
            help="Configuration file (YAML).",
        ),
        click.option(
            "--target",
            "targets",
            type=_Targets(),
            multiple=True,
            envvar="LLM_HEADROOM_TARGETS",
            help="An engine to monitor, such as vllm=http://127.0.0.1:8000; may be given several times. "
            "Without ENGINE= the engine is detected.",
        ),
    ):
        command = option(command)
    return command


def loaded(path: Path | None, **flags: Any) -> Config:  # noqa: ANN401 - click's values
    """The settings of a file, of flags and of the environment.

    Raises:
        ConfigError: they are wrong.
    """
    return load(path, **flags, engine_names=BUILT_IN)
