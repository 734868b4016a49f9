"""How good the derived signals are, beside the rules that are usual: replayed traffic on simulated engines.

    python bench/signals.py [--traces DIRECTORY] [--seeds N]

Incidents are what requests suffered, not what metrics say: within 60 s at least 3 first tokens, and at least 5 % of
them, were slower than the SLO; incidents less than 120 s apart are one. An alert is right if an incident begins within
300 s, is on, or ended less than 120 s ago; an incident is caught if an alert fires between 300 s before it and its end,
early if 30 s before it. Polls come every 5 s. Without `--traces` the two short traces of the package are used; a
directory of longer ones (`*.csv.gz`: arrival_s, prompt_tokens, output_tokens) gives better figures.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.derive import kv_cache
from llm_headroom.derive.memory import Memory, advance
from llm_headroom.model import Histogram, Point, Series
from llm_headroom.simulate.batching import Engine
from llm_headroom.simulate.engine_state import EngineConfig, EngineReading, Outcome
from llm_headroom.simulate.hardware import A100_80GB, LLAMA_3_8B, Roofline, plan_memory
from llm_headroom.simulate.traffic import bundled_trace, read_trace, scaled, thinned

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from llm_headroom.model import Metric
    from llm_headroom.simulate.measures import HistogramReading
    from llm_headroom.simulate.traffic import Request

POLL: Final = 5.0
SLO: Final = 2.5
HORIZON: Final = 300.0
LOADS: Final = (0.1, 0.2, 0.35, 0.6)
"""Arrivals as a share of what the engine can just bear."""
BASE: Final = {"engine": "vllm", "model": "m", "target": "t"}


class Poll(NamedTuple):
    """What a rule can look at: this poll, and the numbers of the polls before it, oldest first."""

    at: float
    usage: float
    waiting: float
    ttft: Histogram
    derived: dict[tuple[str, str], float]


Rule = Callable[["Sequence[Poll]"], bool]


def _derived(name: str, window: str = "") -> Callable[[Poll], float]:
    return lambda poll: poll.derived.get((name, window), 0.0)


def _slow(window: str, share: float, count: float) -> Rule:
    ratio, total = _derived("llm_ttft_slow_ratio", window), _derived("llm_ttft_window_requests", window)
    return lambda polls: ratio(polls[-1]) >= share and ratio(polls[-1]) * total(polls[-1]) >= count - 1e-6


def _lasting(holds: Callable[[Poll], bool], seconds: float) -> Rule:
    polls_needed = int(seconds / POLL) + 1
    return lambda polls: len(polls) >= polls_needed and all(map(holds, polls[-polls_needed:]))


def _p95_slow(polls: Sequence[Poll]) -> bool:
    """histogram_quantile(0.95, increase(ttft[5m])) > SLO."""
    earlier = polls[max(0, len(polls) - 1 - int(HORIZON / POLL))].ttft
    counts = [now - then for now, then in zip(polls[-1].ttft.counts, earlier.counts, strict=True)]
    if counts[-1] <= 0:
        return False
    return counts[polls[-1].ttft.bounds.index(SLO)] < 0.95 * counts[-1]


RULES: Final[dict[str, Rule]] = {
    "ours: slow first tokens, 60 s, >= 3 % and >= 2": _slow("60s", 0.03, 2),
    "ours: slow first tokens, 300 s, >= 5 % and >= 3": _slow("300s", 0.05, 3),
    "ours: saturation risk >= 0.35": lambda polls: _derived("llm_saturation_risk_ratio")(polls[-1]) >= 0.35,
    "p95 of TTFT over 5 min > SLO": _p95_slow,
    "KV usage > 0.9 for 5 min": _lasting(lambda poll: poll.usage > 0.9, 300.0),
    "KV usage > 0.95": lambda polls: polls[-1].usage > 0.95,
    "waiting > 5": lambda polls: polls[-1].waiting > 5,
    "KV usage >= 0.8 or waiting >= 5": lambda polls: polls[-1].usage >= 0.8 or polls[-1].waiting >= 5,
}


def points(reading: EngineReading) -> list[Point]:
    """What the exporter would have read of the engine."""

    def point(metric: Metric, value: float | Histogram) -> Point:
        return Point(Series(metric, BASE), value, "simulator")

    counters, histograms = reading.counters, reading.histograms
    found = [
        point(schema.REQUESTS_RUNNING, float(reading.running)),
        point(schema.REQUESTS_WAITING, float(reading.waiting)),
        point(schema.KV_CACHE_CAPACITY, float(reading.total_tokens)),
        point(schema.KV_CACHE_USAGE, reading.usage),
        point(schema.PROMPT_TOKENS, float(counters.prompt_tokens)),
        point(schema.PROMPT_TOKENS_CACHED, float(counters.cached_tokens)),
        point(schema.GENERATION_TOKENS, float(counters.generated_tokens)),
        point(schema.REQUESTS_FINISHED, float(sum(counters.finished.values()))),
        point(schema.ENGINE_STEPS, float(counters.steps)),
        point(schema.TIME_TO_FIRST_TOKEN, _histogram(histograms.ttft)),
        point(schema.INTER_TOKEN_LATENCY, _histogram(histograms.itl)),
        point(schema.REQUEST_QUEUE, _histogram(histograms.queue)),
        point(schema.REQUEST_GENERATION_TOKENS, _histogram(histograms.generation)),
    ]
    return [*found, *kv_cache.implied(found)]


def _histogram(reading: HistogramReading) -> Histogram:
    return Histogram((*reading.bounds, math.inf), tuple(map(float, reading.cumulative())), reading.total)


@dataclass(slots=True)
class Run:
    """One replay: its polls, and what its requests suffered as (when it was clear, whether it was slow)."""

    name: str
    polls: list[Poll] = field(default_factory=list)
    suffered: list[tuple[float, bool]] = field(default_factory=list)

    def end(self, outcome: Outcome) -> None:
        """Take down how a request went."""
        arrival = outcome.request.arrival
        if outcome.first_token is None:
            return
        slow = outcome.first_token - arrival > SLO
        self.suffered.append((arrival + SLO if slow else outcome.first_token, slow))

    def incidents(self) -> list[tuple[float, float]]:
        """Begin and end of each, in seconds."""
        self.suffered.sort()
        found: list[tuple[float, float]] = []
        for poll in self.polls:
            within = [slow for at, slow in self.suffered if poll.at - 60.0 < at <= poll.at]
            bad = sum(within)
            if bad < 3 or bad < 0.05 * len(within):  # the definition, in the module's docstring
                continue
            first = min(at for at, slow in self.suffered if slow and poll.at - 60.0 < at <= poll.at)
            if found and first - found[-1][1] <= 120.0:
                found[-1] = (found[-1][0], poll.at)
            else:
                found.append((first, poll.at))
        return found

    def firing(self, rule: Rule) -> list[tuple[float, float]]:
        """When a rule fires, pauses of less than a minute left out."""
        found: list[tuple[float, float]] = []
        for index, poll in enumerate(self.polls):
            if not rule(self.polls[max(0, index - 60) : index + 1]):
                continue
            if found and poll.at - found[-1][1] <= 60.0:
                found[-1] = (found[-1][0], poll.at)
            else:
                found.append((poll.at, poll.at))
        return found


def replay(name: str, requests: Iterable[Request], seed: int) -> Run:
    """Run requests through an 8B model on one A100, polled every 5 s."""
    cost = Roofline(LLAMA_3_8B, A100_80GB)
    blocks = plan_memory(LLAMA_3_8B, A100_80GB).kv_tokens // 16
    engine = Engine(EngineConfig(cost, total_blocks=blocks, step_jitter=0.05), seed=seed)
    run, memory, due = Run(name), Memory(), POLL
    for request in requests:
        while request.arrival > due:
            memory = _poll(engine, run, memory, due)
            due += POLL
        engine.advance(request.arrival)
        engine.submit(request, on_end=run.end)
    for _ in range(24):
        memory = _poll(engine, run, memory, due)
        due += POLL
    return run


def _poll(engine: Engine, run: Run, memory: Memory, at: float) -> Memory:
    engine.advance(at)
    reading = engine.read()
    memory, derived = advance(memory, points(reading), at, base=BASE)
    told = {
        (each.series.metric.name, each.series.label("window")): each.value
        for each in derived
        if isinstance(each.value, float)
    }
    run.polls.append(Poll(at, reading.usage, float(reading.waiting), _histogram(reading.histograms.ttft), told))
    return memory


class Score(NamedTuple):
    """A rule over some runs: alerts, right ones, incidents, caught and early ones, false alarms a day, leads (s)."""

    alerts: int
    right: int
    incidents: int
    caught: int
    early: int
    days: float
    leads: list[float]

    def row(self) -> str:
        """Precision, recall, F1, early recall, median lead, false alarms a day."""
        precision = self.right / self.alerts if self.alerts else math.nan
        recall = self.caught / self.incidents if self.incidents else math.nan
        both = precision + recall
        f1 = 2 * precision * recall / both if both > 0 else math.nan
        early = self.early / self.incidents if self.incidents else math.nan
        lead = statistics.median(self.leads) if self.leads else math.nan
        false_alarms = (self.alerts - self.right) / self.days
        return f"{precision:6.2f} {recall:6.2f} {f1:6.2f} {early:6.2f} {lead:7.0f} {false_alarms:7.1f}"


def score(runs: Sequence[Run], rule: Rule) -> Score:
    """How a rule does over some runs."""
    alerts = right = incidents = caught = early = 0
    leads: list[float] = []
    for run in runs:
        troubles, fires = run.incidents(), run.firing(rule)
        alerts += len(fires)
        right += sum(any(begin - HORIZON <= at <= end + 120.0 for begin, end in troubles) for at, _ in fires)
        incidents += len(troubles)
        for begin, end in troubles:
            hits = [at for at, until in fires if until >= begin - HORIZON and at <= end]
            if hits:
                caught += 1
                lead = min(begin - min(hits), HORIZON)
                leads.append(lead)
                early += lead >= 30.0
    days = sum(run.polls[-1].at for run in runs) / 86_400.0
    return Score(alerts, right, incidents, caught, early, days, leads)


def brier_skill(runs: Sequence[Run], name: str) -> tuple[float, float]:
    """Base rate of trouble within five minutes, and the skill of a probability beside always saying that rate."""
    pairs: list[tuple[float, bool]] = []
    for run in runs:
        troubles = run.incidents()
        for poll in run.polls:
            chance = poll.derived.get((name, ""))
            if chance is not None:
                pairs.append((chance, any(begin - HORIZON <= poll.at <= end for begin, end in troubles)))
    rate = sum(happened for _, happened in pairs) / len(pairs)
    reference = rate * (1.0 - rate)
    actual = sum((chance - happened) ** 2 for chance, happened in pairs) / len(pairs)
    return rate, 1.0 - actual / reference if reference else math.nan


def traces(directory: Path | None) -> Iterator[tuple[str, list[Request]]]:
    """The traces to replay, at most two hours of each."""
    if directory is None:
        for name in ("azure_conv", "azure_code"):
            yield name, list(bundled_trace(name))
        return
    for path in sorted(directory.glob("*.csv.gz")):
        try:
            requests = [request for request in read_trace(path) if request.arrival < 7200.0]
        except (ValueError, KeyError):
            continue  # another table
        if requests:
            yield path.name.removesuffix(".csv.gz"), requests


def bearable(requests: Sequence[Request]) -> float:
    """Requests per second of a trace's sizes that the engine can just bear, by the cost of its tokens alone."""
    cost = Roofline(LLAMA_3_8B, A100_80GB)
    prompt = statistics.fmean(request.prompt_tokens for request in requests)
    output = statistics.fmean(request.output_tokens for request in requests)
    batch = 64
    context = int(batch * (prompt + output / 2))
    decode = output / batch * cost.step_seconds(0, batch, context, 0)
    prefill = prompt / 8192 * cost.step_seconds(8192, 0, 0, 0)
    return 1.0 / (decode + prefill)


def main() -> None:
    """Replays and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    runs = []
    for name, requests in traces(arguments.traces):
        span = requests[-1].arrival - requests[0].arrival
        rate, most = len(requests) / span, bearable(requests)
        for load in LOADS:
            for seed in range(arguments.seeds):
                share = load * most / rate
                chosen = thinned(requests, share, seed) if share < 1.0 else scaled(requests, share)
                runs.append(replay(f"{name} at {load:g}", chosen, seed))
                print(f"{runs[-1].name:44} {len(runs[-1].incidents())} incidents", flush=True)
    print(f"\n{'rule':50} {'P':>6} {'R':>6} {'F1':>6} {'early':>6} {'lead s':>7} {'FA/day':>7}")
    for title, rule in RULES.items():
        print(f"{title:50} {score(runs, rule).row()}")
    for name in ("llm_saturation_risk_ratio", "llm_kv_saturation_risk_ratio"):
        rate, skill = brier_skill(runs, name)
        print(f"{name}: trouble in {rate:.1%} of the polls, Brier skill {skill:+.3f}")


if __name__ == "__main__":
    main()
