"""Prometheus, Alertmanager and Grafana beside the demo, where they are installed.

They listen on free ports, and keep what they write in a directory that goes with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom.bundle import alerts as alert_rules
from llm_headroom.bundle.settings import BundleSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AsyncExitStack

_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL
_READY: Final = 20.0  # seconds in which a program must listen
_PROMETHEUS: Final = ("prometheus",)
_ALERTMANAGER: Final = ("alertmanager", "prometheus-alertmanager")  # the second is Debian's
_GRAFANA: Final = ("grafana-server",)
_GRAFANA_HOME: Final = Path("/usr/share/grafana")
_SOURCES: Final = Path(__file__).parents[3]
"""The source tree, if this runs out of one; dashboards lie there."""
_FOR_SCALE: Final = 0.1
"""How long conditions must hold in the demo, as a share of the shipped alerts': its incidents take a minute or two."""


class _Program:
    """A program that has been started, its output in a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    async def end(self) -> None:
        """End it, gently at first."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            try:
                async with asyncio.timeout(_GRACE):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    async def listening(self, port: int) -> bool:
        """Wait until it listens; False if it ended, or took too long."""
        async with asyncio.timeout(_READY):
            while self.process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    return True
                await asyncio.sleep(0.1)
        return False


async def start(exporter: str, stack: AsyncExitStack, speed: float = 1.0) -> list[str]:
    """Start what is installed, to watch the exporter at ``host:port``; return lines for people. ``stack`` ends it.

    ``speed`` is how many times as fast as real the watched engines are.
    """
    prometheus, alertmanager, grafana = map(_installed, (_PROMETHEUS, _ALERTMANAGER, _GRAFANA))
    if prometheus is None:
        return ["prometheus   not installed, so neither it nor Alertmanager and Grafana are started"]
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-headroom-demo-")))
    lines = []
    alerts = None
    if alertmanager is not None:
        alerts = _free_port()
        (folder / "alertmanager.yml").write_text(json.dumps(alert_rules.alertmanager(url=None)))
        command = [
            alertmanager,
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{alerts}",
            "--cluster.listen-address=",
        ]
        lines.append(await _run("alertmanager", command, alerts, folder, stack))
    port = _free_port()
    rules = {"groups": alert_rules.groups(BundleSettings(for_scale=_FOR_SCALE / speed))}
    (folder / "llm-headroom.rules.yml").write_text(json.dumps(rules))
    (folder / "prometheus.yml").write_text(json.dumps(_scraping(exporter, alerts)))
    command = [
        prometheus,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    lines.insert(0, await _run("prometheus", command, port, folder, stack))
    if grafana is not None:
        lines.append(await _grafana(grafana, port, folder, stack))
    return lines


def _scraping(exporter: str, alerts: int | None) -> dict[str, object]:
    """Prometheus' configuration; JSON is YAML, too."""
    return {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["llm-headroom.rules.yml"],
        "scrape_configs": [{"job_name": "llm-headroom", "static_configs": [{"targets": [exporter]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts}"]}]}] if alerts else []},
    }


async def _grafana(program: str, prometheus: int, folder: Path, stack: AsyncExitStack) -> str:
    port = _free_port()
    provisioned = folder / "provisioning"
    for part in ("datasources", "dashboards", "plugins", "alerting"):
        (provisioned / part).mkdir(parents=True)
    url = f"http://127.0.0.1:{prometheus}"
    source = {"name": "Prometheus", "type": "prometheus", "access": "proxy", "url": url, "isDefault": True}
    (provisioned / "datasources" / "prometheus.yml").write_text(json.dumps({"apiVersion": 1, "datasources": [source]}))
    dashboards = _SOURCES / "dashboards"
    if dashboards.is_dir():
        provider = {"name": "llm-headroom", "type": "file", "options": {"path": str(dashboards)}}
        file = provisioned / "dashboards" / "llm-headroom.yml"
        file.write_text(json.dumps({"apiVersion": 1, "providers": [provider]}))
    settings = {
        "GF_PATHS_DATA": str(folder / "grafana"),
        "GF_PATHS_LOGS": str(folder / "grafana"),
        "GF_PATHS_PLUGINS": str(folder / "grafana-plugins"),
        "GF_PATHS_PROVISIONING": str(provisioned),
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
    return await _run("grafana", [program, "--homepath", str(_GRAFANA_HOME)], port, folder, stack, settings)


async def _run(  # noqa: PLR0913, PLR0917 - what a program is started with
    name: str, command: Sequence[str], port: int, folder: Path, stack: AsyncExitStack, settings: Mapping[str, str] = {}
) -> str:
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **settings}
        )
    program = _Program(name, process, log)
    stack.push_async_callback(program.end)
    try:
        if await program.listening(port):
            return f"{name:<12} http://127.0.0.1:{port}/"
    except TimeoutError:
        pass
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    return f"{name:<12} did not start: {last[0]}"


def _installed(names: Sequence[str]) -> str | None:
    return next((found for name in names if (found := shutil.which(name)) is not None), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
