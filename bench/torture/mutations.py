"""Answers of engines with random damage."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import captures
from llm_headroom.exposition.text import Parser
from proxied import head, place, post
from stream_captures import ANSWERS
from torture.figures import Figure

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

_SPICE = (b"9" * 400, b"\xff\xfe", b"\0", b'"', b"{", b"}", b"\n", b"NaN", b"-1e999", b"\\ud800", b"\r\n\r\n", b"# ")


def mutated(body: bytes, dice: random.Random) -> bytes:
    """A body after one to five cuts, insertions and repetitions."""
    for _ in range(dice.randint(1, 5)):
        at, end = sorted(dice.randrange(len(body) + 1) for _ in range(2))
        end = min(end, at + 200)
        match dice.randrange(4):
            case 0:
                body = body[:at] + body[end:]
            case 1:
                body = body[:at] + dice.choice(_SPICE) + body[at:]
            case 2:
                body = body[:end] + body[at:end] + body[end:]
            case _:
                body = body[:at] + bytes(dice.randrange(256) for _ in range(end - at)) + body[end:]
    return body


def expositions(seconds: float, dice: random.Random) -> Figure:
    """Parses damaged expositions one after the other with one parser, as a poller does."""
    bodies: Sequence[bytes] = [each.exposition.read_bytes() for each in captures.ALL]
    parser, done, slowest, failures = Parser(), 0, 0.0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body = mutated(dice.choice(bodies), dice)
        begun = time.process_time()
        try:
            parser.parse(body)
        except Exception:  # noqa: BLE001 - counted
            failures += 1
        slowest = max(slowest, time.process_time() - begun)
        done += 1
    return Figure(
        "mutated expositions, parsed", f"{done:,}", f"{failures} exceptions; slowest {slowest * 1e3:.0f} ms", failures
    )


async def streams(seconds: float, dice: random.Random) -> Figure:
    """Sends damaged answers through the proxy, and compares what arrives byte for byte."""
    answers = list(ANSWERS.values())
    sent: dict[bytes, bytes] = {}

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await head(reader)
        writer.write(sent[first.split(b"key=")[1].split(b" ")[0]])
        await writer.drain()

    altered = done = size = 0
    end = time.monotonic() + seconds
    async with place(engine) as here:

        async def client(name: int) -> None:
            nonlocal altered, done, size
            while time.monotonic() < end:
                key = b"%d-%d" % (name, done)
                answer = dice.choice(answers)
                sent[key] = mutated(answer.message(dice.randint(1, 300)), dice)
                reader, writer = await here.connect()
                writer.write(post(f"{answer.path}?key={key.decode()}", b""))
                got = await reader.read()
                writer.close()
                size += len(got)
                altered += got != sent.pop(key)
                done += 1

        await asyncio.gather(*(client(number) for number in range(20)))
        left = here.told().get("requests_running{}", 0.0)
    found = f"{altered} altered; {size / 1e6:.0f} MB; {left:.0f} requests left under way"
    return Figure("mutated answers through the proxy", f"{done:,}", found, int(altered + left))
