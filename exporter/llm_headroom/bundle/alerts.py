"""The alerts' files: for Prometheus, Grafana and Alertmanager, from one set of rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_headroom.bundle import alerts_engine, alerts_host, pushed, recording
from llm_headroom.bundle.rule import Alert, Group, Recording, expression, scaled, words
from llm_headroom.bundle.text import as_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_headroom.bundle.settings import BundleSettings

GROUPS: Final[dict[str, Group]] = {
    "llm-headroom.fleet": Group("30s", recording.FLEET),
    "llm-headroom.buckets": Group("1m", recording.BUCKETS),
    "llm-headroom.slo": Group("30s", recording.SLO),
    "llm-headroom.slo-days": Group("2m", recording.SLO_DAYS),
    "llm-headroom.signals": Group("30m", recording.SIGNALS),
    "llm-headroom.latency": Group("30s", alerts_engine.LATENCY),
    "llm-headroom.tokens": Group("1m", alerts_engine.TOKENS),
    "llm-headroom.availability": Group("30s", (*recording.AVAILABILITY, *alerts_engine.AVAILABILITY)),
    "llm-headroom.kv-cache": Group("1m", alerts_engine.KV_CACHE),
    "llm-headroom.models": Group("2m", alerts_engine.MODELS),
    "llm-headroom.gpu-memory": Group("1m", alerts_host.GPU_MEMORY),
    "llm-headroom.gpu-health": Group("30s", alerts_host.GPU_HEALTH),
    "llm-headroom.gpu-days": Group("2m", (*recording.GPU_DAYS, *alerts_host.GPU_DAYS)),
    "llm-headroom.sources": Group("1m", alerts_host.SOURCES),
}
"""Rules by the name of their group: pages every 30 s, tickets every minute, what looks back over days more rarely.

What alerts read at an instant is recorded at least every 2 min: Prometheus takes a series that got no sample for 5 min
for gone. Prometheus evaluates groups side by side, so that what is recorded is up to its group's interval old.
"""

ALERTS: Final[tuple[Alert, ...]] = tuple(
    rule for group in GROUPS.values() for rule in group.rules if isinstance(rule, Alert)
)
RECORDINGS: Final[tuple[Recording, ...]] = tuple(
    rule for group in GROUPS.values() for rule in group.rules if isinstance(rule, Recording)
)

INHIBITIONS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("LLMModelDown", "LLMEngine(Down|LoadingLong)", ("job", "engine", "model")),
    ("LLMEngineCrashLoop", "LLMEngine(Down|LoadingLong)|LLMSourceStale", ("instance", "target")),
    (
        "LLMEngineDown",
        "LLM(EngineStalled|Source|Signal|Saturation|GpuIdle|Queue|KV|FirstTokens|Tokens|Model[ST]).*|LLMErrorRatio",
        ("instance", "target"),
    ),
    ("LLMEngineLoadingLong", "LLMSourceStale", ("instance", "target")),
    ("LLMEngineMisread", "LLMSourceStale|LLMSignalLost", ("instance", "target")),
    ("LLMExporterBlind", "LLMSourceStale|LLMCollectionSlow", ("instance", "target")),
    ("LLMGpuSourceDown", "LLMSourceStale", ("instance", "target")),
    ("LLMGpuLost", "LLMGpu(Xid|Recovery).*", ("instance",)),
    ("LLMExporterDown", "LLM(Gpu|Source|Collection|Signal).*", ("instance",)),
    ("LLMEngineStalled", "LLMQueue.*|LLM(First)?Tokens.*|LLMGpuIdleWhileQueued", ("instance", "target")),
    ("LLMQueueStarved", "LLMQueueBuilding|LLMFirstTokensSlow", ("instance", "target", "model")),
    ("LLMFirstTokensSlow", "LLMSaturationRisk|LLMQueueBuilding", ("instance", "target", "model")),
    ("LLMKVCacheExhausted", "LLMKVHeadroomLow", ("instance", "target", "model")),
    ("LLMGpuMemoryExhausted", "LLMGpuMemoryHeadroomLow|LLMGpuMemoryRunningOut|LLMOomRisk", ("instance", "uuid")),
    ("LLMErrorRatioHigh", "LLMErrorRatio", ("instance", "target", "model")),
    ("LLMTokensTrickle", "LLMInterTokenLatencySlow", ("instance", "target", "model")),
    ("LLMLatencyBudgetBurnFast", "LLMLatencyBudgetBurnSlow", ("job", "engine", "model", "slo")),
)
"""What a firing alert (first) makes needless (second), where they agree in these labels: one page for one trouble."""


GROUPED_BY: Final = ("cluster", "engine", "model", "severity")
"""Alerts that agree in these labels are one notification: one incident of one model."""
BRIEF: Final = "LLMFirstTokensSlow"
"""Mostly over within two minutes: whoever is called then finds nothing. The state shows it at once."""
PATIENCE: Final = "2m"
"""How long `BRIEF` must fire before it calls somebody; measured on a month of operations (docs/evaluation.md)."""
_GROUPED: Final = {
    "group_by": list(GROUPED_BY),
    "group_wait": "10s",
    "group_interval": "5m",
    "repeat_interval": "12h",
}
_WHERE: Final = (
    " {{ with $labels.instance }}Instance {{ . }}. {{ end }}{{ with $labels.cluster }}Cluster {{ . }}.{{ end }}"
)
_VARIABLES: Final = ("job", "instance", "engine", "model", "target", "gpu")
"""Labels that the dashboards have a variable for."""


def files(settings: BundleSettings) -> dict[str, str]:
    """The texts of the alerts' files by relative path."""
    return {
        "alerts/llm-headroom.rules.yml": as_yaml({"groups": groups(settings)}),
        "alerts/grafana-alerting.yaml": as_yaml(_grafana(settings)),
        "alerts/grafana-notifications.yaml": as_yaml(_grafana_notifications()),
        "alerts/alertmanager.yml": as_yaml(alertmanager()),
        "alerts/pushed.yml": as_yaml(pushed.groups(settings)),
    }


