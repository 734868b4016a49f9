"""What a whole poll costs: the exporter beside vmagent, Prometheus, and httpx with prometheus_client.

    python bench/poll.py [--seconds N] [--peer DIR ...]
    python bench/poll.py --interval 5 --served 15 --seconds 120

The second form measures one vLLM target alone, polled every `--interval` seconds, with `/metrics` read every `--served`
seconds. `--peer` measures another source tree of the exporter beside this one, such as `git worktree add DIR COMMIT`
makes of an earlier one. It runs with this one's installed packages.

All run at the same time over the same window against the same capture server, so that whatever else the machine does
hits all of them. The CPU of a process is that of all its threads, kernel time included; it is divided by the scrapes
that the capture server has counted. Needs Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import http.client
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from capture_server import ALIAS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BENCH: Final = Path(__file__).parent
SECONDS: Final = 24.0
EXPORTER: Final = "llm-headroom"
VMAGENT: Final = "vmagent"
PROMETHEUS: Final = "prometheus"
HTTPX: Final = "httpx + prometheus_client"
PACKAGES: Final = {VMAGENT: "victoria-metrics", PROMETHEUS: "prometheus"}
"""Debian's packages."""
MISSING: Final = {program: f"install Debian's package {package}" for program, package in PACKAGES.items()}
"""How to get a peer that is not there."""
SCRAPER: Final = {"User-Agent": "Prometheus/2.42.0", "Accept": "text/plain;version=0.0.4", "Accept-Encoding": "gzip"}
_TOO_FEW: Final = 0.5
_START_SECONDS: Final = 24.0
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Case(NamedTuple):
    """What is polled: so many targets of each capture, all of them every `interval` seconds.

    `served`: seconds between two reads of the exporter's `/metrics` (compressed). Where they are an interval, each poll
    has its output, as vmagent's has; without them the exporter fetches, parses, maps and derives, and nobody reads it.
    """

    title: str
    targets: Mapping[str, int]
    interval: float
    served: float | None

    @property
    def goal(self) -> bool:
        """Whether vmagent's CPU is the goal: for the poll alone, however often `/metrics` is read.

        vmagent's CPU has its remote write in it, once a second by default, which cannot be separated. So below a
        second, where one write carries several polls, there is no goal.
        """
        return self.interval >= 1.0 and self.served is None


_ONE: Final = {"vllm/0.32.0": 1}
_FIFTY: Final = {"vllm/0.32.0": 25, "sglang/0.5.23": 25}

