"""Memory in huge pages: where it is asked for, of what, and that a service then has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from exporter_process import Exporter
from llm_headroom.commands import huge_pages

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = huge_pages.PAGE


def kernel(folder: Path, mode: str = "always [madvise] never", size: str = str(PAGE)) -> Path:
    """A folder with what a kernel says of huge pages."""
    (folder / "enabled").write_text(f"{mode}\n", encoding="ascii")
    (folder / "hpage_pmd_size").write_text(f"{size}\n", encoding="ascii")
    return folder


@pytest.mark.parametrize("mode", ["always [madvise] never", "[always] madvise never"])
def test_huge_pages_are_asked_for_where_the_kernel_gives_them(tmp_path: Path, mode: str) -> None:
    assert huge_pages.given({}, kernel(tmp_path, mode))
    assert huge_pages.given({"PYTHONMALLOC": "pymalloc"}, kernel(tmp_path, mode))


@pytest.mark.parametrize(
    ("mode", "size", "environment"),
    [
        ("always madvise [never]", str(PAGE), {}),
        ("always [madvise] never", str(512 * 1024 * 1024), {}),  # a kernel for ARM with pages of 64 KiB
        ("always [madvise] never", "", {}),
        ("always [madvise] never", str(PAGE), {"PYTHONMALLOC": "malloc"}),
        ("always [madvise] never", str(PAGE), {"PYTHONMALLOC": "debug"}),
    ],
)
def test_no_room_is_made_where_it_would_not_be_in_huge_pages(
    tmp_path: Path, mode: str, size: str, environment: Mapping[str, str]
) -> None:
    assert not huge_pages.given(environment, kernel(tmp_path, mode, size))


def test_a_system_that_does_not_know_of_huge_pages_gives_none(tmp_path: Path) -> None:
    assert not huge_pages.given({}, tmp_path)


@pytest.mark.parametrize(
    ("limit", "spare"), [("max", True), (str(128 * 1024 * 1024), True), (str(64 * 1024 * 1024), False), ("0", False)]
)
def test_no_room_is_made_where_a_container_has_little_memory(tmp_path: Path, limit: str, *, spare: bool) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n", encoding="ascii")
    limits = (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes")
    assert huge_pages.given({}, kernel(tmp_path), limits) is spare


def test_a_service_begins_where_there_is_no_memory_for_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def room() -> tuple[bytes, ...]:
        raise MemoryError

    monkeypatch.setattr(huge_pages, "given", lambda _: True)
    monkeypatch.setattr(huge_pages, "room", room)
    assert huge_pages.begin("run") == ()


@pytest.mark.parametrize("command", ["", "check", "top", "demo", "health"])
def test_only_a_service_takes_more_memory(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(huge_pages, "given", lambda _: True)
    assert huge_pages.begin(command) == ()


def mapping(start: int, end: int, resident: int, what: str = "rw-p 00000000 00:00 0") -> list[str]:
    """Lines of a mapping in /proc/<pid>/smaps; `resident` in KiB."""
    return [
        f"{start:x}-{end:x} {what}\n",
        f"Size:           {(end - start) // 1024} kB\n",
        "KernelPageSize:        4 kB\n",
        f"Rss:            {resident} kB\n",
        f"Pss:            {resident} kB\n",
        "VmFlags: rd wr mr mw me ac\n",
    ]


def test_whole_pages_of_heaps_alone_are_asked_for() -> None:
    begin = 64 * PAGE
    lines = [
        *mapping(begin - 4096, begin + 3 * PAGE + 8192, 6148, "rw-p 00000000 00:00 0    [heap]"),
        *mapping(begin + 10 * PAGE, begin + 12 * PAGE, 4096),
        *mapping(begin + 20 * PAGE + 4096, begin + 21 * PAGE + 4096, 2048),  # no whole one
        *mapping(begin + 30 * PAGE, begin + 34 * PAGE, 132),  # a thread's stack
        *mapping(begin + 40 * PAGE, begin + 42 * PAGE, 4096, "r-xp 00000000 00:00 0"),
        *mapping(begin + 50 * PAGE, begin + 52 * PAGE, 4096, "rw-s 00000000 00:00 0"),
        *mapping(
            begin + 60 * PAGE, begin + 62 * PAGE, 4096, "rw-p 00001000 fe:00 7    /usr/lib/libcrypto.so.3 (deleted)"
        ),
        *mapping(begin + 70 * PAGE, begin + 72 * PAGE, 4096, "rw-p 00000000 00:00 0    [stack]"),
    ]
    assert list(huge_pages.whole_pages(lines)) == [
        (begin, begin + 3 * PAGE),
        (begin + 10 * PAGE, begin + 12 * PAGE),
    ]


def in_huge_pages(process: int) -> int:
    """KiB of a process's memory."""
    found = re.search(r"\nAnonHugePages: +(\d+) kB\n", Path(f"/proc/{process}/smaps_rollup").read_text("ascii"))
    assert found is not None
    return int(found[1])


def test_a_service_lies_in_huge_pages() -> None:
    if not huge_pages.given({}):
        pytest.skip("this kernel gives no huge pages to who asks (/sys/kernel/mm/transparent_hugepage)")
    with Exporter("--no-gpu", strict=False) as exporter:
        assert in_huge_pages(exporter.process.pid) * 1024 > (huge_pages.SMALL + huge_pages.LARGE) * 3 // 4


def test_a_service_starts_where_somebody_has_chosen_an_allocator() -> None:
    with Exporter("--no-gpu", strict=False, extra={"PYTHONMALLOC": "malloc"}) as exporter:
        assert exporter.get("/-/healthy")[0] == 200
