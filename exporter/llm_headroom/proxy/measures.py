"""What a proxy has measured of one engine, as points: histograms and counters by model, requests under way."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.model import Histogram, Kind, Metric, point
from llm_headroom.scrape.label_cap import LabelCap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.model import Point

ORIGIN: Final = "proxy"
_LATENCY: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0)
_TOKEN: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_REQUEST: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_LONG: Final = (120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_COUNT: Final = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
BOUNDS: Final[Mapping[Metric, tuple[float, ...]]] = {
    schema.TIME_TO_FIRST_TOKEN: (*_LATENCY, 40.0, 80.0, 160.0, 640.0, 2560.0, math.inf),
    schema.INTER_TOKEN_LATENCY: (*_TOKEN, 7.5, 10.0, 20.0, 40.0, 80.0, math.inf),
    schema.TIME_PER_OUTPUT_TOKEN: (*_TOKEN, 7.5, 10.0, 20.0, 40.0, 80.0, math.inf),
    schema.REQUEST_DURATION: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_QUEUE: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_PREFILL: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_DECODE: (*_REQUEST, *_LONG, math.inf),
    schema.REQUEST_PROMPT_TOKENS: (*_COUNT, math.inf),
    schema.REQUEST_GENERATION_TOKENS: (*_COUNT, math.inf),
}
"""Upper bounds of buckets: those of vLLM's metrics of the same meaning (vllm/v1/metrics/loggers.py), the same for every
engine, with finer ones for small models; so that engines can be compared by one ruler."""


class _Growing:
    """A histogram that observations are added to."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * len(bounds)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def value(self) -> Histogram:
        return Histogram(self._bounds, tuple(map(float, accumulate(self._counts))), self._sum)


class Measures:
    """All that is kept of the traffic to one engine. Models are named by the engine alone, `limit` of them at most.

    `running_limit` is how many requests the engine runs at once, if that is known: more that are under way wait.
    `untagged` is the tag that the engine adds to a model's name without one.
    """

    def __init__(self, *, limit: int, running_limit: int | None = None, untagged: str = "") -> None:
        self.cap = LabelCap(limit)
        self._running_limit = running_limit
        self._untagged = untagged
        self._histograms: dict[tuple[Metric, str], _Growing] = {}
        self._counters: dict[tuple[Metric, str, str], float] = {}
        self._under_way: Counter[str] = Counter()

    def told(self, model: str) -> str:
        """The label of a model that the engine itself has named."""
        return self.cap.admit("model", self._tagged(model)) if model else ""

    def asked(self, model: str) -> str:
        """The label of a model that a client has named: empty unless the engine has named it before."""
        model = self._tagged(model)
        return model if model in self.cap.seen.get("model", ()) else ""

    def _tagged(self, model: str) -> str:
        return f"{model}:{self._untagged}" if self._untagged and model and ":" not in model else model

    def begin(self, model: str) -> None:
        """A request is under way."""
        self._under_way[model] += 1

    def end(self, model: str) -> None:
        """A request that was under way is no more."""
        self._under_way[model] -= 1

    def observe(self, metric: Metric, model: str, value: float) -> None:
        """Add an observation, in the metric's unit."""
        key = (metric, model)
        found = self._histograms.get(key)
        if found is None:
            found = self._histograms[key] = _Growing(BOUNDS[metric])
        found.add(value)

    def count(self, metric: Metric, model: str, label: str = "", by: float = 1.0) -> None:
        """Add to a counter; `label` is the value of the metric's own label, of a closed set."""
        key = (metric, model, label)
        self._counters[key] = self._counters.get(key, 0.0) + by

    def points(self, base: Mapping[str, str]) -> Iterator[Point]:
        """Everything so far; `base` are the labels that every series of the target has."""
        for model, requests in self._under_way.items():
            if not model and not requests and len(self._under_way) > 1:
                continue  # by now the engine has named the model
            running = requests if self._running_limit is None else min(requests, self._running_limit)
            origin = f"{ORIGIN}: requests under way"
            yield point(schema.REQUESTS_RUNNING, float(running), origin, base, model=model)
            if self._running_limit is not None:
                origin += " above requests_running_limit"
                yield point(schema.REQUESTS_WAITING, float(requests - running), origin, base, model=model)
        for (metric, model), grown in self._histograms.items():
            yield point(metric, grown.value(), ORIGIN, base, model=model)
        for (metric, model, value), total in self._counters.items():
            extra = {name: value for name in metric.labels[-1:] if value}
            yield point(metric, total, ORIGIN, base, model=model, **extra)


assert all(metric.kind is Kind.HISTOGRAM for metric in BOUNDS)  # noqa: S101 - a table's invariant
