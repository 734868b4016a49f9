"""A process that uses the GPU as it is asked to, and can answer over HTTP as a captured engine meanwhile.

    python -m device.worker [ENGINE VERSION STATE]

Each line of standard input is a command, {"do": NAME, ...}; each gets one line of JSON. The first line that comes is
{"memory": "PyTorch" or "stub", "url": …}. On a GPU memory is PyTorch's; on the stub it is that of `scripted`.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from device import scripted

CHUNKS: Final = tuple(2**power for power in (33, 31, 30, 28, 26, 24, 21))
"""Sizes by which memory is filled up: the smallest is a page of the driver, 2 MiB."""
SIDE: Final = 8192
"""Rows and columns of the matrices that are multiplied."""


class Memory(Protocol):
    """Where a worker allocates and computes."""

    name: str

    def take(self, size: int) -> bool:
        """Allocate bytes; whether they were to be had."""
        ...

    def release(self) -> None:
        """Give back everything but what the process takes by being there."""
        ...

    def held(self) -> int:
        """Bytes that `take` has allocated."""
        ...

    def work(self) -> None:
        """A short piece of work: a tenth of a second or less."""
        ...

    def copy(self) -> int:
        """Move some bytes from the host to the device; their number."""
        ...

    def rest(self) -> None:
        """After the last piece of work."""
        ...


class Cuda:
    """A real GPU through PyTorch."""

    name = "PyTorch"

    def __init__(self) -> None:
        import torch  # noqa: PLC0415 - only where there is a GPU

        self._torch = torch
        self._blocks: list[Any] = []
        self._matrices: list[Any] = []
        self._pinned: Any = None
        torch.cuda.init()
        torch.empty(1, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def take(self, size: int) -> bool:
        """As Memory's; PyTorch's large blocks are whole pages of 2 MiB."""
        try:
            self._blocks.append(self._torch.empty(size, dtype=self._torch.uint8, device="cuda"))
        except self._torch.OutOfMemoryError:
            return False
        return True

    def release(self) -> None:
        """As Memory's."""
        self._blocks.clear()
        self._matrices.clear()
        self._torch.cuda.empty_cache()

    def held(self) -> int:
        """As Memory's: what PyTorch's allocator has from the driver."""
        return int(self._torch.cuda.memory_reserved())

    def work(self) -> None:
        """One product of two matrices in bfloat16, waited for."""
        if not self._matrices:
            kind = {"dtype": self._torch.bfloat16, "device": "cuda"}
            self._matrices = [self._torch.randn(SIDE, SIDE, **kind) for _ in range(2)]
            self._matrices.append(self._torch.empty(SIDE, SIDE, **kind))
        first, second, out = self._matrices
        self._torch.matmul(first, second, out=out)
        self._torch.cuda.synchronize()

    def copy(self) -> int:
        """A quarter of a GiB out of pinned memory."""
        if self._pinned is None:
            self._pinned = self._torch.empty(2**28, dtype=self._torch.uint8, pin_memory=True)
            self._matrices = []
        self._pinned.to("cuda", non_blocking=True)
        self._torch.cuda.synchronize()
        return 2**28

    def rest(self) -> None:
        """Nothing to do."""


class Scripted:
    """The stub's card."""

    name = "stub"

    def __init__(self, path: Path) -> None:
        self._card = scripted.Card(path)
        self._pid = str(os.getpid())
        self._copying: tuple[float, int] | None = None
        with self._card.changed() as state:
            state["held"][self._pid] = scripted.CONTEXT

    def take(self, size: int) -> bool:
        """As Memory's."""
        with self._card.changed() as state:
            if size > self._card.free(state):
                return False
            state["held"][self._pid] += size
        return True

    def release(self) -> None:
        """As Memory's."""
        with self._card.changed() as state:
            state["held"][self._pid] = scripted.CONTEXT

    def held(self) -> int:
        """As Memory's."""
        with self._card.changed() as state:
            return int(state["held"][self._pid]) - scripted.CONTEXT

    def work(self) -> None:
        """A hash, for the CPU; the card is busy meanwhile."""
        with self._card.changed() as state:
            state["busy"] = [self._pid]
        for _ in range(20):
            hashlib.sha256(bytes(2**20)).digest()

    def copy(self) -> int:
        """As Memory's; the rate is that of the copies so far."""
        began, moved = self._copying or (time.time(), 0)
        hashlib.sha256(bytes(2**22)).digest()
        self._copying = began, moved + 2**22
        with self._card.changed() as state:
            state["copying"] = self._copying[1] / (time.time() - began)
        return 2**22

    def rest(self) -> None:
        """As Memory's."""
        with self._card.changed() as state:
            state["busy"], state["copying"] = [], 0.0


def _fill(memory: Memory) -> int:
    """Take everything that can be had; its bytes."""
    taken = 0
    for size in CHUNKS:
        while memory.take(size):
            taken += size
    return taken


def _leak(memory: Memory, step: int, every: float) -> float:
    """Take a step after the other until one fails; when that was."""
    due = time.time()
    while memory.take(step):
        due += every
        time.sleep(max(0.0, due - time.time()))
    return time.time()


def _busy(memory: Memory) -> list[tuple[float, int]]:
    """Work until the next line of input, whatever it says; how many pieces were done by when."""
    done, marks = 0, [(time.time(), 0)]
    while not select.select([sys.stdin], [], [], 0)[0]:
        memory.work()
        done += 1
        if time.time() - marks[-1][0] >= 0.05:
            marks.append((time.time(), done))
    sys.stdin.readline()
    memory.rest()
    return [*marks, (time.time(), done)]


def _copy(memory: Memory, until: float) -> float:
    """Copy to the device until a time; bytes a second."""
    began, moved = time.time(), 0
    while time.time() < until:
        moved += memory.copy()
    rate = moved / (time.time() - began)
    memory.rest()
    return rate


def _done(memory: Memory, command: dict[str, Any]) -> object:
    match command["do"]:
        case "take":
            return {"had": memory.take(command["bytes"]), "held": memory.held()}
        case "release":
            memory.release()
            return {"held": memory.held()}
        case "fill":
            return {"taken": _fill(memory), "held": memory.held()}
        case "leak":
            return {"failed": _leak(memory, command["step"], command["every"]), "held": memory.held()}
        case "busy":
            return _busy(memory)
        case "copy":
            return _copy(memory, command["until"])
        case other:
            raise ValueError(f"unknown command {other!r}")


def main() -> None:
    """Serve commands until standard input ends."""
    path = os.environ.get("NVML_STUB_FILE")
    memory: Memory = Scripted(Path(path)) if path else Cuda()
    with ExitStack() as stack:
        url = ""
        if len(sys.argv) > 1:
            from captures import Capture  # noqa: PLC0415 - of the tests; only where an engine is to be shown
            from engine_server import EngineServer, replayed  # noqa: PLC0415 - the same

            engine, version, state = sys.argv[1:]
            url = stack.enter_context(EngineServer(replayed(Capture(engine, version, state)))).url
        print(json.dumps({"memory": memory.name, "url": url}), flush=True)
        for line in sys.stdin:
            print(json.dumps(_done(memory, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
