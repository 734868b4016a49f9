"""One GPU: its answers as points, and what it was found not to support. `gpu` lists the GPUs and initialises NVML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from llm_headroom import schema
from llm_headroom.gpu import nvml
from llm_headroom.gpu.nvml import Code
from llm_headroom.host.proc import Proc
from llm_headroom.model import Cause, Failure, Point, Series, point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# pynvml has no types.
Nvml: TypeAlias = Any
Handle: TypeAlias = Any
Answer: TypeAlias = Any
NvmlError: TypeAlias = Any

_FIELD_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of nvmlValue_t in the order of nvmlValueType_t."""
_NAN: Final = float("nan")


class Refused(Exception):  # noqa: N818 (an answer of NVML, not an error of ours)
    """A call failed in a way that concerns the whole device, or NVML as a whole."""

    def __init__(self, code: int, text: str, origin: str) -> None:
        super().__init__(f"{origin}: {text}")
        self.code = code
        self.text = text
        self.origin = origin


def call(pynvml: Nvml, origin: str, *arguments: object) -> Answer:
    """What pynvml's function `origin` answers; raises Refused."""
    try:
        return getattr(pynvml, origin)(*arguments)
    except pynvml.NVMLError as error:
        raise Refused(error.value, str(error), origin) from error
    except UnicodeDecodeError as error:
        raise Refused(Code.UNKNOWN, "not a text in UTF-8", origin) from error


def optional(pynvml: Nvml, origin: str, *arguments: object) -> Answer:
    """The result of a pynvml function, None if the device does not support it; raises Refused if the device is lost."""
    try:
        return call(pynvml, origin, *arguments)
    except Refused as refused:
        if refused.code in nvml.LOST:
            raise
        return None


def text(pynvml: Nvml, origin: str, *arguments: object) -> str:
    """A text for a label, empty if the device does not support it; raises Refused if the device is lost."""
    return str(optional(pynvml, origin, *arguments) or "")


class GpuProcess(NamedTuple):
    """A process on a device as NVML lists it; `memory` in bytes, None if NVML does not report it."""

    pid: int
    memory: int | None


class DeviceProcesses(NamedTuple):
    """The compute processes of a device, `gpu` and `uuid` as in its labels."""

    gpu: str
    uuid: str
    processes: tuple[GpuProcess, ...]


