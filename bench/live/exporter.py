"""The exporter over one engine, with its proxy in front, and what both say."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from live.server import Server, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INTERVAL: Final = 0.2
"""Seconds between polls."""
OBJECTIVE: Final = 2.5
"""Seconds to the first token."""
LONGEST_POLLS: Final = 60.0
"""Seconds within which a target is polled twice, whatever its engine and its state: Ollama is polled each ten."""
ENGINE: Final = "engine"
PROXY: Final = "engine/proxy"

_CONFIG: Final = """
listen: ["127.0.0.1:{port}"]
interval: {interval}s
discover: false
gpu: false
targets:
  - name: engine
    engine: {engine}
    url: {url}
{limit}proxies:
  - {{listen: "127.0.0.1:{proxy}", target: engine}}
objectives:
  ttft: {objective}s
"""


class Reading:
    """One scrape: sums of samples by name, target and labels."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def of(self, name: str, target: str = ENGINE, **labels: str) -> float | None:
        """The sum of a metric's series of a target with these labels; None where it has none."""
        wanted = {"target": target, **labels}
        found = [
            sample.value
            for sample in self._samples
            if sample.name == name and all(sample.labels.get(label) == text for label, text in wanted.items())
        ]
        return sum(found) if found else None

    def label(self, name: str, label: str) -> str:
        """A label of a metric's first series, "" where there is none."""
        return next((sample.labels.get(label, "") for sample in self._samples if sample.name == name), "")


class Exporter(Server):
    """`llm-headroom run` with one target, and its proxy."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own
        self,
        program: Path,
        folder: Path,
        *,
        engine: str,
        url: str,
        limit: int | None,
        interval: float = INTERVAL,
        objective: float = OBJECTIVE,
    ) -> None:
        port, self.proxy = free_port(), free_port()
        config = folder / f"{engine}.yml"
        limited = "" if limit is None else f"    requests_running_limit: {limit}\n"
        config.write_text(
            _CONFIG.format(
                port=port,
                interval=interval,
                engine=engine,
                url=url,
                limit=limited,
                proxy=self.proxy,
                objective=objective,
            )
        )
        command = (program, "run", "--config", config)
        super().__init__(command, port=port, ready="/-/ready", patience=30, log=folder / f"{engine}.exporter.log")

    @property
    def proxied(self) -> str:
        """Where clients find the engine."""
        return f"http://127.0.0.1:{self.proxy}"

    def read(self) -> Reading:
        """What `/metrics` says now."""
        return Reading(httpx.get(f"{self.url}/metrics", timeout=10, trust_env=False).text)

    async def settled(self) -> Reading:
        """What it says once each source was read twice more: the first time may have begun before."""
        durations: dict[str, set[float]] = {ENGINE: set(), PROXY: set()}  # no two collections take the same time

        def read_again(reading: Reading) -> bool:
            for target, seen in durations.items():
                if (duration := reading.of("llm_source_duration_seconds", target)) is not None:
                    seen.add(duration)
            return all(len(seen) > 2 for seen in durations.values() if seen)

        return await self.until(read_again, LONGEST_POLLS)

    async def until(
        self, condition: Callable[[Reading], bool], seconds: float, *, pause: float = INTERVAL / 4
    ) -> Reading:
        """What it says when something holds, or when the time is over; it is asked after each `pause` in seconds."""
        end = time.monotonic() + seconds
        reading = await asyncio.to_thread(self.read)
        while not condition(reading) and time.monotonic() < end:
            await asyncio.sleep(pause)
            with suppress(httpx.HTTPError):
                reading = await asyncio.to_thread(self.read)
        return reading
