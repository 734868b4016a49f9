"""The exporter as its users run it: a process of its own, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import TYPE_CHECKING, Any, Self

from prometheus_client.parser import text_string_to_metric_families

import refused_calls
from forked import Forked

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

DEADLINE = 90.0
"""Seconds after which what a test waits for is held not to come."""
PAUSE = 0.05
"""Seconds until what a test waits for is asked for again: without them the asking takes the CPU of those who work."""
COMMAND = (sys.executable, "-W", "error", "-m", "llm_headroom")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment without any setting of the exporter's or size of its terminal, plus some variables."""
    left_out = ("LLM_HEADROOM_", "OTEL_", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return kept | dict(extra or {})


def started(
    arguments: Sequence[str],
    extra: Mapping[str, str] | None,
    outputs: Mapping[int, int],
    cwd: Path | None = None,
) -> subprocess.Popen[bytes] | Forked:
    """`llm-headroom` with some arguments, running; `outputs` are descriptors for its standard output (1) and error (2).

    It is forked unless a variable is for Python or what loads it: they read these only when they start.
    """
    variables = environment(extra)
    if any(name.startswith(("LD_", "PYTHON")) for name in extra or {}):
        return subprocess.Popen(
            [*COMMAND, *arguments], env=variables, cwd=cwd, stdout=outputs.get(1), stderr=outputs.get(2)
        )
    return Forked(arguments, variables, cwd, outputs)


def ran(
    *arguments: str, extra: Mapping[str, str] | None = None, seconds: float = DEADLINE
) -> subprocess.CompletedProcess[str]:
    """`llm-headroom` with some arguments, to its end."""
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        process = started(arguments, extra, {1: output.fileno(), 2: errors.fileno()})
        status = process.wait(seconds)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(arguments, status, output.read(), errors.read())


def check(*arguments: str, extra: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`llm-headroom check` with some arguments, that waits for engines and GPUs also on a busy machine."""
    if "--config" in arguments:
        return ran("check", *arguments, extra=extra)
    with NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write("timeout: 60s\n")
        config.flush()
        return ran("check", *arguments, "--config", config.name, extra=extra)


class Exporter:
    """`llm-headroom run` (or `proxy`) with some arguments, on ports of its own. Its log is JSON, read by `logged`.

    `descriptors` are the most that it may have. `strict`: a warning of Python's is an error; otherwise it is started as
    users start it, never forked. `tls`: how to ask one that serves with TLS. `refused`: the number of a system call
    that the kernel refuses to it. `through`: a program of Python that runs it.
    """

    def __init__(  # noqa: PLR0913 - a process has many sides
        self,
        *arguments: str,
        extra: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        command: str = "run",
        descriptors: int | None = None,
        strict: bool = True,
        tls: ssl.SSLContext | None = None,
        refused: int | None = None,
        through: str | None = None,
    ) -> None:
        self._tls = tls
        self._prefix: tuple[str, ...] | None = None
        if through is not None:
            self._prefix = (sys.executable, through, "llm_headroom")
        elif refused is not None:
            self._prefix = (sys.executable, refused_calls.__file__, str(refused), *COMMAND)
        elif descriptors is not None:
            self._prefix = ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *COMMAND)
        elif not strict:
            self._prefix = (sys.executable, "-m", "llm_headroom")
        self.arguments = (command, "--listen", "127.0.0.1:0", "--log-format", "json", *arguments)
        self.extra = extra
        self.cwd = cwd
        self.log: list[dict[str, Any]] = []
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        log, write = os.pipe()
        try:
            if self._prefix is None:
                self.process = started(self.arguments, self.extra, {2: write}, self.cwd)
            else:
                command = [*self._prefix, *self.arguments]
                self.process = subprocess.Popen(command, env=environment(self.extra), cwd=self.cwd, stderr=write)
        finally:
            os.close(write)
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()
        self.url = f"{'https' if self._tls else 'http'}://{self.logged('listening')['addresses']}"
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE)
        self._reader.join()

    def _read(self, log: int) -> None:
        with open(log, encoding="utf-8") as lines:
            for line in lines:
                with self._news:
                    self.log.append(json.loads(line) if line.startswith("{") else {"msg": line})
                    self._news.notify_all()

    def logged(self, message: str, **fields: object) -> dict[str, Any]:
        """The first line of the log with this message and these fields; waits for it."""

        def found() -> dict[str, Any] | None:
            for line in self.log:
                if line["msg"] == message and fields.items() <= line.items():
                    return line
            return None

        with self._news:
            assert self._news.wait_for(lambda: found() is not None, DEADLINE), (message, fields, self.log)
            line = found()
            assert line is not None
            return line

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of an answer."""
        request = urllib.request.Request(  # noqa: S310 - our own server
            self.url + path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE, context=self._tls) as response:  # noqa: S310 - our own
                return response.status, _lower(response.headers), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _lower(error.headers), error.read()

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """The samples of `/metrics`: name → labels → value."""
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[2].decode()):
            for sample in family.samples:
                key = tuple(sorted(sample.labels.items()))
                assert key not in found.setdefault(sample.name, {}), (sample.name, key)
                found[sample.name][key] = sample.value
        return found

    def all_up(self) -> bool:
        """Whether all that it polls was read at its last poll: "ready" it is also where one came to nothing."""
        return self.get("/-/ready")[0] == 200 and set(self.metrics().get("llm_up", {}).values()) == {1.0}

    def value(self, metric: str, **labels: str) -> float | None:
        """The value of the only sample of a metric that has these labels among others; None if there is none."""
        found = [value for key, value in self.metrics().get(metric, {}).items() if labels.items() <= dict(key).items()]
        assert len(found) <= 1, (metric, labels, found)
        return found[0] if found else None

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that the exporter's answers show."""
        end = time.monotonic() + DEADLINE
        while not holds():
            assert time.monotonic() < end, (self.get("/metrics")[2].decode(), self.log)
            with self._news:
                self._news.wait(PAUSE)


def _lower(headers: Any) -> dict[str, str]:  # noqa: ANN401 - email.message.Message
    return {name.lower(): value for name, value in headers.items()}
