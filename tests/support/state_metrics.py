"""What a state is judged by, under short names: metrics with the labels of one series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_headroom import schema

if TYPE_CHECKING:
    from llm_headroom.model import Metric

METRICS: Final[dict[str, tuple[Metric, dict[str, str]]]] = {
    "running": (schema.REQUESTS_RUNNING, {}),
    "waiting": (schema.REQUESTS_WAITING, {}),
    "limit": (schema.REQUESTS_RUNNING_LIMIT, {}),
    "finished": (schema.REQUESTS_FINISHED, {"reason": "stop"}),
    "failed": (schema.REQUESTS_FAILED, {"reason": "error"}),
    "aborted": (schema.REQUESTS_FAILED, {"reason": "abort"}),
    "responses": (schema.HTTP_RESPONSES, {"code": "2xx"}),
    "wrong": (schema.HTTP_RESPONSES, {"code": "5xx"}),
    "routed": (schema.ROUTER_REQUESTS, {}),
    "lost": (schema.ROUTER_ERRORS, {}),
    "firsts": (schema.SLO_REQUESTS, {"slo": "ttft"}),
    "good": (schema.SLO_REQUESTS_GOOD, {"slo": "ttft"}),
    "tokens": (schema.SLO_REQUESTS, {"slo": "inter_token_latency"}),
    "timely": (schema.SLO_REQUESTS_GOOD, {"slo": "inter_token_latency"}),
    "gap": (schema.SLO_THRESHOLD, {"slo": "inter_token_latency"}),
    "overdue": (schema.PROXY_OVERDUE, {"slo": "ttft"}),
    "unended": (schema.PROXY_OVERDUE, {"slo": "request_duration"}),
    "objective": (schema.SLO_THRESHOLD, {"slo": "ttft"}),
    "prompts": (schema.PROMPT_TOKENS, {}),
    "generated": (schema.GENERATION_TOKENS, {}),
    "usage": (schema.KV_CACHE_USAGE, {}),
    "room": (schema.KV_CACHE_HEADROOM_REQUESTS, {}),
    "asleep": (schema.MODEL_ASLEEP, {}),
    "stalled": (schema.ENGINE_STALLED, {}),
    "models": (schema.MODELS_LOADED, {}),
    "healthy": (schema.ROUTER_WORKER_HEALTHY, {"worker": "a"}),
    "sick": (schema.ROUTER_WORKER_HEALTHY, {"worker": "b"}),
    "loaded": (schema.MODEL_LOADED, {}),
    "loads": (schema.MODEL_LOADS, {}),
    "restarts": (schema.ENGINE_RESTARTS, {}),
}
