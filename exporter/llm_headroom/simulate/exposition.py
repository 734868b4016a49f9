"""What `/metrics` of a simulated vLLM or SGLang serves, in the words of a real engine of a chosen version.

A capture gives names, labels, texts, buckets and order; what the simulator models is filled in, and everything else
reads as on an idle engine. One thing differs from the real ones: a series that an engine exposes only from its first
event on is there from the start if the capture has it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.simulate import engine_documents
from llm_headroom.simulate.exposition_lines import Setting, bounds_of, compiled, written
from llm_headroom.simulate.exposition_values import SCALARS
from llm_headroom.simulate.templates import template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_headroom.simulate.engine_state import EngineConfig, EngineReading
    from llm_headroom.simulate.hardware import MemoryPlan


_SPENT: Final = 0.004
"""CPU seconds of a server process per second: it answers also while the engine behind it stands still."""


class Exposition:
    """The metrics and JSON documents of one engine.

    Attributes:
        ranks: how many replicas the version has; `render` takes as many readings.
        bounds: of its histograms, for `EngineConfig.bounds`.
    """

    def __init__(  # noqa: PLR0913 - what an engine is started with
        self,
        version: str,
        *,
        model: str,
        config: EngineConfig,
        start: float,
        speed: float = 1.0,
        memory: MemoryPlan | None = None,
        utilisation: float = 0.9,
    ) -> None:
        """Prepare to render.

        Args:
            version: one of `templates.versions()`.
            model: name of the model, as served.
            config: of each replica; its `bounds` do not matter.
            start: unix seconds at virtual second 0.
            speed: virtual seconds per real second.
            memory: of one GPU, for SGLang's memory gauges; None leaves them at 0.
            utilisation: share of the GPU's memory that the engine is configured to reserve.

        Raises:
            ValueError: there is no such version, or it is one of the other scheduler's engine.
        """
        source = template(version)
        if source.engine != config.scheduler:
            raise ValueError(f"{version} does not schedule as {config.scheduler} does")
        self.ranks = source.ranks
        self.bounds = bounds_of(version)
        self._setting = Setting(
            version=version,
            model=model,
            total_blocks=config.total_blocks,
            block_tokens=config.block_tokens,
            longest=config.longest,
            prefix_caching=config.prefix_caching,
            utilisation=utilisation,
            memory=memory,
        )
        self._config = config
        self._start, self._speed = start, speed
        self._compiled = compiled(self._setting)
        self._rates = [(0.0, 0, 0.0)] * self.ranks  # of each replica: time, generated tokens, tokens per second

    def render(self, readings: Sequence[EngineReading], *, now: float) -> bytes:
        """The exposition (Prometheus text format 0.0.4).

        Args:
            readings: one of each replica, made with this object's `bounds`.
            now: unix seconds.

        Raises:
            ValueError: there are not as many readings as replicas, or they have other bounds.
        """
        self._check(readings)
        compiled = self._compiled
        texts = self._texts(readings, now)
        parts = [compiled.format % compiled.pick(texts)]
        for form, slots in compiled.rare:
            found = tuple(texts[slot] for slot in slots)
            if any(text != "0.0" for text in found):
                parts.append(form % found)
        return "".join(parts).encode()

    def documents(self, readings: Sequence[EngineReading]) -> Mapping[str, Any]:
        """The JSON documents by path: `/version`, `/v1/models`, `/server_info`, `/v1/loads`.

        Those that the version does not serve are not among them.

        Raises:
            ValueError: there are not as many readings as replicas.
        """
        self._check(readings)
        server = engine_documents.Server(
            model=self._setting.model,
            config=self._config,
            start=self._start,
            speed=self._speed,
            memory=self._setting.memory,
            utilisation=self._setting.utilisation,
        )
        return engine_documents.documents(template(self._setting.version), server, readings)

    def _check(self, readings: Sequence[EngineReading]) -> None:
        if len(readings) != self.ranks:
            raise ValueError(f"{self._setting.version} has {self.ranks} replicas, not {len(readings)}")

    def _texts(self, readings: Sequence[EngineReading], now: float) -> list[str]:
        """What each value reads as: the replicas' one after the other, then the whole server's."""
        texts: list[str] = []
        scalars, counts, totals = [], [], []
        for rank, reading in enumerate(readings):
            numbers = [value(reading) for value in SCALARS.values()]
            started = self._start + reading.started_at / self._speed
            spent = round(_SPENT * max(now - started, 0.0), 2)
            numbers += [self._rate(rank, reading), started, now, spent]
            scalars.append(numbers)
            found = [getattr(reading.histograms, name) for name in self._compiled.needed[rank]]
            counts.append([tuple(accumulate(one.counts)) for one in found])
            totals.append([one.total for one in found])
            self._append(texts, rank, numbers, counts[-1], totals[-1])
        if self.ranks > 1:  # only counts and histograms have series of the whole server in these captures
            numbers = [sum(column) for column in zip(*scalars, strict=True)]
            summed = [[sum(column) for column in zip(*same, strict=True)] for same in zip(*counts, strict=True)]
            self._append(texts, self.ranks, numbers, summed, [sum(column) for column in zip(*totals, strict=True)])
        return texts

    def _append(
        self,
        texts: list[str],
        group: int,
        numbers: Sequence[float],
        counts: Sequence[Sequence[int]],
        totals: Sequence[float],
    ) -> None:
        texts += map(written, numbers)
        for name, cumulative, total in zip(self._compiled.needed[group], counts, totals, strict=True):
            if len(cumulative) != len(getattr(self.bounds, name)) + 1:
                raise ValueError(f"the reading's {name} histogram has other bounds than {self._setting.version}")
            texts += map(written, cumulative)
            texts.append(written(total))

    def _rate(self, rank: int, reading: EngineReading) -> float:
        """SGLang's throughput: generated tokens per second since the last scrape, at least a second ago."""
        then, before, rate = self._rates[rank]
        generated = reading.counters.generated_tokens
        if then < reading.started_at or generated < before:
            then, before, rate = reading.started_at, 0, 0.0
        if reading.time - then >= 1.0:
            rate = (generated - before) / (reading.time - then)
            then, before = reading.time, generated
        self._rates[rank] = (then, before, rate)
        return rate


