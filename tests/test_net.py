"""What every room builds on: files that change, and httpx without what it does not need."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import bounded
from llm_headroom.net import loop
from llm_headroom.net.accept import Accepting
from llm_headroom.net.descriptors import Shares, shares, usable
from llm_headroom.net.files import stamp
from llm_headroom.net.listen import visited

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_file_that_is_rewritten_or_replaced_has_another_stamp(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    first = stamp(file)
    assert stamp(file) == first

    file.write_text("other")
    second = stamp(file)
    replacement = tmp_path / "next"
    replacement.write_text("third")
    replacement.replace(file)

    assert len({first, second, stamp(file)}) == 3


def test_a_link_that_is_turned_changes_the_file_behind_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    (tmp_path / "now").symlink_to("a")
    first = stamp(tmp_path / "now" / "token")
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").replace(tmp_path / "now")

    assert stamp(tmp_path / "now" / "token") != first


def test_a_file_that_is_not_there_has_no_stamp(tmp_path: Path) -> None:
    assert stamp(tmp_path / "none") is None


@pytest.mark.parametrize("module", ["llm_headroom.commands.run", "llm_headroom.commands.health"])
def test_a_command_loads_httpx_without_its_command_line(module: str) -> None:
    unwanted = ("rich", "pygments", "httpx._main")
    program = f"import sys, {module}; print('httpx' in sys.modules, [n for n in {unwanted} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"


def test_httpx_as_a_whole_can_still_be_loaded_afterwards() -> None:
    program = "import llm_headroom.net.lean_httpx, httpx._main; print(callable(httpx._main.main))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(("soft", "hard"), [(64, 64), (64, 500), (500, 500)])
def test_the_limit_of_descriptors_is_raised_as_far_as_that_is_allowed(soft: int, hard: int) -> None:
    program = (
        "import resource; from llm_headroom.net.descriptors import available; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "print(available(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{hard} {hard} {hard}\n"


def test_no_more_descriptors_are_wanted_than_all_clients_of_proxies_and_thousands_of_targets_take() -> None:
    assert [usable(most) for most in (64, 36_000, 37_000, 1 << 20, -1)] == [64, 36_000, 36_864, 36_864, 36_864]


@pytest.mark.parametrize(
    ("descriptors", "targets", "expected"),
    [
        (64, 1, Shares(own=16, proxied=16)),
        (64, 1000, Shares(own=16, proxied=16)),
        (8, 0, Shares(own=4, proxied=2)),
        (1024, 4, Shares(own=162, proxied=350)),
        (1024, 0, Shares(own=160, proxied=352)),
        (36_864, 0, Shares(own=160, proxied=16_384)),
        (36_864, 1000, Shares(own=256, proxied=16_384)),
        (36_864, 4000, Shares(own=256, proxied=16_272)),
    ],
)
def test_of_the_descriptors_the_exporter_itself_gets_what_it_needs_and_clients_of_proxies_the_rest(
    descriptors: int, targets: int, expected: Shares
) -> None:
    assert shares(descriptors, targets) == expected


def test_the_service_s_loop_looks_names_up_in_the_executor_that_is_set_for_that() -> None:
    asked: list[object] = []

    class Names(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - the base's
            asked.extend(args)
            return super().submit(fn, *args, **kwargs)

    async def service() -> None:
        here = asyncio.get_running_loop()
        here.set_default_executor(Names(1))
        found = await here.getaddrinfo("localhost", 80, family=socket.AF_INET, type=socket.SOCK_STREAM)
        assert [address for *_, address in found] == [("127.0.0.1", 80)]

    loop.run(service())
    assert "localhost" in asked


class Short(socket.socket):
    """A listener for whose connections descriptors are short: three tries for the first, two for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self.bind(("127.0.0.1", 0))
        self.listen()
        self.setblocking(False)  # noqa: FBT003 - the method takes it by position alone

    def accept(self) -> tuple[socket.socket, Any]:
        """A connection, at the fourth and sixth try."""
        self.tries += 1
        if self.tries in {4, 6}:
            return super().accept()
        raise OSError(errno.EMFILE, "Too many open files")


def test_where_no_connection_can_be_had_that_is_said_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llm_headroom.net.accept._WAIT_SECONDS", 0.0)

    async def service() -> None:
        with Short() as listener:
            taken: asyncio.Queue[socket.socket] = asyncio.Queue()
            accepting = Accepting(listener, taken.put_nowait)
            for said in (1, 2):
                with socket.create_connection(listener.getsockname()), await taken.get() as connection:
                    assert connection.gettimeout() == 0.0
                assert len(caplog.records) == said
            accepting.close()

    bounded.run(service())
    assert {record.getMessage() for record in caplog.records} == {"connections cannot be accepted"}
    assert caplog.records[0].__dict__["error"] == "Too many open files"


def test_who_is_closed_while_no_connection_can_be_had_does_not_try_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llm_headroom.net.accept._WAIT_SECONDS", 0.02)

    async def service() -> None:
        with Short() as listener:
            accepting = Accepting(listener, socket.socket.close)
            with socket.create_connection(listener.getsockname()):
                while not listener.tries:  # noqa: ASYNC110 - nothing says when a connection was not to be had
                    await asyncio.sleep(0)
                accepting.close()
        later = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, later.set)  # after the look that would come
        await later.wait()

    bounded.run(service())
    assert [record.getMessage() for record in caplog.records] == ["connections cannot be accepted"]


@pytest.mark.parametrize(
    ("bound", "shown"),
    [
        ("[::]:9836", "localhost:9836"),
        ("0.0.0.0:9836", "localhost:9836"),
        ("127.0.0.1:9836", "127.0.0.1:9836"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth0]:80"),
    ],
)
def test_an_address_that_is_printed_can_be_visited(bound: str, shown: str) -> None:
    assert visited(bound) == shown
