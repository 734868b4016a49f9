"""What each GPU's memory is used for: NVML's totals joined with attribution and with what the engines report.

On each device `engines + unattributed + reserved + free = total` holds as far as it holds in NVML's own numbers, and
the kinds of an engine add up to what it holds there. Values from an engine are scaled to one device:

- SGLang reports the bytes of one rank, or with --enable-metrics-for-all-schedulers the sum over its ranks. It is a sum
  if it exceeds what the engine holds on its fullest device, and is then divided by the number of its devices. Replicas
  are averaged.
- vLLM's `kv_cache_memory_bytes` is for each device.
- Ollama's `size_vram` and the operator's `model_memory` are for all devices together, and are spread over them as the
  engine's memory is.

Parts that exceed what the engine holds are scaled down to it. An engine that is down has no parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from llm_headroom import schema
from llm_headroom.derive import replicas
from llm_headroom.model import Cause, Failure, numbers, point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from llm_headroom.config.settings import ModelMemory
    from llm_headroom.gpu.attribution import Holding
    from llm_headroom.gpu.device import DeviceProcesses
    from llm_headroom.host.engines import Watched
    from llm_headroom.model import Metric, Point, Snapshot

_ORIGIN: Final = "NVML's processes"
_HOST: Final = "/proc/meminfo: memory shared with the CPU"
_TOLERANCE: Final = 1.05
"""Engines and NVML count at different moments and round: only more than this is worth a warning."""
_DEVICE_MEMORY: Final = {
    schema.GPU_MEMORY_TOTAL: "total",
    schema.GPU_MEMORY_USED: "used",
    schema.GPU_MEMORY_FREE: "free",
    schema.GPU_MEMORY_RESERVED: "reserved",
}
_KV: Final = (schema.KV_CACHE_CAPACITY, schema.KV_CACHE_USED, schema.KV_CACHE_EVICTABLE, schema.KV_CACHE_USAGE)
_RANK_KINDS: Final = ("weights", "kv_cache", "graph")

DeviceKey: TypeAlias = tuple[str, str]
"""`gpu` and `uuid` of a device."""


class Derived(NamedTuple):
    """Points, and what an operator should know of how they came about."""

    points: list[Point]
    warnings: list[Failure]


class _Reported(NamedTuple):
    """An engine's own account of its memory: of one rank (or all ranks) and of all devices together, by kind.

    `used` and `evictable` are shares of the KV cache, None for unknown. `reservation` is a share of a device.
    """

    ranks: Mapping[str, float]
    whole: Mapping[str, float]
    used: float | None
    evictable: float | None
    reservation: float | None


def unified(
    points: Iterable[Point], listed: Iterable[DeviceProcesses], host: tuple[float, float] | None
) -> list[Point]:
    """Memory of devices that share the host's: NVML knows only what each process has (GB10; XuehaiPan/nvitop#208).

    `host` is the host's total and available memory in bytes, None if unknown.
    """
    points = tuple(points)
    known = {series.label("uuid") for series, _ in numbers(points, schema.GPU_MEMORY_TOTAL)}
    having = {each.uuid for each in listed if any(process.memory for process in each.processes)}
    if host is None:
        return []
    total, free = host
    found = []
    for series, _ in numbers(points, schema.GPU_INFO):
        if series.label("uuid") in having - known:
            labels = {"gpu": series.label("gpu"), "uuid": series.label("uuid")}
            found += [
                point(schema.GPU_MEMORY_UNIFIED, 1.0, _HOST, labels),
                point(schema.GPU_MEMORY_TOTAL, total, _HOST, labels),
                point(schema.GPU_MEMORY_USED, total - free, _HOST, labels),
                point(schema.GPU_MEMORY_FREE, free, _HOST, labels),
            ]
    return found


def attributable(points: Iterable[Point], listed: Iterable[DeviceProcesses]) -> dict[DeviceKey, float]:
    """Used bytes of each device that processes can hold: all that is used, of a unified memory what NVML lists."""
    points = tuple(points)
    memory = {key: parts["used"] for key, parts in device_memory(points).items()}
    of_host = {series.label("uuid") for series, _ in numbers(points, schema.GPU_MEMORY_UNIFIED)}
    for each in listed:
        if each.uuid in of_host:
            memory[each.gpu, each.uuid] = float(sum(process.memory or 0 for process in each.processes))
    return memory


def device_memory(points: Iterable[Point]) -> dict[DeviceKey, dict[str, float]]:
    """Total, used, free and reserved bytes of the devices that engines may use: not of those cut into MIG instances."""
    found: dict[DeviceKey, dict[str, float]] = {}
    points = tuple(points)
    for series, value in numbers(points, *_DEVICE_MEMORY):
        found.setdefault((series.label("gpu"), series.label("uuid")), {})[_DEVICE_MEMORY[series.metric]] = value
    cut = {series.label("mig_parent") for series, _ in numbers(points, schema.GPU_INFO)}
    return {
        key: parts for key, parts in found.items() if key[1] not in cut and {"total", "used", "free"} <= parts.keys()
    }


def derived(
    memory: Mapping[DeviceKey, Mapping[str, float]],
    holdings: Sequence[Holding],
    engines: Iterable[Watched],
    *,
    most: Mapping[DeviceKey, float],
) -> Derived:
    """Headroom of each device, and on it each engine's memory by kind, its reservation and how it was found.

    `memory` is that of `device_memory`, `most` that of `attributable`, `engines` are all targets with their latest
    collections.
    """
    result = Derived([], [])
    held = _held(most, holdings)
    watched = {each.target.name: each for each in engines}
    of_target: dict[str, dict[DeviceKey, float]] = {}
    for (key, target), bytes_held in held.items():
        of_target.setdefault(target, {})[key] = bytes_held
    reserved: dict[DeviceKey, float] = {}
    for target, devices in of_target.items():
        engine = watched[target]
        reported = _reported(engine.snapshot, engine.target.model_memory) if engine.snapshot and engine.up else None
        for key, kinds in _parts(target, devices, reported, result.warnings).items():
            device = {"gpu": key[0], "uuid": key[1], **engine.labels}
            for kind, size in kinds.items():
                result.points.append(point(schema.GPU_MEMORY_ENGINE, size, _ORIGIN, device, kind=kind))
            least = memory[key]["total"] * (reported.reservation or 0.0) if reported else 0.0
            taken = max(devices[key], least)
            reserved[key] = reserved.get(key, 0.0) + taken
            result.points.append(point(schema.GPU_MEMORY_RESERVATION, taken, _ORIGIN, device))
    for holding in holdings:
        place = {"gpu": holding.gpu, "uuid": holding.uuid, "method": holding.method}
        labels = watched[holding.target].labels
        result.points.append(point(schema.GPU_ATTRIBUTION_INFO, 1.0, "attribution", labels, **place))
    for key, parts in memory.items():
        mine = sum(size for (device, _), size in held.items() if device == key)
        result.points.extend(_of_device(key, parts, mine, reserved.get(key, 0.0)))
    return result


def _of_device(key: DeviceKey, parts: Mapping[str, float], held: float, reserved_by_engines: float) -> Iterator[Point]:
    labels = {"gpu": key[0], "uuid": key[1]}
    total, used, free = parts["total"], parts["used"], parts["free"]
    unattributed = max(0.0, used - held)
    over = reserved_by_engines + unattributed + parts.get("reserved", 0.0) - total
    yield point(schema.GPU_MEMORY_HEADROOM, free, "NVML free", labels)
    yield point(schema.GPU_MEMORY_HEADROOM_RATIO, free / total, "NVML free / total", labels)
    yield point(schema.GPU_MEMORY_UNATTRIBUTED, unattributed, "NVML used - engines", labels)
    yield point(schema.GPU_MEMORY_OVERCOMMITTED, max(0.0, over), "reservations - NVML total", labels)


def _held(most: Mapping[DeviceKey, float], holdings: Iterable[Holding]) -> dict[tuple[DeviceKey, str], float]:
    """Bytes by device and target.

    Processes and devices are read a moment apart, so that engines can seem to hold more than all can: the excess is
    taken from each in proportion.
    """
    held: dict[tuple[DeviceKey, str], float] = {}
    for holding in holdings:
        key = ((holding.gpu, holding.uuid), holding.target)
        held[key] = held.get(key, 0.0) + holding.memory
    for device, bound in most.items():
        mine = [key for key in held if key[0] == device]
        total = sum(held[key] for key in mine)
        if total > bound:
            for key in mine:
                held[key] *= bound / total
    return held


def _reported(snapshot: Snapshot, configured: ModelMemory) -> _Reported:
    kinds: dict[str, dict[str, list[float]]] = {}
    for series, value in numbers(snapshot.points, schema.MODEL_MEMORY):
        kinds.setdefault(series.label("kind"), {}).setdefault(series.model, []).append(value)
    # Replicas repeat one another on devices of their own, models lie side by side.
    ranks = {
        kind: sum(sum(values) / len(values) for values in models.values())
        for kind, models in kinds.items()
        if kind in _RANK_KINDS
    }
    whole = {"model": sum(map(sum, kinds["device"].values()))} if "device" in kinds else {}
    kv = _kv(snapshot)
    capacity, used = kv.get(schema.KV_CACHE_CAPACITY), kv.get(schema.KV_CACHE_USED)
    if configured.weights is not None:
        replica_names = {series.replica for series, _ in numbers(snapshot.points, schema.KV_CACHE_CAPACITY)}
        whole["weights"] = float(configured.weights * max(1, len(replica_names)))
    if configured.kv_bytes_per_token is not None and capacity:
        whole["kv_cache"] = configured.kv_bytes_per_token * capacity
    if whole.keys() & {"weights", "kv_cache"}:
        whole.pop("model", None)
    share = used / capacity if used is not None and capacity else kv.get(schema.KV_CACHE_USAGE)
    evictable = kv.get(schema.KV_CACHE_EVICTABLE)
    return _Reported(
        ranks={kind: size for kind, size in ranks.items() if kind not in whole},
        whole=whole,
        used=None if share is None else min(max(share, 0.0), 1.0),
        evictable=evictable / capacity if evictable is not None and capacity else None,
        reservation=max((share for _, share in numbers(snapshot.points, schema.ENGINE_GPU_RESERVATION)), default=None),
    )


def _kv(snapshot: Snapshot) -> dict[Metric, float]:
    """The target's KV cache: that of its replicas together, and of its models, of which each has a pool."""
    found: dict[Metric, float] = {}
    for series, value in numbers(
        replicas.combined(each for each in snapshot.points if each.series.metric in _KV), *_KV
    ):
        found[series.metric] = found.get(series.metric, 0.0) + value
    return found