class _Asked:
    """A query to one device: the methods not yet ruled out, and the series of the first of them."""

    __slots__ = ("_labels", "retained", "series", "vital", "ways")

    def __init__(self, question: nvml.Question, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self.vital = question is nvml.MEMORY
        self.ways = question
        self.retained: tuple[Point, ...] = ()
        self.series = self._named()

    def unsupported(self) -> None:
        """On to the next way."""
        self.ways = self.ways[1:]
        self.series = self._named()

    def unsupported_field(self, place: int) -> None:
        """The field is not asked again; on to the next way if it was the last one."""
        self.series[place] = None
        if not any(self.series):
            self.unsupported()

    def _named(self) -> list[Series | None]:
        values = self.ways[0].values if self.ways else ()
        return [Series(value.metric, {**self._labels, value.label[0]: value.label[1]}) for value in values]


class Device:
    """A GPU or a MIG instance: what it was found to support, and its series."""

    def __init__(
        self,
        pynvml: Nvml,
        handle: Handle,
        labels: Mapping[str, str],
        info: Mapping[str, str],
        questions: Iterable[nvml.Question],
    ) -> None:
        self._pynvml = pynvml
        self.handle = handle
        self.labels = labels
        self.info = info
        self._asked = [_Asked(question, labels) for question in questions]
        self._info = point(schema.GPU_INFO, 1.0, "nvmlDeviceGetName", labels, **info)
        self._process_lists: tuple[str, ...] = nvml.PROCESS_LISTS

    @property
    def name(self) -> str:
        """For messages."""
        return f"GPU {self.labels['gpu']} ({self.labels['uuid']})"

    def read(self, points: list[Point], warnings: list[Failure]) -> None:
        """Add what the device reports.

        Raises:
            Refused: the device is lost.
        """
        points.append(self._info)
        self._read_fields(points, warnings)
        for asked in self._asked:
            if asked.retained:
                points.extend(asked.retained)
            else:
                self._read_call(asked, points, warnings)
        self._asked = [asked for asked in self._asked if asked.ways]

    def _read_fields(self, points: list[Point], warnings: list[Failure]) -> None:
        self._drop_unknown_fields()
        batch = [
            (asked, way, place)
            for asked in self._asked
            if asked.ways and isinstance(way := asked.ways[0], nvml.Fields)
            for place, series in enumerate(asked.series)
            if series
        ]
        if not batch:
            return
        fields = [(getattr(self._pynvml, way.origins[place]), way.scope) for _, way, place in batch]
        try:
            answers = self._pynvml.nvmlDeviceGetFieldValues(self.handle, fields)
        except self._pynvml.NVMLError as error:
            if error.value not in nvml.UNSUPPORTED:
                self._trouble(error, "nvmlDeviceGetFieldValues", warnings)
                return
            for asked in {asked for asked, _, _ in batch}:
                asked.unsupported()
            return
        for (asked, way, place), answer in zip(batch, answers, strict=True):
            origin = way.origins[place]
            if answer.nvmlReturn in nvml.UNSUPPORTED:
                asked.unsupported_field(place)
            elif answer.nvmlReturn:
                self._trouble(self._pynvml.NVMLError(answer.nvmlReturn), origin, warnings)
            else:
                kind = answer.valueType
                number = getattr(answer.value, _FIELD_MEMBERS[kind]) if kind in range(len(_FIELD_MEMBERS)) else _NAN
                self._add(number, way.values[place], asked.series[place], origin, points, warnings)

    def _drop_unknown_fields(self) -> None:
        """Leave out what an older pynvml does not know."""
        for asked in self._asked:
            if asked.ways and isinstance(way := asked.ways[0], nvml.Fields):
                for place, origin in enumerate(way.origins):
                    if not hasattr(self._pynvml, origin):
                        asked.unsupported_field(place)

    def _read_call(self, asked: _Asked, points: list[Point], warnings: list[Failure]) -> None:
        while asked.ways and isinstance(way := asked.ways[0], nvml.Call):
            try:
                numbers = way.ask(self._pynvml, self.handle)
            except self._pynvml.NVMLError as error:
                if error.value not in nvml.UNSUPPORTED:
                    self._trouble(error, way.origin, warnings, vital=asked.vital)
                    return
                asked.unsupported()
                continue
            before = len(points)
            for number, value, series in zip(numbers, way.values, asked.series, strict=True):
                self._add(number, value, series, way.origin, points, warnings)
            if way.constant:
                asked.retained = tuple(points[before:])
            return

    def processes(self, warnings: list[Failure]) -> DeviceProcesses | None:
        """The processes on the device; None if they cannot be listed. Raises Refused if the device is lost."""
        while self._process_lists:
            origin = self._process_lists[0]
            try:
                found = getattr(self._pynvml, origin)(self.handle)
            except self._pynvml.NVMLError as error:
                if error.value not in nvml.UNSUPPORTED:
                    self._trouble(error, origin, warnings)
                    return None
                self._process_lists = self._process_lists[1:]
                continue
            memory: dict[int, int | None] = {}
            for process in found:
                used, known = process.usedGpuMemory, memory.get(process.pid, 0)
                valid = used is not None and used not in nvml.BLANK and used <= nvml.PEBIBYTE
                memory[process.pid] = known + used if valid and known is not None else None
            listed = tuple(GpuProcess(pid, used) for pid, used in memory.items())
            return DeviceProcesses(self.labels["gpu"], self.labels["uuid"], listed)
        return None

    def process_points(self, listed: DeviceProcesses) -> Iterator[Point]:
        """A point for each process whose memory is known."""
        for pid, used in listed.processes:
            if used is not None:
                labels = {"pid": str(pid), "process": _process_name(pid)}
                yield point(schema.GPU_PROCESS_MEMORY, float(used), self._process_lists[0], self.labels, **labels)

    def _add(  # noqa: PLR0913, PLR0917 (the parts of one value)
        self,
        number: float,
        value: nvml.Value,
        series: Series | None,
        origin: str,
        points: list[Point],
        warnings: list[Failure],
    ) -> None:
        if series is None or number in nvml.BLANK or number == value.blank:
            return
        if value.least <= number <= value.most:
            points.append(Point(series, number * value.times / value.per, origin))
        else:
            text = f"{self.name}: {origin} returned an impossible {value.metric.name}, which was dropped"
            warnings.append(Failure(Cause.DEVICE, text))

    def _trouble(self, error: NvmlError, origin: str, warnings: list[Failure], *, vital: bool = False) -> None:
        if error.value in nvml.NOT_NOW:
            return
        if vital or error.value in nvml.LOST:
            raise Refused(error.value, str(error), origin)
        warnings.append(Failure(Cause.DEVICE, f"{self.name}: {origin} failed ({error}); its value is missing"))


class Card:
    """One place in NVML's list of GPUs, with the device that was found there and its MIG instances."""

    def __init__(
        self, pynvml: Nvml, index: int, versions: Mapping[str, str], further: Iterable[nvml.Question] = ()
    ) -> None:
        self._pynvml = pynvml
        self._further = tuple(further)
        self._index = index
        self._versions = versions
        self._device: Device | None = None
        self._mig_capable = True
        self._instances: dict[str, Device] = {}

    @property
    def name(self) -> str:
        """For messages."""
        return self._device.name if self._device else f"GPU {self._index}"

    def replaced(self) -> bool:
        """Whether another GPU answers to the handle now."""
        try:
            return self._device is not None and self._uuid(self._device.handle) != self._device.labels["uuid"]
        except Refused:
            return False  # lost, as the reading will find

    @property
    def board(self) -> Device | None:
        """The whole GPU, None if it has not been read yet."""
        return self._device

    def read(
        self, points: list[Point], warnings: list[Failure], listed: list[DeviceProcesses], *, series: bool
    ) -> None:
        """Read the GPU and its MIG instances; `series`: with a point for each process.

        Raises:
            Refused: the GPU is lost.
        """
        if self._device is None:
            self._device = self._found()
        instances = self._mig_instances(self._device, warnings)
        self._device.read(points, warnings)
        if instances is None:  # in MIG mode the parent lists the processes of its instances once more
            _read_processes(self._device, points, warnings, listed, series=series)
        for instance in instances or ():
            before, before_listed = len(points), len(listed)
            try:
                instance.read(points, warnings)
                _read_processes(instance, points, warnings, listed, series=series)
            except Refused as refused:
                if refused.code in nvml.NVML_LOST:
                    raise
                del points[before:], listed[before_listed:]
                warnings.append(loss(instance.name, refused))

    def _uuid(self, handle: Handle) -> str:
        return str(call(self._pynvml, "nvmlDeviceGetUUID", handle))

    def _found(self) -> Device:
        pynvml = self._pynvml
        handle = call(pynvml, "nvmlDeviceGetHandleByIndex", self._index)
        labels = {"gpu": str(self._index), "uuid": self._uuid(handle)}
        pci = optional(pynvml, "nvmlDeviceGetPciInfo", handle)
        info = {
            **self._versions,
            "name": text(pynvml, "nvmlDeviceGetName", handle),
            "vbios": text(pynvml, "nvmlDeviceGetVbiosVersion", handle),
            "pci_bus_id": pci.busId if pci else "",
        }
        fans = nvml.fans(optional(pynvml, "nvmlDeviceGetNumFans", handle))
        return Device(pynvml, handle, labels, info, (*nvml.BOARD, *fans, *self._further))

    def _mig_instances(self, parent: Device, warnings: list[Failure]) -> list[Device] | None:
        """None if the GPU is not in MIG mode. Instances come and go, so they are listed for each reading."""
        pynvml = self._pynvml
        if not self._mig_capable:
            return None
        try:
            if not call(pynvml, "nvmlDeviceGetMigMode", parent.handle)[0]:
                self._instances = {}
                return None
            places = range(call(pynvml, "nvmlDeviceGetMaxMigDeviceCount", parent.handle))
        except Refused as refused:
            if refused.code in nvml.LOST:
                raise
            self._mig_capable = refused.code not in nvml.UNSUPPORTED
            return None
        known, self._instances = self._instances, {}
        for place in places:
            try:
                handle = call(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", parent.handle, place)
                uuid = self._uuid(handle)
            except Refused as refused:
                if refused.code in nvml.LOST:
                    raise
                if refused.code not in nvml.UNSUPPORTED:  # NOT_FOUND: no instance has this number
                    warnings.append(loss(f"GPU {self._index}:{place}", refused))
                continue
            labels = {"gpu": f"{self._index}:{place}", "uuid": uuid}
            instance = known.get(uuid)
            if instance is None or instance.labels != labels:
                name = text(pynvml, "nvmlDeviceGetName", handle)
                # "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
                place_of_its_own = {"mig_parent": parent.labels["uuid"], "mig_profile": name.partition(" MIG ")[2]}
                info = {**parent.info, "name": name, **place_of_its_own}
                instance = Device(pynvml, handle, labels, info, (nvml.MEMORY,))
            instance.handle = handle
            self._instances[uuid] = instance
        return list(self._instances.values())


def _read_processes(
    device: Device, points: list[Point], warnings: list[Failure], listed: list[DeviceProcesses], *, series: bool
) -> None:
    if (found := device.processes(warnings)) is not None:
        listed.append(found)
        if series:
            points.extend(device.process_points(found))


def _process_name(pid: int) -> str:
    """The process' name as the kernel records it, never its command line, which can hold secrets; empty if unknown.

    Older drivers give the PIDs of the host: looked up in another PID namespace they would name other processes.
    """
    proc = Proc()
    return proc.name(pid) if proc.initial_namespace else ""


def loss(device: str, refused: Refused) -> Failure:
    """Why a device cannot be read, and a remedy."""
    advice: dict[int, str] = {
        Code.GPU_IS_LOST: "it fell off the bus: look for Xid messages in dmesg, then reset the GPU or reboot",
        Code.RESET_REQUIRED: "it has to be reset before it can be used again",
        Code.TIMEOUT: "the driver does not respond for it: look for Xid messages in dmesg",
        Code.INSUFFICIENT_POWER: "its power cables are not attached",
    }
    what = advice.get(refused.code, "look for Xid messages in dmesg")
    return Failure(Cause.DEVICE, f"{device}: {refused.origin} failed ({refused.text}): {what}")
