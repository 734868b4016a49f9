"""The JSON in which a simulated vLLM or SGLang server describes its load and size.

Forms follow the captures of the versions named; `/server_info` of real servers holds every flag, here only those that
the simulator has.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llm_headroom.simulate.hardware import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_headroom.simulate.engine_state import EngineConfig, EngineReading
    from llm_headroom.simulate.hardware import MemoryPlan
    from llm_headroom.simulate.templates import Template


@dataclass(frozen=True, slots=True)
class Server:
    """What a server was started with; fields as the arguments of `exposition.Exposition`."""

    model: str
    config: EngineConfig
    start: float
    speed: float
    memory: MemoryPlan | None
    utilisation: float

    def unix(self, virtual: float) -> float:
        """The unix time of a virtual second."""
        return self.start + virtual / self.speed

    @property
    def tokens(self) -> int:
        """Capacity of a replica's KV cache in tokens, as the engines report it."""
        return self.config.total_blocks * self.config.block_tokens


def documents(version: Template, server: Server, readings: Sequence[EngineReading]) -> dict[str, Any]:
    """The documents that a server of that version serves, by path; one reading of each replica."""
    release = tuple(int(part) for part in version.release.split("."))
    if version.engine == "vllm":
        found = {"/version": {"version": version.release}, "/v1/models": _models(server, "vllm", readings)}
        if release >= (0, 12):  # the captured 0.8.5 has none
            found["/server_info"] = _vllm_info(server, len(readings))
        return found
    info = _sglang_info(version.release, server, readings)
    found = {"/v1/models": _models(server, "sglang", readings), "/get_server_info": info}
    if release >= (0, 5, 5):  # until then /get_server_info was its only name
        found["/server_info"] = info
    if release >= (0, 5, 8):
        found["/v1/loads"] = _loads(version.release, server, readings)
    return found


def _models(server: Server, owner: str, readings: Sequence[EngineReading]) -> dict[str, Any]:
    model = {
        "id": server.model,
        "object": "model",
        "created": int(server.unix(readings[0].started_at)),
        "owned_by": owner,
        "root": server.model,
        "parent": None,
        "max_model_len": server.config.longest,
    }
    return {"object": "list", "data": [model]}


def _vllm_info(server: Server, ranks: int) -> dict[str, Any]:
    config = server.config
    return {
        "vllm_config": {
            "model_config": {
                "model": server.model,
                "served_model_name": server.model,
                "max_model_len": config.longest,
            },
            "cache_config": {
                "block_size": config.block_tokens,
                "gpu_memory_utilization": server.utilisation,
                "enable_prefix_caching": config.prefix_caching,
                "num_gpu_blocks": config.total_blocks * ranks,
            },
            "parallel_config": {"data_parallel_size": ranks},
            "scheduler_config": {
                "max_num_seqs": config.max_num_seqs,
                "max_num_batched_tokens": config.max_step_tokens,
            },
        }
    }


def _sglang_info(release: str, server: Server, readings: Sequence[EngineReading]) -> dict[str, Any]:
    config, memory = server.config, server.memory
    used: dict[str, Any] = {"token_capacity": server.tokens, "graph": 0}
    if memory:
        used |= {"weight": round(memory.weights / GIB, 2), "kvcache": round(memory.kv_pool / GIB, 2)}
    state: dict[str, Any] = {"memory_usage": used}
    if release != "0.5.2":
        state["effective_max_running_requests_per_dp"] = config.max_num_seqs
    return {
        "model_path": server.model,
        "served_model_name": server.model,
        "context_length": config.longest,
        "mem_fraction_static": _static_share(server),
        "max_running_requests": config.max_num_seqs,
        "max_queued_requests": config.max_queue,
        "chunked_prefill_size": config.max_step_tokens,
        "schedule_conservativeness": config.schedule_conservativeness,
        "page_size": config.block_tokens,
        "disable_radix_cache": not config.prefix_caching,
        "dp_size": len(readings),
        "enable_metrics": True,
        "status": "ready",
        "max_total_num_tokens": server.tokens,
        "internal_states": [state] * len(readings),
        "version": release,
    }


def _static_share(server: Server) -> float:
    """The share of weights and KV pool: SGLang's flag leaves out activations and graphs."""
    memory = server.memory
    if memory is None:
        return server.utilisation
    static = memory.weights + memory.kv_pool
    return round(server.utilisation * static / (static + memory.activations + memory.graphs), 3)


def _loads(release: str, server: Server, readings: Sequence[EngineReading]) -> dict[str, Any]:
    moment = max(server.unix(reading.time) for reading in readings)
    return {
        "timestamp": datetime.fromtimestamp(moment, UTC).isoformat(),
        "version": release,
        "accelerator": None,
        "num_accelerators": len(readings),
        "loads": [
            {
                "timestamp": server.unix(one.time),
                "dp_rank": rank,
                "num_running_reqs": one.running,
                "num_waiting_reqs": one.waiting,
                "num_used_tokens": one.used_tokens,
                "num_total_tokens": one.used_tokens,
                "max_total_num_tokens": server.tokens,
                "max_running_requests": server.config.max_num_seqs,
                "token_usage": round(one.used_tokens / one.total_tokens, 4),
            }
            for rank, one in enumerate(readings)
        ],
    }
