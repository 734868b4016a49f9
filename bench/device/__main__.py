"""The run: every part in turn, one table, one file of JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nvml_library
from device import answers, cost, load, memory, scripted
from device.processes import Watch, Worker
from device.rows import Row, Verdict, held, not_run, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

SECONDS: Final = 200.0
"""How long the whole may take."""
PARTS: Final = ("answers", "cost", "memory", "rights", "load")
WHOLE: Final = "the whole part"
VLLM: Final = ("vllm", "0.12.0", "saturated")
SGLANG: Final = ("sglang", "0.5.23", "saturated")


class Run:
    """Rows so far, and the time that is left. `parts` are those that are wanted."""

    def __init__(self, *, parts: frozenset[str], stub: bool, quick: bool, leak_seconds: float, output: Path) -> None:
        self.parts = parts
        self.began = time.monotonic()
        self.rows: list[Row] = []
        self.stub = stub
        self.quick = quick
        self.leak_seconds = leak_seconds
        self.output = output

    def left(self) -> float:
        """Seconds that the run may still take."""
        return SECONDS + max(0.0, self.leak_seconds - memory.LEAK_SECONDS) - (time.monotonic() - self.began)

    def part(self, name: str, needs: float, rows: Callable[[], Iterable[Row]]) -> None:
        """Add a part's rows; what goes wrong in one is a row, and takes no other part along."""
        if name not in self.parts:
            self.rows.append(not_run(name, WHOLE, "not asked for"))
            return
        if self.left() < needs and not self.quick:
            self.rows.append(not_run(name, WHOLE, f"{self.left():.0f} s are left, it needs {needs:.0f}"))
            return
        try:
            for row in rows():
                self.rows.append(row)
                print(f"{row.verdict:>8}  {row.part}: {row.what}", file=sys.stderr)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs into the table
            ended = held(name, "the part comes to its end", "", f"{type(error).__name__}: {error}", right=False)
            self.rows.append(ended)


