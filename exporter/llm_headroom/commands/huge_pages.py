"""A service's memory in huge pages.

A service sleeps between polls, and between the chunks of a stream. When it wakes on an idle machine, the processor no
longer knows where memory lies, and in a virtual machine has to look in two trees of tables for each page of 4 KiB. With
pages of 2 MiB there are 20 to look for in place of 9,000 (bench/README.md says what that saves).

The kernel makes them of memory in one piece (Documentation/admin-guide/mm/transhuge.rst, madvise(2)). Python asks
for 1 MiB at a time, wherever there is a place (python/cpython, Objects/obmalloc.c, arenas). So the room that modules
will take is made at the beginning, before libraries are mapped in between, and given back but for an object in each
arena, with which it stays.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SERVICES: Final = frozenset({"run", "proxy"})
"""The commands that go on until they are ended."""
KERNEL: Final = Path("/sys/kernel/mm/transparent_hugepage")
LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of a container, in control groups of version 2 and 1."""
SPARE: Final = 128 * 1024 * 1024
"""Bytes of a limit below which no memory is to spare."""
PAGE: Final = 2 * 1024 * 1024
"""Bytes of a huge page. Larger ones, such as those of 512 MiB of some kernels for ARM, hold more than we need."""
SMALL: Final = 24 * 1024 * 1024
LARGE: Final = 12 * 1024 * 1024
"""Bytes in objects that Python keeps in arenas, and in larger ones, which malloc has. Modules take 19 and 10;
the rest is for what hundreds of streams or a few targets need, which is touched most."""
_SMALL_OBJECT: Final = 512
"""Bytes of the largest object that is in an arena."""
_LARGE_OBJECT: Final = 4096
_ARENA: Final = 1024 * 1024
_HUGEPAGE: Final = 14
"""From now on, and in time where there are small ones (linux, include/uapi/asm-generic/mman-common.h)."""
_COLLAPSE: Final = 25
"""At once; known to Linux from 6.1 on."""


def given(environment: Mapping[str, str], kernel: Path = KERNEL, limits: Sequence[Path] = LIMITS) -> bool:
    """Whether the kernel gives huge pages to who asks, there is memory to spare, and Python's is where we look for it.

    Args:
        environment: In which `PYTHONMALLOC` names another allocator.
        kernel: Where the kernel says which huge pages it gives.
        limits: Files with the most bytes that the container may have; `max`, or none, for no limit.
    """
    if any(_limit(each) < SPARE for each in limits):
        return False
    try:
        mode = (kernel / "enabled").read_text(encoding="ascii")
        size = int((kernel / "hpage_pmd_size").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    usual = environment.get("PYTHONMALLOC", "pymalloc") == "pymalloc" and "t" not in getattr(sys, "abiflags", "")
    return usual and size == PAGE and "[never]" not in mode


def _limit(file: Path) -> float:
    """Bytes; read here and not by `host.cgroup`, with which much would be imported before there is room for it."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return math.inf


def room() -> tuple[bytes, ...]:
    """Room in huge pages for what is imported from now on, for as long as the result is kept."""
    small, large = _made(SMALL, _SMALL_OBJECT), _made(LARGE, _LARGE_OBJECT)
    settle()
    # Two in an arena, so that there is one in each, and malloc's last one: it would give the kernel back what is above.
    return (*small[:: _ARENA // _SMALL_OBJECT // 2], large[-1])


def _made(size: int, each: int) -> list[bytes]:
    made = [b""] * (size // each)  # of this length from the beginning: a list that grows leaves gaps behind
    for index in range(len(made)):
        made[index] = bytes(each - sys.getsizeof(b""))
    return made


def settle() -> None:
    """Has the memory that is in use by now put into huge pages."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415 - most commands do without

        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        with Path("/proc/self/smaps").open(encoding="utf-8", errors="replace") as mappings:
            pieces = tuple(whole_pages(mappings))
        for start, end in pieces:
            for wish in (_HUGEPAGE, _COLLAPSE):  # what cannot be had is as it was
                advise(start, end - start, wish)


def whole_pages(mappings: Iterable[str]) -> Iterator[tuple[int, int]]:
    """First byte and end of each run of whole huge pages in the mappings (proc_pid_smaps(5)) that are a heap.

    Stacks of threads are not: little of them is in use, and in huge pages all of it would be.
    """
    start = end = 0
    for line in mappings:
        words = line.split()
        if not words[0].endswith(":"):
            addresses, rights, _, _, inode, *name = words
            first, _, last = addresses.partition("-")
            heap = rights == "rw-p" and inode == "0" and name in ([], ["[heap]"])
            start, end = (int(first, 16), int(last, 16)) if heap else (0, 0)
        elif words[0] == "Rss:" and int(words[1]) * 1024 * 2 > end - start:
            start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
            if start < end:
                yield start, end


def begin(command: str) -> tuple[bytes, ...]:
    """Room for a service, see `room`; none for a command that ends before it pays, or where there are no huge pages."""
    if command not in SERVICES or not given(os.environ):
        return ()
    try:
        return room()
    except MemoryError:  # as with `ulimit -v`: then in small pages, as far as they go
        return ()
