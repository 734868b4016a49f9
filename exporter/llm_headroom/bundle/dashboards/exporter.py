"""Can the other dashboards be trusted? Sources, their samples, and the exporter's own cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import UNPAINTED, Column, Query, above, below, thresholds
from llm_headroom.bundle.dashboards.parts import lines, stat, table
from llm_headroom.bundle.dashboards.plan import Plan
from llm_headroom.bundle.dashboards.scope import BY_TARGET, SOURCE, Scope

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel
    from llm_headroom.thresholds import Thresholds

_WRONG = 'state=~"unknown|invalid"'


def _rows(scope: Scope, limits: Thresholds, _alerts: str) -> tuple[Row, ...]:
    return (
        Row("Can the other dashboards be trusted?", _numbers(scope, limits)),
        Row("What is the state of each source?", (_sources(scope, limits),)),
        Row("What fails, and how slow is it?", _collections(scope, limits)),
        Row("Is every sample understood?", _samples(scope)),
        Row("What does the exporter cost?", _cost(scope)),
    )


DASHBOARD: Final = Plan(
    "exporter",
    "Exporter health",
    "Can the other dashboards be trusted? Sources, ages, mapping coverage, and the exporter's cost.",
    _rows,
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
        stat("Sources up", "Engines, and NVML, whose last collection succeeded.", f"sum({up})"),
        stat(
            "Down",
            "Sources that do not respond. Their other series end at once.",
            f"sum(1 - {up})",
            steps=above(1, 1),
            alert="LLMEngineDown",
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
            unit="cps",
        ),
        stat(
            "Config",
            "1 if the last reload of the configuration succeeded.",
            f"min({scope.of(schema.CONFIG_RELOAD_SUCCESS)})",
            steps=below(1, 1),
            alert="LLMConfigReloadFailed",
        ),
        stat(
            "Series",
            "Series exported in one scrape, added up.",
            f"sum(scrape_samples_scraped{{{scope.matchers(())}}})",
        ),
    )


def _sources(scope: Scope, limits: Thresholds) -> Panel:
    def samples(state: str) -> str:
        chosen = scope.of(schema.SOURCE_SAMPLES, f'state="{state}"')
        return f"sum by ({SOURCE}) ({chosen})"

    version = f"count by ({SOURCE}, version) ({scope.of(schema.ENGINE_INFO)}) * 0"
    state = f"({version} + on ({SOURCE}) group_left () min by ({SOURCE}) ({scope.of(schema.UP)}))"
    return table(
        "Sources",
        "One row for each source. Unknown samples after an upgrade are renamed metrics: signals may be lost.",
        (
            Column(title="Engine", label="engine", width=100),
            Column(title="Cluster", label="cluster", width=100),
            Column(title="Instance", label="instance", width=150),
            Column(title="Target", label="target"),
            Column(title="Version", label="version", width=130),
            (
                f"{state} or on ({SOURCE}) min by ({SOURCE}) ({scope.of(schema.UP)})",
                Column(title="Up", steps=below(1), width=60),
            ),
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
        height=7,
        alert="LLMSignalLost",
    )


def _collections(scope: Scope, limits: Thresholds) -> tuple[Panel, ...]:
    return (
        lines(
            "Sources up",
            "1 while collections succeed.",
            Query(f"min by ({SOURCE}) ({scope.of(schema.UP)})", BY_TARGET),
            highest=1,
            alert="LLMEngineDown",
        ),
        lines(
            "Failed collections",
            "Per second, by cause.",
            Query(f"sum by ({SOURCE}, cause) ({scope.rate(schema.SOURCE_ERRORS)})", f"{BY_TARGET} {{{{cause}}}}"),
            unit="cps",
            empty="until a collection fails",
        ),
        lines(
            "Duration of collections",
            "Duration of the last collection.",
            Query(f"max by ({SOURCE}) ({scope.of(schema.SOURCE_DURATION)})", BY_TARGET),
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
            Query(
                f"sum by ({SOURCE}) ({scope.of(schema.SOURCE_SAMPLES, state='mapped')})",
                BY_TARGET,
            ),
            alert="LLMSignalLost",
        ),
        lines(
            "Unknown and invalid samples",
            "Samples with unknown names, or with invalid values.",
            Query(
                f"sum by ({SOURCE}, state) ({scope.of(schema.SOURCE_SAMPLES, _WRONG)})",
                f"{BY_TARGET} {{{{state}}}}",
            ),
            alert="LLMSamplesInvalid",
        ),
        lines(
            "Label values beyond the limit",
            "Exported as `other`, by label.",
            Query(f"sum by ({SOURCE}, label) ({scope.rate(schema.LABEL_VALUES_CAPPED)})", f"{BY_TARGET} {{{{label}}}}"),
            unit="cps",
            empty="until a label has too many values",
            alert="LLMLabelCapReached",
        ),
    )


def _cost(scope: Scope) -> tuple[Panel, ...]:
    return (
        lines(
            "CPU",
            "CPU cores used by each exporter.",
            Query(f"max by (instance) ({scope.rate(schema.PROCESS_CPU)})", "{{instance}}"),
            unit="percentunit",
        ),
        lines(
            "Memory",
            "Resident memory of each exporter.",
            Query(f"max by (instance) ({scope.of(schema.PROCESS_MEMORY)})", "{{instance}}"),
            unit="bytes",
        ),
        lines(
            "Scrape",
            "Duration of one scrape by Prometheus.",
            Query(f"max by (instance) (scrape_duration_seconds{{{scope.matchers(())}}})", "{{instance}}"),
            unit="s",
        ),
    )
