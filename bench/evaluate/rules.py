"""Alerting rules as files for Prometheus have them, and when they fire."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import yaml

from evaluate.incidents import Span, merged
from evaluate.prometheus import STEP_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from evaluate.prometheus import Vector

SATURATION_ALERTS: Final = (
    "LLMFirstTokensSlow",
    "LLMTokensTrickle",
    "LLMSaturationRisk",
    "LLMLatencyBudgetBurnFast",
    "LLMInterTokenLatencySlow",
    "LLMQueueBuilding",
    "LLMKVCacheExhausted",
    "LLMKVHeadroomLow",
)
"""Which of the shipped alerts are about saturation: the others speak of failures, GPUs and the exporter itself."""
RUN_LABEL: Final = "cluster"
NOTIFIED_SECONDS: Final = 60.0
"""A rule that pauses for less is one alert: what Alertmanager would send is one notification."""
RECORDED_EVERY: Final = "1m"
"""How often a recorded series of which a range is read is taken to be recorded."""
_NAME: Final = re.compile(r"\b[a-zA-Z_][\w:]*:[\w:]*\w(?![\w:]*[{\[])")
_METRIC: Final = re.compile(r"\bllm_\w+")
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Rule:
    """An alert: its expression without recorded series, and for how long [s] it must hold and is kept afterwards."""

    name: str
    expression: str
    for_seconds: float = 0.0
    keep_seconds: float = 0.0
    group: str = ""


def seconds(text: str) -> float:
    """Prometheus' duration in seconds.

    Raises:
        ValueError: it is none.
    """
    parts = re.findall(r"(\d+)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration")
    return float(sum(int(number) * _UNITS[unit] for number, unit in parts))


def read(path: Path) -> list[Rule]:
    """The alerts of a rules file. Recorded series are replaced by what they record.

    Raises:
        ValueError: an alert selects labels of a recorded series, or one that the file does not record.
    """
    groups = yaml.safe_load(path.read_text())["groups"]
    rules = [(group["name"], rule) for group in groups for rule in group["rules"]]
    recorded = {rule["record"]: _alone(rule["record"], rule["expr"]) for _, rule in rules if "record" in rule}
    return [
        Rule(
            rule["alert"],
            inlined(rule["expr"], recorded),
            seconds(rule.get("for", "0s")),
            seconds(rule.get("keep_firing_for", "0s")),
            group,
        )
        for group, rule in rules
        if "alert" in rule
    ]


def _alone(name: str, expression: str) -> str:
    """What a rule records without what it knows of itself from the look before."""
    return re.sub(rf"(?<![\w:]){re.escape(name)}(?![\w:])", "(vector(0) > 0)", expression)


def inlined(expression: str, recorded: Mapping[str, str]) -> str:
    """An expression with recorded series replaced, a range of one by a subquery.

    Raises:
        ValueError: see `read`.
    """
    replaced = _replaced(expression, recorded)
    while replaced != expression:  # what is recorded may be of what is recorded
        expression, replaced = replaced, _replaced(replaced, recorded)
    if unknown := _NAME.search(re.sub(r'"[^"]*"', '""', expression)):
        raise ValueError(f"{unknown.group()} is recorded nowhere in the file")
    return expression


def _replaced(expression: str, recorded: Mapping[str, str]) -> str:
    for name in sorted(recorded, key=len, reverse=True):
        used = re.compile(rf"(?<![\w:]){re.escape(name)}(?![\w:])")
        if re.search(used.pattern + r"\s*{", expression):
            raise ValueError(f"{name} is used with a selector, which cannot be replaced by its expression")
        expression = re.sub(rf"{used.pattern}\[(\w+)\]", rf"{name}[\1:{RECORDED_EVERY}]", expression)
        expression = used.sub(lambda _, name=name: f"({recorded[name]})", expression)  # type: ignore[misc]
    return expression


def metrics(rules: Iterable[Rule]) -> set[str]:
    """The canonical metrics that rules read, without the suffixes of a histogram's series."""
    names = {name for rule in rules for name in _METRIC.findall(rule.expression)}
    return names | {name.removesuffix(end) for name in names for end in ("_bucket", "_sum", "_count")}


def alerts(rule: Rule, answer: Sequence[Vector]) -> dict[str, list[Span]]:
    """From when to when a rule fires, for each run."""
    found: dict[str, list[Span]] = {}
    for labels, times in answer:
        found.setdefault(labels.get(RUN_LABEL, ""), []).extend(firing(times, rule.for_seconds, rule.keep_seconds))
    return {run: merged(spans, NOTIFIED_SECONDS) for run, spans in found.items()}


def firing(times: Sequence[float], for_seconds: float, keep_seconds: float) -> list[Span]:
    """When an alert of one series fires, from the evaluations at which its expression holds."""
    found: list[Span] = []
    active, last, fires = 0.0, None, False
    for at in times:
        if last is None or (at - last > 1.5 * STEP_SECONDS and not (fires and at - last <= keep_seconds)):
            active, fires = at, False
        last = at
        if fires:
            found[-1] = Span(found[-1].begin, at)
        elif at - active >= for_seconds:
            fires = True
            found.append(Span(at, at))
    return [Span(begin, end + keep_seconds) for begin, end in found]
