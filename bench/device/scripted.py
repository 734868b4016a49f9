"""A card that processes share, without a GPU: the stub's description, rewritten whenever one of them takes memory.

Like a driver it refuses what does not fit, and takes back the memory of processes that have ended. Load has a power,
and the energy counter is what that power adds up to. All of it is made up: it proves the checks, not a GPU.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nvml_library

if TYPE_CHECKING:
    from collections.abc import Iterator

TOTAL: Final = 85520809984
RESERVED: Final = 502267904
CONTEXT: Final = 500 * 2**20
"""What a process takes by using the card at all."""
IDLE_WATTS, BUSY_WATTS = 70.0, 512.0
LIE: Final = "HEADROOM_DEVICE_LIE"
"""A variable: so many bytes are reported free that nobody can have. To see that the checks fail."""


def environment(folder: Path) -> dict[str, str]:
    """Build the stub into a folder, with an idle card; the variables under which programs meet it."""
    folder.chmod(0o755)  # for the reading without any right
    card = Card(folder / "card.nvml")
    with card.changed():
        pass
    return nvml_library.Description(card.path, card.path.read_text(encoding="utf-8")).environment(
        nvml_library.build(folder)
    )


class Card:
    """The shared card whose description is at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = path.with_suffix(".json")

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """The card's state, to be changed while nobody else does; it is there for readers at the end."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = time.time()
            new: dict[str, Any] = {"held": {}, "busy": [], "joules": 1e6, "at": now, "copying": 0.0}
            state = json.loads(self._state.read_text(encoding="utf-8")) if self._state.exists() else new
            state["joules"] += (BUSY_WATTS if state["busy"] else IDLE_WATTS) * (now - state["at"])
            state["at"] = now
            state["held"] = {pid: held for pid, held in state["held"].items() if Path("/proc", pid).exists()}
            yield state
            _replace(self._state, json.dumps(state))
            _replace(self.path, _described(state))

    def free(self, state: dict[str, Any]) -> int:
        """Bytes that nobody holds."""
        return int(TOTAL - RESERVED - sum(state["held"].values()))


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _described(state: dict[str, Any]) -> str:
    used, busy = sum(state["held"].values()), bool(state["busy"])
    free = TOTAL - RESERVED - used + int(os.environ.get(LIE, "0"))
    energy = int(state["joules"] * 1000)
    answers = {
        "nvmlDeviceGetMemoryInfo_v2": f"{TOTAL} {RESERVED} {free} {used}",
        "nvmlDeviceGetMemoryInfo": f"{TOTAL} {free} {used + RESERVED}",
        "nvmlDeviceGetComputeRunningProcesses_v3": " ".join(f"{pid} {held} 0 0" for pid, held in state["held"].items()),
        "nvmlDeviceGetUtilizationRates": "99 40" if busy else "0 0",
        "nvmlDeviceGetPowerUsage": int((BUSY_WATTS if busy else IDLE_WATTS) * 1000),
        "nvmlDeviceGetTotalEnergyConsumption": energy,
        "field 83": f"{energy} 3",
        "nvmlDeviceGetCurrentClocksEventReasons": "0x4" if busy else "0x1",
        "nvmlDeviceGetPcieThroughput 0": 0,
        "nvmlDeviceGetPcieThroughput 1": int(state["copying"] / 1000),
    }
    lines = "".join(f"{key} = {value}\n" for key, value in answers.items())
    return f"{nvml_library.fixture('h100')}\n[gpu 0]\n{lines}"
