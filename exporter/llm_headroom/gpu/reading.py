"""NVML → points. The only module that imports pynvml; `nvml` has the queries.

Devices and labels: a GPU has `gpu` = its NVML index and its `uuid`. In MIG mode each instance is a device of its own,
`gpu` = "<index>:<MIG index>" (the notation of NVIDIA_VISIBLE_DEVICES) and `uuid` = "MIG-…", with memory and, if asked
for, processes; the parent has what NVML reports for the whole board. `llm_gpu_info` of an instance names its parent and
its profile.

What a device does not support is absent, and not asked again until NVML is initialised again. So is a value that cannot
be. Memory: `used` is held by processes, `reserved` by the driver and firmware (nvmlDeviceGetMemoryInfo_v2);
where only the first version answers (drivers before 510) there is no `reserved`, and `used` includes it. Headroom is
`free`, never total less used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.gpu import nvml
from llm_headroom.gpu.device import Card, Refused, call, loss, optional, text
from llm_headroom.gpu.events import XidWatcher
from llm_headroom.gpu.nvml import Code
from llm_headroom.model import Cause, Failure, Point, Series

if TYPE_CHECKING:
    from llm_headroom.gpu.device import DeviceProcesses, Nvml

_SONAME: Final = "libnvidia-ml.so.1"
_CONTAINER: Final = (
    "in a container, use the NVIDIA runtime (Docker: --gpus all; Kubernetes: runtimeClassName: nvidia) with "
    "NVIDIA_VISIBLE_DEVICES=all and NVIDIA_DRIVER_CAPABILITIES=utility"
)
_DRIVER: Final = Path("/proc/driver/nvidia/version")
"""Is there while the driver's kernel module is loaded."""
_GPUS: Final = Series(schema.GPUS, {})
_LONGEST_PATIENCE: Final = 64


