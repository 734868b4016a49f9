"""What a collection costs with this driver, and who may make one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from device.rows import Row, figure, held, not_run
from gpu import measured
from llm_headroom.gpu import Gpus

if TYPE_CHECKING:
    from collections.abc import Iterator

PART: Final = "cost"
NOBODY: Final = 65534


def rows(seconds: float) -> Iterator[Row]:
    """A collection of all GPUs, with and without PCIe throughput."""
    for what, gpus in (("one collection", Gpus(processes=True)), ("with PCIe throughput", Gpus(pcie=True))):
        cost = measured(gpus.read, seconds)
        gpus.close()
        yield figure(PART, f"{what}: CPU", cost.cpu, "ms")
        yield figure(PART, f"{what}: wall time", cost.median, "ms", f"99th percentile {cost.worst:.3g} ms")


def users() -> Iterator[Row]:
    """What a process without any right reads, beside root: the same series, the same processes."""
    part = "rights"
    if os.geteuid():
        yield not_run(part, "processes without root and with it", "this run is not root's")
        return
    root, nobody = reading(), reading(NOBODY)
    if "error" in nobody or "error" in root:
        yield held(part, "series", "read", nobody.get("error", root.get("error", "")), right=False)
        return
    missing = sorted(root["series"].keys() - nobody["series"].keys())
    note = "missing: " + ", ".join(missing) if missing else ""
    counts = [f"{len(each['series'])} with root" for each in (root,)] + [f"{len(nobody['series'])} without"]
    yield held(part, "series without root", *counts, right=not missing, note=note)
    yield held(
        part,
        "processes without root",
        f"{len(root['processes'])} with root",
        f"{len(nobody['processes'])} without",
        right=root["processes"].keys() == nobody["processes"].keys(),
    )


def reading(user: int | None = None, environment: dict[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON
    """A reading in a process of its own (`listing`)."""
    command = [sys.executable, "-m", "device.listing", *([] if user is None else [str(user)])]
    answer = subprocess.run(
        command, env=os.environ | (environment or {}), capture_output=True, text=True, check=False, timeout=60
    )
    if answer.returncode:
        return {"error": (answer.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(answer.stdout)
