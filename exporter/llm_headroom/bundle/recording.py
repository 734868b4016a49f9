"""Recording rules: a fleet by model and engine, so that dashboards over a thousand engines read few series.

Names are `level:metric:operations` as Prometheus' guide wants them; the level `engine_model` has the labels cluster,
namespace, job, engine and model, `target_model` all labels of one model of a target, `target` those of a target, `gpu`
those of a GPU. Rates come before sums, so that a restart is no jump. Histograms are never added over `engine`, as
engines differ in their buckets; nor are the requests of an engine with those that the measuring proxy saw of it, which
are the same ones. What looks back over hours or days reads what is recorded here: raw series of days, of
every engine, are what rules cost most (docs/fleet.md).
"""

from __future__ import annotations

from typing import Final

from llm_headroom.bundle.rule import DOWN, FAULTS, NOT_PROXIED, PROXIED, Recording
from llm_headroom.schema import PROXY_TARGET
from llm_headroom.thresholds import SLOW_SECONDS

_OWN: Final = f"{{{NOT_PROXIED}}}"
_BY: Final = "by (cluster, namespace, job, engine, model)"
_BY_SLO: Final = "by (cluster, namespace, job, engine, model, slo)"
_FIRSTS: Final = f'increase(llm_slo_requests_total{{slo="ttft"}}[{SLOW_SECONDS / 60:.0f}m])'
_GOOD: Final = _FIRSTS.replace("_total", "_good_total")
_OVERDUE: Final = " or ".join(
    f'label_replace({series}, "slo", "overdue", "", "")'
    for series in ('llm_proxy_requests_overdue{slo="ttft"}', "llm_first_tokens_overdue")
)
"""First tokens that have missed their objective and are still awaited: where none comes, these alone say so."""
_TTFT: Final = "target_model:llm_ttft:increase2m"
_TTFT_MISSED: Final = "target_model:llm_ttft_missed:increase2m"
_TTFT_SLOW: Final = "target_model:llm_ttft_missed:ratio2m"
HELD: Final = "target_model:llm_ttft_missed:ratio2m_held"
"""The same, until enough come in time: what few requests show comes and goes."""
HOURS: Final = ("30m", "1h", "2h", "6h")
DAYS: Final = ("1d", "3d")
"""Windows beyond 5 min over which the share of requests that miss an objective is recorded."""
NEEDED: Final = ("llm_requests_running", "llm_requests_waiting", "llm_kv_cache_usage_ratio")
"""Signals whose absence is an alert, where they were there within a day."""
_OBJECTIVES: Final = ("engine_model:llm_slo_requests_good:rate5m", "engine_model:llm_slo_requests:rate5m")


def _summed(metric: str) -> Recording:
    return Recording(f"engine_model:{metric}:sum", f"sum {_BY} ({metric}{_OWN})")


def _rate(metric: str) -> Recording:
    return Recording(f"engine_model:{metric.removesuffix('_total')}:rate5m", f"sum {_BY} (rate({metric}{_OWN}[5m]))")


def _by_target(metric: str) -> Recording:
    """What each target counts of an objective itself, and beside it what a proxy has counted of the same requests."""
    by = _BY_SLO.replace(")", ", target)")
    own, seen = (f"sum {by} (rate({metric}{{{which}}}[5m]))" for which in (NOT_PROXIED, PROXIED))
    named = f'label_replace({seen}, "target", "$$1", "target", "(.+){PROXY_TARGET}")'
    name = f"engine_model:{metric.removesuffix('_total')}_by_target:rate5m"
    return Recording(name, f'{own} or label_replace({named}, "side", "proxy", "", "")')


def _buckets(metric: str, beyond: str) -> Recording:
    by, read = _BY.replace(")", ", le)"), f'{metric}_bucket{{{NOT_PROXIED}, le!~"{beyond}"}}'
    return Recording(f"engine_model:{metric}_bucket:rate5m", f"sum {by} (rate({read}[5m]))")


def _missed(window: str) -> Recording:
    """The share over a window, from rates that are recorded at an even pace: their sums are as good as counters."""
    good, every = (f"sum_over_time({rate}[{window}])" for rate in _OBJECTIVES)
    return Recording(f"engine_model:llm_slo_missed:ratio_rate{window}", f"1 - {good} / {every}")


def _requests(which: str, matchers: str, window: str) -> str:
    return f"sum without (replica, reason) (rate(llm_requests_{which}_total{matchers}[{window}]))"


_FAULTY: Final = f"{{{FAULTS}}}"
_FINISHED: Final = Recording("target_model:llm_requests_finished:rate5m", _requests("finished", "", "5m"))
_FAILED: Final = Recording("target_model:llm_requests_failed:rate5m", _requests("failed", _FAULTY, "5m"))


