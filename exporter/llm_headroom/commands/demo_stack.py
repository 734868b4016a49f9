"""Prometheus, Alertmanager and Grafana beside the demo, where they are installed.

They listen on free ports and write to a temporary directory, which is removed at the end.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom.bundle import alerts as alert_rules
from llm_headroom.bundle.settings import BundleSettings
from llm_headroom.commands import programs

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from llm_headroom.commands.programs import Program

_DASHBOARDS: Final = Path(__file__).parents[3] / "dashboards"
"""The dashboards' folder, if this runs from the source tree."""
_FOR_SCALE: Final = 0.1
"""How long conditions must hold in the demo, as a share of the shipped alerts': its incidents take a minute or two."""


async def start(exporter: str, stack: AsyncExitStack, speed: float = 1.0) -> list[str]:
    """Start what is installed, to watch the exporter at `host:port`; return lines of text to show. `stack` ends it.

    `speed` is by what factor the monitored engines are faster than real ones.
    """
    if programs.installed(programs.PROMETHEUS) is None:
        return ["prometheus   not installed; Prometheus, Alertmanager and Grafana are not started"]
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-headroom-demo-")))
    lines, alerts = [], None
    if programs.installed(programs.ALERTMANAGER) is not None:
        started = programs.alertmanager(folder, alert_rules.alertmanager(url=None))
        lines.append(await _ready("alertmanager", started, stack))
        alerts = started.address
    rules = {"groups": alert_rules.groups(BundleSettings(for_scale=_FOR_SCALE / speed))}
    (folder / "llm-headroom.rules.yml").write_text(json.dumps(rules))
    prometheus = programs.prometheus(folder, _scraping(exporter, alerts))
    lines.insert(0, await _ready("prometheus", prometheus, stack))
    if programs.installed(programs.GRAFANA) is not None:
        grafana = programs.grafana(folder, f"http://{prometheus.address}", _DASHBOARDS)
        lines.append(await _ready("grafana", grafana, stack))
    return lines


def _scraping(exporter: str, alerts: str | None) -> dict[str, object]:
    """Prometheus' configuration."""
    return {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["llm-headroom.rules.yml"],
        "scrape_configs": [{"job_name": "llm-headroom", "static_configs": [{"targets": [exporter]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alerts]}]}] if alerts else []},
    }


async def _ready(name: str, program: Program, stack: AsyncExitStack) -> str:
    """Wait in a thread, since the simulated engines run on in this one; return a line of text to show."""
    stack.push_async_callback(asyncio.to_thread, program.end)
    try:
        await asyncio.to_thread(program.wait)
    except programs.NotStartedError as error:
        return f"{name:<12} did not start: {error}"
    return f"{name:<12} http://{program.address}/"
