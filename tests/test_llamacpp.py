"""llama.cpp's server as people run it: slots that share a cache, sleep, and many models behind one port."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from llm_headroom.host import runners
from llm_headroom.host.proc import Proc
from proc_tree import ProcTree

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("command", "environment", "unified"),
    [
        ((), (), True),
        (("-np", "4"), (), False),
        (("--parallel=4",), (), False),
        (("-np", "-1"), (), True),
        (("-np", "4", "-kvu"), (), True),
        (("--no-kv-unified",), (), False),
        ((), ("HOME=/", "LLAMA_ARG_N_PARALLEL=4"), False),
        (("-np", "4"), ("LLAMA_ARG_KV_UNIFIED=true",), True),
    ],
)
def test_slots_share_one_cache_unless_their_number_is_given(
    tmp_path: Path, *, command: tuple[str, ...], environment: tuple[str, ...], unified: bool
) -> None:
    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    words = ("/usr/bin/llama-server", "-m", "/m.gguf", *command)
    tree.process(60, sockets=(7,), name="llama-server", command=words, environment=environment)

    assert runners.server(tree.proc, 8080) == runners.Server(unified)


def test_how_a_server_was_started_is_unknown_where_it_is_not_visible(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    tree.process(60, sockets=(7,), name="python3")
    assert runners.server(tree.proc, 8080) is None

    tree.process(61, sockets=(7,), name="llama-server", command=("llama-server",), environment=None)
    assert runners.server(tree.proc, 8080) is None


def test_clients_are_counted_without_oneself(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert Proc().clients(port) == 0
        with socket.create_connection(("127.0.0.1", port)):
            assert Proc().clients(port) == 0

    tree = ProcTree(tmp_path)
    tree.listen(8080, 7)
    tree.listen(8080, 8, state="01")
    assert tree.proc.clients(8080) == 1
