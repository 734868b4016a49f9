"""`llm-headroom bundle`: write what is shipped, with a user's thresholds and label matchers."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands.exits import fail
from llm_headroom.thresholds import Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PARTS: Final = tuple(
    part
    for part in ("alerts", "dashboards", "kubernetes")
    if importlib.util.find_spec(f"llm_headroom.bundle.{part}") is not None
)
"""Modules of the bundle; each has `files(settings)`."""
_MATCHER: Final = r'[A-Za-z_]\w*\s*(?:=|!=|=~|!~)\s*"(?:[^"\\{}]|\\.)*"'
_SELECTOR: Final = re.compile(rf"{_MATCHER}(?:\s*,\s*{_MATCHER})*")


def settings(thresholds: Iterable[str], selector: str, **others: Any) -> BundleSettings:  # noqa: ANN401 - fields
    """Return the settings of a command line; each threshold is written `name=value`.

    Raises:
        ValueError: a threshold is unknown or not a number, or the selector is invalid.
    """
    if selector and _SELECTOR.fullmatch(selector) is None:
        raise ValueError(f'selector {selector}: expected label matchers, such as cluster="x", pod=~"vllm-.*"')
    return BundleSettings(thresholds=Thresholds(**dict(map(_threshold, thresholds))), selector=selector, **others)


def files(chosen: BundleSettings, only: Iterable[str] = ()) -> dict[str, str]:
    """Return the texts of the parts named, or of all, by relative path."""
    found: dict[str, str] = {}
    for part in tuple(only) or PARTS:
        found |= importlib.import_module(f"llm_headroom.bundle.{part}").files(chosen)
    return found


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files below a folder, which is created if needed.

    Raises:
        OSError: one cannot be written.
    """
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    names = [field.name for field in dataclasses.fields(Thresholds)]
    if name not in names:
        raise ValueError(f"threshold {name}: unknown threshold; valid names: {', '.join(names)}")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"threshold {name}: expected a number, got {value or 'nothing'}")
    return name, number


@click.command("bundle")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Output folder.")
@click.option(
    "--threshold",
    "thresholds",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a threshold of the alerts; may be given several times.",
)
@click.option(
    "--selector", default="", metavar="MATCHERS", help="Label matchers for every query, such as 'cluster=\"x\"'."
)
@click.option(
    "--only", multiple=True, metavar="PART", help="What to write: alerts, dashboards or kubernetes.  [default: all]"
)
@click.option(
    "--job",
    "exporter_job",
    default="llm-headroom",
    show_default=True,
    help="Value of the label `job` of the exporters.",
)
@click.option("--runbooks", "runbook_base_url", metavar="URL", help="Base URL of the published runbooks.")
@click.option("--grafana", "dashboard_base_url", metavar="URL", help="URL of Grafana, for links to dashboards.")
@click.option("--for-scale", type=float, help="Factor on the alerts' `for` durations; below 1 for tests.")
def command(output: Path, thresholds: tuple[str, ...], selector: str, only: tuple[str, ...], **others: Any) -> None:  # noqa: ANN401 - click's values
    """Write alerts, dashboards and Kubernetes objects with thresholds and label matchers of your own."""
    if unknown := set(only) - set(PARTS):
        fail(f"part {', '.join(sorted(unknown))}: unknown part; valid names: {', '.join(PARTS)}")
    try:
        given = {name: value for name, value in others.items() if value is not None}
        texts = files(settings(thresholds, selector, **given), only)
        write(output, texts)
    except (ValueError, OSError) as error:
        fail(str(error))
    for name in texts:
        click.echo(output / name)
