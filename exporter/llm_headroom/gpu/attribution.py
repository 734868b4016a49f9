"""Which engine holds which memory on which GPU: NVML's processes matched to targets.

By process, if NVML's PIDs can be looked up in /proc: the engine's own process and those below it (tensor-parallel
workers, vLLM's EngineCore, Ollama's runners), those of its process group, and those of its service or container. Where
they cannot (an engine in another PID namespace, processes that NVML hides), by the target's `gpus`, or by elimination.

NVML's PIDs: older drivers give those of the host whoever asks (NVIDIA/gpu-monitoring-tools#63); newer ones translate
them into the asker's PID namespace and leave out who is not in it (NVIDIA/open-gpu-kernel-modules, _gpuConvertPid in
src/nvidia/src/kernel/gpu), but do not always report their memory there (its pull request 614).
"""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.host.engines import How
from llm_headroom.model import Cause, Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_headroom.gpu.device import DeviceProcesses, GpuProcess
    from llm_headroom.host.engines import EngineProcess
    from llm_headroom.host.proc import Proc, Stat

_OF_ITS_OWN: Final = re.compile(r"\.service$|[0-9a-f]{32}")
"""Control groups that hold one service or container: not a login session, a slice, or the whole machine."""


_NOTEWORTHY: Final = 2**30
"""Bytes: less than this the driver and other programs' contexts hold, too."""
_STRANGER: Final = "stranger"
"""A process that /proc shows and that is no engine's."""
_UNSEEN: Final = "unseen"
"""A process that /proc does not show."""


class Method(StrEnum):
    """The method by which memory of a device was attributed to an engine."""

    PID = "pid"
    """A process that listens where the target's URL points to, or one below it."""
    CONFIGURED_PID = "configured_pid"
    """The target's `pid`, or a process below it."""
    CONTAINER = "container"
    """A process of the container in whose network the target listens."""
    PROCESS_GROUP = "process_group"
    CGROUP = "cgroup"
    GPUS = "gpus"
    """The target's `gpus`: what no known process holds there is the engine's."""
    ELIMINATION = "elimination"
    """In a sidecar of the only engine, what no known process holds."""


class Owner(NamedTuple):
    """What is known of where a target's engine runs. `process` None: not found; `answers`: it is up."""

    target: str
    process: EngineProcess | None
    answers: bool
    gpus: tuple[str, ...] = ()


class Holding(NamedTuple):
    """Memory in bytes that a target's engine holds on a device."""

    gpu: str
    uuid: str
    target: str
    memory: float
    method: Method


class Device(NamedTuple):
    """A device whose memory is to be attributed; `used` in bytes. `processes` None: they cannot be listed."""

    gpu: str
    uuid: str
    used: float
    processes: tuple[GpuProcess, ...] | None

    def named(self, gpus: Iterable[str]) -> bool:
        """Whether a configuration's indexes and uuids name it."""
        return self.gpu in gpus or self.uuid in gpus


_BY_PROCESS: Final = {
    How.LISTENER: Method.PID,
    How.CONFIGURED: Method.CONFIGURED_PID,
    How.CONTAINER: Method.CONTAINER,
}


class _Kin:
    """The engine that a process belongs to, by its place in /proc."""

    def __init__(self, proc: Proc, owners: Sequence[Owner]) -> None:
        self._proc = proc
        known = {owner.target: owner.process for owner in owners if owner.process is not None}
        self._by_pid = {process.stat.pid: (target, _BY_PROCESS[process.how]) for target, process in known.items()}
        own = proc.stat("self")
        groups = {target: process.stat.group for target, process in known.items()}
        self._by_group = _alone(groups, () if own is None else (own.group,))
        cgroups = {target: _cgroup(proc, process.stat.pid) for target, process in known.items()}
        self._by_cgroup = _alone(cgroups, ("", _cgroup(proc, "self")))

    def owner(self, lineage: Sequence[Stat]) -> tuple[str, Method] | None:
        for stat in lineage:
            if stat.pid in self._by_pid:
                return self._by_pid[stat.pid]
        if lineage and (target := self._by_group.get(lineage[0].group)):
            return target, Method.PROCESS_GROUP
        if lineage and (target := self._by_cgroup.get(_cgroup(self._proc, lineage[0].pid))):
            return target, Method.CGROUP
        return None


def _alone(of: Mapping[str, int] | Mapping[str, str], shared: Iterable[int | str]) -> dict[int | str, str]:
    """Targets by the value that only they have."""
    times = Counter[int | str](of.values())
    return {value: target for target, value in of.items() if times[value] == 1 and value not in shared}


def _cgroup(proc: Proc, pid: int | str) -> str:
    """The control group of a process if it is that of one service or container, else empty."""
    groups = proc.cgroups(pid)
    path = groups.get("memory", groups.get("", ""))
    return path if _OF_ITS_OWN.search(path) else ""


def devices(memory: Mapping[tuple[str, str], float], listed: Iterable[DeviceProcesses]) -> list[Device]:
    """Devices out of the used memory of each (by `gpu` and `uuid`) and the processes that NVML lists."""
    known = {(each.gpu, each.uuid): each.processes for each in listed}
    return [Device(*key, used, known.get(key)) for key, used in memory.items()]


def attribute(devices: Iterable[Device], owners: Sequence[Owner], proc: Proc, *, sidecar: bool) -> list[Holding]:
    """Who holds what; memory that is in no holding is unattributed.

    `sidecar`: of all engines only the one owner can hold memory of these devices (see `may_eliminate`).
    """
    kin = _Kin(proc, owners)
    found: list[Holding] = []
    for device in devices:
        found += _of_device(device, owners, kin, proc, sidecar=sidecar)
    return found


