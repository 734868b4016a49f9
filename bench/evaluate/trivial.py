"""Rules that look at nothing, which any protocol has to put below those that do."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from evaluate.incidents import Span, any_trouble, merged
from evaluate.rules import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from evaluate.replay import Run

GROUP: Final = "trivial"
ALWAYS: Final = Rule("trivial: always on", "", group=GROUP)
RANDOM: Final = Rule("trivial: at random, as often and as long as `LLMFirstTokensSlow`", "", group=GROUP)
ONE: Final = Rule("trivial: for ten minutes after each incident", "", group=GROUP)
CLOCK: Final = Rule("trivial: when another draw of the trace had an incident", "", group=GROUP)
RULES: Final = (ALWAYS, RANDOM, ONE, CLOCK)
LIKE: Final = "LLMFirstTokensSlow"
AFTER_SECONDS: Final = 600.0


def fired(runs: Sequence[Run], like: Mapping[tuple[str, str], Sequence[Span]]) -> dict[tuple[str, str], list[Span]]:
    """When each fires in each run; `like` has when the shipped alerts did."""
    found: dict[tuple[str, str], list[Span]] = {}
    for run in runs:
        found[ALWAYS.name, run.target] = [Span(0.0, run.span)]
        found[RANDOM.name, run.target] = scattered(like.get((LIKE, run.target), ()), run.span, run.seed)
        found[ONE.name, run.target] = merged([Span(end, end + AFTER_SECONDS) for _, end in any_trouble(run)], 0.0)
        others = [one for one in runs if (one.scenario, one.load) == (run.scenario, run.load) and one is not run]
        found[CLOCK.name, run.target] = merged([span for one in others for span in any_trouble(one)], 0.0)
    return found


def scattered(spans: Sequence[Span], seconds: float, seed: int) -> list[Span]:
    """Spans of the same lengths anywhere within so many seconds."""
    chance = random.Random(seed)  # noqa: S311  simulation, not security
    begins = [chance.uniform(0.0, max(0.0, seconds - (end - begin))) for begin, end in spans]
    return merged([Span(at, at + end - begin) for at, (begin, end) in zip(begins, spans, strict=True)], 0.0)
