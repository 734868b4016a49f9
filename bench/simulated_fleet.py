"""What many simulated engines in one process cost: CPU and memory, scraped by another process.

.venv/bin/python bench/simulated_fleet.py [--engines 1000] [--rate 0.1] [--interval 5] [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import time
from pathlib import Path

from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.hardware import A100_80GB, LLAMA_3_8B
from llm_headroom.simulate.live import LiveEngine
from llm_headroom.simulate.server import EngineServer, batching_server
from llm_headroom.simulate.traffic import Lengths, Synthetic


async def scrape(ports: list[int], interval: float, seconds: float) -> None:
    """Read every engine's metrics over a connection of its own, evenly spread over the interval."""
    end = time.monotonic() + seconds

    async def one(port: int, phase: float) -> int:
        await asyncio.sleep(phase)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        scrapes = 0
        while time.monotonic() < end:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
            scrapes += 1
            await asyncio.sleep(interval)
        writer.close()
        return scrapes

    done = await asyncio.gather(*(one(port, interval * index / len(ports)) for index, port in enumerate(ports)))
    print(f"  scrapes                 {sum(done):>10}")


def cpu_seconds() -> float:
    """CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_megabytes() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def serve(engines: int, rate: float, interval: float, seconds: float) -> None:
    """Run the engines, and print what they cost."""
    before, clock, servers = resident_megabytes(), Clock(), []
    started = cpu_seconds()
    for seed in range(engines):
        server: EngineServer = batching_server(
            "vllm", clock, version="0.32.0", model=LLAMA_3_8B, gpu=A100_80GB, seed=seed
        )
        server.live.feed.add(Synthetic(rate, Lengths(500), Lengths(200)).requests(seed), 0.0)
        await server.start("127.0.0.1:0")
        servers.append(server)
    print(f"{engines} simulated vLLM, {rate:g} requests/s each, scraped every {interval:g} s for {seconds:g} s")
    print(f"  CPU to start            {cpu_seconds() - started:>10.2f} s")
    ports = [server.address.rpartition(":")[2] for server in servers]
    used, begun = cpu_seconds(), time.monotonic()
    scraper = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--interval", str(interval), "--seconds", str(seconds), "--scrape", ",".join(ports)
    )
    await scraper.wait()
    elapsed = time.monotonic() - begun
    steps = sum(live.read().counters.steps for live in (one.live for one in servers) if isinstance(live, LiveEngine))
    print(f"  CPU                     {(cpu_seconds() - used) / elapsed:>10.1%} of a core")
    print(f"  steps                   {steps / clock.now():>10.0f} /s")
    print(
        f"  resident                {resident_megabytes():>10.0f} MB, {before:.0f} MB of them before the first engine"
    )
    for server in servers:
        await server.close()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--scrape", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.scrape:
        asyncio.run(scrape([int(port) for port in given.scrape.split(",")], given.interval, given.seconds))
    else:
        asyncio.run(serve(given.engines, given.rate, given.interval, given.seconds))


if __name__ == "__main__":
    main()
