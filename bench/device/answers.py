"""What NVML answers to every call that the exporter can make: as a description for the stub, with what each cost.

Every way of every query is tried, also those that the exporter would not reach because an earlier way works.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llm_headroom.gpu import nvml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMES: Final = 5
"""How often each call is made; its cost is the median."""
_RENAMED: Final = {
    "nvmlDeviceGetPciInfo": "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetCount": "nvmlDeviceGetCount_v2",
}
"""pynvml's name → the name in the library."""
_ENCODED: Final[dict[str, Callable[[Any], str]]] = {
    "nvmlDeviceGetMemoryInfo": lambda memory: f"{memory.total} {memory.free} {memory.used}",
    "nvmlDeviceGetMemoryInfo_v2": lambda memory: f"{memory.total} {memory.reserved} {memory.free} {memory.used}",
    "nvmlDeviceGetUtilizationRates": lambda rates: f"{rates.gpu} {rates.memory}",
    "nvmlDeviceGetPciInfo_v3": lambda pci: str(pci.busId),
    "nvmlDeviceGetViolationStatus": lambda status: str(status.violationTime),
    "nvmlDeviceGetRemappedRows": lambda rows: " ".join(map(str, rows)),
    "nvmlDeviceGetMigMode": lambda modes: " ".join(map(str, modes)),
    "nvmlDeviceGetComputeRunningProcesses_v3": lambda _: "",
    "nvmlDeviceGetComputeRunningProcesses_v2": lambda _: "",
    "nvmlDeviceRegisterEvents": lambda _: "",
}
"""Results as the stub writes them, where they are not one number or text. Processes are of the moment: left out."""
_FIELD_VALUES: Final = "nvmlDeviceGetFieldValues"
_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


class Answer(NamedTuple):
    """One call: the stub's key for it, the answer in the stub's words (`!code` for an error), its cost in µs."""

    section: str
    key: str
    text: str
    wall: float
    cpu: float
    note: str = ""


class Recorder:
    """The module pynvml with every call of a device written down; to be given to the queries in place of it."""

    def __init__(self, pynvml: Any, section: str) -> None:  # noqa: ANN401 - pynvml has no types
        self._pynvml = pynvml
        self._section = section
        self.answers: list[Answer] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module has
        found = getattr(self._pynvml, name)
        return self._recorded(name, found) if name.startswith("nvmlDevice") else found

    def _recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:  # noqa: ANN401 - as pynvml's
            plain = [each for each in arguments[1:] if isinstance(each, int)]
            own = _RENAMED.get(name, name)
            if name == "nvmlDeviceGetMemoryInfo" and plain:
                own, plain = "nvmlDeviceGetMemoryInfo_v2", []
            if name in {_FIELD_VALUES, "nvmlDeviceRegisterEvents"}:
                plain = []
            key = " ".join((own, *map(str, plain)))
            timed = [_timed(function, arguments) for _ in range(TIMES)]
            wall, cpu = (median(each[place] for each in timed) * 1e6 for place in (1, 2))
            result = timed[-1][0]
            if isinstance(result, self._pynvml.NVMLError):
                self.answers.append(Answer(self._section, key, f"!{result.value}", wall, cpu, str(result)))
                raise result
            if name == _FIELD_VALUES:
                self.answers.append(Answer(self._section, key, "", wall, cpu, f"{len(arguments[1])} fields"))
                self.answers += self._fields(arguments[1], result)
            else:
                text = _ENCODED.get(own, str)(result)
                self.answers.append(Answer(self._section, key, text, wall, cpu))
            return result

        return call

    def _fields(self, asked: list[tuple[int, int]], answers: list[Any]) -> Iterator[Answer]:
        for (field, scope), answer in zip(asked, answers, strict=True):
            key = f"field {field} {scope}" if scope else f"field {field}"
            if answer.nvmlReturn:
                yield Answer(self._section, key, f"!{answer.nvmlReturn}", 0.0, 0.0)
            elif answer.valueType in range(len(_MEMBERS)):
                number = getattr(answer.value, _MEMBERS[answer.valueType])
                yield Answer(self._section, key, f"{number} {answer.valueType}", answer.latencyUsec, 0.0)


def recorded(pynvml: Any) -> list[Answer]:  # noqa: ANN401 - pynvml has no types
    """Every call, on every GPU. NVML is initialised."""
    cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    count = pynvml.nvmlDeviceGetCount()
    found = [
        Answer("system", "nvmlSystemGetDriverVersion", pynvml.nvmlSystemGetDriverVersion(), 0.0, 0.0),
        Answer("system", "nvmlSystemGetCudaDriverVersion_v2", str(cuda), 0.0, 0.0),
        Answer("system", "nvmlDeviceGetCount_v2", str(count), 0.0, 0.0),
        Answer("system", "session", "1", 0.0, 0.0),
    ]
    for index in range(count):
        found += _device(pynvml, index)
    return found


def _device(pynvml: Any, index: int) -> list[Answer]:  # noqa: ANN401 - pynvml has no types
    recorder = Recorder(pynvml, f"gpu {index}")
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    for name in ("Name", "UUID", "VbiosVersion", "PciInfo", "MigMode", "NumFans"):
        _tried(recorder, getattr(recorder, f"nvmlDeviceGet{name}"), handle)
    fans = next(
        (int(each.text) for each in recorder.answers if each.key.endswith("NumFans") and each.text[0] != "!"), None
    )
    ways = [way for question in (*nvml.BOARD, *nvml.fans(fans), nvml.PCIE) for way in question]
    fields = [
        (getattr(pynvml, origin), way.scope)
        for way in ways
        if isinstance(way, nvml.Fields)
        for origin in way.origins
        if hasattr(pynvml, origin)
    ]
    _tried(recorder, recorder.nvmlDeviceGetFieldValues, handle, fields)
    for way in ways:
        if isinstance(way, nvml.Call):
            _tried(recorder, way.ask, recorder, handle)
    for name in nvml.PROCESS_LISTS:
        _tried(recorder, getattr(recorder, name), handle)
    events = pynvml.nvmlEventSetCreate()
    _tried(recorder, recorder.nvmlDeviceRegisterEvents, handle, 8, events)
    pynvml.nvmlEventSetFree(events)
    return recorder.answers


def _tried(recorder: Recorder, function: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401 - as pynvml's
    """Make a call; an error of NVML is an answer, too, and so is a function that this pynvml lacks."""
    try:
        function(*arguments)
    except recorder.NVMLError:
        pass
    except AttributeError as error:
        recorder.answers.append(Answer("pynvml", str(error), "", 0.0, 0.0, "this pynvml lacks it"))


def _timed(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, float, float]:
    """What a call gave, an error of NVML included, and the seconds of wall and CPU time that it took."""
    wall, cpu = time.perf_counter(), time.thread_time()
    try:
        result = function(*arguments)
    except Exception as error:  # noqa: BLE001 - handed to the caller, which knows NVML's
        result = error
    return result, time.perf_counter() - wall, time.thread_time() - cpu


def description(answers: list[Answer], title: str) -> str:
    """The answers as a file for the stub (tests/support/nvml/nvml_stub.c)."""
    lines = [f"# {title}", "# Recorded by bench/device/run.sh; processes are of the moment and left out."]
    section = ""
    for each in answers:
        if each.section == "pynvml" or each.key == _FIELD_VALUES:
            continue
        if each.section != section:
            section = each.section
            lines += ["", f"[{section}]"]
        lines.append(f"{each.key} = {each.text}".rstrip())
    return "\n".join((*lines, ""))