class GpuError(Exception):
    """No GPU could be read; `failure` has the reason and a remedy.

    Its cause is LIBRARY (NVML or its Python package is missing), DRIVER (not loaded, of another version, without
    answer) or DEVICE (NVML lists no GPU, or every GPU is lost).
    """

    failure: Failure

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of all GPUs.

    `warnings` name the devices and values that gave nothing, `driver` is its version, `processes` are those of each
    device whose processes can be listed.
    """

    points: tuple[Point, ...]
    warnings: tuple[Failure, ...]
    driver: str
    processes: tuple[DeviceProcesses, ...] = ()


class Gpus:
    """Every GPU that NVML lists. Blocks; to be used from one thread.

    With `processes` there is a point for each compute process, with `pcie` PCIe throughput, at the cost of 40 ms for
    each GPU, with `events` Xid errors are counted from the first reading on. `library` is the path of NVML where the
    dynamic loader does not find libnvidia-ml.so.1 by itself.
    """

    def __init__(
        self, *, processes: bool = False, pcie: bool = False, events: bool = False, library: Path | None = None
    ) -> None:
        """Load nothing yet."""
        self._processes = processes
        self._questions = (nvml.PCIE,) if pcie else ()
        self._xids = XidWatcher() if events else None
        self._library = library
        self._pynvml: Nvml | None = None
        self._running = False
        self._watching: tuple[str, ...] = ()
        self._driver = ""
        self._cards: list[Card] = []
        self._lossy_readings = 0
        self._patience = 1

    def read(self) -> Reading:
        """Read every GPU. A lost one has no points but a warning, and is tried again by each reading.

        NVML is initialised by the first reading, and again after a failure, when its list of GPUs has changed, and
        while a GPU is lost: by the next reading at first, then ever more rarely, since it costs the other GPUs' drivers
        work and a GPU that fell off the bus stays away until somebody resets it.

        Raises:
            GpuError: there is nothing to read.
        """
        try:
            pynvml = self._load()
            if self._lossy_readings >= self._patience:
                self.close()
                self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
            if self._running and self._list_changed(pynvml):
                self.close()
            if not self._running:
                self._start(pynvml)
            return self._read()
        except Refused as refused:
            self.close()
            raise GpuError(_explained(refused, self._library)) from refused

    def close(self) -> None:
        """Shut NVML down; a later reading initialises it again."""
        if self._xids is not None:
            self._xids.stop()
        self._watching = ()
        self._cards = []
        self._lossy_readings = 0
        if self._running and self._pynvml is not None:
            self._running = False
            try:
                self._pynvml.nvmlShutdown()
            except self._pynvml.NVMLError:
                return  # a driver that is gone has nothing left to shut down

    def _load(self) -> Nvml:
        if self._pynvml is None:
            if self._library is not None:
                import ctypes  # noqa: PLC0415 (as below)

                try:
                    # pynvml then finds this one, since the loader knows libraries by their soname.
                    ctypes.CDLL(str(self._library), mode=ctypes.RTLD_GLOBAL)
                except OSError as error:
                    raise GpuError(Failure(Cause.LIBRARY, f"cannot load NVML: {error}")) from error
            try:
                import pynvml  # noqa: PLC0415 (megabytes that a machine without GPUs need not spend)
            except ImportError as error:
                why = f"the Python package nvidia-ml-py cannot be imported ({error}): install it to read GPUs"
                raise GpuError(Failure(Cause.LIBRARY, why)) from error
            self._pynvml = pynvml
        return self._pynvml

    def _start(self, pynvml: Nvml) -> None:
        call(pynvml, "nvmlInit")
        self._running = True
        self._driver = text(pynvml, "nvmlSystemGetDriverVersion")
        cuda = optional(pynvml, "nvmlSystemGetCudaDriverVersion_v2")
        versions = {"driver": self._driver, "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""}
        count = call(pynvml, "nvmlDeviceGetCount")
        if not count:
            self.close()
            why = f"NVML works (driver {self._driver}) but lists no GPU: look for errors of the driver in dmesg; "
            raise GpuError(Failure(Cause.DEVICE, why + _CONTAINER))
        self._cards = [Card(pynvml, index, versions, self._questions) for index in range(count)]

    def _list_changed(self, pynvml: Nvml) -> bool:
        count = call(pynvml, "nvmlDeviceGetCount")
        return count != len(self._cards) or any(card.replaced() for card in self._cards)

    def _read(self) -> Reading:
        points = [Point(_GPUS, float(len(self._cards)), "nvmlDeviceGetCount_v2")]
        warnings: list[Failure] = []
        processes: list[DeviceProcesses] = []
        lost = []
        for card in self._cards:
            before, before_listed = len(points), len(processes)
            try:
                card.read(points, warnings, processes, series=self._processes)
            except Refused as refused:
                if refused.code in nvml.NVML_LOST:
                    raise
                del points[before:], processes[before_listed:]
                lost.append(loss(card.name, refused))
        if len(lost) == len(self._cards):
            self.close()
            raise GpuError(Failure(Cause.DEVICE, "; ".join(each.message for each in lost)))
        if lost:
            self._lossy_readings += 1
        else:
            self._patience = 1
        self._watch()
        return Reading((*points, *self.xids()), (*lost, *warnings), self._driver, tuple(processes))

    def xids(self) -> list[Point]:
        """Xid errors so far: known without NVML too, since they are counted here."""
        return [] if self._xids is None else self._xids.points()

    def _watch(self) -> None:
        """Start waiting for Xid errors: after NVML's initialisation, and again when the driver has ended the wait."""
        boards = [card.board for card in self._cards if card.board is not None]
        uuids = tuple(board.labels["uuid"] for board in boards)
        if self._xids is not None and (uuids != self._watching or self._xids.broken):
            self._xids.start(self._pynvml, [(board.handle, board.labels) for board in boards])
            self._watching = uuids


def _explained(refused: Refused, library: Path | None) -> Failure:
    """Why NVML as a whole cannot be read."""
    code, name = refused.code, library or _SONAME
    if code == Code.LIBRARY_NOT_FOUND:
        hidden, none = "is loaded, but its library is hidden from this process", "seems not to be installed"
        driver = hidden if _DRIVER.exists() else none
        why = f"{name} not found: the NVIDIA driver {driver}; on a host, install the driver; {_CONTAINER}"
        return Failure(Cause.LIBRARY, why)
    if code == Code.FUNCTION_NOT_FOUND:
        why = f"{name} lacks {refused.origin}: it is too old, or not NVML; install a current NVIDIA driver"
        return Failure(Cause.LIBRARY, why)
    if code in nvml.DEVICE_LOST and code != Code.TIMEOUT:
        return loss("NVML", refused)
    advice: dict[int, str] = {
        Code.DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded, or its devices (/dev/nvidiactl, /dev/nvidia0, …) are "
        f"hidden from this process: on a host, load it (modprobe nvidia); {_CONTAINER}",
        Code.LIB_RM_VERSION_MISMATCH: f"the kernel module and {name} are of different versions, as after an upgrade of "
        "the driver: reboot or reload the module, then restart llm-headroom (recreate its container)",
        Code.NO_PERMISSION: f"this user is not allowed to open /dev/nvidiactl, /dev/nvidia0, …; {_CONTAINER}",
        Code.UNINITIALIZED: "the driver was reloaded; the next reading initialises NVML again",
    }
    what = advice.get(code, "the NVIDIA driver does not respond: look for its messages in dmesg")
    return Failure(Cause.DRIVER, f"{refused.origin} failed ({refused.text}): {what}")
