"""The exporter's own process, under the names that dashboards and alerts for any Prometheus exporter use.

Names and meanings are those of prometheus-client's collectors: CPU, memory and files of the process, Python's version,
garbage collection. These make all families anew and read three files at each scrape; here series are made once, and
what does not change is read once.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import platform
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_headroom import schema
from llm_headroom.host.proc import Proc, text_of
from llm_headroom.model import Common, point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llm_headroom.model import Metric, Point

log = logging.getLogger("llm_headroom")

_LABELS: Final = Common({})
_VERSION: Final = dict(zip(("major", "minor", "patchlevel"), platform.python_version_tuple(), strict=True))
_COLLECTIONS: Final = (
    (schema.GC_COLLECTED, "collected"),
    (schema.GC_UNCOLLECTABLE, "uncollectable"),
    (schema.GC_COLLECTIONS, "collections"),
)


class ProcessSeries:
    """Reads this process again at each call of `points`; `proc` is where the kernel's procfs is mounted."""

    def __init__(self, proc: str = "/proc") -> None:
        self._folder = f"{proc}/self"
        kernel = Proc(Path(proc))
        stat = kernel.stat("self")
        self._started = (stat and kernel.started(stat)) or 0.0
        kernel_parts = [self._process, self._files] if self._started else []  # none without procfs
        self._parts: list[Callable[[], Iterable[Point]]] = [*kernel_parts, _python]

    def points(self) -> list[Point]:
        """What is read now. A part that fails is logged and read no more; the others go on."""
        points: list[Point] = []
        for part in tuple(self._parts):
            try:
                points += part()
            except Exception:
                log.exception("own process not read", extra={"part": part.__name__})
                self._parts.remove(part)
        return points

    def _process(self) -> list[Point]:
        pages = text_of(f"{self._folder}/statm").split(None, 2)
        size, resident = (float(number) * resource.getpagesize() for number in pages[:2])
        cpu = time.process_time()
        return [
            _said(schema.PROCESS_CPU, cpu),
            _said(schema.EXPORTER_CPU, cpu),
            _said(schema.PROCESS_MEMORY, resident),
            _said(schema.EXPORTER_MEMORY, resident),
            _said(schema.PROCESS_VIRTUAL_MEMORY, size),
            _said(schema.PROCESS_START, self._started),
        ]

    def _files(self) -> list[Point]:
        opened = len(os.listdir(f"{self._folder}/fd"))  # noqa: PTH208 - much faster
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = math.inf if limit == resource.RLIM_INFINITY else float(limit)
        return [_said(schema.PROCESS_FILES, float(opened)), _said(schema.PROCESS_FILES_LIMIT, most)]


def _python() -> list[Point]:
    implementation, version = platform.python_implementation(), platform.python_version()
    said = [_said(schema.PYTHON_INFO, 1.0, implementation=implementation, version=version, **_VERSION)]
    for generation, counts in enumerate(gc.get_stats()):
        said += [_said(metric, float(counts[name]), generation=str(generation)) for metric, name in _COLLECTIONS]
    return said


def _said(metric: Metric, value: float, **labels: str) -> Point:
    return point(metric, value, "process", _LABELS, **labels)
