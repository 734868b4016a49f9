"""What parsing costs: CPU per scrape beside prometheus_client's parser, and the memory retained between scrapes.

    python bench/parse.py [rounds]

The bodies are captures of real engines whose numbers are moved from scrape to scrape with a fixed seed. Each round
times every parser in turn on the same bodies; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import gc
import random
import re
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from llm_headroom.exposition.text import Parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAPTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "captures"
BODIES = ("vllm/0.32.0/saturated.prom", "sglang/0.5.23/saturated.prom", "sglang/0.5.23-dp2/saturated.prom")
SCRAPES = 20
ROUNDS = 9
_VALUE = re.compile(rb"(?m)^([^#\n].*) (\S+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU in seconds per scrape, as medians, and memory in bytes.

    `steady`: only the numbers move. `growing`: one more series at each scrape. `first`: nothing is remembered yet.
    `state`: what one parser keeps; `state_equal`: what a second one adds, whose endpoint exposes the same series;
    `state_near`: what a second one adds whose endpoint exposes one series more.
    """

    body: str
    size: int
    samples: int
    peer: float
    steady: float
    growing: float
    first: float
    steady_ratio: float
    growing_ratio: float
    first_ratio: float
    state: int
    state_equal: int
    state_near: int


def moving(body: bytes, count: int) -> Iterator[bytes]:
    """Successive scrapes of one endpoint: the same series, other numbers."""
    draw = random.Random(7)  # noqa: S311 - a reproducible input, no secret

    def moved(sample: re.Match[bytes]) -> bytes:
        value = float(sample[2])
        whole = value.is_integer()
        value += draw.randrange(1000) if whole else draw.random()
        return sample[1] + b" " + repr(value).encode()

    for _ in range(count):
        body = _VALUE.sub(moved, body)
        yield body


def growing(body: bytes, count: int) -> Iterator[bytes]:
    """Successive scrapes of one endpoint: other numbers, and a series more each time."""
    extra = b""
    middle = body.index(b"\n# ", len(body) // 2) + 1
    for number, scrape in enumerate(moving(body, count)):
        extra += b'appearing{path="/v1/chat/completions",number="%d"} 1.0\n' % number
        at = scrape.index(body[middle : body.index(b"\n", middle)])
        yield scrape[:at] + b"# TYPE appearing gauge\n" + extra + scrape[at:]


def measure(rounds: int = ROUNDS) -> list[Cost]:
    """The costs for each of the captures."""
    return [_measure(name, rounds) for name in BODIES]


def _measure(name: str, rounds: int) -> Cost:
    body = (CAPTURES / name).read_bytes()
    # First, since parsers that are alive share what they hold.
    state, state_equal, state_near = _memory(body)
    steady_bodies = list(moving(body, SCRAPES))
    growing_bodies = list(growing(body, SCRAPES))
    texts = [scrape.decode() for scrape in steady_bodies]
    steady = Parser()
    steady.parse(body)
    times: dict[str, list[float]] = {"peer": [], "steady": [], "growing": [], "first": []}

    def first() -> None:
        for scrape in steady_bodies:
            Parser().parse(scrape)

    def grow() -> None:
        parser = Parser()
        parser.parse(body)
        for scrape in growing_bodies:
            parser.parse(scrape)

    for number in range(rounds):
        text = texts[number % SCRAPES]
        times["peer"].append(_cpu(lambda text=text: list(text_string_to_metric_families(text))))  # type: ignore[misc]
        times["steady"].append(_cpu(lambda: [steady.parse(scrape) for scrape in steady_bodies]) / SCRAPES)
        # The first of these scrapes knows nothing and is taken off again.
        times["first"].append(_cpu(first) / SCRAPES)
        times["growing"].append((_cpu(grow) - times["first"][-1]) / SCRAPES)

    def ratio(what: str) -> float:
        return median(peer / own for peer, own in zip(times["peer"], times[what], strict=True))

    return Cost(
        body=name,
        size=len(body),
        samples=len(steady.parse(body).values),
        peer=median(times["peer"]),
        steady=median(times["steady"]),
        growing=median(times["growing"]),
        first=median(times["first"]),
        steady_ratio=ratio("steady"),
        growing_ratio=ratio("growing"),
        first_ratio=ratio("first"),
        state=state,
        state_equal=state_equal,
        state_near=state_near,
    )


def _cpu(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def _memory(body: bytes) -> tuple[int, int, int]:
    equal = list(moving(body, 2))
    near = [scrape + b'http_requests_total{handler="/other"} 1.0\n' for scrape in equal]
    parsers = []
    sizes = []
    gc.collect()
    tracemalloc.start()
    for bodies in (equal, equal, near):
        before = tracemalloc.get_traced_memory()[0]
        parser = Parser()
        for scrape in bodies:
            parser.parse(scrape)
        parsers.append(parser)
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    alone, same, other = sizes
    return alone, same, other


def main() -> None:
    """Prints the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print(f"{'body':34} {'KB':>6} {'samples':>7} {'peer us':>8}", end="")
    print("".join(f" {what + ' us':>11} {'ratio':>7}" for what in ("steady", "growing", "first")), end="")
    print("  KiB retained: alone, equal, near")
    for cost in measure(rounds):
        print(f"{cost.body:34} {cost.size / 1000:6.1f} {cost.samples:7} {cost.peer * 1e6:8.0f}", end="")
        for own, ratio in (
            (cost.steady, cost.steady_ratio),
            (cost.growing, cost.growing_ratio),
            (cost.first, cost.first_ratio),
        ):
            print(f" {own * 1e6:11.0f} {'1/' + format(ratio, '.1f'):>7}", end="")
        print(f" {cost.state / 1024:10.1f} {cost.state_equal / 1024:6.1f} {cost.state_near / 1024:6.1f}")


if __name__ == "__main__":
    main()
