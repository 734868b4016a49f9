"""The lines of an exposition with a place for each value, made once for engines that are configured alike."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from llm_headroom.simulate.exposition_values import (
    ANSWERS_ASKED_FOR,
    FIRST_EVENTS,
    HISTOGRAMS,
    IDLE,
    MODELLED_PARTS,
    SAMPLES,
    SCALARS,
    TYPICAL,
    WITHOUT_FIRST_EVENTS,
)
from llm_headroom.simulate.hardware import GIB
from llm_headroom.simulate.measures import VLLM_BOUNDS, HistogramBounds
from llm_headroom.simulate.templates import Line, Template, rank_of, template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_headroom.simulate.hardware import MemoryPlan

_SCALAR_AT: Final = {name: index for index, name in enumerate(SCALARS)}
THROUGHPUT, CREATED, NOW, SPENT = (len(SCALARS) + index for index in range(4))
_HISTOGRAMS_AT: Final = len(SCALARS) + 4
_FIELDS: Final = tuple(one.name for one in fields(HistogramBounds))

_POINT_AT_MOST: Final = 6
"""Digits before the point from which on prometheus_client writes an exponent, as Go does."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the lines themselves depend on; engines that share it share their lines."""

    version: str
    model: str
    total_blocks: int
    block_tokens: int
    longest: int
    prefix_caching: bool
    utilisation: float
    memory: MemoryPlan | None


class Compiled(NamedTuple):
    """Lines with a `%s` in the place of each value.

    Attributes:
        format: all of them.
        pick: takes the texts of the slots from the flat list that `exposition.Exposition` makes: per group the
            `SCALARS`, throughput, time of creation and now, then buckets and sum of each histogram of `needed`.
        rare: what is appended once its value is above 0: format and slots.
        needed: per group (one per replica, then the server), the histogram fields that are used.
    """

    format: str
    pick: Callable[[Sequence[str]], Sequence[str]]
    rare: tuple[tuple[str, tuple[int, ...]], ...]
    needed: tuple[tuple[str, ...], ...]


def written(value: float) -> str:
    """A number, which is not negative, as prometheus_client writes it."""
    text = repr(float(value))
    point = text.find(".")
    if point > _POINT_AT_MOST:
        digits = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
        return f"{digits}e+{point - 1:02d}"
    return text


@lru_cache
def bounds_of(version: str) -> HistogramBounds:
    """The bounds of a version's histograms; the default ones of those that it lacks."""
    source = template(version)
    found = {
        name: bounds
        for family, name in HISTOGRAMS.items()
        if family.startswith(source.engine) and (bounds := source.bounds(family))
    }
    return replace(VLLM_BOUNDS, **found)


@lru_cache
def compiled(setting: Setting) -> Compiled:
    """The lines of an engine."""
    source = template(setting.version)
    bounds = bounds_of(setting.version)
    used = tuple(name for name in _FIELDS if any(source.bounds(f) for f, n in HISTOGRAMS.items() if n == name))
    offsets: dict[str, int] = {}
    size = _HISTOGRAMS_AT
    for name in used:
        offsets[name] = size
        size += len(getattr(bounds, name)) + 2
    gauges = _settled(setting)
    parts: list[str] = []
    slots: list[int] = []
    for line in source.lines:
        text = _labelled(line, setting, source.ranks).replace("%", "%%")
        if not line.name:
            parts.append(text)
            continue
        rank = rank_of(line)
        group = source.ranks if rank is None and source.ranks > 1 else rank or 0
        slot = _slot(line, bounds, offsets)
        if slot is None:
            parts.append(f"{text} {gauges.get(line.name) or _idle(line)}")
        else:
            slots.append(group * size + slot)
            parts.append(f"{text} %s")
    groups = source.ranks + (source.ranks > 1)
    return Compiled("\n".join([*parts, ""]), itemgetter(*slots), _rare(source, setting, size), (used,) * groups)


