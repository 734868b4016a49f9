"""A GPU that is read instead of NVML's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_headroom import schema
from llm_headroom.gpu.device import DeviceProcesses
from llm_headroom.gpu.reading import GpuError, Reading
from llm_headroom.model import Point, Series

if TYPE_CHECKING:
    import threading

    from llm_headroom.model import Failure

DEVICE = {"gpu": "0", "uuid": "GPU-0"}


@dataclass
class Card:
    """A GPU that can be read, and may fail or hang."""

    failure: Failure | None = None
    hangs: threading.Event | None = None
    reads: int = 0
    closed: int = 0

    def read(self) -> Reading:
        """A clock and the memory."""
        self.reads += 1
        if self.hangs is not None:
            self.hangs.wait(60.0)
        if self.failure is not None:
            raise GpuError(self.failure)
        return Reading(
            (
                Point(Series(schema.GPU_CLOCK, {**DEVICE, "domain": "sm"}), 1e9, ""),
                Point(Series(schema.GPU_MEMORY_TOTAL, DEVICE), 100.0, ""),
                Point(Series(schema.GPU_MEMORY_USED, DEVICE), 40.0, ""),
                Point(Series(schema.GPU_MEMORY_FREE, DEVICE), 60.0, ""),
            ),
            (),
            "1.0",
            (DeviceProcesses("0", "GPU-0", ()),),
        )

    def xids(self) -> list[Point]:
        """One error."""
        return [Point(Series(schema.GPU_XID_ERRORS, {**DEVICE, "xid": "79"}), 1.0, "")]

    def close(self) -> None:
        """Counted."""
        self.closed += 1