CASES: Final = (
    Case("1 vLLM target every second", _ONE, 1.0, served=None),
    Case("1 SGLang target every second", {"sglang/0.5.23": 1}, 1.0, served=None),
    Case("50 targets (25 vLLM, 25 SGLang) every 2 s", _FIFTY, 2.0, served=None),
    Case("1 vLLM target every second, /metrics served", _ONE, 1.0, served=1.0),
    Case("50 targets every 2 s, /metrics served", _FIFTY, 2.0, served=2.0),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one contender used: `cpu` in seconds per scrape of one target, `resident` in bytes at the window's end."""

    name: str
    scrapes: int
    cpu: float
    resident: int


@dataclass(frozen=True, slots=True)
class Result:
    """A case with what each contender used in it."""

    case: Case
    usages: tuple[Usage, ...]

    def of(self, name: str) -> Usage | None:
        """A contender's usage, None if it was not there."""
        return next((usage for usage in self.usages if usage.name == name), None)


class NotMeasuredError(Exception):
    """A contender did not do what it was to be measured at."""


class _Contender(NamedTuple):
    name: str
    agent: str
    process: subprocess.Popen[bytes]


def missing() -> tuple[str, ...]:
    """The peers that are not installed."""
    return tuple(name for name in (VMAGENT, PROMETHEUS) if shutil.which(name) is None)


def versions() -> Iterator[tuple[str, str]]:
    """What is measured, with its versions."""
    yield EXPORTER, importlib.metadata.version("llm-headroom")
    for package in ("prometheus-client", "httpx", "aiohttp"):
        yield package, importlib.metadata.version(package)
    absent = missing()
    for program, flag in ((VMAGENT, "-version"), (PROMETHEUS, "--version")):
        if program not in absent:
            yield program, _version(program, flag)


def _version(program: str, flag: str) -> str:
    # Debian's vmagent does not know its own version.
    package = f"{shutil.which('dpkg-query')}", "-W", "-f", "${Version}", PACKAGES[program]
    for command in ((program, flag), package):
        with suppress(OSError):
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
            if found is not None:
                return found[0]
    return "of unknown version"


def measure(case: Case, seconds: float = SECONDS, trees: Sequence[Path] = ()) -> Result:
    """What the exporter, other source trees of it and the installed peers use in a window of so many seconds.

    Raises:
        NotMeasuredError: a contender did not start, died, or polled too little or without success.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, str(BENCH / "capture_server.py"), *(f"{k}={n}" for k, n in case.targets.items())]
        server = _start(stack, command, stdout=subprocess.PIPE)
        if server.stdout is None:
            raise NotMeasuredError("the capture server has no output")
        targets = [(engine, f"127.0.0.1:{port}") for engine, port in json.loads(server.stdout.readline() or b"[]")]
        if not targets:
            raise NotMeasuredError("the capture server has not started")
        exporter, address = _exporter(stack, case, targets, folder)
        others = [_exporter(stack, case, targets, folder, tree) for tree in trees]
        contenders = [exporter, *(other for other, _ in others)]
        contenders += _peers(stack, case, [address for _, address in targets], folder)
        readers = [_Reader(each, case.served) for each in (address, *(there for _, there in others))]
        for reader in readers:
            stack.enter_context(reader)
        time.sleep(max(3.0, 2.5 * max(case.interval, case.served or 0.0)))
        usages = _window(contenders, targets[0][1], seconds)
        for reader in readers:
            _check(reader.once(), len(targets))
    expected = seconds / case.interval * len(targets)
    for usage in usages:
        if usage.scrapes < _TOO_FEW * expected:
            raise NotMeasuredError(f"{usage.name} has made {usage.scrapes} scrapes, not {expected:.0f}")
    return Result(case, usages)


def _window(contenders: Sequence[_Contender], server: str, seconds: float) -> tuple[Usage, ...]:
    def reading() -> tuple[list[float], dict[str, int]]:
        for contender in contenders:
            if contender.process.poll() is not None:
                raise NotMeasuredError(f"{contender.name} has ended with status {contender.process.returncode}")
        return [_cpu(contender.process.pid) for contender in contenders], _get_json(server, "/-/counts")

    before, counted_before = reading()
    time.sleep(seconds)
    after, counted = reading()
    usages = []
    for contender, begin, end in zip(contenders, before, after, strict=True):
        scrapes = sum(
            number - counted_before.get(agent, 0)
            for agent, number in counted.items()
            if agent.startswith(contender.agent)
        )
        resident = _resident(contender.process.pid)
        usages.append(Usage(contender.name, scrapes, (end - begin) / max(scrapes, 1), resident))
    return tuple(usages)


def _start(
    stack: ExitStack,
    command: Sequence[str],
    stdout: int = subprocess.DEVNULL,
    stderr: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment)
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _exporter(
    stack: ExitStack, case: Case, targets: Sequence[tuple[str, str]], folder: Path, tree: Path | None = None
) -> tuple[_Contender, str]:
    """The exporter, this one or that of another source tree, and the address that it listens on."""
    name, agent, prefix, environment = EXPORTER, "llm-headroom/", "", None
    if tree is not None:
        name = agent = tree.resolve().name
        prefix = f"{ALIAS}{name}"  # both give the same User-Agent
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve() / "exporter")}
    command = [sys.executable, "-m", "llm_headroom", "run", "--listen", "127.0.0.1:0", "--no-gpu", "--log-format=json"]
    command += ["--interval", f"{case.interval * 1000:.0f}ms"]
    for engine, address in targets:
        command += ["--target", f"{engine}=http://{address}{prefix}"]
    path = folder / f"{name}.log"
    with path.open("wb") as log:
        process = _start(stack, command, stderr=log.fileno(), environment=environment)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if event["msg"] == "listening":
                    return _Contender(name, agent, process), event["addresses"].split(",")[0]
        time.sleep(0.1)
    raise NotMeasuredError(f"{name} has not started: {path.read_text(encoding='utf-8')[-500:]}")


def _peers(stack: ExitStack, case: Case, addresses: Sequence[str], folder: Path) -> list[_Contender]:
    absent = missing()
    interval = f"{case.interval * 1000:.0f}ms"
    # Both read JSON, which is YAML.
    scrapes = folder / "scrapes.json"
    job = {"job_name": "engines", "static_configs": [{"targets": list(addresses)}]}
    scrapes.write_text(json.dumps({"global": {"scrape_interval": interval}, "scrape_configs": [job]}), "utf-8")
    found = []
    if VMAGENT not in absent:
        command = [
            VMAGENT,
            f"-promscrape.config={scrapes}",
            f"-remoteWrite.url=http://{addresses[0]}/api/v1/write",
            f"-remoteWrite.tmpDataPath={folder / 'vmagent'}",
            "-httpListenAddr=127.0.0.1:0",
            "-loggerLevel=ERROR",
        ]
        found.append(_Contender(VMAGENT, "vm_promscrape", _start(stack, command)))
    if PROMETHEUS not in absent:
        command = [
            PROMETHEUS,
            f"--config.file={scrapes}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            "--web.listen-address=127.0.0.1:0",
            "--log.level=error",
        ]
        found.append(_Contender(PROMETHEUS, "Prometheus/", _start(stack, command)))
    urls = [f"http://{address}/metrics" for address in addresses]
    command = [sys.executable, str(BENCH / "httpx_poll.py"), str(case.interval), *urls]
    return [*found, _Contender(HTTPX, "python-httpx/", _start(stack, command))]


class _Reader:
    """Reads the exporter's `/metrics` every so many seconds over one connection, as Prometheus does; never if None."""

    def __init__(self, address: str, every: float | None) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=10)
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._connection.close()

    def once(self) -> bytes:
        """The body now."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._connection.request("GET", "/metrics", headers=SCRAPER)
        return self._connection.getresponse().read()

    def _read(self) -> None:
        while not self._ended.wait(self._every):
            self._connection.request("GET", "/metrics", headers=SCRAPER)
            self._connection.getresponse().read()


def _check(body: bytes, targets: int) -> None:
    """Refuses to report on an exporter that polls in vain."""
    import gzip  # noqa: PLC0415 - told apart from zlib's other uses by its name

    lines = gzip.decompress(body).decode().splitlines()
    up = [line for line in lines if line.startswith("llm_up{")]
    if len(up) != targets or not all(line.endswith(" 1.0") for line in up):
        raise NotMeasuredError(f"{EXPORTER} does not reach its targets: {up[:3]}")
    invalid = [line for line in lines if line.startswith("llm_source_samples{") and 'state="invalid"' in line]
    if not all(line.endswith((" 0", " 0.0")) for line in invalid):
        raise NotMeasuredError(f"{EXPORTER} drops samples: {invalid[:3]}")


def _get_json(address: str, path: str) -> dict[str, int]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        counts: dict[str, int] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return counts


def _cpu(pid: int) -> float:
    """CPU seconds of a process and its threads, ended ones included: exact, where /proc/PID/stat counts ticks."""
    clock = ctypes.c_int()
    if error := _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise NotMeasuredError(f"process {pid} has no CPU clock (error {error})")
    return time.clock_gettime(clock.value)


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise NotMeasuredError(f"process {pid} has no resident memory")


def table(result: Result) -> str:
    """A case's usages, each with its ratio to the exporter's."""
    own = result.of(EXPORTER)
    lines = [f"{result.case.title:48} {'scrapes':>8} {'CPU ms/scrape':>14} {'ratio':>7} {'RSS MB':>7}"]
    for usage in result.usages:
        ratio = usage.cpu / own.cpu if own is not None else 0.0
        lines.append(
            f"  {usage.name:46} {usage.scrapes:8} {usage.cpu * 1e3:14.3f} {ratio:7.2f} {usage.resident / 1e6:7.1f}"
        )
    return "\n".join(lines)


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every program that measures polls."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--seconds", type=float, default=SECONDS, help="length of each window (%(default)g)")
    arguments.add_argument(
        "--peer", type=Path, action="append", default=[], metavar="DIR", help="another source tree of the exporter"
    )
    return arguments


def main() -> None:
    """Prints the tables."""
    options = parser("Measures whole polls of llm-headroom beside its peers.")
    options.add_argument("--interval", type=float, metavar="S", help="only one vLLM target, polled every S seconds")
    options.add_argument("--served", type=float, metavar="S", help="of that, /metrics is read every S seconds")
    arguments = options.parse_args()
    cases: Sequence[Case] = CASES
    if arguments.interval is not None:
        read = f", /metrics every {arguments.served:g} s" if arguments.served else ""
        title = f"1 vLLM target every {arguments.interval:g} s{read}"
        cases = (Case(title, _ONE, arguments.interval, arguments.served or None),)
    elif arguments.served is not None:
        options.error("--served needs --interval")
    for name in missing():
        print(f"without {name}: {MISSING[name]}")
    for case in cases:
        print(table(measure(case, arguments.seconds, arguments.peer)), flush=True)


if __name__ == "__main__":
    main()
