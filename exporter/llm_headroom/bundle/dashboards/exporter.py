"""Can the other dashboards be trusted? Sources, their samples, and the exporter's own cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.colours import BAD, GOOD
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import UNPAINTED, Column, Kind, Panel, Query, above, below, thresholds
from llm_headroom.bundle.dashboards.parts import lines, responding, stat, table
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_TARGET, EXPORTER, SOURCE, Scope
from llm_headroom.bundle.dashboards.words import EXPORTER_WORDS, UP_WORDS

if TYPE_CHECKING:
    from llm_headroom.thresholds import Thresholds

_WRONG = 'state=~"unknown|invalid"'


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("Can the other dashboards be trusted?", (*_numbers(scope, limits), _exporters(scope))),
        Row("What is the state of each source?", (_sources(scope, limits),)),
        Row("What fails, and how slow is it?", _collections(scope, limits)),
        Row("Is every sample understood?", _samples(scope)),
        Row("What does the exporter cost?", _cost(scope)),
    )


DASHBOARD: Final = Plan(
    "exporter",
    "Can the other dashboards be trusted? Sources, ages, mapping coverage, and the exporter's cost.",
    _rows,
    choices=("engine", "target"),
)


def _age(scope: Scope) -> str:
    return f"time() - {scope.of(schema.SOURCE_LAST_SUCCESS)}"


def _numbers(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    up = scope.of(schema.UP)
    unknown = scope.of(schema.SOURCE_SAMPLES, state="unknown")
    mapped = scope.of(schema.SOURCE_SAMPLES, state="mapped")
    return (
        stat(
            "Exporters",
            "Exporters that Prometheus reaches, and those that it does not.",
            Query(f"sum(1 - {scope.exporters()})", "unreachable"),
            Query(f"sum({scope.exporters()})", "reached"),
            steps=UNPAINTED,
            styles=(("^unreachable$", {"thresholds": thresholds(above(1, 1))}),),
            alert="LLMExporterDown",
        ),
        responding(
            "Sources",
            "Engines, and NVML, that do not respond; those behind an unreachable exporter, of which nothing is known; "
            "and those whose last collection succeeded.",
            scope,
            up,
            width=6,
        ),
        stat(
            "Oldest age",
            "Age of the oldest last successful collection.",
            f"max({_age(scope)})",
            unit="s",
            steps=above(limits.source_stale),
            alert="LLMSourceStale",
        ),
        stat(
            "Mapped",
            "Share of samples that llm-headroom knows by name; samples ignored on purpose are not counted.",
            f"sum({mapped}) / (sum({mapped}) + sum({unknown}))",
            unit="percentunit",
            steps=below(1),
            alert="LLMSignalLost",
        ),
        stat(
            "Failures",
            "Failed collections, or parts of them, per second.",
            scope.exposed(f"sum({scope.rate(schema.SOURCE_ERRORS)})"),
            unit="failures/s",
        ),
        stat(
            "Config",
            "Whether the last reload of the configuration succeeded, on every exporter.",
            f"min({scope.of(schema.CONFIG_RELOAD_SUCCESS)})",
            steps=below(1, 1),
            words=((0.0, "not read", BAD), (1.0, "read", GOOD)),
            alert="LLMConfigReloadFailed",
        ),
        stat(
            "Series",
            "Series exported in one scrape, added up.",
            f"sum(scrape_samples_scraped{{{scope.matchers(())}}})",
            whose="sum",
        ),
    )


def _exporters(scope: Scope) -> Panel:
    def of(expr: str) -> str:
        return f"max by ({EXPORTER}) ({expr})"

    up = scope.of(schema.UP)
    version = f"group by ({EXPORTER}, version) (last_over_time({scope.of(schema.BUILD_INFO)}[1h])) * 0"
    state = f"({version} + on ({EXPORTER}) group_left () {of(scope.exporters())})"
    read = f"last_over_time({scope.of(schema.SOURCE_LAST_SUCCESS)}[1h])"
    return table(
        "Exporters, unreachable ones first",
        "One row for each exporter that Prometheus scrapes. Last reading: the age of the newest one of any of its "
        "sources, within an hour.",
        (
            (
                f"sort({state} or on ({EXPORTER}) {of(scope.exporters())})",
                Column(title="State", words=EXPORTER_WORDS, width=150),
            ),
            Column(title="Cluster", label="cluster", width=100),
            Column(title="Namespace", label="namespace", width=110),
            Column(title="Instance", label="instance"),
            Column(title="Version", label="version", width=120),
            (f"time() - {of(read)}", Column(title="Last reading", unit="s", decimals=0, width=110)),
            (f"sum by ({EXPORTER}) ({scope.reached(up)})", Column(title="Sources up", width=100)),
            (
                f"count by ({EXPORTER}) ({scope.behind(up)}) or {of(scope.exporters())} * 0",
                Column(title="Sources unknown", steps=above(1), width=130),
            ),
            (of(f"scrape_samples_scraped{{{scope.matchers(())}}}"), Column(title="Series", width=90)),
            (of(f"scrape_duration_seconds{{{scope.matchers(())}}}"), Column(title="Scrape", unit="s", width=90)),
            (of(scope.rate(schema.PROCESS_CPU)), Column(title="CPU", unit="percentunit", decimals=1, width=80)),
            (of(scope.of(schema.PROCESS_MEMORY)), Column(title="Memory", unit="bytes", width=100)),
        ),
        height=7,
        sort="State",
        alert="LLMExporterDown",
    )


def _sources(scope: Scope, limits: Thresholds) -> Panel:
    def samples(state: str) -> str:
        chosen = scope.of(schema.SOURCE_SAMPLES, f'state="{state}"')
        return f"sum by ({SOURCE}) ({chosen})"

    version = f"group by ({SOURCE}, version) ({scope.of(schema.ENGINE_INFO)}) * 0"
    up = scope.of(schema.UP)
    known = f"(group by ({SOURCE}) ({scope.behind(up)}) + 1 or min by ({SOURCE}) ({up}))"
    state = f"({version} + on ({SOURCE}) group_left () {known})"
    return table(
        "Sources",
        "One row for each source of each exporter. Unknown samples after an upgrade are renamed metrics: signals may "
        "be lost.",
        (
            (f"{state} or on ({SOURCE}) {known}", Column(title="State", words=UP_WORDS, width=180)),
            Column(title="Cluster", label="cluster", width=90),
            Column(title="Instance", label="instance", width=120),
            Column(title="Engine", label="engine", width=80),
            Column(title="Target", label="target"),
            Column(title="Version", label="version", width=110),
            (
                f"max by ({SOURCE}) ({_age(scope)})",
                Column(title="Age", unit="s", steps=above(limits.source_stale), width=90),
            ),
            (
                f"max by ({SOURCE}) ({scope.of(schema.SOURCE_DURATION)})",
                Column(title="Duration", unit="s", steps=above(limits.source_slow), width=90),
            ),
            (samples("mapped"), Column(title="Mapped", width=90)),
            (samples("ignored"), Column(title="Ignored", width=90)),
            (samples("unknown"), Column(title="Unknown", steps=above(1), width=90)),
            (samples("invalid"), Column(title="Invalid", steps=above(1), width=90)),
        ),
        height=8,
        sort="State",
        alert="LLMSignalLost",
    )


def _collections(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        Panel(
            kind=Kind.STATES,
            title="Exporters",
            answers="Whether Prometheus reached each exporter.",
            queries=(Query(scope.exporters(), "{{cluster}} · {{instance}}"),),
            words=EXPORTER_WORDS,
        ),
        lines(
            "Failed collections",
            "Per second, by cause.",
            Query(f"sum by ({SOURCE}, cause) ({scope.rate(schema.SOURCE_ERRORS)})", f"{BY_TARGET} {{{{cause}}}}"),
            unit="failures/s",
            empty="until a collection fails",
        ),
        lines(
            "Duration of collections",
            "Duration of the last collection.",
            Query(scope.worst(schema.SOURCE_DURATION), BY_TARGET),
            unit="s",
            steps=above(limits.source_slow),
            alert="LLMCollectionSlow",
        ),
    )


def _samples(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "Mapped samples",
            "Samples of the last collection that were mapped. A step down after an upgrade is a lost signal.",
            Query(f"sum by (engine) ({scope.of(schema.SOURCE_SAMPLES, state='mapped')})", "{{engine}}"),
            alert="LLMSignalLost",
        ),
        lines(
            "Unknown and invalid samples",
            "Samples with unknown names, or with invalid values.",
            Query(
                f"sum by ({SOURCE}, state) ({scope.of(schema.SOURCE_SAMPLES, _WRONG)}) > 0",
                f"{BY_TARGET} {{{{state}}}}",
            ),
            empty="while every sample is understood",
            alert="LLMSamplesInvalid",
        ),
        lines(
            "Label values beyond the limit",
            "Exported as `other`, by label.",
            Query(f"sum by ({SOURCE}, label) ({scope.rate(schema.LABEL_VALUES_CAPPED)})", f"{BY_TARGET} {{{{label}}}}"),
            unit="values/s",
            empty="until a label has too many values",
            alert="LLMLabelCapReached",
        ),
    )


def _cost(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "CPU",
            "CPU cores used by each exporter.",
            Query(f"max by (cluster, instance) ({scope.rate(schema.PROCESS_CPU)})", "{{cluster}} · {{instance}}"),
            unit="percentunit",
        ),
        lines(
            "Memory",
            "Resident memory of each exporter.",
            Query(f"max by (cluster, instance) ({scope.of(schema.PROCESS_MEMORY)})", "{{cluster}} · {{instance}}"),
            unit="bytes",
        ),
        lines(
            "Scrape",
            "Duration of one scrape by Prometheus.",
            Query(
                f"max by (cluster, instance) (scrape_duration_seconds{{{scope.matchers(())}}})",
                "{{cluster}} · {{instance}}",
            ),
            unit="s",
        ),
    )
