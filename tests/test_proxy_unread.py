"""An engine that cannot be read although clients get answers through its proxy: nobody is called for it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

import bounded
from captures import Capture
from engine_server import EngineServer, replayed
from llm_headroom.config.endpoint import Endpoint
from llm_headroom.config.settings import Config, GpuSettings, ProxySettings, Target
from llm_headroom.model import State
from llm_headroom.poll.poller import Poller
from llm_headroom.proxy.service import Proxies
from proxied import head, post

ANSWER = b'{"model":"tiny-llama","choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The engine's API: it answers."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while await head(reader):
            await reader.readexactly(len(BODY))
            writer.write(REPLY)
    writer.close()


BODY = b'{"model":"tiny-llama"}'


@pytest.mark.waits(12)
def test_it_is_unknown_and_not_down() -> None:
    async def test() -> None:
        api = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"http://127.0.0.1:{api.sockets[0].getsockname()[1]}"
        with EngineServer(replayed(Capture("vllm", "0.32.0", "after_load"))) as engine:
            target = Target(name="a", endpoint=Endpoint(url=engine.url), engine="vllm")
            door = ProxySettings(listen="127.0.0.1:0", target="a", upstream=address)
            config = Config(
                targets=(target,), proxies=(door,), interval=0.1, gpu=GpuSettings(enabled=False), host=False
            )
            proxies = Proxies(config)
            await proxies.start()
            poller = Poller(config, beside=proxies.sources, measured=proxies.joined)
            proxies.know_engines_by(poller.models, poller.polled)
            poller.start()
            reader, writer = await asyncio.open_connection("127.0.0.1", int(proxies.addresses[0].rpartition(":")[2]))

            async def until(*states: State) -> State:
                while True:
                    found = [each.states[0].state for each in poller.snapshots() if each.target == "a"]
                    if found and found[0] in states:
                        return found[0]
                    writer.write(post("/v1/chat/completions", BODY))
                    await reader.readexactly(len(REPLY))
                    await asyncio.sleep(0.05)

            try:
                await until(State.IDLE)
                engine.routes = {}
                assert await until(State.DOWN, State.UNKNOWN) is State.UNKNOWN
            finally:
                writer.close()
                await poller.stop()
                await proxies.close()
                api.close()

    bounded.run(test())
