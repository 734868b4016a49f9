"""The tables of docs/evaluation.md."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Final

from evaluate import trivial
from evaluate.forecasts import MEANT, pairs
from evaluate.incidents import DEFINITIONS, any_trouble, kv_exhaustion, slow_firsts, slow_tokens
from evaluate.plots import Mark, precision_recall, reliability
from evaluate.probability import Pair, bins, quality
from evaluate.scoring import interval, macro
from llm_headroom import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from evaluate.incidents import Definition, Span
    from evaluate.replay import Run
    from evaluate.results import Incidents, Results
    from evaluate.rules import Rule
    from evaluate.scoring import Interval, Score

FIRST, WARNING = "LLMFirstTokensSlow", "LLMSaturationRisk"
P95: Final = "p95 of TTFT over 5 min > SLO"
COMPARED: Final = (FIRST, P95, "waiting > 5", "KV usage > 0.9 for 5 min")


def number(value: float, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _with_interval(value: float, within: Interval) -> str:
    return "–" if math.isnan(value) else f"{value:.2f} [{within.low:.2f}, {within.high:.2f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def title(rule: Rule) -> str:
    """Shipped alerts as code, others as text."""
    return f"`{rule.name}`" if rule.name.startswith("LLM") else rule.name


def traffic_table(results: Results) -> str:
    """What was replayed, and how much was suffered."""
    rows = []
    for name in dict.fromkeys(run.scenario for run in results.runs):
        runs = [run for run in results.runs if run.scenario == name]
        shares = []
        for load in sorted({run.load for run in runs}):
            same = [run for run in runs if run.load == load]
            busy = sum(end - begin for run in same for begin, end in any_trouble(run))
            shares.append(f"{busy / sum(run.span for run in same):.0%}")
        counts = [sum(len(find(run)) for run in runs) for find in (_firsts, _kv, _tokens)]
        requests = sum(len(run.firsts) for run in runs)
        kind = "tuning" if runs[0].tuning else "held out"
        rows.append([name, kind, f"{runs[0].slo:g} s", f"{requests:,}", ", ".join(shares), *map(str, counts)])
    head = ["scenario", "for", "SLO", "requests", "time in incidents by load", "TTFT", "KV cache", "ITL"]
    return table(head, rows)


@cache
def _firsts(run: Run) -> list[Span]:
    return slow_firsts(run.firsts)


@cache
def _kv(run: Run) -> list[Span]:
    return kv_exhaustion(run.troubles)


@cache
def _tokens(run: Run) -> list[Span]:
    return slow_tokens(run.troubles)


def _by_trace(results: Results, rule: Rule, runs: Sequence[Run]) -> list[tuple[str, Score]]:
    return [(run.trace, one) for run, one in zip(runs, results.scores(rule, runs), strict=True)]


def calm_table(results: Results) -> str:
    """Each rule on the calm days: an alert is false where no incident is near."""
    rows = []
    for rule in results.rules:
        if rule.group != trivial.GROUP or rule == trivial.ALWAYS:
            whole = results.score(rule, results.calm)
            within = interval(_by_trace(results, rule, results.calm), lambda one: one.false_alarms)
            alarms = _with_interval(whole.false_alarms, within)
            rows.append([title(rule), str(whole.alerts), str(whole.right), alarms, f"{whole.duty:.1%}"])
    return table(["rule", "alerts", "right", "false alarms a day", "share of the time on"], rows)


def sets_table(results: Results) -> str:
    """The Brier skill of the risks on each held-out set, beside always saying that set's own rate."""
    rows = []
    for label, runs in _sets(results):
        for name, meant in MEANT.items():
            said = _pairs(runs, name, meant)
            told = quality(said)
            mean = sum(one.chance for one in said) / len(said) if said else math.nan
            figures = [
                f"{told.rate:.1%}",
                f"{mean:.1%}",
                number(told.auc),
                number(told.skill, 3),
                number(told.error, 3),
            ]
            rows.append([label, f"`{name}`", *figures])
    return table(["held-out set", "risk", "happened", "mean said", "AUC", "Brier skill", "ECE"], rows)


