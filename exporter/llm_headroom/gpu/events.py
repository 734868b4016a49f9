"""Xid errors through NVML's events, counted in a thread of their own.

The driver queues events only for those who have registered, and reports to each the latest Xid of a device, so
that of a burst between two waits some can be missed. What came before the first registration is not made up.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom import clock, schema
from llm_headroom.gpu.nvml import DEVICE_LOST, Code
from llm_headroom.model import point

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_headroom.gpu.device import Handle, Nvml
    from llm_headroom.model import Labels, Point

WAIT_MILLISECONDS: Final = 500
"""How long one wait takes at most, and so how long `stop` may block."""
_PAUSE: Final = 0.1
"""Seconds between a failure and the next registration, so that a driver that fails at once is not asked in a loop."""
_XID: Final = 0x8  # nvmlEventTypeXidCriticalError
_ORIGIN: Final = "nvmlEventSetWait_v2"


class _Seen(NamedTuple):
    times: int
    last: float


class _Registered(NamedTuple):
    """An event set, and the labels of its devices by the address of their handles."""

    events: Handle
    devices: Mapping[int, Labels]


class XidWatcher:
    """Counts of Xid errors, which outlive the driver's reloads and the devices that they are about.

    `start` and `stop` belong to the thread that initialises NVML and shuts it down: between them a thread waits for
    events, which uses handles and so must have ended before nvmlShutdown.
    """

    def __init__(self, now: Callable[[], float] = clock.now) -> None:
        self._now = now
        self._seen: dict[tuple[Labels, int], _Seen] = {}
        self._watched: dict[Labels, bool] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    @property
    def broken(self) -> bool:
        """Whether the driver has ended the waiting, so that `start` is due again."""
        return self._thread is not None and not self._thread.is_alive()

    def start(self, pynvml: Nvml, devices: Sequence[tuple[Handle, Mapping[str, str]]]) -> None:
        """Register for the events of devices, given with their labels, and wait for them in a thread.

        Where the driver has no events, or not for this user, `points` says so with a 0 for each device.
        """
        self.stop()
        named = [(handle, tuple(labels.items())) for handle, labels in devices]
        registered = _register(pynvml, named)
        self._watched = {
            labels: registered is not None and labels in registered.devices.values() for _, labels in named
        }
        if registered is not None:
            self._ending.clear()
            self._thread = threading.Thread(
                target=self._run, args=(pynvml, named, registered), name="nvml-events", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it no longer uses NVML."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._watched = {}

    def points(self) -> list[Point]:
        """What has been counted, and which devices are watched."""
        with self._lock:
            seen = dict(self._seen)
        points = [
            point(schema.GPU_XID_WATCHED, float(watched), "nvmlDeviceRegisterEvents", dict(labels))
            for labels, watched in self._watched.items()
        ]
        for (device, xid), (times, last) in seen.items():
            points.append(point(schema.GPU_XID_ERRORS, float(times), _ORIGIN, dict(device), xid=str(xid)))
            points.append(point(schema.GPU_XID_LAST, clock.shown(last), _ORIGIN, dict(device), xid=str(xid)))
        return points

    def _run(self, pynvml: Nvml, named: Sequence[tuple[Handle, Labels]], registered: _Registered | None) -> None:
        while registered is not None:
            code = self._wait(pynvml, registered)
            with contextlib.suppress(pynvml.NVMLError):  # gone with the driver
                pynvml.nvmlEventSetFree(registered.events)
            # A lost GPU ends the wait for all: the others are registered again without it.
            again = code in DEVICE_LOST and not self._ending.wait(_PAUSE)
            registered = _register(pynvml, named) if again else None

    def _wait(self, pynvml: Nvml, registered: _Registered) -> int:
        """Count events until `stop`, or until NVML fails; the code of the failure, else 0."""
        while not self._ending.is_set():
            try:
                event = pynvml.nvmlEventSetWait_v2(registered.events, WAIT_MILLISECONDS)
            except pynvml.NVMLError as error:
                if error.value == Code.TIMEOUT:
                    continue
                return int(error.value)
            # A device that nobody registered cannot be named, but its error is still one.
            key = (registered.devices.get(_address(event.device), ()), event.eventData)
            with self._lock:
                times = self._seen[key].times if key in self._seen else 0
                self._seen[key] = _Seen(times + 1, self._now())
        return 0


def _register(pynvml: Nvml, named: Sequence[tuple[Handle, Labels]]) -> _Registered | None:
    """A new set with the events of those devices that support them; None if none does."""
    try:
        events = pynvml.nvmlEventSetCreate()
    except pynvml.NVMLError:
        return None
    devices = {}
    for handle, labels in named:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlDeviceRegisterEvents(handle, _XID, events)
            devices[_address(handle)] = labels
    if devices:
        return _Registered(events, devices)
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlEventSetFree(events)
    return None


def _address(handle: Handle) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
