"""METRICS.md, from the schema and the engines' rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import schema
from llm_headroom.engines.built_in import BUILT_IN
from llm_headroom.model import Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llm_headroom.engines.rules import Engine, Rule
    from llm_headroom.model import Metric


class Proposed(NamedTuple):
    """A name used in articles, whether an engine exposes it, and the metric that carries the signal."""

    name: str
    exists: str
    instead: str


FROM_ARTICLES: Final = (
    Proposed(
        "vllm:kv_cache_hit_rate",
        "no; V0 had `vllm:gpu_prefix_cache_hit_rate`",
        "`rate(llm_prefix_cache_hits_total) / rate(llm_prefix_cache_queries_total)`",
    ),
    Proposed(
        "vllm:num_generation_tokens_total",
        "no; it is `vllm:generation_tokens_total`",
        "`llm_generation_tokens_total`",
    ),
    Proposed(
        "vllm:gpu_cache_usage_utilization",
        "no; it is `vllm:kv_cache_usage_perc`, before 0.9.2 `vllm:gpu_cache_usage_perc`",
        "`llm_kv_cache_usage_ratio`",
    ),
    Proposed(
        "vllm:num_batched_tokens",
        "no; the histogram `vllm:iteration_tokens_total` counts tokens per step",
        "`rate(llm_engine_step_tokens_sum) / rate(llm_engine_step_tokens_count)`",
    ),
    Proposed(
        "vllm:running_requests",
        "no; it is `vllm:num_requests_running`",
        "`llm_requests_running` beside `llm_requests_running_limit`",
    ),
    Proposed(
        "vllm:spec_decodeAccepted_tokens",
        "no; it is `vllm:spec_decode_num_accepted_tokens_total`",
        "`rate(llm_spec_decode_accepted_tokens_total) / rate(llm_spec_decode_draft_tokens_total)`",
    ),
    Proposed(
        "sglang:forward latency_ms",
        "no (and no legal name; `sglang:forward_latency_ms` is accepted)",
        "`llm_request_prefill_seconds` and `llm_inter_token_latency_seconds`",
    ),
    Proposed(
        "sglang:num_waiting_tokens",
        "no; `/v1/loads` reports it",
        "`llm_requests_waiting` times the mean of `llm_request_prompt_tokens`, or `llm_waiting_tokens`",
    ),
    Proposed(
        "sglang:num_running_models",
        "no; an engine serves one model",
        "`count(count by (model) (llm_model_loaded == 1))`",
    ),
    Proposed(
        "sglang:cache_hit_rate",
        "yes, but of the last prefill batch only",
        "`rate(llm_prefix_cache_hits_total) / rate(llm_prefix_cache_queries_total)`",
    ),
    Proposed("sglang:radix_cache_size", "no", "`llm_kv_cache_evictable_tokens`"),
    Proposed(
        "sglang:prefill throughput",
        "no (and no legal name; `sglang:prefill_throughput` is accepted)",
        '`rate(llm_processed_tokens_total{phase="prefill"})`',
    ),
    Proposed(
        "sglang:decode throughput",
        "no (and no legal name; `sglang:decode_throughput` is accepted)",
        '`rate(llm_processed_tokens_total{phase="decode"})`',
    ),
    Proposed(
        "ollama:gpu_utilization_percent",
        "no; Ollama has no metrics endpoint",
        "`llm_gpu_utilization_ratio` (NVML)",
    ),
    Proposed(
        "ollama:memory_used_bytes",
        "no; `/api/ps` reports it for each model",
        '`llm_model_memory_bytes{kind="device"}`, `llm_gpu_memory_used_bytes` (NVML)',
    ),
    Proposed("ollama:temperature_celsius", "no", "`llm_gpu_temperature_celsius` (NVML)"),
    Proposed("ollama:prompt_tokens_total", "no", "`llm_prompt_tokens_total` of Ollama's llama-server processes"),
    Proposed(
        "ollama:completion_tokens_total", "no", "`llm_generation_tokens_total` of Ollama's llama-server processes"
    ),
    Proposed("ollama:request_duration_seconds", "no", "`llm_request_duration_seconds`, from the measuring proxy"),
    Proposed(
        "ollama:cache_hit_rate",
        "no",
        "`rate(llm_prefix_cache_hits_total) / rate(llm_prefix_cache_queries_total)` of Ollama's llama-server processes",
    ),
)
"""Names in an article that compares the three engines; readers search for them. All are accepted as aliases."""


CHAPTERS: Final[Mapping[str, tuple[Subject, ...]]] = {
    "Engines": (Subject.ENGINE, Subject.DERIVED, Subject.PROXY),
    "Routers": (Subject.ROUTER,),
    "GPUs": (Subject.GPU, Subject.ATTRIBUTION),
    "Engines' host memory": (Subject.HOST,),
    "The exporter itself": (Subject.COLLECTION, Subject.EXPORTER),
    "The exporter's process": (Subject.PROCESS,),
}
"""The chapters of METRICS.md and the subjects of their metrics."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(metrics: Iterable[Metric]) -> Iterator[str]:
    yield "| metric | type | unit | labels | meaning |"
    yield "|---|---|---|---|---|"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        yield f"| `{metric.name}` | {metric.kind} | `{metric.unit}` | {labels} | {_cell(metric.help)} |"


