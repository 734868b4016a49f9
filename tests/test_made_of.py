"""What is made of files: made again when they change, in threads, and without waiting for a disk that hangs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING

import pytest

import bounded
from llm_headroom.net import made_of
from llm_headroom.net.made_of import MadeOf, beside
from llm_headroom.net.workers import MOST_WAITING, Workers
from no_threads import no_threads

if TYPE_CHECKING:
    from collections.abc import Iterator


class Disk:
    """A disk that may hang; `asked` is released for each look at one of its files."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Semaphore(0)

    def file(self, path: Path) -> Path:
        """A file on it."""
        disk = self

        class There(PosixPath):
            def __fspath__(self) -> str:
                disk.asked.release()
                disk.answers.wait(bounded.LIMIT)
                return super().__fspath__()

        return There(path)


@pytest.fixture
def disk() -> Iterator[Disk]:
    """It answers at the end."""
    made = Disk()
    yield made
    made.answers.set()


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads for files that no other test uses."""
    monkeypatch.setattr(made_of, "_READING", Workers("files", 2, shared=True))


def text(file: Path) -> str:
    """What it holds, and a thread of its own to be read in."""
    assert threading.current_thread() is not threading.main_thread()
    return Path(file).read_text()


def test_it_is_made_once_until_a_file_changes(tmp_path: Path) -> None:
    file, made = tmp_path / "file", list[str]()

    def make(word: str) -> str:
        made.append(word + file.read_text())
        return made[-1]

    async def test() -> None:
        it = MadeOf((file, tmp_path / "none"), make, "see ")
        file.write_text("one")
        assert [await it.now(), await it.now()] == ["see one", "see one"]
        file.write_text("three")
        assert await it.now() == "see three"

    bounded.run(test())
    assert made == ["see one", "see three"]


def test_what_needs_no_file_is_made_once() -> None:
    async def test() -> None:
        it = MadeOf((), list[str])
        with no_threads():
            assert await it.now() is await it.now()

    bounded.run(test())


def test_what_cannot_be_made_is_tried_again_and_is_not_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"

    async def test() -> None:
        it = MadeOf((file,), text, file)
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                await it.now()
        file.write_text("one")
        assert await it.now() == "one"
        file.unlink()
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                await it.now()

    bounded.run(test())


def test_while_a_disk_hangs_it_is_what_it_was(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(made_of, "PATIENCE", 0.01)
    (tmp_path / "file").write_text("one")
    file = disk.file(tmp_path / "file")

    async def test() -> None:
        its = [MadeOf((file,), text, file) for _ in range(3)]
        assert [await it.now() for it in its] == ["one"] * 3
        disk.answers.clear()
        (tmp_path / "file").write_text("three")
        for _ in range(3):
            assert [await it.now() for it in its] == ["one"] * 3
            assert all(it.reading for it in its)
        disk.answers.set()
        monkeypatch.setattr(made_of, "PATIENCE", bounded.LIMIT)
        for it in its:
            while await it.now() != "three":  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)

    bounded.run(test())
    (said,) = [vars(each)["files"] for each in caplog.records]
    assert said == str(tmp_path / "file")


def test_one_that_was_never_read_is_waited_for_by_whoever_asks_alone(tmp_path: Path, disk: Disk) -> None:
    file, other = disk.file(tmp_path / "file"), tmp_path / "other"
    (tmp_path / "file").write_text("one")
    other.write_text("two")

    async def test() -> None:
        disk.answers.clear()
        it = MadeOf((file,), text, file)
        asking = [asyncio.create_task(it.now()) for _ in range(2)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await it.now()
        assert await MadeOf((other,), text, other).now() == "two"
        assert not any(each.done() for each in asking)
        disk.answers.set()
        assert await asyncio.gather(*asking) == ["one", "one"]

    bounded.run(test())


def test_one_file_takes_one_thread_however_many_use_it(tmp_path: Path, disk: Disk) -> None:
    file, other = disk.file(tmp_path / "file"), tmp_path / "other"
    (tmp_path / "file").write_text("one")
    other.write_text("two")

    async def test() -> None:
        disk.answers.clear()
        asking = [asyncio.create_task(MadeOf((file,), text, file).now()) for _ in range(2 * MOST_WAITING)]
        assert await asyncio.to_thread(disk.asked.acquire, timeout=bounded.LIMIT)
        assert await MadeOf((other,), text, other).now() == "two"
        disk.answers.set()
        assert set(await asyncio.gather(*asking)) == {"one"}

    bounded.run(test())


def test_beyond_those_that_may_wait_what_is_known_goes_on_and_what_is_not_is_refused(
    tmp_path: Path, disk: Disk
) -> None:
    known, unknown = tmp_path / "known", tmp_path / "unknown"
    known.write_text("one")

    async def test() -> None:
        it = MadeOf((known,), text, known)
        assert await it.now() == "one"
        disk.answers.clear()
        files = [disk.file(tmp_path / str(number)) for number in range(MOST_WAITING + 2)]
        asking = [asyncio.create_task(MadeOf((file,), str).now()) for file in files]
        for _ in range(2):
            assert await asyncio.to_thread(disk.asked.acquire, timeout=bounded.LIMIT)
        assert await it.now() == "one"
        with pytest.raises(OSError, match="too many files are waited for: does a disk hang"):
            await MadeOf((unknown,), text, unknown).now()
        disk.answers.set()
        await asyncio.gather(*asking)

    bounded.run(test())


def test_without_a_thread_files_are_read_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "file"

    async def test() -> None:
        it = MadeOf((file,), Path.read_text, file)
        with no_threads():
            for word in ("one", "three"):
                file.write_text(word)
                assert [await it.now(), await beside(Path.read_text, file)] == [word, word]
            file.unlink()
            for _ in range(2):
                with pytest.raises(FileNotFoundError):
                    await it.now()

    bounded.run(test())
