"""What is not believed of an engine's answer, although it was read: a copy of an earlier one, counters that stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.derive.copies import CPU, Answer, Copies, Witness
from llm_headroom.derive.stalls import STALLED_SECONDS
from llm_headroom.exposition.text import Exposition
from llm_headroom.model import Cause, Failure, Histogram, numbers
from llm_headroom.scrape.http import FetchError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from llm_headroom.derive.memory import Memory
    from llm_headroom.exposition.text import Layout
    from llm_headroom.model import Point

_ABSENT: Final = -1


class Doubts:
    """Of the target at an address. `proxied` is what the latest poll of a proxy before this very engine has shown."""

    def __init__(self, url: str, proxied: Callable[[], Sequence[Point]]) -> None:
        self._url = url
        self._proxied = proxied
        self._copies = Copies()
        self._witness = Witness()
        self._places: dict[str, tuple[Layout, int]] = {}

    def made(self, documents: Mapping[str, object], age: float, at: float) -> float:
        """When the engine has said what was read of it at `at`, in monotonic seconds.

        `documents` are by key, `age` is what caches say of them, in seconds.

        Raises:
            FetchError: it is a copy from so long ago that none of its figures holds.
        """
        held = {key: each for key, each in documents.items() if isinstance(each, Exposition)}
        spent = (self._cpu(key, each) for key, each in held.items())
        cpu = next((each for each in spent if each is not None), None)
        content = None if cpu is None and not age else hash(tuple(tuple(each.values) for each in held.values()))
        self._copies = self._copies.after(Answer(content, cpu, age), at)
        if self._copies.copied:
            raise FetchError(Failure(Cause.STALE, f"{self._url}: {self._copies.why(at)}"))
        return self._copies.made(at)

    def _cpu(self, key: str, exposition: Exposition) -> float | None:
        """The CPU time of the process that has made an exposition, in seconds."""
        layout = exposition.layout
        known = self._places.get(key)
        if known is None or known[0] is not layout:
            places = (place for place, sample in enumerate(layout.keys) if sample.name == CPU)
            known = self._places[key] = layout, next(places, _ABSENT)
        return None if known[1] == _ABSENT else exposition.values[known[1]]

    def check(self, points: Sequence[Point], memory: Memory, at: float) -> None:
        """Ask the proxy where the engine's own counters say that it is stalled.

        Raises:
            FetchError: it has answered meanwhile, so these counters are not of now.
        """
        beside = self._proxied()
        if not beside:
            return
        firsts = sum(
            value.count
            for series, value, _ in beside
            if series.metric is schema.TIME_TO_FIRST_TOKEN and isinstance(value, Histogram)
        )
        ended = sum(value for _, value in numbers(beside, schema.REQUESTS_FINISHED))
        self._witness = self._witness.after(_counted(memory), firsts, ended, at)
        stalled = [value for _, value in numbers(points, schema.ENGINE_STALLED)]
        silent = any(value >= STALLED_SECONDS for _, value in numbers(beside, schema.PROXY_SILENCE))
        if not stalled or not all(stalled) or silent:
            return
        if why := self._witness.contradicts(firsts, ended, at):
            raise FetchError(Failure(Cause.STALE, f"{self._url}: {why}"))


def _counted(memory: Memory) -> Hashable:
    """What moves while an engine works."""
    latest = ((model, known.last) for model, known in memory.models.items())
    return tuple((model, last.steps, last.generation_tokens, last.prompt_tokens) for model, last in latest)
