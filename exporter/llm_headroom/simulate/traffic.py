"""Requests over virtual time: replayed from traces, or from a synthetic arrival process.

Everything here is a lazy iterator in order of arrival, so that a day of traffic costs no memory, and everything random
comes from a seed.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import random
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

BUNDLED_TRACES = ("azure_conv", "azure_code")
SECONDS_PER_DAY = 86_400.0
_PREFIX_COLUMN = "hash_ids_"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it reaches an engine.

    Attributes:
        arrival: seconds of virtual time.
        prompt_tokens: the whole prompt, at least 1.
        output_tokens: what the engine will generate for it, at least 1.
        max_tokens: what the client allows; None means just `output_tokens`. SGLang reserves by it, and a request that
            ends before it has the finish reason `stop`, else `length`.
        prefix: ids of the blocks that the prompt begins with; two requests share the cached tokens of equal leading
            ids. Empty means that nothing is shared.
        prefix_block_tokens: tokens of each id in `prefix`.
    """

    arrival: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    prefix: tuple[int, ...] = ()
    prefix_block_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse a request that no engine could serve."""
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(
                f"a request needs at least 1 prompt and 1 output token, not {self.prompt_tokens} and "
                f"{self.output_tokens}"
            )
        if self.max_tokens is not None and self.max_tokens < self.output_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is less than output_tokens {self.output_tokens}")


def read_trace(path: Path) -> Iterator[Request]:
    """Yield the requests of a trace file.

    Args:
        path: CSV, or CSV in gzip, with the columns `arrival_s`, `prompt_tokens`, `output_tokens` and optionally
            `hash_ids_N` (ids of prefix blocks of N tokens, separated by spaces; `a-b` is a run). Other columns are
            passed over. Rows lie in order of arrival.

    Raises:
        ValueError: a column is missing or a value is no number; it names the file and line.
        OSError: the file cannot be read.
    """
    yield from _parse(path.read_bytes(), str(path))


def bundled_trace(name: str) -> Iterator[Request]:
    """Yield the requests of a trace that ships with the package, `azure_conv` or `azure_code`.

    Raises:
        ValueError: there is no such trace.
    """
    if name not in BUNDLED_TRACES:
        raise ValueError(f"no trace {name!r} here, only {', '.join(BUNDLED_TRACES)}")
    file = resources.files("llm_headroom.simulate") / "data" / f"{name}.csv.gz"
    yield from _parse(file.read_bytes(), file.name)


def _parse(content: bytes, source: str) -> Iterator[Request]:
    text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    rows = csv.DictReader(io.StringIO(text.decode()))
    names = rows.fieldnames or ()
    missing = {"arrival_s", "prompt_tokens", "output_tokens"}.difference(names)
    if missing:
        raise ValueError(f"{source} lacks the column {', '.join(sorted(missing))}")
    prefix_column = next((one for one in names if one.startswith(_PREFIX_COLUMN)), None)
    block = int(prefix_column.removeprefix(_PREFIX_COLUMN)) if prefix_column else 512
    for row in rows:
        try:
            yield Request(
                arrival=float(row["arrival_s"]),
                prompt_tokens=max(1, int(row["prompt_tokens"])),
                output_tokens=max(1, int(row["output_tokens"])),
                prefix=_ids(row[prefix_column]) if prefix_column else (),
                prefix_block_tokens=block,
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source} line {rows.line_num}: {error}") from error


def _ids(text: str) -> tuple[int, ...]:
    ids: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        ids.extend(range(int(first), int(last or first) + 1))
    return tuple(ids)


def scaled(requests: Iterable[Request], rate: float) -> Iterator[Request]:
    """Yield the same requests, arriving `rate` times as fast (2.0: in half the time)."""
    if rate <= 0:
        raise ValueError(f"the rate factor must be above 0, not {rate}")
    return (replace(one, arrival=one.arrival / rate) for one in requests)


def cut(requests: Iterable[Request], begin: float, end: float) -> Iterator[Request]:
    """Yield the requests that arrive in [begin, end), with `begin` as the new time 0."""
    for one in requests:
        if one.arrival >= end:
            return
        if one.arrival >= begin:
            yield replace(one, arrival=one.arrival - begin)


def repeated(requests: Iterable[Request], period: float, times: int | None = None) -> Iterator[Request]:
    """Yield the requests again every `period` seconds, `times` times, or without end (None).

    They are held in memory. Prefix ids stay as they are: the second round finds what the first has left in the cache.

    Raises:
        ValueError: the requests span more than `period`.
    """
    rows = tuple(requests)
    if rows and rows[-1].arrival >= period:
        raise ValueError(f"the requests span {rows[-1].arrival} s, more than the period of {period} s")
    lap = 0
    while rows and (times is None or lap < times):
        for one in rows:
            yield replace(one, arrival=one.arrival + lap * period)
        lap += 1


def sharing(requests: Iterable[Request], prompts: int, tokens: int, seed: int = 0) -> Iterator[Request]:
    """Yield the same requests, each beginning with one of so many system prompts of `tokens`, if it is longer."""
    chance = random.Random(seed)  # noqa: S311  simulation, not security
    for one in requests:
        prefix = (chance.randrange(prompts),) if one.prompt_tokens > tokens else ()
        yield replace(one, prefix=prefix, prefix_block_tokens=tokens)


@dataclass(frozen=True, slots=True)
class Lengths:
    """A log-normal length distribution, cut to [minimum, maximum] tokens.

    Attributes:
        median: tokens.
        sigma: standard deviation of the logarithm; 0 makes every length the median.
        minimum: least length, at least 1.
        maximum: greatest length.
    """

    median: float
    sigma: float = 0.8
    minimum: int = 1
    maximum: int = 1_000_000

    def draw(self, chance: random.Random) -> int:
        """One length."""
        value = self.median * math.exp(chance.gauss(0.0, self.sigma)) if self.sigma else self.median
        return min(max(round(value), self.minimum), self.maximum)


@dataclass(frozen=True, slots=True)
class Burst:
    """Extra load: from `begin` for `duration` seconds, the rate is multiplied by `factor`."""

    begin: float
    duration: float
    factor: float


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A synthetic arrival process: a rate that follows a day and bursts, gamma-distributed gaps, log-normal lengths.

    Attributes:
        rate: mean requests per second over a day, bursts left out.
        prompt: prompt lengths.
        output: output lengths.
        burstiness: variance of a gap over that of a Poisson process: 1 is Poisson, 4 is lumpy, 0.25 is even.
        day_swing: 0 for a flat day; s makes the rate swing by a sine between (1-s) and (1+s) times the mean, with the
            trough at time 0. Less than 1.
        day_seconds: length of a day; shorter than 86,400 to see a day in a demo.
        bursts: extra load at given times.
        max_tokens: what every client allows; None: what the request generates.
        prefixes: so many distinct shared beginnings (system prompts), chosen at random; 0: nothing is shared.
        prefix_tokens: length of each shared beginning; a prompt is at least that and one token more.
    """

    rate: float
    prompt: Lengths
    output: Lengths
    burstiness: float = 1.0
    day_swing: float = 0.0
    day_seconds: float = SECONDS_PER_DAY
    bursts: tuple[Burst, ...] = ()
    max_tokens: int | None = None
    prefixes: int = 0
    prefix_tokens: int = 512

    def __post_init__(self) -> None:
        """Refuse parameters that describe no process."""
        if self.rate <= 0 or self.burstiness <= 0:
            raise ValueError("rate and burstiness must be above 0")
        if not 0 <= self.day_swing < 1:
            raise ValueError(f"day_swing must be at least 0 and less than 1, not {self.day_swing}")

    def rate_at(self, time: float) -> float:
        """The expected requests per second at a time."""
        day = 1.0 - self.day_swing * math.cos(2.0 * math.pi * time / self.day_seconds)
        factor = math.prod(one.factor for one in self.bursts if one.begin <= time < one.begin + one.duration)
        return self.rate * day * factor

    def requests(self, seed: int) -> Iterator[Request]:
        """Yield requests without end.

        Gaps are drawn at unit rate and stretched through the integral of `rate_at`, so that bursts and the day shape
        keep the burstiness asked for.
        """
        chance = random.Random(seed)  # noqa: S311  simulation, not security
        shape = 1.0 / self.burstiness
        now = 0.0
        while True:
            now = self._after(now, chance.gammavariate(shape, 1.0 / shape))
            output = self.output.draw(chance)
            prompt = self.prompt.draw(chance)
            prefix = (chance.randrange(self.prefixes),) if self.prefixes else ()
            if prefix:
                prompt = max(prompt, self.prefix_tokens + 1)
            allowed = None if self.max_tokens is None else max(self.max_tokens, output)
            yield Request(now, prompt, output, allowed, prefix, self.prefix_tokens)

    def _after(self, now: float, expected: float) -> float:
        """The time by which `expected` requests are expected after `now`, in slices of constant rate."""
        longest = self.day_seconds / 1000.0
        edges = sorted(edge for one in self.bursts for edge in (one.begin, one.begin + one.duration))
        while True:
            slice_end = min((edge for edge in edges if edge > now), default=now + longest)
            slice_end = min(slice_end, now + longest)
            rate = self.rate_at((now + slice_end) / 2.0)
            if rate * (slice_end - now) >= expected:
                return now + expected / rate
            expected -= rate * (slice_end - now)
            now = slice_end
