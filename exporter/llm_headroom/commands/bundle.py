"""`llm-headroom bundle`: write what is shipped, with a user's thresholds and label matchers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import math
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands.exits import fail
from llm_headroom.config.errors import near
from llm_headroom.thresholds import Thresholds, problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PARTS: Final = ("alerts", "runbooks", "dashboards", "kubernetes", "sidecars")
"""Modules of the bundle; each has `files(settings)`."""
WRITTEN: Final = "llm-headroom-bundle.sha256"
"""The list of what was written, by which edited files are recognised."""
_MATCHER: Final = r'[A-Za-z_]\w*\s*(?:=|!=|=~|!~)\s*"(?:[^"\\{}]|\\.)*"'
_SELECTOR: Final = re.compile(rf"{_MATCHER}(?:\s*,\s*{_MATCHER})*")


def settings(thresholds: Iterable[str], selector: str, **others: Any) -> BundleSettings:  # noqa: ANN401 - fields
    """The settings of a command line; each threshold is written `name=value`.

    Raises:
        ValueError: a threshold is unknown or not a number, or the selector or a URL is invalid.
    """
    if selector and _SELECTOR.fullmatch(selector) is None:
        raise ValueError(f'selector {selector}: expected label matchers, such as cluster="x", pod=~"vllm-.*"')
    chosen = Thresholds(**dict(map(_threshold, thresholds)))
    if found := problem(chosen):
        raise ValueError(found)
    made = BundleSettings(thresholds=chosen, selector=selector, **others)
    if not (math.isfinite(made.for_scale) and made.for_scale > 0):
        raise ValueError(f"for-scale: expected a number above 0, got {made.for_scale:g}")
    for option, url in (("runbooks", made.runbook_base_url), ("grafana", made.dashboard_base_url)):
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"{option} {url}: expected a URL with http:// or https://")
    return made


def files(chosen: BundleSettings, only: Iterable[str] = ()) -> dict[str, str]:
    """The texts of the parts named, or of all, by relative path."""
    found: dict[str, str] = {}
    for part in tuple(only) or PARTS:
        found |= importlib.import_module(f"llm_headroom.bundle.{part}").files(chosen)
    return found


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files below a folder, which is created if needed: each is there as a whole, or as it was before.

    On a full disk none is replaced: they are put in place when all are written.

    Raises:
        OSError: one cannot be written.
    """
    with contextlib.ExitStack() as made:
        ready: list[tuple[Path, Path]] = []
        for name, text in texts.items():
            path = (folder / name).resolve()  # where a link leads to, as that stays
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            made.callback(new.unlink, missing_ok=True)
            try:
                new.write_text(text, encoding="utf-8")
            except OSError as error:
                error.filename = str(path)  # Python names it only where it cannot be opened
                raise
            if path.exists():
                shutil.copymode(path, new)
            ready.append((new, path))
        for new, path in ready:
            new.replace(path)


def renew(folder: Path, texts: Mapping[str, str], *, force: bool = False) -> None:
    """Write files as `write` does, and a list of their checksums as `sha256sum` reads it.

    Raises:
        OSError: one cannot be written.
        ValueError: one that is there is not as it was written last, and `force` is not set; nothing is written then.
    """
    known = _checksums(folder / WRITTEN)
    edited = [
        name
        for name, text in texts.items()
        if (folder / name).exists()
        and _checksum((folder / name).read_bytes()) not in {known.get(name), _checksum(text.encode())}
    ]
    if edited and not force:
        raise ValueError(f"{', '.join(edited)}: edited since it was written; --force overwrites it")
    known |= {name: _checksum(text.encode()) for name, text in texts.items()}
    write(folder, {**texts, WRITTEN: "".join(f"{known[name]}  {name}\n" for name in sorted(known))})


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _checksums(path: Path) -> dict[str, str]:
    """Checksums by file of the list that was written last; none where there is no list."""
    if not path.exists():
        return {}
    lines = (line.split("  ", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2}  # noqa: PLR2004 - checksum and name


def _threshold(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    names = [field.name for field in dataclasses.fields(Thresholds)]
    if name not in names:
        every = f"; valid names: {', '.join(names)}"
        raise ValueError(f"threshold {name}: unknown threshold{near(name, names) or every}")
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
    "--only",
    multiple=True,
    metavar="PART",
    help="What to write: alerts, runbooks, dashboards, kubernetes or sidecars.  [default: all]",
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
@click.option("--datasource", metavar="UID", help="Data source that Grafana's alerts read.  [default: prometheus]")
@click.option(
    "--datasource-type",
    metavar="PLUGIN",
    help="Type of the dashboards' data source, such as victoriametrics-metrics-datasource.  [default: prometheus]",
)
@click.option("--force", is_flag=True, help="Overwrite files that were edited since they were written.")
@click.option("--for-scale", type=float, help="Factor on `for` durations and groups' intervals; below 1 for tests.")
def command(
    *,
    output: Path,
    thresholds: tuple[str, ...],
    selector: str,
    only: tuple[str, ...],
    force: bool,
    **others: Any,  # noqa: ANN401 - click's values
) -> None:
    """Write alerts with runbooks, dashboards and Kubernetes objects with thresholds and label matchers of your own."""
    if unknown := set(only) - set(PARTS):
        fail(f"part {', '.join(sorted(unknown))}: unknown part; valid names: {', '.join(PARTS)}")
    try:
        given = {name: value for name, value in others.items() if value is not None}
        texts = files(settings(thresholds, selector, **given), only)
        renew(output, texts, force=force)
    except (ValueError, OSError) as error:
        fail(str(error))
    for name in texts:
        click.echo(output / name)
