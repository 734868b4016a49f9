"""What several commands share: options of everything that collects, and how settings are read."""

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
    """A target; the environment variable separates several by commas."""

    name = "[ENGINE=]URL"

    def split_envvar_value(self, rv: str) -> list[str]:
        """The targets of a comma-separated list."""
        return [part.strip() for part in rv.split(",") if part.strip()]


def collecting(command: Callable[P, R]) -> Callable[P, R]:
    """The options of everything that collects."""
    for option in (
        click.option(
            "--discover/--no-discover",
            default=None,
            envvar="LLM_HEADROOM_DISCOVER",
            help="Look for engines on this host's usual ports.  [default: if no target is named]",
        ),
        click.option(
            "--gpu/--no-gpu", default=None, envvar="LLM_HEADROOM_GPU", help="Read GPUs.  [default: if NVML is there]"
        ),
        click.option(
            "--log-format",
            envvar="LLM_HEADROOM_LOG_FORMAT",
            metavar="logfmt|json",
            help="How to log.  [default: logfmt]",
        ),
        click.option(
            "--log-level",
            envvar="LLM_HEADROOM_LOG_LEVEL",
            metavar="LEVEL",
            help="debug, info, warning or error.  [default: info]",
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
            help="An engine to watch, such as vllm=http://127.0.0.1:8000; may be given several times. "
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
