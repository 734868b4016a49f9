"""Recording and alerting rules as values, before a user's thresholds and selector are put in.

An expression is PromQL in which `$name` stands for a threshold or a setting, and in which every selector of a metric
gets the user's label matchers. `without` leaves all labels that the user's scrape adds.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING, Final

from llm_headroom.derive.words import span
from llm_headroom.schema import NO_FAULT, PROXY_TARGET
from llm_headroom.thresholds import Thresholds

if TYPE_CHECKING:
    from llm_headroom.bundle.settings import BundleSettings

_SELECTOR: Final = re.compile(r"""(?<![\w:])(llm_\w+|up)(?![\w:(])(\{(?:[^}"]|"(?:[^"\\]|\\.)*")*\})?""")
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Severity(enum.StrEnum):
    """Who is notified: on call (a symptom that users feel), working hours (a cause), or nobody."""

    PAGE = "page"
    TICKET = "ticket"
    INFO = "info"


class Dashboard(enum.StrEnum):
    """Where to look first, by the dashboard's uid."""

    FLEET = "llm-headroom-fleet"
    ENGINE = "llm-headroom-engine"
    KV = "llm-headroom-kv"
    GPU = "llm-headroom-gpu"
    EXPORTER = "llm-headroom-exporter"


KEPT: Final = "3m"
"""Time for which alerts go on without a sign: an exporter that restarts takes up to so long to know again what it knew.

Silence heals nothing, nor does a window that few requests leave empty for a while.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert.

    `expr` must hold for `wait` (a duration) before it fires, and it goes on for `kept` after that last held.
    `summary` and `description` are Prometheus' templates, `$name` in them a threshold.
    """

    name: str
    severity: Severity
    dashboard: Dashboard
    expr: str
    wait: str = "0s"
    kept: str = KEPT
    summary: str
    description: str


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated together, one after the other, every `interval` (a duration)."""

    interval: str
    rules: tuple[Recording | Alert, ...]


PROXIED: Final = f'target=~".+{PROXY_TARGET}"'
NOT_PROXIED: Final = f'target!~".+{PROXY_TARGET}"'
"""Matchers of what the measuring proxy saw of an engine with metrics of its own, and of all else."""
LOADS_LONG: Final = "30m"
"""Longer than any engine loads: whatever has been loading since then is as good as down."""
DOWN: Final = "target:llm_up:down"
"""The recording of the engines that do not answer."""
FAULTS: Final = f'reason!~"{"|".join(NO_FAULT)}"'
"""A matcher of requests that failed by a fault of the engine."""
SOURCE: Final = "{{ $labels.engine }} {{ $labels.target }} on {{ $labels.instance }}"
MODEL: Final = "{{ with $labels.model }}{{ . }} on {{ end }}{{ $labels.engine }}"
"""Whom an alert is about, in its texts: one target, or all engines of a model."""


class Placeholder(float):
    """A threshold that is written as its name, whatever the format: what reads the rules puts a value there."""

    name: str

    def __format__(self, _form: str, /) -> str:
        return f"@{self.name}@"


def expression(expr: str, settings: BundleSettings) -> str:
    """A rule's expression with the thresholds and the selector in it, on one line.

    Raises:
        KeyError: the expression names a threshold that does not exist.
    """
    text = Template(" ".join(expr.split())).substitute(_values(settings))
    return text if not settings.selector else _SELECTOR.sub(lambda match: _selected(match, settings.selector), text)


def words(text: str, settings: BundleSettings) -> str:
    """A summary or description with the thresholds in it, as people write them."""
    said = {
        each.name: _said(getattr(settings.thresholds, each.name), each.metadata["unit"])
        for each in dataclasses.fields(Thresholds)
    }
    return Template(" ".join(text.split())).safe_substitute(said)


_DAY: Final = 86400


def _said(value: float, unit: str) -> str:
    if isinstance(value, Placeholder):
        return f"@{value.name}:said@"
    match unit:
        case "ratio":
            return f"{value * 100:.4g}%"
        case "s":
            if value >= 2 * _DAY:
                return f"{value / _DAY:.4g} d"
            return span(value) if value >= 120 else f"{value:g} s"  # noqa: PLR2004 - from where on it counts minutes
        case "degrees Celsius":
            return f"{value:g} °C"
        case "bytes":
            return f"{value / 2**30:.4g} GiB" if value >= 2**30 else f"{value / 2**20:.4g} MiB"
        case _:
            return f"{value:g}"


def scaled(duration: str, factor: float) -> str:
    """A duration of Prometheus times a factor, to the millisecond."""
    if factor == 1:
        return duration
    return f"{round(_UNITS[duration[-1]] * float(duration[:-1]) * factor * 1000)}ms"


def _values(settings: BundleSettings) -> dict[str, str]:
    values = {name: f"{value:.15g}" for name, value in dataclasses.asdict(settings.thresholds).items()}
    return values | {"exporter_job": settings.exporter_job}


def _selected(match: re.Match[str], selector: str) -> str:
    name, braces = match.groups()
    own = (braces or "{}")[1:-1]
    return f"{name}{{{own}{', ' if own else ''}{selector}}}"
