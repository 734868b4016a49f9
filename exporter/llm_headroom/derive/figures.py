"""The figures that a state is judged by, for each model of a target."""

from __future__ import annotations

from operator import add
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.model import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llm_headroom.model import Metric, Point


class Figure(NamedTuple):
    """How the series of a metric make a figure: its name, how two values combine, and which label value is meant.

    Of a histogram the count is taken. `label` and `only`: series with another value of the label are left out;
    `never`: those with one of these.
    """

    name: str
    combine: Callable[[float, float], float] = add
    label: str = ""
    only: str = ""
    never: tuple[str, ...] = ()


_FIGURES: Final[Mapping[Metric, tuple[Figure, ...]]] = {
    schema.REQUESTS_RUNNING: (Figure("running"),),
    schema.REQUESTS_WAITING: (Figure("waiting"),),
    schema.REQUESTS_RUNNING_LIMIT: (Figure("limit"),),
    schema.REQUESTS_FINISHED: (Figure("finished"),),
    schema.REQUESTS_FAILED: (Figure("failed", label="reason", never=schema.NO_FAULT),),
    schema.HTTP_RESPONSES: (Figure("responses"), Figure("wrong", label="code", only="5xx")),
    schema.TIME_TO_FIRST_TOKEN: (Figure("first"),),
    schema.PROMPT_TOKENS: (Figure("prompts"),),
    schema.GENERATION_TOKENS: (Figure("generated"),),
    schema.ROUTER_REQUESTS: (Figure("routed"),),
    schema.ROUTER_ERRORS: (Figure("lost"),),
    schema.ROUTER_REQUESTS_ACTIVE: (Figure("running"),),
    schema.ROUTER_REQUESTS_WAITING: (Figure("waiting"),),
    schema.ROUTER_WORKER_HEALTHY: (Figure("healthy"),),
    schema.ENGINE_STALLED: (Figure("stalled"),),
    schema.ENGINE_RESTARTS: (Figure("restarts", max),),
    schema.KV_CACHE_USAGE: (Figure("usage", max),),
    schema.KV_CACHE_HEADROOM_REQUESTS: (Figure("room", min),),
    schema.MODEL_ASLEEP: (Figure("asleep", max),),
    schema.MODEL_LOADED: (Figure("loaded", max),),
    schema.MODELS_LOADED: (Figure("models"),),
    schema.MODEL_LOADS: (Figure("loads", max),),
    schema.SLO_REQUESTS: (
        Figure("firsts", label="slo", only="ttft"),
        Figure("tokens", label="slo", only="inter_token_latency"),
    ),
    schema.SLO_REQUESTS_GOOD: (
        Figure("good", label="slo", only="ttft"),
        Figure("timely", label="slo", only="inter_token_latency"),
    ),
    schema.FIRST_TOKENS_OVERDUE: (Figure("overdue"),),
    schema.PROXY_SILENCE: (Figure("silence", max),),
    schema.PROXY_OVERDUE: (Figure("overdue", label="slo", only="ttft"),),
    schema.SLO_THRESHOLD: (
        Figure("objective", max, label="slo", only="ttft"),
        Figure("gap", max, label="slo", only="inter_token_latency"),
    ),
}


_COUNTED: Final = {schema.ROUTER_WORKER_HEALTHY: "workers", schema.ENGINE_STALLED: "replicas"}
"""Metrics of which it matters how many series there are."""
UNNAMED: Final = {name: f"unnamed_{name}" for name in ("failed", "finished", "wrong", "responses")}
"""Counters of requests whose model nobody named, such as failures before a model has ever answered: beside a model's
own."""


def figures(points: Iterable[Point]) -> dict[str, dict[str, float]]:
    """Figures by model: replicas together, and what speaks of no model for each of them.

    A model that an engine could load but has not loaded is none. The target itself is the model without a name, where
    there is no other.
    """
    found: dict[str, dict[str, float]] = {}
    for series, reading, _ in points:
        kinds = _FIGURES.get(series.metric)
        if kinds is None:
            continue
        value = reading.count if isinstance(reading, Histogram) else reading
        own = found.get(series.model)
        if own is None:
            own = found[series.model] = {}
        for name, combine, label, only, never in kinds:
            if label:
                text = series.label(label)
                if text != only if only else text in never:
                    continue
            own[name] = combine(own[name], value) if name in own else value
        counted = _COUNTED.get(series.metric)
        if counted is not None:
            own[counted] = own.get(counted, 0.0) + 1.0
    whole = found.pop("", {})
    unnamed = {UNNAMED[name]: value for name, value in whole.items() if name in UNNAMED}
    models = {model: {**whole, **unnamed, **own} for model, own in found.items() if _there(own)}
    return models or {"": whole}


def _there(own: Mapping[str, float]) -> bool:
    """Whether a model is in memory, or has requests."""
    return own.get("loaded") != 0.0 or bool(own.get("running")) or bool(own.get("waiting"))
