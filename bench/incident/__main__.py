"""An incident for the dashboards: 36 engines behind 4 exporters in 2 clusters, as blocks of a real Prometheus.

    make incident ARGS='DIRECTORY [--serve PORT]'

An hour of the exporter's own code over simulated engines, in minutes. Two exporters die, an engine crashes, one stalls,
another gets more than it can serve, Ollama spills and answers 503. Needs Prometheus and promtool (Debian: prometheus).
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from evaluate.prometheus import STEP_SECONDS, missing
from incident import virtual
from incident.fleet import FEW, OLLAMA_RATE, WHOLE, Host, Stage, config, engines, gpus
from incident.record import FLAGS, Scraper, blocks
from llm_headroom.commands import logs
from llm_headroom.commands.demo import SMALL
from llm_headroom.poll.poller import Poller
from llm_headroom.poll.published import Published
from llm_headroom.proxy.service import Proxies
from llm_headroom.simulate import clients
from llm_headroom.simulate.clock import Clock
from llm_headroom.simulate.traffic import Lengths, Synthetic

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from incident.fleet import Wrong

RULES: Final = Path(__file__).parents[2] / "alerts" / "llm-headroom.rules.yml"


async def _host(
    stage: Stage, host: Host, seed: int, out: IO[bytes], stack: AsyncExitStack
) -> tuple[Scraper, Callable[[Wrong], None]]:
    """Start one machine, which ends with the stack; return what scrapes it, and what makes something go wrong on it."""
    clock = Clock()
    servers = engines(stage, clock, seed)
    for server in servers.values():
        await server.start("127.0.0.1:0")
        stack.push_async_callback(server.close)
    devices = await stack.enter_async_context(gpus(stage, servers, clock))
    settings = config(stage, servers)
    proxies = Proxies(settings)
    await proxies.start()
    stack.push_async_callback(proxies.close)
    poller = Poller(settings, gpus=devices, beside=proxies.sources, measured=proxies.joined)
    stack.push_async_callback(poller.stop)
    poller.start()
    chats = Synthetic(OLLAMA_RATE, Lengths(200, 0.6), Lengths(150, 0.6)).requests(seed)
    asking = asyncio.create_task(clients.chat(proxies.addresses[0], SMALL, chats, clock))
    stack.callback(asking.cancel)

    def begin(one: Wrong) -> None:
        if one.xid is not None:
            devices.fail(*one.xid)
        elif one.engine == "ollama" and (burst := one.how.burst):  # through the proxy, as all of its requests
            asking = clients.chat(proxies.addresses[0], burst.model, burst.requests(seed), clock)
            stack.callback(asyncio.create_task(asking).cancel)
        else:
            servers[one.engine].misbehave(one.how)

    return Scraper(host, Published(poller), out), begin


async def play(stage: Stage, out: IO[bytes]) -> None:
    """Let the time pass; what is scraped goes to a file."""
    async with AsyncExitStack() as stack:
        own = {host: await stack.enter_async_context(AsyncExitStack()) for host in stage.hosts}
        hosts = {
            host.name: await _host(stage, host, 100 * place, out, own[host]) for place, host in enumerate(stage.hosts)
        }
        coming, real = list(stage.incidents), virtual.REAL()
        for step in range(1, int(stage.seconds / STEP_SECONDS) + 1):
            at = step * STEP_SECONDS
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            for one in [one for one in coming if one.at <= at]:
                hosts[one.host][1](one)
                coming.remove(one)
            for dead in [host for host in own if host.dies is not None and host.dies <= at]:
                await own.pop(dead).aclose()  # what nobody scrapes any more need not be simulated
            for scraper, _ in hosts.values():
                scraper.scrape(at)
            if step % 20 == 0:
                print(f"{at:.0f} s of {stage.seconds:.0f}, {virtual.REAL() - real:.0f} s taken", flush=True)


def main() -> int:
    """Play, write blocks, and serve them if asked to; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where Prometheus' data goes, in a folder data")
    parser.add_argument("--small", action="store_true", help="a quarter of an hour of two hosts, for tests")
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve an existing directory, or the one made")
    options = parser.parse_args()
    if program := missing():
        print(f"{program} is not installed (Debian: prometheus)", file=sys.stderr)
        return 1
    folder: Path = options.directory
    stage = FEW if options.small else WHOLE
    if not (folder / "data").exists():
        folder.mkdir(parents=True, exist_ok=True)
        logs.set_up("error", "logfmt")
        samples = folder / "samples"
        with samples.open("wb") as out, asyncio.Runner(loop_factory=virtual.loop) as runner:
            runner.run(play(stage, out))
        blocks(samples, folder, RULES, stage.seconds)
        print(f"{virtual.EPOCH:.0f} to {virtual.EPOCH + stage.seconds:.0f}, unix time, in {folder / 'data'}")
    if options.serve:
        (folder / "prometheus.yml").write_text("{}")
        where = ("--config.file=prometheus.yml", "--storage.tsdb.path=data")
        subprocess.run(
            ["prometheus", *where, f"--web.listen-address=127.0.0.1:{options.serve}", *FLAGS], cwd=folder, check=False
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
