"""Data-parallel replicas behind one simulated server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_headroom.simulate.batching import Engine, EngineReading, Outcome
    from llm_headroom.simulate.traffic import Request


class DataParallel:
    """Replicas behind one server.

    Attributes:
        engines: the replicas, by rank.
    """

    def __init__(
        self, engines: Sequence[Engine], policy: Literal["least_loaded", "round_robin"] = "least_loaded"
    ) -> None:
        self.engines = tuple(engines)
        self._policy = policy
        self._turn = 0

    def submit(
        self,
        request: Request,
        on_token: Callable[[float, int], None] | None = None,
        on_end: Callable[[Outcome], None] | None = None,
    ) -> tuple[int, int]:
        """Hand a request to one replica, chosen by the load at this moment; return its rank and the number there."""
        rank = self._turn % len(self.engines)
        if self._policy == "least_loaded":  # 4 x waiting + running: vllm-project/vllm vllm/v1/engine/core_client.py
            rank = min(range(len(self.engines)), key=lambda one: self.engines[one].load)
        self._turn += 1
        return rank, self.engines[rank].submit(request, on_token, on_end)

    def advance(self, until: float) -> None:
        """Move every replica's time to ``until``."""
        for engine in self.engines:
            engine.advance(until)

    def read(self) -> tuple[EngineReading, ...]:
        """Return every replica's state, by rank."""
        return tuple(engine.read() for engine in self.engines)
