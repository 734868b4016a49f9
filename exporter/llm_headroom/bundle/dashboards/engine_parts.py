"""What not every engine has: tiers of its cache, transfers, adapters, speculation, a router, memory of its host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.bundle.dashboards.dashboard import Row
from llm_headroom.bundle.dashboards.panel import Query
from llm_headroom.bundle.dashboards.parts import areas, dashed, lines, quiet
from llm_headroom.bundle.dashboards.scope import BY_MODEL, BY_TARGET, MODEL, SOURCE, Scope

if TYPE_CHECKING:
    from llm_headroom.bundle.dashboards.panel import Panel


def rows(scope: Scope) -> tuple[Row, ...]:
    """Collapsed rows."""
    return (
        Row("Where is the cache?", _tiers(scope), optional="for engines with several tiers of KV cache"),
        Row("Does KV cache move fast enough?", _transfers(scope), optional="for disaggregated serving and connectors"),
        Row("Do adapters fit?", _adapters(scope), optional="for engines with LoRA"),
        Row("Does speculative decoding pay?", _speculation(scope), optional="for engines with a draft model"),
        Row("What does the router do?", _router(scope), optional="for fleets behind SGLang's router or gateway"),
        Row("How much host memory does it use?", _host(scope), optional="where control groups can be read"),
    )


def _tiers(scope: Scope) -> tuple[Panel, ...]:
    none = "where the engine has one tier"
    asked, found = (
        f"sum by ({MODEL}) ({scope.rate(one)})" for one in (schema.EXTERNAL_CACHE_QUERIES, schema.EXTERNAL_CACHE_HITS)
    )
    return (
        areas(
            "Hits by tier",
            "Prompt tokens found in the prefix cache: on the device, in the host's memory, in storage, at a peer.",
            Query(f"sum by (cache_tier) ({scope.rate(schema.PREFIX_CACHE_HITS_BY_TIER)})", "{{cache_tier}}"),
            unit="tokens/s",
            empty=none,
        ),
        lines(
            "Tier in host memory",
            "Tokens that it holds, and (dashed) can hold.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.KV_CACHE_HOST_USED)})", BY_MODEL),
            Query(f"sum by ({MODEL}) ({scope.of(schema.KV_CACHE_HOST_CAPACITY)})", f"{BY_MODEL} capacity"),
            styles=((" capacity$", dashed()),),
            empty=none,
        ),
        lines(
            "Hits behind a connector",
            "Share of the tokens looked up there.",
            Query(f"{found} / {asked}", BY_MODEL),
            unit="percentunit",
            highest=1,
            empty=none,
        ),
    )


def _transfers(scope: Scope) -> tuple[Panel, ...]:
    none = "where no KV cache moves between engines or tiers"
    by = "engine, connector, operation"
    spent, count = (f"sum by ({by}) ({scope.rate(one)})" for one in (schema.KV_TRANSFER_SECONDS, schema.KV_TRANSFERS))
    name = "{{connector}} {{operation}}"
    return (
        lines(
            "KV cache moved",
            "Between engines or tiers, by connector and operation.",
            Query(f"sum by ({by}) ({scope.rate(schema.KV_TRANSFER_BYTES)})", name),
            unit="Bps",
            empty=none,
        ),
        lines("Time of one transfer", "Mean.", Query(f"{spent} / {count}", name), unit="s", empty=none),
        lines(
            "Waiting for KV cache, and failures",
            "Requests whose KV cache comes from elsewhere or goes there, and (dashed) failed transfers per second.",
            Query(f"sum by (engine, wait_stage) ({scope.of(schema.REQUESTS_IN_KV_TRANSFER)})", "{{wait_stage}}"),
            Query(f"sum by (engine, reason) ({scope.rate(schema.KV_TRANSFER_FAILURES)})", "{{reason}} failed"),
            styles=((" failed$", dashed()),),
            empty=none,
        ),
    )


def _adapters(scope: Scope) -> tuple[Panel, ...]:
    none = "without LoRA adapters"
    return (
        lines(
            "Places for adapters",
            "In use, and (dashed) those that fit into one batch.",
            Query(f"sum by ({MODEL}) ({scope.of(schema.LORA_SLOTS_USED)})", BY_MODEL),
            Query(f"sum by ({MODEL}) ({scope.of(schema.LORA_SLOTS)})", f"{BY_MODEL} places"),
            styles=((" places$", dashed()),),
            width=12,
            empty=none,
        ),
        areas(
            "Adapters at work",
            "Adapters that have requests, by whether these run or wait.",
            Query(f"sum by (state) ({scope.of(schema.LORA_ADAPTER_ACTIVE)})", "{{state}}"),
            width=12,
            empty=none,
        ),
    )


def _speculation(scope: Scope) -> tuple[Panel, ...]:
    accepted, drafted = schema.SPEC_DECODE_ACCEPTED_TOKENS, schema.SPEC_DECODE_DRAFT_TOKENS
    none = "without speculative decoding"
    positions = f"sum by (engine, position) ({scope.rate(schema.SPEC_DECODE_ACCEPTED_BY_POSITION)})"
    drafts = f"sum by (engine) ({scope.rate(schema.SPEC_DECODE_DRAFTS)})"
    return (
        lines(
            "Acceptance rate",
            "Share of draft tokens accepted by the model; worthwhile from about 80 %. Dashed: as averaged by the "
            "engine, where it counts no tokens.",
            Query(scope.share(accepted, drafted, MODEL), BY_MODEL),
            Query(f"max by ({MODEL}) ({scope.of(schema.SPEC_DECODE_ACCEPTANCE)})", f"{BY_MODEL} by the engine"),
            unit="percentunit",
            highest=1,
            styles=((" by the engine$", quiet()),),
            empty=none,
        ),
        lines(
            "Acceptance by position",
            "How often the draft's first, second and further token is accepted: where the curve falls, a shorter "
            "draft costs less.",
            Query(f"{positions} / on (engine) group_left () {drafts}", "position {{position}}"),
            unit="percentunit",
            highest=1,
            empty=none,
        ),
        lines(
            "Drafted and accepted tokens",
            "Per second.",
            Query(f"sum by ({MODEL}) ({scope.rate(drafted)})", f"{BY_MODEL} drafted"),
            Query(f"sum by ({MODEL}) ({scope.rate(accepted)})", f"{BY_MODEL} accepted"),
            unit="tokens/s",
            styles=((" drafted$", quiet()),),
            empty=none,
        ),
    )


def _router(scope: Scope) -> tuple[Panel, ...]:
    none = "where the target is no router"
    return (
        lines(
            "Requests at the router",
            "Per second: received, retried, rejected, failed.",
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_REQUESTS)})", "{{target}} received"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_RETRIES)})", "{{target}} retried"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_REJECTED)})", "{{target}} rejected"),
            Query(f"sum by (engine, target) ({scope.rate(schema.ROUTER_ERRORS)})", "{{target}} failed"),
            unit="requests/s",
            empty=none,
        ),
        lines(
            "In progress at each worker",
            "Requests in progress at each worker: does the router balance them?",
            Query(f"sum by (engine, worker) ({scope.of(schema.ROUTER_WORKER_REQUESTS)})", "{{worker}}"),
            empty=none,
        ),
        lines(
            "Healthy workers",
            "And (dashed) all workers known to the router.",
            Query(f"sum by (engine, target) ({scope.of(schema.ROUTER_WORKER_HEALTHY)})", "{{target}} healthy"),
            Query(f"sum by (engine, target) ({scope.of(schema.ROUTER_WORKERS)})", "{{target}} known"),
            styles=((" known$", dashed()),),
            empty=none,
        ),
    )


def _host(scope: Scope) -> tuple[Panel, ...]:
    none = "where the engine runs on another host, or its control group cannot be read"
    used = f"max by ({SOURCE}) ({scope.of(schema.HOST_MEMORY_USED)})"
    limit = f"max by ({SOURCE}) ({scope.of(schema.HOST_MEMORY_LIMIT)})"
    return (
        lines(
            "Host memory, and the limit",
            "Working set of the engine's control group, and (dashed) its limit.",
            Query(used, BY_TARGET),
            Query(limit, f"{BY_TARGET} limit"),
            unit="bytes",
            styles=((" limit$", dashed()),),
            empty=none,
        ),
        lines(
            "Memory pressure",
            "Share of time during which tasks waited for memory (PSI).",
            Query(
                f"max by ({SOURCE}, severity) ({scope.rate(schema.HOST_MEMORY_PRESSURE)})",
                f"{BY_TARGET} {{{{severity}}}}",
            ),
            unit="percentunit",
            empty=none,
        ),
        lines(
            "OOM kills",
            "Processes in the engine's control group killed by the OOM killer.",
            Query(f"sum by ({SOURCE}) ({scope.of(schema.HOST_OOM_KILLS)})", BY_TARGET),
            empty=none,
            alert="LLMHostOomKill",
        ),
    )