_FEW: Final = "($error_count - 0.5) / 60"
"""Failed requests per second of a minute up to which they are a few."""
_FAILING: Final = Recording("target_model:llm_requests_failed:rate1m", f"{_requests('failed', _FAULTY, '1m')} > {_FEW}")


def _failed(window: str, failed: str, finished: str, least: str, floor: str) -> str:
    """Requests that failed, or responses of class 5xx, or requests that the router could not have answered.

    A client that leaves is no failure of the engine. Shares are judged of more than `floor` requests per second, of
    which more than `least` failed. Where none has ever finished there may be no series of those that have.
    """
    failing = f"({failed} > {least})"
    wrong = f'sum without (replica, code) (rate(llm_http_responses_total{{code="5xx"}}[{window}]))'
    answers = f"sum without (replica, code) (rate(llm_http_responses_total[{window}]))"
    lost = f"sum without (replica, reason) (rate(llm_router_errors_total[{window}]))"
    routed = f"sum without (replica) (rate(llm_router_requests_total[{window}]))"
    return " or ".join(
        f'label_replace(({part} > {least}) / ({whole} > {floor}), "of", "{name}", "", "")'
        for name, part, whole in (
            ("requests", failed, f"({failing} + ({finished} or 0 * {failing}))"),
            ("responses", wrong, answers),
            ("routed", lost, routed),
        )
    )


FLEET: Final = (
    Recording("engine_model:llm_up:count", f"count by (cluster, namespace, job, engine) (llm_up{_OWN})"),
    Recording("engine_model:llm_up:sum", f"sum by (cluster, namespace, job, engine) (llm_up{_OWN})"),
    _summed("llm_requests_running"),
    _summed("llm_requests_waiting"),
    Recording("engine_model:llm_kv_cache_usage_ratio:max", f"max {_BY} (llm_kv_cache_usage_ratio)"),
    Recording("engine_model:llm_kv_cache_headroom_requests:min", f"min {_BY} (llm_kv_cache_headroom_requests)"),
    Recording("engine_model:llm_saturation_ratio:max", f"max {_BY} (llm_saturation_ratio)"),
    Recording(
        "job:llm_gpu_memory_headroom_ratio:min", "min by (cluster, namespace, job) (llm_gpu_memory_headroom_ratio)"
    ),
    _FINISHED,
    Recording("engine_model:llm_requests_finished:rate5m", f"sum {_BY} ({_FINISHED.name}{_OWN})"),
    _rate("llm_prompt_tokens_total"),
    _rate("llm_prompt_tokens_cached_total"),
    _rate("llm_generation_tokens_total"),
    _FAILED,
    Recording("engine_model:llm_requests_failed:rate5m", f"sum {_BY} ({_FAILED.name}{_OWN})"),
    Recording(
        "target_model:llm_failed:ratio_rate5m", _failed("5m", _FAILED.name, _FINISHED.name, "0", "$traffic_floor")
    ),
    _FAILING,
    Recording(
        "target_model:llm_failed:ratio_rate1m",
        _failed("1m", _FAILING.name, _requests("finished", "", "1m"), _FEW, "0"),
    ),
)
"""Of a fleet, by model and engine, and what is a share of what is read again.

In `target_model:llm_failed:ratio_rate5m`, which is there where requests fail, and in that of one minute, which is there
where at least `$error_count` did, the label `of` is what it is a share of.
"""

BUCKETS: Final = (
    _buckets("llm_time_to_first_token_seconds", r"0\\.0[01].*|\\d{4,}\\..*"),
    _buckets("llm_request_duration_seconds", r"\\d{4,}\\..*"),
    _buckets("llm_inter_token_latency_seconds", r"0\\.00[0-4].*|[6-9]\\..*|\\d{2,}\\..*"),
)
"""Of a fleet's latencies, for quantiles: most series that rules read are these.

Without the bounds that decide nothing for who waits: of first tokens those below 20 ms and from 1,000 s on, of gaps
between tokens those below 5 ms and from 6 s on, of requests those from 1,000 s on. A quantile beyond is the last bound.
"""

AVAILABILITY: Final = (Recording(DOWN, 'llm_up{engine!="nvml"} == 0'),)
"""What several alerts ask: the engines alone that are down, with the value 0."""

