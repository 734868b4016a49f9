"""docs/evaluation.md: the tables, and what has to be known to read them."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from evaluate import report
from evaluate.incidents import USUAL, any_trouble, slow_firsts
from evaluate.scenarios import CALM as CALM_LOAD
from evaluate.scoring import HORIZON, WARM_UP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluate.incidents import Span
    from evaluate.results import Results

PAGE: Final = "LLMFirstTokensSlow"
HEAD: Final = """# How good the alerts and risks are

For those who decide which alerts may page. At the end you know how often each is right, how early, and where it is no
better than a simple threshold.

**In short.** The page on slow first tokens is nearly always right. It comes half a minute after they begin, and misses
what is brief. No shipped alert that is right so often warns of a first incident: what looks like a warning is on as
incidents come in series, which the trivial rules show, too. As probabilities the risks are of use near saturation; on
calm days the high water says too much.
"""
PROTOCOL: Final = """## How it was judged

Written by `make evaluate`; do not edit. Traces of production traffic are replayed on simulated engines, polled every
5 s (up to 0.2 s late) through the exporter's own derivation and scraped every 15 s (up to 1 s late). A real
Prometheus then evaluates the shipped alerts (`alerts/llm-headroom.rules.yml`) and the usual rules
([peers.rules.yml](../bench/evaluate/peers.rules.yml)) over what was scraped, every 15 s, with their `for`.

**Incidents are what requests suffered**, not what metrics say. TTFT: within 60 s at least 3 first tokens, and 5 % of
them, came later than the SLO. KV cache: within 60 s at least 3 preemptions, or a poll at which the head of the queue
did not fit into the cache. An incident is either; those at most 120 s apart are one; it begins with its first
breach. Inter-token latency (ITL) is judged apart: 5 % of a minute's tokens, and 30, slower than 0.2 s.

An alert is **right** if an incident begins within 300 s, is on, or ended less than 120 s ago; what pauses for less
than 60 s is one alert. An incident is **caught** if an alert fires between 300 s before it and its end, **early** if
an alert that began after the incident before had ended does so 30 s before it; **fresh** incidents follow 30 calm
minutes or the begin of the run. **Lead** is the median time from such a new alert to the onset. **Useful** is the share
of the firing time in which an incident is on or begins within 300 s. The first five minutes of each run do not count.

The SLO of a scenario is the first bucket boundary of at least 2 s and twice an idle engine's p99. The constants of
the risks were fitted on the tuning scenarios, with other draws; every figure but those marked so is of the held-out
ones.
"""
TAIL: Final = """## Limits of this evaluation

Engines are simulated, by a roofline of their hardware; none was measured. Loads lie near saturation by design: false
alarms a day there compare rules; those of a calm service are those of calm days. Runs last one or two hours, which cuts
the long windows of burn rates short. ServeGen's traffic is resampled from statistics, not recorded. Clients are taken
to allow 2048 tokens. The SGLang-like engines have vLLM's bucket boundaries, and their blocked admissions are counted
without the room reserved for running requests, so there are more of them than shown. The alerts' thresholds and this
protocol were chosen on a prototype that had seen the same held-out traces with other draws.

