"""The report of `check` as text: how each engine is and why, what is missing, and what to do about it."""

from __future__ import annotations

from datetime import UTC, datetime
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

from llm_headroom import schema
from llm_headroom.model import Cause, Level
from llm_headroom.scrape import coverage
from llm_headroom.view import text
from llm_headroom.view.text import plain
from llm_headroom.view.values import ORDER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

NOTHING: Final = (
    "Nothing was found: no engine and no GPU. Name one with `--target`, as in --target vllm=http://HOST:8000"
)
_EXACT: Final = 1e15
"""Beyond it a float's digits are noise."""
_WHOLE: Final = 1000.0
"""From here on fractions do not matter to a reader."""


def text_report(reports: Iterable[Mapping[str, Any]], absent: Iterable[Mapping[str, Any]]) -> str:
    """All reports, the worst first. No text of an engine or a user can colour the terminal or move its cursor."""
    lines: list[str] = []
    for report in sorted(reports, key=rank):
        lines += _source(report)
    absent = list(absent)
    if not lines:
        lines += [NOTHING, ""]
    if absent:
        lines += ["Looked for on this host and not found", *(_absent(entry) for entry in absent), ""]
    return "\n".join(map(plain, lines)).rstrip()


def rank(report: Mapping[str, Any]) -> int:
    """How bad a source is: the smaller, the worse."""
    levels = [Level(each["level"]) for each in report["states"]] or [Level.GOOD if report["up"] else Level.BAD]
    return min(ORDER[level] for level in levels)


def fine(report: Mapping[str, Any]) -> bool:
    """Whether nothing is wrong with a source.

    One that answers and exposes too little to be judged is not wrong; one that looks like something else is.
    """
    stranger = any(warning["cause"] == Cause.NOT_THIS_ENGINE for warning in report["warnings"])
    return bool(report["up"]) and not stranger and rank(report) >= ORDER[Level.UNKNOWN]


def _absent(entry: Mapping[str, Any]) -> str:
    return f"  {entry['address']:<18} {entry['usual']}: {entry['error']['message']}"


def _source(report: Mapping[str, Any]) -> Iterator[str]:
    engine = " ".join(part for part in (report["engine"] or "unknown engine", report["version"]) if part)
    state = "up" if report["up"] else "DOWN"
    yield f"{report['target']}  {engine}  {state}  (read in {report['duration_seconds'] * 1000:.1f} ms)"
    message = report["error"]["message"] if report["error"] else ""
    for each in report["states"]:
        who = each.get("model") or (f"GPU {each['gpu']}" if each.get("gpu") else "")
        mark = text.STATE_MARKS[each["level"]]
        reason = each["reason"].removesuffix(message).removesuffix(": ")  # the error has a line of its own
        why = f": {reason}" if reason else ""
        yield f"  {mark} {f'{who} is ' if who else ''}{each['state']}{why}"
    if report["error"]:
        yield f"  error ({report['error']['cause']}): {message}"
    for warning in report["warnings"]:
        yield f"  warning ({warning['cause']}): {warning['message']}"
    yield from _metrics(report["points"])
    if report["up"] and report["missing"]:
        yield "  missing, and what to do"
        lacking = ((entry["metric"], entry["reason"]) for entry in report["missing"])
        for reason, names in coverage.by_reason(lacking).items():
            yield from _wrapped(reason, names)
    if report["unmapped"]:
        yield "  exposed by the engine and not used here"
        yield from wrap(", ".join(report["unmapped"]), width=110, initial_indent="    ", subsequent_indent="    ")
    yield ""


def _metrics(points: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not points:
        return
    rows = [(_series(point), value(point), point["source"]) for point in points]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    yield "  metrics, and where they come from"
    for name, shown, source in rows:
        yield f"    {name:<{names}}  {shown:>{values}}  {source}"


def _wrapped(reason: str, names: Sequence[str]) -> Iterator[str]:
    yield from wrap(f"{reason}:", width=110, initial_indent="    ", subsequent_indent="      ")
    yield from wrap(", ".join(names), width=110, initial_indent="        ", subsequent_indent="        ")


def _series(point: Mapping[str, Any]) -> str:
    labels = {name: value for name, value in point["labels"].items() if name not in ("engine", "target")}
    inside = ", ".join(f"{name}={value}" for name, value in labels.items())
    return f"{point['metric']}{{{inside}}}" if inside else str(point["metric"])


def value(point: Mapping[str, Any]) -> str:
    """The value of a point with its unit."""
    metric = schema.BY_NAME[point["metric"]]
    histogram = point.get("histogram")
    if histogram is None:
        if metric.name.endswith(("_timestamp_seconds", "_start_time_seconds")):
            return _date(point["value"])
        return measured(point["value"], metric.unit, labels=point["labels"])
    count = histogram["count"]
    mean = f", mean {measured(histogram['sum'] / count, metric.unit)}" if count else ""
    return f"{_number(count)} counted{mean}"


_UNITS: Final[Mapping[str, Callable[[float], str]]] = {
    "By": text.size,
    "By/s": lambda number: f"{text.size(number)}/s",
    "s": text.seconds,
    "1": lambda number: text.percent(number, 1),
    "{flag}": lambda number: "yes" if number else "no",
    "{info}": lambda _: "",
    "Cel": text.celsius,
    "Hz": lambda number: f"{number / 1e6:,.0f} MHz",
}
"""How numbers are written that are no counts, by their UCUM code."""


def measured(number: float, unit: str, labels: Mapping[str, str] | None = None) -> str:
    """A number with its unit, which is a UCUM code."""
    if unit in _UNITS:
        return _UNITS[unit](number)
    if unit == "{currency}":
        return f"{number:.4g} {(labels or {}).get('currency', '')}".rstrip()
    noun, slash, per = unit.partition("/")
    if noun.startswith("{"):
        noun = noun.strip("{}")
        noun = noun if number == 1 else f"{noun}{'es' if noun.endswith(('s', 'x')) else 's'}"
    return f"{_number(number)} {noun}{slash}{per}"


def _number(number: float) -> str:
    if abs(number) >= _EXACT:
        return f"{number:.0f}"
    return f"{number:,.0f}" if number == int(number) or abs(number) >= _WHOLE else f"{number:,.4g}"


def _date(seconds: float) -> str:
    """A unix time; a time that no calendar has is shown as the number."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.6g} s"