def _of_device(device: Device, owners: Sequence[Owner], kin: _Kin, proc: Proc, *, sidecar: bool) -> Iterable[Holding]:
    """The holdings on one device.

    The rest is used memory that NVML does not report by process. It is attributed to the processes whose memory is not
    reported if they belong to one engine; otherwise, like the memory of processes that /proc does not show, to the only
    engine that can hold it. If NVML reports every process, the rest stays unattributed.
    """
    held, foreign, unreported = _listed(device.processes or (), kin, proc)
    rest = max(0.0, device.used - sum(held.values()) - sum(foreign.values()))
    if proc.is_wsl and not any(device.named(owner.gpus) for owner in owners):
        rest, unreported = 0.0, set()  # Windows and its programs use the device, too, and nobody lists them
    hides = device.processes is None or not (device.processes or proc.initial_namespace)
    (sole,) = unreported if len(unreported) == 1 else (None,)
    if isinstance(sole, tuple):
        held[sole] = held.get(sole, 0.0) + rest
    if (last := _last(device, owners, {target for target, _ in held}, sidecar=sidecar)) is not None:
        claimant, method = last
        mine = {_UNSEEN} if claimant.process is not None else {_UNSEEN, _STRANGER}
        memory = sum(foreign[kind] for kind in mine) + (rest if hides or (unreported and unreported <= mine) else 0.0)
        if memory:
            held[claimant.target, method] = memory
    return [Holding(device.gpu, device.uuid, target, memory, method) for (target, method), memory in held.items()]


class _Listed(NamedTuple):
    """Memory that NVML reports by process: engines' by owner, others' by kind; and whose it does not report."""

    held: dict[tuple[str, Method], float]
    foreign: dict[str, float]
    unreported: set[tuple[str, Method] | str]


def _listed(processes: Iterable[GpuProcess], kin: _Kin, proc: Proc) -> _Listed:
    held: dict[tuple[str, Method], float] = {}
    foreign = dict.fromkeys((_UNSEEN, _STRANGER), 0.0)
    unreported: set[tuple[str, Method] | str] = set()
    for process in processes:
        lineage = proc.lineage(process.pid)
        owner = kin.owner(lineage)
        if process.memory is None:
            unreported.add(owner or (_STRANGER if lineage else _UNSEEN))
        elif owner is not None:
            held[owner] = held.get(owner, 0.0) + process.memory
        else:
            foreign[_STRANGER if lineage else _UNSEEN] += process.memory
    return _Listed(held, foreign, unreported)


def _last(device: Device, owners: Sequence[Owner], matched: set[str], *, sidecar: bool) -> tuple[Owner, Method] | None:
    """The only engine that can hold the rest, by configuration or elimination."""
    configured = [owner for owner in owners if device.named(owner.gpus) and owner.target not in matched]
    if len(configured) == 1 and configured[0].answers:
        return configured[0], Method.GPUS
    if sidecar and len(owners) == 1 and not owners[0].gpus and not matched and owners[0].answers:
        return owners[0], Method.ELIMINATION
    return None


def may_eliminate(devices: int, *, visible: str, initial_namespace: bool) -> bool:
    """Whether a sidecar may attribute all other memory to its engine.

    Not on the host itself, where every process can be looked up. Not with several devices either, unless
    NVIDIA_VISIBLE_DEVICES (`visible`) names them: `all` shows a monitor those of other pods, too.
    """
    return not initial_namespace and (devices == 1 or visible not in {"", "all", "void", "none"})


def unexplained(
    devices: Iterable[Device], holdings: Iterable[Holding], owners: Sequence[Owner], proc: Proc
) -> list[Failure]:
    """Devices with much unattributed memory, each with the reason and a remedy, for people to read."""
    held: Counter[tuple[str, str]] = Counter()
    for holding in holdings:
        held[holding.gpu, holding.uuid] += int(holding.memory)
    found = []
    for device in devices:
        left = device.used - held[device.gpu, device.uuid]
        if owners and left > _NOTEWORTHY:
            amount = f"GPU {device.gpu}: {left / 2**30:.1f} GiB are not attributed to any engine"
            found.append(Failure(Cause.DEVICE, f"{amount}: {_why(device, owners, proc)}"))
    return found


def _why(device: Device, owners: Sequence[Owner], proc: Proc) -> str:
    if proc.is_wsl:
        return "under WSL 2 NVML reports no memory by process; give the target its gpus if nothing else uses the GPU"
    if device.processes is None:
        return "NVML does not allow this process to list the device's processes; give targets their gpus"
    hidden = [str(process.pid) for process in device.processes if proc.stat(process.pid) is None]
    if hidden or not device.processes:
        seen = f"processes {', '.join(hidden)} are not visible here" if hidden else "NVML lists no process here"
        return (
            f"{seen}: they run in another PID namespace; share it (Kubernetes: shareProcessNamespace or "
            "hostPID; Docker: --pid), or give the target its gpus"
        )
    unfound = [owner.target for owner in owners if owner.process is None]
    pids = ", ".join(str(process.pid) for process in device.processes)
    if unfound:
        return (
            f"of {', '.join(unfound)} no process was found to match with {pids}: run this exporter as "
            "the engine's user, or give the target its pid or gpus"
        )
    return f"processes {pids} do not all belong to a target; is a target missing?"