def _parts(
    target: str, devices: Mapping[DeviceKey, float], reported: _Reported | None, warnings: list[Failure]
) -> dict[DeviceKey, dict[str, float]]:
    """What an engine's memory is used for on each of its devices; the kinds add up to what it holds there."""
    if reported is None:
        return {key: {"other": held} for key, held in devices.items()}
    fullest, everything = max(devices.values()), sum(devices.values())
    ranks = 1 if sum(reported.ranks.values()) <= fullest * _TOLERANCE else len(devices)
    found: dict[DeviceKey, dict[str, float]] = {}
    for key, held in devices.items():
        parts = {kind: size / ranks for kind, size in reported.ranks.items()}
        if everything:
            parts |= {kind: size * held / everything for kind, size in reported.whole.items()}
        known = sum(parts.values())
        if known > held:
            if known > held * _TOLERANCE:
                warnings.append(
                    Failure(
                        Cause.DEVICE,
                        f"{target} holds {held / 2**30:.1f} GiB on GPU {key[0]}, but reports {known / 2**30:.1f} GiB: "
                        "its parts were scaled down; check model_memory, or whether all of its GPUs are seen",
                    )
                )
            parts = {kind: size * held / known for kind, size in parts.items()}
            known = held
        found[key] = {**_kv_parts(parts, reported), "other": max(0.0, held - known)}
    return found


def _kv_parts(parts: Mapping[str, float], reported: _Reported) -> dict[str, float]:
    """The parts with the KV cache cut into used, evictable and free, as far as the engine exposes it."""
    cut = {kind: size for kind, size in parts.items() if kind != "kv_cache"}
    if "kv_cache" not in parts:
        return cut
    pool = parts["kv_cache"]
    if reported.used is None:
        return {**cut, "kv_cache": pool}
    cut["kv_used"] = pool * reported.used
    left = pool - cut["kv_used"]
    if reported.evictable is not None:
        cut["kv_evictable"] = min(left, pool * reported.evictable)
        left -= cut["kv_evictable"]
    return {**cut, "kv_free": left}