_RECEIVER: Final = "http://127.0.0.1:5001/"
"""Where the examples of receivers are."""


def alertmanager(url: str | None = _RECEIVER) -> dict[str, Any]:
    """Alertmanager's configuration: routes by severity, and what inhibits what.

    Alerts are posted to `page` and `ticket` below the URL; to nobody if it is None.
    """
    return {
        "route": {
            "receiver": "ticket",
            **_GROUPED,
            "routes": [
                {
                    "receiver": "page",
                    "matchers": ['severity = "page"'],
                    "repeat_interval": "1h",
                    "routes": [{"matchers": [f'alertname = "{BRIEF}"'], "group_wait": PATIENCE}],
                },
                {"receiver": "none", "matchers": ['severity = "info"']},
            ],
        },
        "receivers": [
            *(
                {"name": name} | ({} if url is None else {"webhook_configs": [{"url": f"{url}{name}"}]})
                for name in ("page", "ticket")
            ),
            {"name": "none"},
        ],
        "inhibit_rules": [
            {
                "source_matchers": [f'alertname = "{source}"'],
                "target_matchers": [f'alertname =~ "{targets}"'],
                "equal": ["cluster", "namespace", *labels],
            }
            for source, targets, labels in INHIBITIONS
        ],
    }


def groups(settings: BundleSettings) -> list[dict[str, Any]]:
    """The groups of rules as Prometheus' rule file has them."""
    return [
        {
            "name": name,
            "interval": scaled(group.interval, settings.for_scale),
            "rules": list(_rules(group.rules, settings)),
        }
        for name, group in GROUPS.items()
    ]


def _rules(rules: Iterable[Recording | Alert], settings: BundleSettings) -> Iterable[dict[str, Any]]:
    for rule in rules:
        if isinstance(rule, Recording):
            yield {"record": rule.name, "expr": expression(rule.expr, settings)}
            continue
        document: dict[str, Any] = {"alert": rule.name, "expr": expression(rule.expr, settings)}
        if rule.wait != "0s":
            document["for"] = scaled(rule.wait, settings.for_scale)
        if rule.kept != "0s":
            document["keep_firing_for"] = scaled(rule.kept, settings.for_scale)
        yield document | {
            "labels": {"severity": rule.severity.value},
            "annotations": described(rule, settings),
        }