The end of an incident was changed, and the constants were fitted again, after a first look at held-out figures: at
first it was the last breach, by which `LLMFirstTokensSlow` had a recall of 0.68. It is now the last moment at which the
window holds. The loads were found before that; the warning's threshold was chosen on the tuning scenarios from ten.
"""

INTERVALS: Final = """In brackets 95 % intervals, by bootstrap over traces, then over their runs. The trivial rules look
at nothing: a figure that one of them reaches says little.
"""
CALM: Final = f"""A held-out trace again and again for 24 hours, each hour another part of it, thinned to
{CALM_LOAD:.0%} of the calmest load of the other runs at noon and to a quarter of that at night. Estimates of the load
headroom are made each ten minutes here, where the exporter makes them each minute and smooths over more of them.
"""
SETS: Final = """Each held-out trace near its limit, and its calm days; where nothing happened there is no skill, and
the mean of what was said is the error:
"""
SKILL: Final = """Skill is 1 minus the Brier score over that of always saying the rate at which it happened: 0 is no
better than knowing that rate. The last columns show how well plain gauges rank the same moments.
"""


def why(results: Results) -> str:
    """Which incidents have no page, and what a page's seconds are made of."""
    rule = next(each for each in results.rules if each.name == PAGE)
    missed = late = caught = count = 0
    thirds: list[float] = []
    for run in results.held_out:
        fired = results.fired.get((PAGE, run.target), [])
        for span in (each for each in any_trouble(run) if each.begin >= WARM_UP and not _met(each, fired)):
            missed += 1
            late += sum(each.slow for each in run.firsts if span.begin - 60.0 <= each.at <= span.end) >= USUAL.least
        for span in slow_firsts(run.firsts):
            slow = [each.at for each in run.firsts if each.slow and each.at >= span.begin][: USUAL.least]
            thirds.append(slow[-1] - slow[0])
        scored = results.score(rule, [run], lambda run: slow_firsts(run.firsts))
        caught, count = caught + scored.caught, count + scored.incidents
    if not missed or not thirds:
        return ""
    few, first = missed - late, f"{statistics.median(thirds):.1f} s"
    return f"""**Which incidents have no page.** The page caught {caught} of {count} incidents of first tokens. Of the
{missed} incidents of either kind that it missed, {few} had fewer than {USUAL.least} late first tokens: requests were
preempted or waited for room in the KV cache, and got their first tokens in time. Nobody has to be called for that;
`LLMSaturationRisk` and `LLMKVHeadroomLow` are tickets.

**Why half a minute.** Until the third late first token {first} pass at the median. A poll every 5 s, a scrape and a
look at the rules every 15 s take 17.5 s more on average, and the shipped groups of rules are looked at every 30 s. So
15 s are out of reach of whoever scrapes every 15 s; and a page on fewer late first tokens would call for single ones.
The state on the [status page](status-page.md) waits for no scrape and no rule.
"""


def _met(span: Span, fired: Sequence[Span]) -> bool:
    return any(each.begin <= span.end and each.end >= span.begin - HORIZON for each in fired)


def text(results: Results, seeds: Sequence[int]) -> str:
    """The whole document."""
    held, quiet = results.held_out, results.quiet
    incidents = sum(len(any_trouble(run)) for run in held)
    days = sum(run.span for run in held) / 86_400.0
    goals = report.goals_table(results)
    sections = (
        HEAD,
        "## Goals\n",
        f"{goals.count('**no**')} of {len(goals.splitlines()) - 2} are not met.\n",
        goals,
        why(results),
        PROTOCOL,
        "![Precision and recall](evaluation-alerts.svg)\n",
        f"## Alerts, {days:.1f} held-out days in {len(held)} runs, {incidents} incidents; {len(quiet)} quiet runs\n",
        INTERVALS,
        report.alerts_table(results),
        f"## Whole calm days, {len(results.calm)} of them\n",
        CALM,
        report.calm_table(results),
        "## Each held-out scenario counting once\n",
        report.macro_table(results),
        "## Other definitions of an incident: F1\n",
        "First tokens by window, share and least count; incidents of the KV cache or of inter-token latency alone.\n",
        report.definitions_table(results),
        "## Risks as probabilities of trouble within five minutes\n",
        SKILL,
        report.probability_table(results),
        SETS,
        report.sets_table(results),
        "![Reliability](evaluation-reliability.svg)\n",
        "In each scenario, beside always saying that scenario's own rate; AUC in brackets:\n",
        report.skill_table(results),
        "## What was replayed\n",
        f"Every load with the seeds {', '.join(map(str, seeds))}.\n",
        report.traffic_table(results),
        TAIL,
    )
    return "\n".join(sections)