# Misbehaviour --------------------------------------------------------------------------------------------------------
_SUFFIXES: Final = "_bucket|_sum|_count|_created"
_TOTAL: Final = "_total"


def renamed(body: bytes, names: Mapping[str, str]) -> bytes:
    """An exposition with families under other names, as after an upgrade.

    Args:
        body: text format 0.0.4.
        names: family, as its TYPE line names it, to its new name; an empty one drops the family. The times of
            creation of a counter go with it.
    """
    if not names:
        return body
    pattern, new = _renaming(tuple(sorted(names.items())))

    def exchanged(line: re.Match[bytes]) -> bytes:
        name = new[line["name"]]
        return b"" if not name else (line["comment"] or b"") + name + (line["suffix"] or b"") + line["rest"]

    return pattern.sub(exchanged, body)


@lru_cache
def _renaming(names: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[bytes], Mapping[bytes, bytes]]:
    new = dict(names)
    for old, name in names:
        if old.endswith(_TOTAL):
            made = f"{name.removesuffix(_TOTAL)}_created" if name else ""
            new.setdefault(f"{old.removesuffix(_TOTAL)}_created", made)
    ordered = "|".join(re.escape(name) for name in sorted(new, key=len, reverse=True))
    pattern = rf"^(?P<comment># (?:HELP|TYPE) )?(?P<name>{ordered})(?P<suffix>{_SUFFIXES})?(?P<rest>[ {{].*\n)"
    return (
        re.compile(pattern.encode(), re.MULTILINE),
        {old.encode(): name.encode() for old, name in new.items()},
    )
