"""Faults of a simulated engine, as values: for the demo's incidents and `POST /-/misbehave`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from llm_headroom.simulate.traffic import Lengths, Synthetic, cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llm_headroom.simulate.traffic import Request

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Burst:
    """Extra requests for a while; seconds are virtual.

    Attributes:
        requests_per_second: mean rate, in Poisson arrivals.
        seconds: how long.
        prompt_tokens: median prompt.
        output_tokens: median output.
        model: which model is asked for; Ollama needs it.
    """

    requests_per_second: float
    seconds: float
    prompt_tokens: int = 1000
    output_tokens: int = 200
    model: str = ""

    def requests(self, seed: int) -> Iterator[Request]:
        """Yield its requests, in seconds from its begin."""
        prompt, output = Lengths(self.prompt_tokens, 0.3), Lengths(self.output_tokens, 0.3)
        return cut(Synthetic(self.requests_per_second, prompt, output).requests(seed), 0.0, self.seconds)


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """What to do wrong from now on; None and empty leave things as they are. Seconds are virtual.

    Attributes:
        stall_seconds: make no progress for so long.
        slowdown: factor on every step; 1 is healthy.
        crash_seconds: lose everything, and be back after so long with counters at 0.
        refuse: while down, refuse connections; else answer 503.
        leak_bytes_per_second: GPU memory that is lost, until the next crash; 0 stops to lose more.
        rename: metric names to serve under others, as after an upgrade; empty text drops a metric, and an empty
            mapping changes nothing.
        burst: extra requests.
    """

    stall_seconds: float | None = None
    slowdown: float | None = None
    crash_seconds: float | None = None
    refuse: bool = True
    leak_bytes_per_second: float | None = None
    rename: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    burst: Burst | None = None


_POSITIVE: Final = ("stall_seconds", "slowdown", "crash_seconds")


def parsed(document: Mapping[str, Any]) -> Misbehaviour:
    """The misbehaviour that a JSON object or YAML mapping states, its keys the fields of `Misbehaviour`.

    Raises:
        ValueError: a key is unknown or a value is of another kind; the message names the key.
    """
    known = Misbehaviour.__dataclass_fields__.keys()
    if unknown := document.keys() - known:
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key == "burst":
            values[key] = _burst(value)
        elif key == "rename":
            values[key] = _rename(value)
        elif key == "refuse":
            if not isinstance(value, bool):
                raise ValueError("refuse must be true or false")
            values[key] = value
        else:
            values[key] = _number(key, value, positive=key in _POSITIVE)
    return Misbehaviour(**values)


def _number(key: str, value: object, *, positive: bool) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{key} must be a number of at least 0")
    if positive and not value:
        raise ValueError(f"{key} must be above 0")
    return float(value)


def _rename(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for pair in value.items() for one in pair):
        raise ValueError("rename must map metric names to metric names")
    return dict(value)


def _burst(value: object) -> Burst:
    if not isinstance(value, dict):
        raise ValueError("burst must be a mapping")  # noqa: TRY004 - one error for all that is no burst
    known = Burst.__dataclass_fields__.keys()
    if unknown := value.keys() - known:
        raise ValueError(f"unknown key burst.{', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if missing := {"requests_per_second", "seconds"} - value.keys():
        raise ValueError(f"burst lacks {', '.join(sorted(missing))}")
    rate = _number("burst.requests_per_second", value["requests_per_second"], positive=True)
    seconds = _number("burst.seconds", value["seconds"], positive=True)
    prompt = _number("burst.prompt_tokens", value.get("prompt_tokens", 1000), positive=True)
    output = _number("burst.output_tokens", value.get("output_tokens", 200), positive=True)
    return Burst(rate, seconds, max(1, round(prompt)), max(1, round(output)), str(value.get("model", "")))