def _slot(line: Line, bounds: HistogramBounds, offsets: Mapping[str, int]) -> int | None:
    """Where the value of a sample is among those of its group; None if it never moves."""
    if line.name.endswith("_created") or line.name == "process_start_time_seconds":
        return CREATED
    if line.name == "vllm:lora_requests_info":
        return NOW
    if line.name == "process_cpu_seconds_total":
        return SPENT
    if line.type == "histogram":
        return _histogram_slot(line, bounds, offsets)
    for wanted, name in SAMPLES.get(line.name, ()):
        if all(line.labels.get(label, value) == value for label, value in wanted.items()):
            return THROUGHPUT if name == "throughput" else _SCALAR_AT[name]
    return None


def _histogram_slot(line: Line, bounds: HistogramBounds, offsets: Mapping[str, int]) -> int | None:
    if any(line.labels.get(label, value) != value for label, value in MODELLED_PARTS.items()):
        return None
    if line.family == ANSWERS_ASKED_FOR:
        return offsets["e2e"] + len(bounds.e2e)
    name = HISTOGRAMS.get(line.family)
    if name is None:
        return None
    own: tuple[float, ...] = getattr(bounds, name)
    if line.name.endswith("_bucket"):
        le = float(line.labels["le"])
        return offsets[name] + (own.index(le) if le in own else len(own))
    return offsets[name] + len(own) + line.name.endswith("_sum")


def _idle(line: Line) -> str:
    if line.labels.get("sleep_state") == "awake":
        return "1.0"
    return IDLE.get(line.name, "0.0")


def _settled(setting: Setting) -> dict[str, str]:
    """The gauges that follow from the configuration."""
    memory = setting.memory
    return {
        "sglang:max_total_num_tokens": written(setting.total_blocks * setting.block_tokens),
        "sglang:page_size": written(setting.block_tokens),
        "sglang:num_pages": written(setting.total_blocks),
        "sglang:context_len": written(setting.longest),
        "sglang:weight_memory_usage_gb": written(memory.weights / GIB if memory else 0.0),
        "sglang:kv_cache_memory_usage_gb": written(memory.kv_pool / GIB if memory else 0.0),
    }


def _labelled(line: Line, setting: Setting, ranks: int) -> str:
    """A line with the model's name, and with the configuration in the labels of info metrics."""
    tokens = setting.total_blocks * setting.block_tokens
    shown = {"model_name": setting.model}
    if line.name == "vllm:cache_config_info":
        shown |= {
            "block_size": str(setting.block_tokens),
            "effective_attention_block_size": str(setting.block_tokens),
            "enable_prefix_caching": str(setting.prefix_caching),
            "gpu_memory_utilization": str(setting.utilisation),
            "kv_cache_max_concurrency": str(tokens / setting.longest),
            "kv_cache_memory_bytes": "None",
            "kv_cache_size_tokens": str(tokens),
            "num_gpu_blocks": str(setting.total_blocks * ranks),  # of all replicas, exposed by each
            "num_gpu_blocks_override": "None",
        }
    elif line.name == "sglang:cache_config_info":
        shown |= {"num_pages": str(setting.total_blocks), "page_size": str(setting.block_tokens)}
    changed = {label: shown.get(label, value) for label, value in line.labels.items()}
    return _series(line.name, changed) if changed != line.labels else line.text


def _series(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items())
    return f"{name}{{{inside}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _rare(source: Template, setting: Setting, size: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The families that appear with their first event and that the capture does not have."""
    if source.engine != "sglang" or source.release in WITHOUT_FIRST_EVENTS:
        return ()
    present = {line.name for line in source.lines}
    found = []
    for name, text, value in FIRST_EVENTS:
        if name in present:
            continue
        typical = TYPICAL[value == "abort"]
        series: dict[str, int] = {}
        for line in source.lines:
            if line.name == typical:
                rank = rank_of(line)
                group = source.ranks if rank is None and source.ranks > 1 else rank or 0
                labels = {key: value for key, value in line.labels.items() if key != "is_streaming"}
                series[_series(name, labels | {"model_name": setting.model})] = group * size + _SCALAR_AT[value]
        lines = [f"# HELP {name} {text}", f"# TYPE {name} counter", *(f"{one.replace('%', '%%')} %s" for one in series)]
        found.append(("\n".join([*lines, ""]), tuple(series.values())))
    return tuple(found)
