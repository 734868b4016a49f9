"""This host's GPUs as a source: whose memory it is where no process is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import bounded
from captures import values
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, Target
from llm_headroom.host.engines import Finder, Watched
from llm_headroom.host.proc import Proc
from llm_headroom.model import Health, Snapshot
from llm_headroom.poll.local import GpuSource
from one_card import Card

if TYPE_CHECKING:
    from pathlib import Path


def watched(host: str, *, up: bool = True) -> Watched:
    """An engine, and that it answers."""
    target = Target(name=host, endpoint=Endpoint(url=f"http://{host}:8000"), engine="vllm")
    return Watched(target, Snapshot(target=host, engine="vllm", taken=1.0, health=Health(up=up)))


@pytest.mark.parametrize(
    ("engines", "whole_machine", "held"),
    [
        ([watched("127.0.0.1")], False, {"127.0.0.1": 40.0}),
        ([watched("localhost")], False, {"localhost": 40.0}),
        ([watched("127.0.0.1", up=False)], False, {}),
        ([watched("127.0.0.1")], True, {}),
        ([watched("10.9.9.9")], False, {}),
        ([watched("engine.example")], False, {}),
        ([watched("127.0.0.1"), watched("[::1]")], False, {}),
        ([], False, {}),
    ],
)
def test_in_a_sidecar_the_memory_of_the_only_gpu_is_the_only_engine_s(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engines: list[Watched],
    held: dict[str, float],
    *,
    whole_machine: bool,
) -> None:
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/ns/pid").symlink_to("pid:[4026531836]" if whole_machine else "pid:[4026532836]")

    async def test() -> None:
        finder = Finder(Proc(tmp_path))
        config = replace(Config(), timeout=60.0)
        source = GpuSource(config, lambda: engines, finder, explain=False, events=False, reader=Card())
        points = (await source.collect()).points
        assert values(points, "llm_gpu_memory_engine_bytes", "target") == held
        await source.close()

    bounded.run(test())