def _rule(rule: Rule) -> str:
    names = " + ".join((", ".join(f"`{name}`" for name in rule.names), *(f"`{name}`" for name in rule.plus)))
    where = "".join(f" {label}=~`{pattern}`" for label, pattern in rule.where.items())
    fixed = ", ".join(f'{label}="{value}"' for label, value in rule.fixed.items())
    metric = f"`{rule.metric.name}{{{fixed}}}`" if fixed else f"`{rule.metric.name}`"
    names += "".join(f" - `{name}`" for name in rule.less)
    scale = f" × {rule.scale:g}" if rule.scale != 1.0 else ""
    notes = "; ".join(text for text in (rule.needs and f"needs {rule.needs}", rule.note) if text)
    return f"| {metric} | {_cell(names + where + scale)} | {_cell(notes)} |"


def _engine(engine: Engine) -> Iterator[str]:
    yield f"### {engine.title}"
    yield ""
    spellings = ", ".join(f"`{prefix}`" for prefix in engine.prefixes)
    yield f'`engine="{engine.name}"`, default port {engine.port}, metric prefixes: {spellings}.'
    yield ""
    yield "| metric | engine's own name (newest first; the first one present is used) | notes |"
    yield "|---|---|---|"
    yield from (_rule(rule) for rule in engine.rules)
    for name, where in engine.fact_sources.items():
        yield f"| `{name}` | {_cell(where)} | |"
    yield ""
    yield (
        "Ignored on purpose: "
        + "; ".join(f"`{pattern}` ({reason})" for pattern, reason in engine.ignored.items())
        + "."
    )


def markdown() -> str:
    """The whole document."""
    lines = [
        "# Metrics",
        "",
        "<!-- Generated by `make docs`; do not edit. -->",
        "",
        "One schema for every engine and version. A metric that an engine does not expose is absent, never 0. Series",
        "of engines carry `engine`, `target` (the configured name, else host:port), usually `model`, and `replica`",
        "(the data-parallel rank) where the engine exposes it. Histogram buckets differ by engine: keep `engine` in",
        "every aggregation by `le`.",
        "",
    ]
    for title, subjects in CHAPTERS.items():
        lines += [f"## {title}", "", *_table(metric for metric in schema.ALL if metric.subject in subjects), ""]
    lines += ["## Sources by engine", ""]
    for engine in BUILT_IN.values():
        lines += [*_engine(engine), ""]
    lines += [
        "## Names used in articles",
        "",
        "| name | does it exist? | use instead |",
        "|---|---|---|",
        *(f"| `{each.name}` | {_cell(each.exists)} | {_cell(each.instead)} |" for each in FROM_ARTICLES),
        "",
    ]
    return "\n".join(lines)
