"""The programs of the run: workers that use the GPU, and the exporter that watches them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from exporter_process import Exporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Worker:
    """A process of `worker`, optionally answering as a captured engine (`vllm 0.32.0 saturated`)."""

    def __init__(self, *capture: str) -> None:
        self._capture = capture

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "device.worker", *self._capture]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("no pipes to the worker")
        self._commands, self.answers = self.process.stdin, self.process.stdout
        hello = self.answer()
        self.memory, self.url = hello["memory"], hello["url"]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def pid(self) -> str:
        """As text, as labels have it."""
        return str(self.process.pid)

    def tell(self, do: str, **arguments: object) -> None:
        """Send a command, whose answer is to be read with `answer`."""
        self._commands.write(json.dumps({"do": do, **arguments}) + "\n")
        self._commands.flush()

    def answer(self) -> Any:  # noqa: ANN401 - JSON
        """The answer to the last command; raises RuntimeError if the process ended instead."""
        line = self.answers.readline()
        if not line:
            raise RuntimeError(f"the worker ended with status {self.process.wait()}: see above")
        return json.loads(line)

    def ask(self, do: str, **arguments: object) -> Any:  # noqa: ANN401 - JSON
        """A command's answer."""
        self.tell(do, **arguments)
        return self.answer()


class Watch:
    """The exporter over some workers, reading every `interval` seconds, and what it exports."""

    def __init__(self, folder: Path, interval: float, targets: dict[str, str], *, pcie: bool = False) -> None:
        listed = "".join(f"  - {{name: {name}, url: '{url}'}}\n" for name, url in targets.items())
        path = folder / "exporter.yml"
        path.write_text(
            f"interval: {interval}s\ngpu: {{pcie: {str(pcie).lower()}, processes: true}}\n"
            + (f"targets:\n{listed}" if targets else "targets: []\n"),
            encoding="utf-8",
        )
        self._interval = interval
        self.exporter = Exporter("--config", str(path), "--no-discover", strict=False)

    def __enter__(self) -> Self:
        self.exporter.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.exporter.__exit__()

    def since(self, moment: float) -> Metrics:
        """What is exported once GPUs and every target have been read after a moment.

        Raises:
            TimeoutError: they are not read any more.
        """
        end = time.monotonic() + 15
        while time.monotonic() < end:
            found = self.now()
            read = found.all("llm_source_last_success_timestamp_seconds")
            if read and min(read.values()) > moment:
                return found
            time.sleep(self._interval / 5)
        raise TimeoutError("the exporter has not read every source within 15 s")

    def until(self, holds: Callable[[Metrics], bool]) -> Metrics:
        """What is exported as soon as something holds, or after some seconds without it: the rows then say so."""
        end = time.monotonic() + 20
        while not holds(found := self.since(time.time())) and time.monotonic() < end:
            pass
        return found

    def now(self) -> Metrics:
        """What is exported."""
        return Metrics(self.exporter.metrics())


class Metrics:
    """Samples of `/metrics`."""

    def __init__(self, samples: dict[str, dict[tuple[tuple[str, str], ...], float]]) -> None:
        self._samples = samples

    def all(self, name: str, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The samples of a metric with these labels among others."""
        return {key: value for key, value in self._samples.get(name, {}).items() if labels.items() <= dict(key).items()}

    def sum(self, name: str, **labels: str) -> float:
        """Their sum; 0 if there is none."""
        return sum(self.all(name, **labels).values())

    def one(self, name: str, **labels: str) -> float | None:
        """The only one; None if there is none."""
        found = list(self.all(name, **labels).values())
        return found[0] if len(found) == 1 else None

    def text(self) -> str:
        """For the file that stays."""
        lines = [
            f"{name}{{{','.join(f'{label}={value!r}' for label, value in key)}}} {number!r}"
            for name, samples in self._samples.items()
            for key, number in samples.items()
        ]
        return "\n".join((*lines, ""))
