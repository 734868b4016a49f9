"""Starts Prometheus, Alertmanager and Grafana, where they are installed, for the demo, tests and benchmarks."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from llm_headroom.net.listen import bound_address, hold

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROMETHEUS: Final = ("prometheus",)
ALERTMANAGER: Final = ("alertmanager", "prometheus-alertmanager")  # the second is Debian's
GRAFANA: Final = ("grafana-server",)
_GRAFANA_HOME: Final = Path("/usr/share/grafana")
_READY_SECONDS: Final = 60.0
_GRACE_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.05
_NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})


class NotStartedError(Exception):
    """A program is not installed, has ended at once, or did not become ready; the message has its last line."""


class Program:
    """A program that was started, as a context that waits until it is ready, and ends it.

    Attributes:
        address: `host:port` where it listens.
        process: it.
        patience: seconds within which it must be ready.
    """

    patience = _READY_SECONDS

    def __init__(
        self,
        command: Sequence[str],
        place: socket.socket,
        ready: str,
        log: Path,
        variables: Mapping[str, str] = _NO_VARIABLES,
    ) -> None:
        """Start it; `ready` is the path that it answers with 200 once it is, `log` where its output goes.

        `place` is bound to the address where it will listen, and is closed here: nobody else gets the port meanwhile.
        """
        self.address = bound_address(place)
        self._place = place
        self._ready = ready
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(  # noqa: S603 - no shell, and nothing of a stranger's in it
                command,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **variables},
            )

    def __enter__(self) -> Self:
        try:
            self.wait()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def wait(self) -> None:
        """Wait until it is ready, which is later than when it listens.

        Raises:
            NotStartedError: it ended, or took too long.
        """
        end = time.monotonic() + self.patience
        with self._place:
            while self.process.poll() is None and time.monotonic() < end:
                if self._is_ready():
                    return
                time.sleep(_LOOK_SECONDS)
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        raise NotStartedError(last[0] if last else "it wrote no output")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.address, timeout=_GRACE_SECONDS)
        try:
            connection.request("GET", self._ready)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self) -> None:
        """End it, gently at first."""
        self._place.close()
        self.process.terminate()
        try:
            self.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def installed(names: Sequence[str]) -> str | None:
    """The path of a program that goes by one of these names, None if there is none."""
    return next((found for name in names if (found := shutil.which(name)) is not None), None)


def prometheus(folder: Path, config: Mapping[str, object], *flags: str) -> Program:
    """Start Prometheus with a configuration, all of its files in a folder: its blocks in `data` there.

    Raises:
        NotStartedError: it is not installed.
    """
    path = _path(PROMETHEUS)
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML, too
    place = free_place()
    listen = f"--web.listen-address={bound_address(place)}"
    command = [path, "--config.file=prometheus.yml", "--storage.tsdb.path=data", listen, *flags]
    return Program(command, place, "/-/ready", folder / "prometheus.log")


def alertmanager(folder: Path, config: Mapping[str, object]) -> Program:
    """Start Alertmanager with a configuration, alone, all of its files in a folder.

    Raises:
        NotStartedError: it is not installed.
    """
    path = _path(ALERTMANAGER)
    (folder / "alertmanager.yml").write_text(json.dumps(config))
    place = free_place()
    arguments = (
        "--config.file=alertmanager.yml",
        "--storage.path=alertmanager",
        f"--web.listen-address={bound_address(place)}",
        "--cluster.listen-address=",
    )
    return Program([path, *arguments], place, "/-/ready", folder / "alertmanager.log")


def grafana(folder: Path, source: str, dashboards: Path) -> Program:
    """Start Grafana for everyone who asks, with a Prometheus' URL as its source, and the dashboards of a folder if any.

    Raises:
        NotStartedError: it is not installed.
    """
    command = [_path(GRAFANA), "--homepath", str(_GRAFANA_HOME)]
    provisioned = folder / "provisioning"
    for part in ("datasources", "dashboards", "plugins", "alerting"):
        (provisioned / part).mkdir(parents=True)
    sources = [{"name": "Prometheus", "type": "prometheus", "access": "proxy", "url": source, "isDefault": True}]
    (provisioned / "datasources" / "prometheus.yml").write_text(json.dumps({"apiVersion": 1, "datasources": sources}))
    if dashboards.is_dir():
        provider = {"name": "llm-headroom", "type": "file", "options": {"path": str(dashboards)}}
        file = provisioned / "dashboards" / "llm-headroom.yml"
        file.write_text(json.dumps({"apiVersion": 1, "providers": [provider]}))
    place = free_place()
    variables = {
        "GF_PATHS_DATA": str(folder / "grafana"),
        "GF_PATHS_LOGS": str(folder / "grafana"),
        "GF_PATHS_PLUGINS": str(folder / "grafana-plugins"),
        "GF_PATHS_PROVISIONING": str(provisioned),
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(place.getsockname()[1]),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
    return Program(command, place, "/api/health", folder / "grafana.log", variables)


def _path(names: Sequence[str]) -> str:
    found = installed(names)
    if found is None:
        raise NotStartedError(f"{names[0]} is not installed")
    return found


def free_place() -> socket.socket:
    """Bound to a free port of this host, so that nobody else is given it before who is told of it listens there."""
    return hold(socket.AF_INET, ("127.0.0.1", 0))