def described(rule: Alert, settings: BundleSettings) -> dict[str, str]:
    """What the alert says; links are left out where their base is not set."""
    notes = {
        "summary": words(rule.summary, settings),
        "description": words(rule.description, settings) + _WHERE,
    }
    if settings.runbook_base_url:
        notes["runbook_url"] = f"{settings.runbook_base_url.rstrip('/')}/{rule.name}.md"
    if settings.dashboard_base_url:
        chosen = "".join(f"{{{{ with $labels.{name} }}}}&var-{name}={{{{ . }}}}{{{{ end }}}}" for name in _VARIABLES)
        url = f"{settings.dashboard_base_url.rstrip('/')}/d/{rule.dashboard.value}?orgId=1{chosen}"
        notes["dashboard_url"] = url
    return notes


def _grafana(settings: BundleSettings) -> dict[str, Any]:
    """Grafana's provisioning of alerts; recording rules stay with Prometheus, which these read.

    Grafana's templates have the value of the query in `$values`.
    """
    return {
        "apiVersion": 1,
        "groups": [
            {
                "orgId": 1,
                "name": name,
                "folder": "llm-headroom",
                "interval": "1m",
                "rules": [_grafana_rule(rule, settings) for rule in group.rules if isinstance(rule, Alert)],
            }
            for name, group in GROUPS.items()
            if any(isinstance(rule, Alert) for rule in group.rules)
        ],
    }


def _grafana_notifications() -> dict[str, Any]:
    """Grafana's provisioning of notification policies, grouped as Alertmanager's, with examples of receivers.

    It replaces the whole tree of policies. Inhibitions are not in it: Grafana applies them from 13 on alone, behind the
    experimental switch alertingMultiplePolicies (grafana.com/docs, alerting, Configure inhibition rules).
    """
    return {
        "apiVersion": 1,
        "contactPoints": [
            {
                "orgId": 1,
                "name": f"llm-headroom {name}",
                "receivers": [
                    {"uid": f"llm-headroom-{name}", "type": "webhook", "settings": {"url": f"{_RECEIVER}{name}"}}
                ],
            }
            for name in ("page", "ticket")
        ],
        "muteTimes": [
            {
                "orgId": 1,
                "name": "llm-headroom always",
                "time_intervals": [{"times": [{"start_time": "00:00", "end_time": "24:00"}]}],
            }
        ],
        "policies": [
            {
                "orgId": 1,
                "receiver": "llm-headroom ticket",
                **_GROUPED,
                "routes": [
                    {
                        "receiver": "llm-headroom page",
                        "object_matchers": [["severity", "=", "page"]],
                        "repeat_interval": "1h",
                        "routes": [
                            {
                                "receiver": "llm-headroom page",
                                "object_matchers": [["alertname", "=", BRIEF]],
                                "group_wait": PATIENCE,
                            }
                        ],
                    },
                    {
                        "receiver": "llm-headroom ticket",
                        "object_matchers": [["severity", "=", "info"]],
                        "mute_time_intervals": ["llm-headroom always"],
                    },
                ],
            }
        ],
    }


def _grafana_rule(rule: Alert, settings: BundleSettings) -> dict[str, Any]:
    notes = described(rule, settings)
    texts = {name: notes[name].replace("$value ", "$values.A.Value ") for name in ("summary", "description")}
    return {
        "uid": rule.name,
        "title": rule.name,
        "condition": "B",
        "for": scaled(rule.wait, settings.for_scale),
        "keepFiringFor": scaled(rule.kept, settings.for_scale),
        "noDataState": "OK",
        "execErrState": "Error",
        "labels": {"severity": rule.severity.value},
        "annotations": notes | texts | {"__dashboardUid__": rule.dashboard.value},
        "data": [
            {
                "refId": "A",
                "relativeTimeRange": {"from": 600, "to": 0},
                "datasourceUid": settings.datasource,
                "model": {"refId": "A", "expr": expression(rule.expr, settings), "instant": True},
            },
            {
                "refId": "B",
                "datasourceUid": "__expr__",
                "model": {"refId": "B", "type": "math", "expression": "is_number($A) || is_inf($A)"},
            },
        ],
    }