_SIDES, _SIDES_GOOD = map(_by_target, ("llm_slo_requests_total", "llm_slo_requests_good_total"))
SLO: Final = (
    Recording("engine_model:llm_slo_objective_ratio:max", f"max {_BY_SLO} (llm_slo_objective_ratio)"),
    _SIDES,
    _SIDES_GOOD,
    Recording(_OBJECTIVES[1], f"sum without (target) (max without (side) ({_SIDES.name}))"),
    Recording(
        _OBJECTIVES[0],
        f"""{_OBJECTIVES[1]} - sum without (target) (max without (side)
            ({_SIDES.name} - ({_SIDES_GOOD.name} or 0 * {_SIDES.name})))""",
    ),
    Recording("engine_model:llm_slo_requests:rate1h", f"avg_over_time({_OBJECTIVES[1]}[1h])"),
    Recording("engine_model:llm_slo_missed:ratio_rate5m", f"1 - {_OBJECTIVES[0]} / {_OBJECTIVES[1]}"),
    *map(_missed, HOURS),
    Recording(_TTFT, f"sum without (slo) ({_FIRSTS} or {_OVERDUE})"),
    Recording(_TTFT_MISSED, f"{_TTFT} - sum without (slo) ({_GOOD} or 0 * ({_OVERDUE})) > 0"),
    Recording(_TTFT_SLOW, f"({_TTFT_MISSED} > $ttft_slow_count - 0.5) / {_TTFT} >= $ttft_slow_share"),
    Recording(
        HELD,
        f"""{_TTFT_SLOW} or last_over_time({_TTFT_SLOW}[10m]) and {HELD}
            unless ({_TTFT} > $ttft_slow_count - 0.5 unless {_TTFT} - {_TTFT_MISSED} <= $ttft_slow_count - 0.5)
            unless (sum without (replica) (max_over_time(llm_requests_waiting[1m])) == 0
                unless {_TTFT} unless ignoring (slo) llm_slo_requests_total{{slo="ttft"}})""",
    ),
)
"""Of objectives, by model and engine; burn-rate alerts read them. First tokens of a target that missed, if any did;
and their share, where it is worth a page.

Where a measuring proxy saw the requests that a target counts, too, each counts once: as many as the side that has more
of them says, and as many of these missed the objective as the side that has more such says. Other targets of the model
may have no proxy: theirs are added. `HELD` reads itself, as it was at the last look.
"""

USED: Final = "engine_model:llm_requests_running:max6h"
SLO_DAYS: Final = (
    *map(_missed, DAYS),
    Recording(USED, "max_over_time(engine_model:llm_requests_running:sum[6h])"),
)
"""Of objectives over days; and whether a model was used within hours, which tells a loss from what nobody misses."""

GPU_DAYS: Final = (
    Recording(
        "gpu:llm_gpu_memory_outside_bytes:max",
        'max without () (llm_gpu_memory_unattributed_bytes or llm_gpu_memory_engine_bytes{kind="other"})',
    ),
    Recording("gpu:llm_gpu_memory_headroom_bytes:min", "min without () (llm_gpu_memory_headroom_bytes)"),
)
"""Of each GPU, as it is, but rarely: what an alert compares with the last hours."""

_MAPPED, _UNKNOWN = (
    Recording(
        f"target:llm_source_samples_{state}:max",
        f'max without (state) (llm_source_samples{{state="{state}", engine!="nvml"}})',
    )
    for state in ("mapped", "unknown")
)
_PRESENT: Final = tuple(
    Recording(f"target:{signal}:count", f"count without (model, replica) ({signal})") for signal in NEEDED
)
_ECC: Final = Recording(
    "gpu:llm_gpu_ecc_errors_uncorrected:max",
    'max without (severity) (llm_gpu_ecc_errors_total{severity="uncorrected"})',
)
_LINK: Final = Recording("gpu:llm_gpu_pcie_link_width:max", "max without () (llm_gpu_pcie_link_width)")


def _within_day(recorded: Recording, operation: str, condition: str = "") -> Recording:
    name = f"{recorded.name.rpartition(':')[0]}:{operation.removesuffix('_over_time')}1d"
    return Recording(name, f"{operation}({recorded.name}[1d]){condition}")


SIGNALS: Final = (
    _MAPPED,
    _UNKNOWN,
    *_PRESENT,
    _ECC,
    _LINK,
    _within_day(_MAPPED, "max_over_time"),
    _within_day(_UNKNOWN, "min_over_time"),
    *(_within_day(each, "present_over_time") for each in _PRESENT),
    _within_day(_ECC, "increase", " > 0"),
    _within_day(_LINK, "max_over_time"),
)
"""What each source exposes and each GPU has, rarely enough for a day of it to be few samples; and what a day came to.

A query looks for each series that it names in all blocks of its longest window, also for those of which it reads the
newest sample alone. So alerts do not look back over a day, but over `LATEST` at what came of it.
"""
LATEST: Final = "35m"
"""A window in which there is what `SIGNALS` recorded last, every 30 minutes."""
