"""What simulated engines answer over HTTP, word for word, with time that passes only when somebody waits for it.

`pytest --update` writes the file; review the diff.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hand_clock import Jumps
from llm_headroom.simulate.hardware import A100_80GB, GIB, L4, LLAMA_3_8B, QWEN_2_5_7B, TINY_LLAMA
from llm_headroom.simulate.ollama_model import OllamaConfig
from llm_headroom.simulate.server import MISBEHAVE, batching_server, ollama_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

    from llm_headroom.simulate.engine_state import Scheduler
    from llm_headroom.simulate.server import EngineServer

EXPECTED: Final = Path(__file__).parent / "fixtures" / "simulated_http.txt"
DEADLINE: Final = 60.0
MOMENT: Final = re.compile(r'("created": )\d+|("created_at": )"[^"]+"')
"""Both are real time, whatever the clock says."""
COUNTED: Final = re.compile(
    r"([a-z]+:)?(prompt_tokens_total|generation_tokens_total|num_requests_running|num_running_reqs|request_success_total"
    r"|process_start_time_seconds|num_requests_total|e2e_request_latency_seconds_(sum|count))\b"
)
SAID: Final = [{"role": "user", "content": "one two"}]


class Call:
    """A request, and what comes of it: status, type and body, or `cut` if the connection ends before."""

    def __init__(self, method: str, path: str, document: object = None, **fields: object) -> None:
        self.method, self.path = method, path
        self.body = "" if document is None and not fields else json.dumps(fields or document)

    async def answered(self, address: str) -> AsyncIterator[str]:
        """Yield what was sent, and what came back."""
        yield f"{self.method} {self.path} {self.body}".rstrip()
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(self.body)}\r\n\r\n{self.body}".encode())
        answer = await reader.read()
        writer.close()
        if not answer:
            yield "  cut"
            return
        start, _, body = answer.partition(b"\r\n\r\n")
        status, *headers = start.decode().split("\r\n")
        named = dict(header.lower().split(": ", 1) for header in headers)
        kind = f"{named.get('content-type', '')} {named.get('cache-control', '')}".rstrip()
        yield f"  {status.split(' ', 1)[1]} {kind}"
        for line in (joined(body) if "transfer-encoding" in named else body).decode().splitlines():
            name, _, value = line.rpartition(" ")
            if self.path == "/metrics" and COUNTED.match(line):
                yield f"  {name} {float(value):.9g}"
            elif line and self.path != "/metrics":
                yield "  " + (line if self.path == "/v1/models" else MOMENT.sub(r"\1\2TIME", line))


def joined(body: bytes) -> bytes:
    """A body without the sizes of its chunks."""
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


OPENAI: Final = (
    Call("GET", "/health"),
    Call("GET", "/ping"),
    Call("GET", "/health_generate"),
    Call("GET", "/v1/models"),
    Call("GET", "/nothing"),
    Call("GET", "/v1/completions"),
    Call("GET", "/v1/chat/completions"),
    Call("POST", "/v1/completions", ["no object"]),
    Call("POST", "/v1/completions"),
    Call("POST", "/v1/completions", prompt="one two three", max_tokens=2, model="another"),
    Call("POST", "/v1/completions", prompt=[1, 2], max_tokens=0, n=1),
    Call("POST", "/v1/completions", prompt="one", max_tokens=9, output_tokens=2),
    Call("POST", "/v1/completions", prompt="one", max_tokens=3, max_completion_tokens=1, stream=True),
    Call("POST", "/v1/completions", prompt="one", max_tokens=1, stream=True, stream_options={"include_usage": True}),
    Call("POST", "/v1/completions", prompt="one", max_tokens=5, output_tokens=1, stream=True, stream_options={}),
    Call("POST", "/v1/completions", prompt="one", n=2),
    Call("POST", "/v1/completions", prompt="one", max_tokens=-1),
    Call("POST", "/v1/completions", prompt={"a": 1}),
    Call("POST", "/v1/completions", prompt="one", prompt_tokens=100_000_000, max_tokens=5),
    Call("POST", "/v1/chat/completions", messages=SAID, max_completion_tokens=2, max_tokens=4),
    Call("POST", "/v1/chat/completions", messages=SAID, max_tokens=3),
    Call("POST", "/v1/chat/completions", messages=SAID, output_tokens=2),
    Call("POST", "/v1/chat/completions", messages=SAID),
    Call("POST", "/v1/chat/completions", messages=SAID, max_tokens=2, stream=True),
    Call(
        "POST", "/v1/chat/completions", messages=SAID, max_tokens=2, stream=True, stream_options={"include_usage": True}
    ),
    Call("POST", "/v1/chat/completions", prompt="one"),
    Call("GET", "/metrics"),
    Call("GET", MISBEHAVE),
    Call("POST", MISBEHAVE, crash=1),
    Call("POST", MISBEHAVE, rename={"vllm:prompt_tokens_total": "vllm:given_tokens_total"}),
    Call("POST", MISBEHAVE, rename={"vllm:generation_tokens_total": ""}),
    Call("GET", "/metrics"),
    Call("POST", MISBEHAVE, crash_seconds=7, refuse=False),
    Call("GET", "/health"),
    Call("POST", "/v1/completions", prompt="one"),
    Call("POST", MISBEHAVE, stall_seconds=1),
)
AFTER: Final = (
    Call("GET", "/health"),
    Call("GET", "/metrics"),
    Call("POST", "/v1/completions", prompt="one", max_tokens=1),
    Call("GET", "/metrics"),
)
SMALL: Final = {"model": "small"}
OLLAMA: Final = (
    Call("GET", "/"),
    Call("GET", "/api/version"),
    Call("GET", "/api/tags"),
    Call("GET", "/api/ps"),
    Call("GET", "/metrics"),
    Call("GET", "/api/chat"),
    Call("GET", "/api/generate"),
    Call("POST", "/api/generate", SMALL | {"prompt": "one two", "options": {"num_predict": 2}}),
    Call("POST", "/api/generate", SMALL | {"prompt": "one", "options": {"num_predict": 3}, "stream": False}),
    Call("POST", "/api/generate", SMALL | {"options": {"num_predict": 5}, "output_tokens": 1, "stream": False}),
    Call("POST", "/api/generate", SMALL | {"prompt": "one", "stream": False}),
    Call("POST", "/api/generate", SMALL | {"prompt": "one", "options": {"num_predict": -1}, "stream": False}),
    Call("POST", "/api/generate", SMALL | {"prompt": "one", "options": {"num_predict": 0}}),
    Call("POST", "/api/generate", SMALL | {"prompt": 5}),
    Call("POST", "/api/generate", prompt="one"),
    Call("POST", "/api/generate", ["no object"]),
    Call("POST", "/api/chat", model="small:latest", messages=SAID, options={"num_predict": 2}),
    Call("POST", "/api/chat", model="small", messages=SAID, options=None, output_tokens=1, stream=False),
    Call("POST", "/api/chat", model="small", output_tokens=1, stream=False),
    Call("POST", "/api/chat", model="small", messages="one"),
    Call("POST", "/api/chat", model="nothing", messages=SAID),
    Call("POST", "/api/chat", model="other:7b", messages=SAID, output_tokens=2),
    Call("GET", "/api/ps"),
    Call("POST", "/api/show", model="small"),
    Call("POST", "/api/show", model="other:7b"),
    Call("POST", "/api/show", model="other"),
    Call("POST", "/api/show", ["no object"]),
    Call("POST", "/api/show"),
    Call("GET", "/api/show"),
    Call("POST", MISBEHAVE, rename={"a": "b"}),
    Call("POST", MISBEHAVE, burst={"requests_per_second": 1, "seconds": 5, "model": "small"}),
    Call("POST", MISBEHAVE, burst={"requests_per_second": 1, "seconds": 5, "model": "small:latest"}),
    Call("POST", MISBEHAVE, crash_seconds=3, refuse=False),
    Call("GET", "/"),
)
OLLAMA_AFTER: Final = (
    Call("GET", "/api/ps"),
    Call("POST", "/api/generate", SMALL | {"prompt": "one", "options": {"num_predict": 1}}),
)


async def dialogue(server: EngineServer, clock: Jumps, calls: Iterable[Call], after: Iterable[Call]) -> list[str]:
    """Everything said, the calls of `after` ten seconds later."""
    await server.start("127.0.0.1:0")
    lines = []
    try:
        async with asyncio.timeout(DEADLINE):
            for each in calls:
                lines += [line async for line in each.answered(server.address)]
            lines.append(f"at {clock.moment:.9g} holds {server.gpu_memory()}")
            clock.moment += 10.0
            for each in after:
                lines += [line async for line in each.answered(server.address)]
            lines.append(f"at {clock.moment:.9g} holds {server.gpu_memory()}")
    finally:
        await server.close()
    return lines


def story() -> Iterator[str]:
    versions: Mapping[Scheduler, str] = {"vllm": "0.32.0", "sglang": "0.5.23"}
    for scheduler, version in versions.items():
        clock = Jumps()
        server = batching_server(scheduler, clock, version=version, model=LLAMA_3_8B, gpu=A100_80GB, seed=3)
        yield server.name
        yield from asyncio.run(dialogue(server, clock, OPENAI, AFTER))
    clock = Jumps()
    models = {"small:latest": TINY_LLAMA, "other:7b": QWEN_2_5_7B}
    config = OllamaConfig(models=models, gpu=L4, gpu_reserved=GIB, context_length=2000, keep_alive=-1.0)
    server = ollama_server(config, clock)
    yield server.name
    yield from asyncio.run(dialogue(server, clock, OLLAMA, OLLAMA_AFTER))


def test_what_is_answered_is_what_was_answered(*, update: bool) -> None:
    found = "".join(f"{line}\n" for line in story())
    if update:
        EXPECTED.write_text(found, encoding="utf-8")
    assert found.splitlines() == EXPECTED.read_text(encoding="utf-8").splitlines()