def _sets(results: Results) -> list[tuple[str, list[Run]]]:
    """Held-out traces near their limits, and their calm days."""
    found = []
    for name in dict.fromkeys(run.trace for run in results.held_out):
        found.append((f"{name}, busy", [run for run in results.held_out if run.trace == name]))
        found.append((f"{name}, calm days", [run for run in results.calm if run.trace == name]))
    return [(label, runs) for label, runs in found if runs]


def alerts_table(results: Results) -> str:
    """Each rule over all held-out runs."""
    rows = []
    for rule in results.busy_rules:
        scores = _by_trace(results, rule, results.held_out)
        whole = results.score(rule, results.held_out)
        rows.append(
            [
                title(rule),
                _with_interval(whole.precision, interval(scores, lambda one: one.precision)),
                _with_interval(whole.recall, interval(scores, lambda one: one.recall)),
                number(whole.f1),
                number(whole.early_recall),
                number(whole.fresh_early_recall),
                number(whole.lead, 0),
                number(whole.useful_share),
                number(whole.false_alarms, 1),
                number(results.score(rule, results.quiet).false_alarms, 1),
            ]
        )
    head = ["rule", "precision", "recall", "F1", "early", "early, fresh", "lead s", "useful", "FA/day", "FA/day, quiet"]
    return table(head, rows)


def macro_table(results: Results) -> str:
    """Each rule, every held-out scenario counting once."""
    rows = []
    for rule in results.busy_rules:
        runs = results.held_out
        view = macro([(run.scenario, one) for run, one in zip(runs, results.scores(rule, runs), strict=True)])
        alarms = f"{number(view.median_false_alarms, 1)} / {number(view.most_false_alarms, 1)}"
        figures = (view.precision, view.recall, view.f1, view.early_recall, view.worst_precision, view.worst_recall)
        rows.append([title(rule), *map(number, figures), alarms])
    head = ["rule", "precision", "recall", "F1", "early", "worst precision", "worst recall", "FA/day median / worst"]
    return table(head, rows)


@cache
def _defined(definition: Definition, run: Run) -> list[Span]:
    return slow_firsts(run.firsts, definition)


def definitions_table(results: Results) -> str:
    """F1 of some rules under other definitions of an incident."""
    kinds: list[tuple[str, Incidents]] = [
        (f"{one.window:g} s, {one.share:.0%}, {one.least}", partial(_defined, one)) for one in DEFINITIONS
    ]
    kinds += [("KV cache", _kv), ("inter-token latency", _tokens)]
    rules = [rule for rule in results.rules if rule.name in (*COMPARED, "LLMInterTokenLatencySlow", "KV usage > 0.95")]
    rows = []
    for name, incidents in kinds:
        found = sum(len(incidents(run)) for run in results.held_out)
        figures = [number(results.score(rule, results.held_out, incidents).f1) for rule in rules]
        rows.append([name, str(found), *figures])
    return table(["incident", "count", *map(title, rules)], rows)


def _pairs(runs: Sequence[Run], name: str, meant: Incidents) -> list[Pair]:
    return [pair for run in runs for pair in pairs(run, name, meant)]


def probability_table(results: Results) -> str:
    """How good the risks are as probabilities, and how gauges rank beside them."""
    rows = []
    for label, runs in (("held out", results.held_out), ("tuning", [run for run in results.runs if run.tuning])):
        for name, meant in MEANT.items():
            told = quality(_pairs(runs, name, meant))
            figures = [f"{told.rate:.1%}", number(told.auc), f"{told.skill:+.3f}", number(told.error, 3)]
            ranks = [
                number(quality(_pairs(runs, gauge.name, meant)).auc)
                for gauge in (schema.KV_CACHE_USAGE, schema.REQUESTS_WAITING)
            ]
            rows.append([f"`{name}`", label, *figures, *ranks])
    head = ["risk", "runs", "happened", "AUC", "Brier skill", "ECE", "AUC of KV usage", "AUC of waiting"]
    return table(head, rows)


def skill_table(results: Results) -> str:
    """The Brier skill in each scenario, beside always saying that scenario's own rate."""
    rows = []
    for name in dict.fromkeys(run.scenario for run in results.runs):
        runs = [run for run in results.runs if run.scenario == name]
        figures = [quality(_pairs(runs, risk, meant)) for risk, meant in MEANT.items()]
        rows.append([name, *(f"{number(one.skill)} ({number(one.auc)})" for one in figures)])
    return table(["scenario", *(f"`{name}`" for name in MEANT)], rows)


