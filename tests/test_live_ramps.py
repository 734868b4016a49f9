"""Ramps on real engines: what is read out of their steps, and the sections of documents that they write."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

import sections
from live.client import Client, Request
from live.ramp import Asked, Mix, Ramp, Step, section
from live.share import family

if TYPE_CHECKING:
    from collections.abc import Sequence

RAMP = Ramp(Mix(40, 60), 1.0, 0.5, 3.0, "compute", suspect=False, seconds=620.0, steps=())
EVENT = b'data: {"choices": [{"text": "a", "finish_reason": "length"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\ndata: [DONE]\n\n'


def steps(*shares: tuple[float, int]) -> Sequence[Step]:
    return [Step(times, 100, slow) for times, slow in shares]


def test_the_limit_lies_between_two_steps_by_their_slow_shares() -> None:
    found = replace(RAMP, steps=steps((1.0, 0), (2.0, 0), (4.0, 10))).found
    assert found == pytest.approx(2.0 * 2.0**0.5)
    assert replace(RAMP, steps=steps((1.0, 0), (2.0, 5), (4.0, 100))).found == pytest.approx(2.0)


@pytest.mark.parametrize("shares", [((1.0, 0), (2.0, 0)), ((1.0, 6), (2.0, 9)), ((1.0, 0),)])
def test_a_ramp_that_shows_no_limit_has_none(shares: tuple[tuple[float, int], ...]) -> None:
    ramp = replace(RAMP, steps=steps(*shares))
    assert ramp.found is None
    assert ramp.off is None
    assert "| 3.00 × | none | – |" in "\n".join(section("title", "how", [ramp]))


def test_a_ramp_within_the_goal_is_counted() -> None:
    good = replace(RAMP, steps=steps((1.0, 0), (2.0, 0), (4.0, 10)))
    written = "\n".join(section("title", "how", [good, replace(good, said=6.0), replace(good, said=None)]))
    assert "1 of 3 are within a factor of 1.35; 2 said more than was found, 0 less." in written
    assert (
        "| 40 + 60 | 1 s | 0.50/s | 620 s | compute | 3.00 × | 2.83 × | 1.06 | 1.00: 0%, 2.00: 0%, 4.00: 10% |"
        in written
    )


def test_a_request_without_a_first_token_is_slow() -> None:
    assert Asked(0.0).slow(1.0)
    assert Asked(0.0, 1.1).slow(1.0)
    assert not Asked(0.0, 1.0).slow(1.0)


def test_requests_of_a_mix_have_its_means() -> None:
    chance = random.Random(1)
    asked = [Mix(40, 60).request(chance, "m") for _ in range(2000)]
    assert sum(len(one.prompt) for one in asked) / 2000 == pytest.approx(40, rel=0.05)
    assert sum(one.tokens for one in asked) / 2000 == pytest.approx(60, rel=0.1)
    assert max(one.tokens for one in asked) <= 240
    assert min(one.tokens for one in asked) >= 1


async def _answer(request: web.Request) -> web.StreamResponse:
    if (await request.json())["model"] != "tiny":
        raise web.HTTPNotFound
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(EVENT + USAGE)
    return response


def test_a_client_says_when_the_first_token_came() -> None:
    async def work() -> tuple[float | None, float | None, int]:
        app = web.Application()
        app.router.add_post("/v1/completions", _answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        client = Client(f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            first = await client.ask(Request((3, 4)))
            return first, await client.ask(Request(model="other")), client.books.refused()
        finally:
            await client.close()
            await runner.cleanup()

    first, none, refused = asyncio.run(work())
    assert first is not None
    assert first > 0.0
    assert none is None
    assert refused == 1


def test_a_family_is_a_process_with_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        found = family(process.pid)
        process.communicate(b"\n")
    assert found[0] == process.pid
    assert len(found) == 2


DOCUMENT = "# Title\n\n## One\n\nold\n\n## One more\n\nother\n\n## Last\n\nend\n"


def test_a_section_is_replaced_by_its_own_title() -> None:
    assert sections.replaced(DOCUMENT, "## One\n\nnew\n", "## Last") == DOCUMENT.replace("old", "new")
    assert sections.replaced(DOCUMENT, "## Last\n\nnew", "## One") == DOCUMENT.replace("end", "new")


def test_a_section_that_is_new_goes_before_another_one() -> None:
    written = sections.replaced(DOCUMENT, "## Two\n\nnew", "## Last")
    assert written == DOCUMENT.replace("## Last", "## Two\n\nnew\n\n## Last")
    assert list(sections.titled(written, "## One")) == ["## One\n\nold\n\n", "## One more\n\nother\n\n"]
    with pytest.raises(ValueError, match="not found"):
        sections.replaced(DOCUMENT, "## Two\n\nnew", "## Nowhere")