def main() -> int:
    """Run everything; the exit status."""
    parser = argparse.ArgumentParser(prog="bench/device/run.sh", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/device"), help="folder for the files")
    parser.add_argument("--stub", action="store_true", help="without a GPU: prove the checks on the stub of NVML")
    parser.add_argument("--quick", action="store_true", help="short windows, for the tests")
    parser.add_argument(
        "--leak-seconds", type=float, default=memory.LEAK_SECONDS, help="how long the leak takes until memory is out"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, in a list; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.stub and "NVML_STUB_FILE" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            # The dynamic loader reads LD_LIBRARY_PATH once, when a process starts.
            environment = os.environ | scripted.environment(Path(folder))
            command = [sys.executable, "-m", "device", *sys.argv[1:]]
            return subprocess.run(command, env=environment, check=False).returncode
    why = _no_nvml()
    if why:
        print(f"no GPU can be read ({why}); --stub proves the checks without one", file=sys.stderr)
        return 2
    import pynvml  # noqa: PLC0415 - not before it is known to be there

    arguments.output.mkdir(parents=True, exist_ok=True)
    leak = 1.0 if arguments.quick else arguments.leak_seconds
    parts = frozenset(arguments.parts.split(","))
    run = Run(parts=parts, stub=arguments.stub, quick=arguments.quick, leak_seconds=leak, output=arguments.output)
    _parts(run, pynvml)
    return _written(run, pynvml)


def _no_nvml() -> str:
    """Why NVML cannot be used; empty, and NVML initialised, if it can."""
    try:
        import pynvml  # noqa: PLC0415 - what is missing is said here
    except ImportError as error:
        return str(error)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return str(error)
    return ""


def _parts(run: Run, pynvml: Any) -> None:  # noqa: ANN401 - pynvml has no types
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    leak, short, interval = run.leak_seconds, *((0.025, 0.1) if run.quick else (1.0, 0.25))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        run.part("answers", 10, lambda: _answers(run, pynvml, folder))
        run.part("cost", 10, lambda: cost.rows(2 * short))
        why = _no_allocations(run)
        if why:
            for part in ("memory", "rights", "load"):
                run.rows.append(not_run(part, WHOLE, why))
            return
        try:
            engines = stack.enter_context(Worker(*VLLM)), stack.enter_context(Worker(*SGLANG))
            watch = Watch(folder, interval, {"vllm": engines[0].url, "sglang": engines[1].url})
            stack.enter_context(watch)
        except Exception as error:  # noqa: BLE001 - as in `part`
            run.rows.append(held("memory", "workers and exporter start", "", repr(error), right=False))
            return

        def free() -> int:
            return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)

        run.part("memory", 60, lambda: memory.rows(watch, engines, _asked(run, free), leak_seconds=leak))
        run.part("rights", 10, cost.users)
        watch.exporter.__exit__()
        worker = stack.enter_context(Worker())

        def watts() -> float:
            return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1000

        # The exporter's two starts, three short windows and the end take 40 s besides.
        watched = min(60.0, run.left() - 40.0) * short
        windows = load.Windows(alone=10 * short, watched=watched, interval=interval)
        run.part("load", 60, lambda: load.rows(folder, run.output, worker, watts, windows))


def _asked(run: Run, free: Callable[[], int]) -> Callable[[], int]:
    """A question to the driver; a stub's card has to be rewritten first, as a driver does by itself."""
    if not run.stub:
        return free
    card = scripted.Card(Path(os.environ["NVML_STUB_FILE"]))

    def looked() -> int:
        with card.changed():
            pass
        return free()

    return looked


def _no_allocations(run: Run) -> str:
    """Why nothing can be allocated here; empty if it can."""
    if run.stub:
        return ""
    try:
        import torch  # noqa: PLC0415 - what is missing is said here
    except ImportError:
        return "PyTorch is not installed"
    return "" if torch.cuda.is_available() else "PyTorch sees no GPU"


def _answers(run: Run, pynvml: Any, folder: Path) -> Iterator[Row]:  # noqa: ANN401 - pynvml has no types
    """Every call, written down; and whether the stub replays it to the same series."""
    found = answers.recorded(pynvml)
    name = next(each.text for each in found if each.key == "nvmlDeviceGetName")
    title = f"{name}, driver {found[0].text}, {datetime.now(UTC):%Y-%m-%d}" + (
        ": the STUB's answers" if run.stub else ""
    )
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    (run.output / f"{slug}.nvml").write_text(answers.description(found, title), encoding="utf-8")
    listed = [each._asdict() for each in found]
    (run.output / "nvml-calls.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
    refused = [each for each in found if each.text.startswith("!") or each.section == "pynvml"]
    calls = [each for each in found if each.section.startswith("gpu") and not each.key.startswith("field")]
    note = "not supported: " + ", ".join(each.key for each in refused) if refused else ""
    yield Row("answers", "calls and fields answered", Verdict.FIGURE, len(found), len(found) - len(refused), note=note)
    slowest = max(calls, key=lambda each: each.wall)
    yield Row("answers", "slowest call", Verdict.FIGURE, None, slowest.wall / 1000, "ms", slowest.key)
    try:
        library = nvml_library.build(folder)
    except BaseException as error:  # noqa: BLE001 - pytest's Skipped, where there is no compiler, is no Exception
        yield not_run("answers", "the stub replays them", str(error))
        return
    live = cost.reading()
    path = folder / "replayed.nvml"
    path.write_text(answers.description(found, title), encoding="utf-8")
    replayed = cost.reading(environment={"NVML_STUB_FILE": str(path), "LD_LIBRARY_PATH": str(library.parent)})
    if "error" in live or "error" in replayed:
        yield held(
            "answers", "the stub replays them", "read", str(live.get("error") or replayed.get("error")), right=False
        )
        return
    fresh = {key for key in live["series"] if "llm_gpu_process_memory_bytes" not in key}
    differ = sorted(fresh ^ set(replayed["series"]))
    yield held(
        "answers",
        "the stub replays them to the same series",
        f"{len(fresh)} series",
        f"{len(replayed['series'])} series",
        right=not differ,
        note="differ: " + ", ".join(differ) if differ else "",
    )


def _written(run: Run, pynvml: Any) -> int:  # noqa: ANN401 - pynvml has no types
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    where = {
        "gpu": str(pynvml.nvmlDeviceGetName(handle)),
        "driver": str(pynvml.nvmlSystemGetDriverVersion()),
        "stub": run.stub,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seconds": round(time.monotonic() - run.began, 1),
    }
    result = {"where": where, "rows": [row._asdict() for row in run.rows]}
    (run.output / "results.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    what = "THE STUB, NOT A GPU" if run.stub else where["gpu"]
    head = f"{what}, driver {where['driver']}, {where['date']}, {where['seconds']} s\n"
    text = f"{head}\n{table(run.rows)}\n"
    (run.output / "table.md").write_text(text, encoding="utf-8")
    print(text)
    counts = {verdict: sum(row.verdict is verdict for row in run.rows) for verdict in Verdict}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(counts[Verdict.FAIL] > 0)


if __name__ == "__main__":
    sys.exit(main())