def pictures(results: Results) -> dict[str, str]:
    """SVG files by name."""
    curves = {name: bins(_pairs(results.held_out, name, meant)) for name, meant in MEANT.items()}
    marks = []
    for rule in results.busy_rules:
        whole = results.score(rule, results.held_out)
        if rule.group != trivial.GROUP and not math.isnan(whole.precision) and not math.isnan(whole.recall):
            kind = 0 if rule.name.startswith("LLM") else 2 if rule.group == "risks" else 1
            marks.append(Mark(rule.name, whole.recall, whole.precision, kind))
    return {"evaluation-reliability.svg": reliability(curves), "evaluation-alerts.svg": precision_recall(marks)}


def goals_table(results: Results) -> str:
    """What was aimed at, and what came out."""
    by_name = {rule.name: rule for rule in results.rules}
    runs, rows = results.held_out, []

    def row(what: str, aim: str, figure: float, *, met: bool, digits: int = 2) -> None:
        rows.append([what, aim, number(figure, digits), "yes" if met else "**no**"])

    for name in (FIRST, WARNING):
        if name not in by_name:
            continue
        rule = by_name[name]
        view = macro([(run.scenario, one) for run, one in zip(runs, results.scores(rule, runs), strict=True)])
        whole = results.score(rule, runs)
        if name == FIRST:
            quiet = results.score(rule, results.quiet).false_alarms
            row("page: precision, macro", "≥ 0.93", view.precision, met=view.precision >= 0.93)
            row("page: recall, macro", "≥ 0.92", view.recall, met=view.recall >= 0.92)
            row("page: recall, worst scenario", "≥ 0.75", view.worst_recall, met=view.worst_recall >= 0.75)
            row("page: seconds from first breach, median", "≤ 15", -whole.lead, met=whole.lead >= -15.0, digits=0)
            row("page: false alarms a day", "≤ 2", whole.false_alarms, met=whole.false_alarms <= 2.0, digits=1)
            row("page: the same on quiet engines", "≤ 0.5", quiet, met=quiet <= 0.5, digits=1)
            gain = results.score(rule, runs, _firsts).f1 - results.score(by_name[P95], runs, _firsts).f1
            row("page: F1 beyond that of p95 over 5 min, TTFT incidents", "≥ 0.15", gain, met=gain >= 0.15)
        else:
            row("warning: precision, macro", "≥ 0.75", view.precision, met=view.precision >= 0.75)
            row("warning: early recall, macro", "≥ 0.45", view.early_recall, met=view.early_recall >= 0.45)
            row("warning: useful share of firing", "≥ 0.5", whole.useful_share, met=whole.useful_share >= 0.5)
            row("warning: false alarms a day", "≤ 3", whole.false_alarms, met=whole.false_alarms <= 3.0, digits=1)
            row("warning: precision, worst scenario", "≥ 0.6", view.worst_precision, met=view.worst_precision >= 0.6)
        if name == FIRST and results.calm:
            calm = results.score(rule, results.calm).false_alarms
            row("page: false alarms a day on calm days", "≤ 0.5", calm, met=calm <= 0.5, digits=1)
    for name, meant in MEANT.items():
        told = quality(_pairs(runs, name, meant))
        least = 0.84 if name == schema.KV_SATURATION_RISK.name else 0.72
        row(f"`{name}`: AUC", f"≥ {least}", told.auc, met=told.auc >= least)
        row(f"`{name}`: Brier skill", "≥ +0.08", told.skill, met=told.skill >= 0.08)
        skills = [quality(_pairs(each, name, meant)).skill for _, each in _sets(results)]
        worst = min((skill for skill in skills if not math.isnan(skill)), default=math.nan)
        row(f"`{name}`: Brier skill, worst held-out set", "> 0", worst, met=worst > 0.0)
        row(f"`{name}`: ECE", "≤ 0.03", told.error, met=told.error <= 0.03, digits=3)
    return table(["what", "goal", "seen", "met"], rows)
